"""An app whose at-fork handlers hang where a file `hang.PLACE` says so, and note `hangs.PLACE.PID` when they do.

Python's run in the zygote and in the worker; in the intermediate process only a handler in C runs, before the second fork.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

from tests.system.apps.sample_apps import answer

ZYGOTE = os.getpid()


def _hang(place: str) -> None:
    if Path(f"hang.{place}").exists():
        Path(f"hangs.{place}.{os.getpid()}").touch()
        threading.Event().wait()


@ctypes.CFUNCTYPE(None)
def _before_any_fork() -> None:
    if os.getpid() != ZYGOTE:
        _hang("second fork")


_libc = ctypes.CDLL(None)
# glibc keeps pthread_atfork in its static part.
getattr(_libc, "pthread_atfork" if hasattr(_libc, "pthread_atfork") else "__register_atfork")(
    _before_any_fork, None, None, None
)
os.register_at_fork(
    before=lambda: _hang("zygote"),
    after_in_parent=lambda: _hang("zygote after"),
    after_in_child=lambda: _hang("worker"),
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer "hello"."""
    if scope["type"] == "http":
        await answer(send, b"hello")
