"""An app whose at-fork handlers hang where a file `hang.PLACE` says so, and note `hangs.PLACE.PID` when they do."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from tests.system.sample_apps import answer

ZYGOTE = os.getpid()


def _hang(place: str) -> None:
    if Path(f"hang.{place}").exists():
        Path(f"hangs.{place}.{os.getpid()}").touch()
        threading.Event().wait()


def _before() -> None:
    _hang("zygote" if os.getpid() == ZYGOTE else "second fork")


def _in_child() -> None:
    _hang("intermediate" if os.getppid() == ZYGOTE else "worker")


os.register_at_fork(before=_before, after_in_parent=lambda: _hang("zygote after"), after_in_child=_in_child)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer "hello"."""
    if scope["type"] == "http":
        await answer(send, b"hello")
