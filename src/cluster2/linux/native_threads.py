"""Threads that were started outside of Python, and which library runs each of them.

A fork copies the calling thread only. The threads of a library are gone in the child, and the library may not know: libgomp
(OpenMP in code that gcc compiles) waits for its pool at the end of the next parallel region, for ever. Others replace their
threads after a fork (`pthread_atfork`): OpenBLAS, which NumPy's import starts, and the OpenMP of LLVM and Intel. A thread's name
doesn't identify the library, since most have the name of the process.

Its stack does: somewhere at its base is a return address in the function that it was started with. The kernel shows where the
stack of a waiting thread is (`/proc/self/task/TID/syscall`), and the memory is this process's own. Libraries that each thread has
on its stack (libc, Python) don't count. A thread that runs just now shows nothing. OpenBLAS's threads spin for some ten
milliseconds when they have nothing to do, so the check is repeated for _THREAD_WAIT_TIMEOUT_S.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_THREAD_WAIT_TIMEOUT_S = 0.5
"""Seconds to wait until a thread that runs waits for something."""
_STACK_BYTES = 1 << 16
"""Bytes of a stack that are read, from its top. A waiting thread uses a few KiB."""
_EVERYWHERE = ("libc.", "libc-", "ld-", "libpthread", "libpython", "python", "libstdc++", "libgcc_s", "[vdso]")
_REPLACED = ("libopenblas", "libscipy_openblas", "libomp", "libiomp5", "libmkl")
"""Libraries that replace their threads after a fork, by the beginning of their name."""


class NativeThread(NamedTuple):
    """A thread that Python has not started.

    Attributes:
        name: its own, usually the process's.
        library: the file that it was started from; "" if none is known, None if the kernel doesn't show it.
    """

    name: str
    library: str | None

    @property
    def is_replaced(self) -> bool:
        """True if its library replaces it after a fork."""
        return (self.library or "").startswith(_REPLACED)


class _Mapping(NamedTuple):
    first: int
    end: int
    executable: bool
    name: str


def native_threads() -> list[NativeThread]:
    """Return the threads of this process that Python doesn't know, oldest first."""
    known = {os.getpid(), *(thread.native_id for thread in threading.enumerate())}
    found = []
    for tid in sorted(map(int, os.listdir("/proc/self/task"))):
        if tid not in known:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                found.append(_stack_of(tid))
    return found


def _stack_of(tid: int) -> NativeThread:
    with open(f"/proc/self/task/{tid}/comm") as file:
        name = file.read().rstrip("\n")
    deadline = time.monotonic() + _THREAD_WAIT_TIMEOUT_S
    while (top := _stack_top(tid)) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    try:
        return NativeThread(name, _library(top) if top else None if top == 0 else "")
    except PermissionError:
        return NativeThread(name, None)


def _stack_top(tid: int) -> int | None:
    """Return the stack pointer of a thread; None if it runs just now, 0 if the kernel doesn't show it."""
    try:
        with open(f"/proc/self/task/{tid}/syscall") as file:
            words = file.read().split()
    except (PermissionError, FileNotFoundError):
        if not os.path.exists(f"/proc/self/task/{tid}"):
            raise
        return 0  # some kernels don't have that file (gVisor)
    return int(words[-2], 16) if words[0] != "running" else None


def _library(top: int) -> str:
    """Return the name of the file that a thread was started from, by what is on its stack."""
    mappings = _mappings()
    libraries = [library for word in _stack(top, mappings) if (library := _code_at(word, mappings))]
    # A library that is known to replace its threads may call through others.
    return next((each for each in libraries if each.startswith(_REPLACED)), libraries[-1] if libraries else "")


def _stack(top: int, mappings: Sequence[_Mapping]) -> Iterator[int]:
    # The stack of a thread is one mapping, and its base is the end of that.
    end = next((mapping.end for mapping in mappings if mapping.first <= top < mapping.end), top)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        data = os.pread(memory, min(end - top, _STACK_BYTES), top)
    except OSError:  # it has ended meanwhile
        data = b""
    finally:
        os.close(memory)
    size = struct.calcsize("P")
    return (word for (word,) in struct.iter_unpack("P", data[: len(data) // size * size]))


def _code_at(address: int, mappings: Sequence[_Mapping]) -> str:
    for mapping in mappings:
        if mapping.executable and mapping.first <= address < mapping.end:
            return "" if mapping.name.startswith(_EVERYWHERE) else mapping.name
    return ""


def _mappings() -> list[_Mapping]:
    found = []
    with open("/proc/self/maps") as file:
        for line in file:
            place, rights, *rest = line.split(maxsplit=5)
            first, _, end = place.partition("-")
            path = rest[-1].rstrip("\n") if len(rest) == 4 else ""
            found.append(_Mapping(int(first, 16), int(end, 16), "x" in rights, os.path.basename(path)))
    return found
