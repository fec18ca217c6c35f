"""Delegated calls of a worker: threads, loops and the end, over a channel that the test controls."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any

import pytest

from cluster2.errors import DelegateError, DelegateTimeout
from cluster2.processes.worker.messaging.pending_calls import (
    MASTER_GONE,
    WORKER_LEAVING,
    PendingCalls,
    delegate_message,
)
from cluster2.protocol import codec, messages
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio


class Channel:
    """A channel that keeps the messages."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.said: list[Any] = []
        self.full = False
        self.has_room: Callable[[], None] = lambda: None

    def send(self, message: messages.ChannelMessage) -> None:
        self.said.append(message)


def asked(timeout: float | None = None) -> messages.Delegate:
    return delegate_message("work", 1, timeout, None, None, None)


@pytest.fixture
async def channel() -> Channel:
    return Channel()


@pytest.fixture
async def questions(channel: Channel) -> PendingCalls:
    return PendingCalls(channel)  # type: ignore[arg-type]


async def test_a_thread_asks_while_deadlines_are_looked_at(questions: PendingCalls) -> None:
    """Keep deadlines although a thread makes a call in the middle of a check of them."""

    class Busy(asyncio.Future[Any]):
        def done(self) -> bool:
            questions._open[next(questions._numbers)] = asyncio.Future(), float("inf")  # as a thread would
            return True

    questions._open[next(questions._numbers)] = Busy(), 0.0
    overdue = asyncio.ensure_future(questions.call(asked(0.01)))
    with pytest.raises(DelegateTimeout):
        await asyncio.wait_for(overdue, PATIENCE)


@pytest.mark.parametrize("reason", [WORKER_LEAVING, MASTER_GONE])
async def test_the_end(channel: Channel, questions: PendingCalls, reason: str) -> None:
    """Fail all calls with the reason when no result comes any more, in threads and on the loop, and later calls too."""
    waiting = [
        asyncio.ensure_future(asyncio.to_thread(questions.call_sync, asked())),
        asyncio.ensure_future(questions.call(asked())),
    ]
    await until(lambda: len(channel.said) == 2, "both have asked")
    questions.close(reason)
    questions.close("another reason")
    waiting.append(asyncio.ensure_future(questions.call(asked())))
    for each in waiting:
        with pytest.raises(DelegateError) as caught:
            await asyncio.wait_for(each, PATIENCE)
        assert str(caught.value) == reason


async def test_the_end_of_a_full_channel(channel: Channel, questions: PendingCalls) -> None:
    """End the wait of a thread for a full channel when the channel is closed."""
    channel.full = True
    waiting = asyncio.ensure_future(asyncio.to_thread(questions.call_sync, asked()))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    questions.close(MASTER_GONE)
    with pytest.raises(DelegateError, match="the master is gone"):
        await asyncio.wait_for(waiting, PATIENCE)


async def test_a_result_and_a_thread_that_gives_up(channel: Channel, questions: PendingCalls) -> None:
    """Drop a result that comes at the very moment in which another thread gives up, and go on."""

    class GivenUp(concurrent.futures.Future[Any]):
        def done(self) -> bool:
            before = super().done()
            self.cancel()
            return before

    questions._open[7] = GivenUp(), float("inf")
    questions.on_result(messages.CallResult(7, codec.payload(1)))
    assert not questions._open


async def test_turns_go_on_when_other_loops_are_answered(
    channel: Channel, questions: PendingCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give a waiting call its turn also if only calls of threads get results."""
    monkeypatch.setattr("cluster2.processes.worker.messaging.pending_calls.MAX_OPEN_CALLS", 1)
    thread = asyncio.ensure_future(asyncio.to_thread(questions.call_sync, asked()))
    await until(lambda: channel.said, "the thread has asked")
    waiting = asyncio.ensure_future(questions.call(asked()))
    await until(lambda: questions._turns, "it waits for its turn")
    questions.on_result(messages.CallResult(channel.said[0].number, codec.payload("first")))
    assert await asyncio.wait_for(thread, PATIENCE) == "first"
    await until(lambda: len(channel.said) == 2, "it has had its turn")
    questions.on_result(messages.CallResult(channel.said[1].number, codec.payload("second")))
    assert await asyncio.wait_for(waiting, PATIENCE) == "second"
