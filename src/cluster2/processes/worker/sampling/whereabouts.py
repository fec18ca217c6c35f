"""Describes the work of a worker: the request that holds its loop, those that hold threads, and the tasks of its loop.

`linux.stacks` shows the stacks of threads. A coroutine that waits is on no thread's stack, and no frame says for which request it
works. So when the master requests stacks (SIGURG), a Python signal handler appends this description. It runs in the main thread
between two bytecodes, or when a system call is interrupted, so also while a handler spins or sleeps on the loop. It doesn't run
while the main thread is in C code that neither returns nor checks for signals.

Requests pay nothing for this. An engine finds the request of a frame in the frame in which it calls the app
(`Engine.describe_frame`).
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Sequence
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any

from ....engines.base import Engine, TimedAwaitable

_MAX_TASKS = 100
_MAX_FRAMES = 30
"""Frames shown of a task."""
_MAX_TEXT_BYTES = 1 << 16


class StackDescriber:
    """Describes the work of a worker's engines."""

    def __init__(self, engines: Sequence[Engine], loop: asyncio.AbstractEventLoop) -> None:
        """Keep the engines and their loop for `describe`."""
        self._engines = engines
        self._loop = loop

    def describe(self, frame: FrameType | None) -> str:
        """Return the description as text.

        Args:
            frame: the frame of the main thread that was interrupted.
        """
        lines = ["What it works on:", *self._held(frame), *self._threads()]
        lines += self._tasks()
        return "\n".join(lines).encode("utf-8", "backslashreplace")[:_MAX_TEXT_BYTES].decode("utf-8", "ignore")

    def _held(self, frame: FrameType | None) -> Iterator[str]:
        current = asyncio.current_task(self._loop)
        request = self._request(_outwards(frame))
        if request is not None:
            yield f"  {request} holds the loop"
        elif current is not None:
            yield f"  {current.get_name()} holds the loop"
        else:
            yield "  no task holds the loop"

    def _threads(self) -> Iterator[str]:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident == threading.main_thread().ident:
                continue
            if (request := self._request(_outwards(frame))) is not None:
                yield f"  {request} is in thread {names.get(ident, ident)}"

    def _tasks(self) -> Iterator[str]:
        tasks = sorted(asyncio.all_tasks(self._loop), key=lambda task: task.get_name())
        yield f"Tasks of its loop: {len(tasks)}" + (
            f", of which {_MAX_TASKS} are shown" if len(tasks) > _MAX_TASKS else ""
        )
        for task in tasks[:_MAX_TASKS]:
            frames = list(_inwards(task.get_coro()))
            request = self._request(frames)
            yield f"  {task.get_name()}" + (f": {request}" if request else "")
            for frame in frames[-_MAX_FRAMES:]:
                code = frame.f_code
                yield f'    File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}'

    def _request(self, frames: Iterator[FrameType] | list[FrameType]) -> str | None:
        """Return the request that one of these frames works on."""
        for frame in frames:
            for engine in self._engines:
                describe = getattr(engine, "describe_frame", None)  # an engine of another package may lack it
                if describe is not None and (found := describe(frame)) is not None:
                    return str(found)
        return None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _inwards(awaited: Any) -> Iterator[FrameType]:
    """Yield the frames of a coroutine and of all that it awaits, as far as that is Python code."""
    while awaited is not None:
        if isinstance(awaited, CoroutineType):
            frame, awaited = awaited.cr_frame, awaited.cr_await
        elif isinstance(awaited, AsyncGeneratorType):
            frame, awaited = awaited.ag_frame, awaited.ag_await
        elif isinstance(awaited, GeneratorType):
            frame, awaited = awaited.gi_frame, awaited.gi_yieldfrom
        elif isinstance(awaited, TimedAwaitable):
            awaited = awaited.inner
            continue
        else:
            awaited = _behind(awaited)
            continue
        if frame is not None:
            yield frame


def _behind(step: Any) -> Any:
    """Return the coroutine or generator behind one of its steps. No attribute has it, but the garbage collector does."""
    import gc

    if type(step).__name__ not in ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper"):
        return None
    return next((each for each in gc.get_referents(step) if isinstance(each, AsyncGeneratorType | CoroutineType)), None)
