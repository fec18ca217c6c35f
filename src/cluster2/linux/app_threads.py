"""Threads that call the app: they keep no process from ending, but the threads that the app starts in them are no daemons.

A thread inherits `daemon` from the thread that starts it (`threading.Thread.__init__` reads `current_thread().daemon`). A call of
the app may hang for ever, so the threads that make such calls are daemons: else `threading._shutdown` would wait for them at the
interpreter's end. Without the classes below the app's own threads would be daemons as well, and would be cut off in their work
when the worker ends. In any other program they aren't, since the main thread is no daemon.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class AppThread(threading.Thread):
    """A daemon thread that calls the app, in which the app starts threads that are no daemons."""

    _running = False

    def __init__(self, target: Callable[..., object], *args: Any, name: str) -> None:
        super().__init__(target=target, args=args, name=name, daemon=True)

    def run(self) -> None:
        """Call the target."""
        # Not sooner: `threading` reads `daemon` in this thread before `run`, to decide about the wait at the interpreter's end.
        self._running = True
        super().run()

    @property
    def daemon(self) -> bool:  # type: ignore[override]
        """True for all threads but this one itself, which reads it when it starts another."""
        return not (self._running and threading.current_thread() is self)


def adopt_native_thread() -> None:
    """Let threads that are started in the current thread be no daemons, if a native library started the current thread.

    Python represents such a thread by a dummy, which is a daemon and can't be joined.
    """
    thread = threading.current_thread()
    if isinstance(thread, threading._DummyThread) and thread._daemonic:  # type: ignore[attr-defined]
        # Private, since the public setter refuses a thread that runs. The interpreter's end doesn't wait for a dummy, whatever
        # this says.
        thread._daemonic = False  # type: ignore[attr-defined]


def app_threads() -> list[threading.Thread]:
    """Return the threads for which a program waits at its end: those that aren't daemons, but for this and the main thread."""
    exempt = (threading.current_thread(), threading.main_thread())
    return [
        thread
        for thread in threading.enumerate()
        if not thread.daemon and thread not in exempt and not isinstance(thread, threading._DummyThread)
    ]
