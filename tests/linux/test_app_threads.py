"""Threads that call the app: the interpreter's end doesn't wait for them, but for the threads that they start."""

from __future__ import annotations

import subprocess
import sys
import threading

from cluster2.linux.app_threads import AppThread, app_threads


def test_threads_of_calls() -> None:
    """Let a thread that calls the app be a daemon for all others, while the threads that it starts are none."""
    found: list[tuple[bool, list[threading.Thread]]] = []
    leave = threading.Event()

    def call() -> None:
        started = threading.Thread(target=leave.wait)
        started.start()
        found.append((started.daemon, app_threads()))

    caller = AppThread(call, name="caller")
    assert caller.daemon
    caller.start()
    caller.join()
    assert caller.daemon
    ((daemon, waited_for),) = found
    assert not daemon
    assert "caller" not in [thread.name for thread in waited_for]
    assert [thread for thread in app_threads() if thread in waited_for]
    leave.set()


def test_the_interpreters_end() -> None:
    """End the interpreter though a call hangs, but not before a thread that it started has ended."""
    program = (
        "import threading, time\n"
        "from cluster2.linux.app_threads import AppThread\n"
        "def work():\n"
        "    time.sleep(0.3)\n"
        "    print('done', flush=True)\n"
        "started = threading.Event()\n"
        "def call():\n"
        "    threading.Thread(target=work).start()\n"
        "    started.set()\n"
        "    threading.Event().wait()\n"
        "AppThread(call, name='call').start()\n"
        "started.wait()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
