"""Apps that go on sending after their client has gone.

ASGI lets them: until version 2.4 of its specification `send` does nothing then (uvicorn and granian declare 2.3). uvicorn's does
nothing at once: it never suspends. An app that streams without an end, and doesn't wait for anything but `send`, then holds the
worker's loop for ever: nobody is served, and the app never hears that its client has gone.

So when a client goes, the request's cycle gets another flow control, which lets the loop turn with each message. Tasks that wait
for `http.disconnect`, as in Starlette's StreamingResponse, then run and end the stream. The path of a request isn't touched: a
cycle looks at its flow before it looks whether its client is there, and what it sees there is made here. (To wrap `send` would
cost each request a coroutine for each message.)

One that doesn't listen either would hold up each drain for `drain_timeout`. `end_senders` cancels it.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Iterable
from typing import Any

from .ending import readable

AT_ONCE = 100
"""Messages after which a sender is slowed down."""
PAUSE_S = 0.01
"""Seconds that each further message takes."""
LAST_MESSAGES = 3
"""An app may be just about to end: with the head of its response, a body and its end."""

logger = logging.getLogger("cluster2.worker")


class Gone:
    """The flow control of a request whose client has gone.

    Attributes:
        asked: its cycle has just asked whether it must wait, and asks next whether the client has gone.
        sent: messages since then.
        marked: how many those were when `end_senders` saw it first; None: it hasn't.
    """

    read_paused = False

    def __init__(self) -> None:
        self.asked = False
        self.sent = 0
        self.marked: int | None = None

    @property
    def write_paused(self) -> bool:
        """The cycle is to wait."""
        self.asked = True
        return True

    async def drain(self) -> None:
        """Let the loop turn."""
        self.sent += 1
        await asyncio.sleep(0 if self.sent < AT_ONCE else PAUSE_S)

    def resume_reading(self) -> None:
        """Nothing is left to be read."""

    def waits(self) -> None:
        """Return that it waits for no client (see `patience`)."""

    def is_over(self) -> bool:
        """Whether it has gone on sending since it was asked first."""
        if self.marked is None:
            self.marked = self.sent
        return self.sent > self.marked + LAST_MESSAGES


_gone: weakref.WeakSet[Gone] = weakref.WeakSet()
_kinds: dict[Any, Any] = {}
"""The class of cycles whose client has gone, by that of those whose hasn't."""


def client_gone(cycle: Any) -> None:
    """Tell a request that nobody hears its response any more."""
    cycle.disconnected = True
    if not isinstance(cycle.flow, Gone):
        cycle.flow = Gone()
        before = type(cycle)
        if before not in _kinds:
            _kinds[before] = _kind(before)
        cycle.__class__ = _kinds[before]
        _gone.add(cycle.flow)
    cycle.message_event.set()


def end_senders(tasks: Iterable[asyncio.Task[Any]]) -> int:
    """Cancel those of these tasks whose requests have gone on sending to nobody since this was called first; return how many."""
    over = [flow for flow in _gone if flow.is_over()]
    ended = 0
    for task in list(tasks) if over else []:
        frame = getattr(task.get_coro(), "cr_frame", None)
        cycle = None if frame is None else frame.f_locals.get("self")
        if getattr(cycle, "flow", None) in over and not task.done():
            assert cycle is not None
            _gone.discard(cycle.flow)
            logger.warning(
                "%s still sends, and its client has gone: it is cancelled", readable(cycle.scope["raw_path"])
            )
            task.cancel()
            ended += 1
    return ended


def _kind(kind: type[Any]) -> type[Any]:
    """Return the class of cycles whose client has gone, for a class of uvicorn's cycles."""

    def disconnected(cycle: Any) -> bool:
        # False only where `send` asks whether it should wait although nobody is there.
        asked, cycle.flow.asked = cycle.flow.asked, False
        return not asked

    def stays(cycle: Any, value: bool) -> None:
        pass  # gone for good

    return type(f"Gone{kind.__name__}", (kind,), {"disconnected": property(disconnected, stays)})
