"""The inbox of the master."""

from __future__ import annotations

import asyncio

import pytest

from cluster2.errors import AppError
from cluster2.processes.master.state.inbox import GenerationFailed, Inbox, InboxMessage, StartFailed, Tick

pytestmark = pytest.mark.anyio


async def test_failures_overtake() -> None:
    """Failures come before all other messages; each kind keeps its order."""
    inbox = Inbox()
    first, second = StartFailed(AppError("first")), GenerationFailed(2, AppError("second"))
    posted: list[InboxMessage] = [Tick(), first, Tick(), second]
    for message in posted:
        inbox.post(message)
    assert inbox.has_failures()
    assert inbox.next_failure() is first
    assert [await inbox.get() for _ in range(3)] == [second, Tick(), Tick()]
    assert not inbox.has_failures()
    assert inbox.next_failure() is None


async def test_a_message_wakes_the_reader() -> None:
    """A reader that waits gets the message that is posted later, also after it was cancelled once."""
    inbox = Inbox()
    reading = asyncio.ensure_future(inbox.get())
    await asyncio.sleep(0)
    reading.cancel()
    reading = asyncio.ensure_future(inbox.get())
    await asyncio.sleep(0)
    inbox.post(Tick())
    assert await asyncio.wait_for(reading, 5) == Tick()
