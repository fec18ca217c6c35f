"""The asynchronous control client, and subscribers to events.

The master responds, sends garbage, breaks off, or sends nothing.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from cluster2 import events
from cluster2.errors import ClusterError, NoAnswer, UsageError
from cluster2.processes.master.control.subscribers import EventSubscribers
from cluster2.processes.master.state.inbox import Command
from cluster2.processes.monitor import async_control_client
from cluster2.processes.monitor.async_control_client import AsyncControlClient

pytestmark = pytest.mark.anyio
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Master:
    """A master at the other end. The next of `answers` responds to each connection, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.line = AsyncControlClient(self.connect)

    def connect(self) -> socket.socket:
        if not self.answers:
            raise BlockingIOError(11, "its queue is full")
        ours, theirs = socket.socketpair()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.tasks.append(asyncio.ensure_future(self._serve(theirs, answer)))
        return ours

    async def _serve(self, sock: socket.socket, answer: Answer) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        self.asked.append(json.loads(await reader.readline()))
        await answer(reader, writer)
        writer.close()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def master() -> AsyncIterator[Callable[..., Master]]:
    made: list[Master] = []

    def master(*answers: Answer) -> Master:
        made.append(Master(*answers))
        return made[-1]

    yield master
    for each in made:
        await each.close()


def says(*plain: object, raw: bytes = b"") -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.writelines(json.dumps(each).encode() + b"\n" for each in plain)
        writer.write(raw)
        await writer.drain()

    return answer


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_a_command(master: Callable[..., Master]) -> None:
    """A command passes on reports of progress, and returns the result without a timeout."""
    found = master(says({"progress": {"replaced": 1}}, {"progress": {"replaced": 2}}, {"ok": True, "result": {"n": 3}}))
    heard: list[dict[str, Any]] = []
    assert await found.line.command("reload", {"a": 1}, heard.append) == {"n": 3}
    assert found.asked == [{"verb": "reload", "params": {"a": 1}}]
    assert heard == [{"replaced": 1}, {"replaced": 2}]


@pytest.mark.parametrize(
    ("answer", "error", "says_so"),
    [
        (says({"ok": False, "error": {"message": "workers = 0", "exit_code": 2}}), UsageError, "workers = 0"),
        (says(raw=b"garbage\n"), ClusterError, "is no master of cluster2"),
        (says(raw=b"\xff\xfe\n"), ClusterError, "is no master of cluster2"),
        (says([1, 2]), ClusterError, "is no master of cluster2"),
        (says(raw=b'{"ok": tr'), NoAnswer, "left without an answer to 'status'"),
        (says(), NoAnswer, "left without an answer to 'status'"),
        (says(raw=b"x" * 100_000), NoAnswer, "can't be understood"),
        (silent, NoAnswer, "didn't finish 'status' within 0.5 s"),
    ],
)
async def test_errors(
    master: Callable[..., Master], monkeypatch: pytest.MonkeyPatch, answer: Answer, error: type, says_so: str
) -> None:
    """A query raises the master's error, or says that it is no master, has left, can't be understood, or sends nothing."""
    monkeypatch.setattr(async_control_client, "QUERY_TIMEOUT_S", 0.5)
    monkeypatch.setattr(async_control_client, "MAX_LINE_BYTES", 1 << 16)
    with pytest.raises(error, match=says_so):
        await master(answer).line.query("status", {})


async def test_a_full_queue(master: Callable[..., Master]) -> None:
    """If the queue of a stuck master is full, a query raises at once, and the loop doesn't wait."""
    with pytest.raises(NoAnswer, match="can't connect to the master: its queue is full"):
        await master().line.query("status", {})


async def test_events_after_a_broken_connection(master: Callable[..., Master], monkeypatch: pytest.MonkeyPatch) -> None:
    """After any end of the connection another is made, and events come as before."""
    monkeypatch.setattr(async_control_client, "RECONNECT_BACKOFF_S", 0.001)

    def told(number: int) -> dict[str, Any]:
        return {"progress": {"event": "forked", "time": 1.0, "pid": number}}

    found = master(
        says({"progress": {"following": 7}}, told(1), {"ok": False, "error": {"message": "too slow"}}),
        says(told(2), raw=b"garbage\n"),
        says(told(3), raw=b'{"progr'),
        says(told(4)),
    )
    heard: list[Any] = []
    following = asyncio.ensure_future(found.line.follow_events(lambda event: heard.append(event.get("pid"))))
    async with asyncio.timeout(30):
        while 4 not in heard:
            await asyncio.sleep(0.001)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert [each for each in heard if each][:4] == [1, 2, 3, 4]
    assert found.asked[0] == {"verb": "events", "params": {"heartbeats": False, "emitted": 20, "longest": 16384}}


def follower(**params: Any) -> tuple[Command, list[dict[str, Any]], list[Any]]:
    told: list[dict[str, Any]] = []
    answers: list[Any] = []

    def tell(said: dict[str, Any]) -> bool:
        told.append(said)
        return len(told) < 100

    return Command("events", params, answers.append, tell), told, answers


def beat() -> events.Heartbeat:
    whole = dict.fromkeys(events.Heartbeat.__struct_fields__, 0)
    return events.Heartbeat(**(whole | {"each": []}))  # type: ignore[arg-type]


def test_subscribers() -> None:
    """A subscriber gets all events, or without heartbeats and with a limited rate of the app's events if it asks for that."""
    followers = EventSubscribers()
    (every, all_told, gone), (some, some_told, _) = follower(), follower(heartbeats=False, emitted=3, longest=1000)
    followers.join(every)
    followers.join(some)
    for number in range(10):
        followers.publish(events.Emitted(time=1.0, event="mine", data=number))
    followers.publish(beat())
    followers.publish(events.Enabled(time=2.0))
    assert [told["event"] for told in all_told] == [*["mine"] * 10, "heartbeat", "enabled"]
    assert [told["event"] for told in some_told] == [*["mine"] * 3, "enabled"]
    deadline = time.monotonic() + 30
    while len(some_told) == 4 and time.monotonic() < deadline:
        followers.publish(events.Emitted(time=1.0, event="later"))
    assert some_told[4]["event"] == "later", "another second, another three"
    followers.publish(events.Warned(time=3.0, text="x" * 1000))
    assert some_told[-1] == {"event": "warning", "time": 3.0, "cut": 1040}
    while len(all_told) < 100:
        followers.publish(events.Enabled(time=2.0))
    followers.publish(events.Enabled(time=2.0))
    assert (len(all_told), [error.message for error in gone]) == (100, ["it has left, or is too slow"])


@pytest.mark.parametrize("params", [{"heartbeats": 1}, {"emitted": -1}, {"emitted": True}, {"longest": "many"}])
def test_bad_subscriptions(params: dict[str, Any]) -> None:
    """Invalid parameters of a subscription are an error with the reason."""
    with pytest.raises(UsageError, match=" = .*: expected "):
        EventSubscribers().join(follower(**params)[0])
