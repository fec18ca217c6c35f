"""Native threads, and the library that each was started from: programs of their own, since a test process has threads already."""

from __future__ import annotations

import ctypes.util
import json
import subprocess
import sys

import pytest

NATIVE = (
    "import ctypes\n"
    "libc, thread = ctypes.CDLL(None), ctypes.c_ulong()\n"
    "pause = ctypes.cast(libc.pause, ctypes.c_void_p)\n"
    "assert libc.pthread_create(ctypes.byref(thread), None, pause, None) == 0\n"
)
OPENMP = (
    "import ctypes\n"
    "nothing = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)\n"
    "ctypes.CDLL('libgomp.so.1').GOMP_parallel(nothing, None, 3, 0)\n"
)


def found_after(text: str) -> list[tuple[str, str | None, bool]]:
    """Name and library of each thread that a program finds when it has run `text`, and whether it is replaced after a fork."""
    program = (
        "import json\n"
        "from cluster2.linux.native_threads import native_threads\n"
        f"{text}\n"
        "print(json.dumps([[each.name, each.library, each.is_replaced] for each in native_threads()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    return [tuple(each) for each in json.loads(done.stdout)]


def test_none() -> None:
    """The main thread isn't counted, nor is one of `threading`."""
    text = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    assert found_after(text) == []


def test_a_thread_of_no_library() -> None:
    """A thread that Python doesn't know is found by its name; libc, which is on each stack, isn't its library."""
    text = f"{NATIVE}libc.pthread_setname_np(thread, b'native')"
    assert found_after(text) == [("native", "", False)]


def test_a_kernel_that_does_not_tell() -> None:
    """Without the kernel's word on a thread's stack its library isn't known."""
    text = f"{NATIVE}import cluster2.linux.native_threads as threads\nthreads._stack_top = lambda tid: 0"
    assert [each[1:] for each in found_after(text)] == [(None, False)]


def test_a_thread_that_python_forgets() -> None:
    """A thread that was started below `threading` counts as well."""
    text = "import _thread\nlock = _thread.allocate_lock()\nlock.acquire()\n_thread.start_new_thread(lock.acquire, ())"
    assert [each[1:] for each in found_after(text)] == [("", False)]


@pytest.mark.skipif(ctypes.util.find_library("gomp") is None, reason="there is no libgomp")
def test_openmp() -> None:
    """The threads of libgomp are identified by their library: it never replaces them."""
    assert [((library or "")[:7], replaced) for _, library, replaced in found_after(OPENMP)] == [("libgomp", False)] * 2


def test_numpy() -> None:
    """The threads that NumPy's import starts, if there are any, are replaced after a fork."""
    assert all(replaced for _, _, replaced in found_after("import numpy"))
