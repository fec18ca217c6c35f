"""The monitor's stream over ASGI: the events that are kept, and the viewers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from cluster2 import events
from cluster2.config.settings import Settings
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.monitor.app import make_app
from cluster2.processes.monitor.data.dashboard import EVENT_REFRESH_DELAY_S, Dashboard
from cluster2.processes.monitor.data.event_buffer import MAX_EVENT_BYTES, MAX_KEPT_EMITTED, MAX_KEPT_EVENTS, EventBuffer
from cluster2.processes.monitor.data.viewers import MAX_VIEWERS
from cluster2.processes.monitor.http import sse
from tests.unit.monitored import BEARS, TOKEN, a_board, client, dashboard_of, facts, worker

pytestmark = pytest.mark.anyio
Told = list[tuple[str, str, Any]]


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    yield from a_board()


def test_the_event_buffer() -> None:
    """Numbers only grow; the last events are kept, and the app's apart from them, so that these can't push the others out."""
    buffer = EventBuffer(1000)
    buffer.add({"event": "reloading", "time": 1.0, "generation": 2})
    for number in range(500):
        buffer.add({"event": "mine", "time": 1.0, "data": number, "pid": 0, "slot": None})
    assert [told.name for told in buffer.newer_than(0)] == ["reloading", *["mine"] * MAX_KEPT_EMITTED]
    for number in range(500):
        buffer.add({"event": "SIGHUP" if number % 2 else "forked", "time": 1.0})
    told = buffer.newer_than(0)
    assert len(told) == MAX_KEPT_EVENTS + MAX_KEPT_EMITTED
    assert [each.number for each in told] == sorted(each.number for each in told)
    assert told[-1].number == 1000 + 1000
    assert buffer.newer_than(told[-2].number) == told[-1:]
    assert buffer.newer_than(told[-1].number) == []
    assert buffer.newer_than(10**15) == told, "a number that we never gave"
    assert EventBuffer().newer_than(0) == []
    assert EventBuffer()._next > 1.7e12


@pytest.mark.parametrize(
    "garbage",
    [{}, {"event": 1, "time": 1}, {"event": "x"}, {"event": "heartbeat", "time": 1.0}, {"following": 7}],
)
def test_data_that_is_no_event(garbage: dict[str, Any]) -> None:
    """Data that is no event is ignored, and so are heartbeats."""
    buffer = EventBuffer(1)
    buffer.add(garbage)
    assert buffer.newer_than(0) == []


def test_long_and_private_events() -> None:
    """A long event comes without its contents; private fields are for clients with the token."""
    buffer = EventBuffer(1)
    buffer.add({"event": "mine", "time": 1.0, "pid": 7, "slot": 1, "data": "x" * MAX_EVENT_BYTES})
    buffer.add({"event": "died", "time": 1.0, "pid": 7, "stacks": "File secret.py", "reason": "hang"})
    buffer.add({"event": "x" * MAX_EVENT_BYTES, "time": 1.0})
    long, private = buffer.newer_than(0)
    expected = {"event": "mine", "time": 1.0, "pid": 7, "slot": 1}
    assert json.loads(long.full) == expected | {
        "cut": len(msgspec.json.encode(expected | {"data": "x" * MAX_EVENT_BYTES}))
    }
    assert json.loads(private.full)["stacks"] == "File secret.py"
    assert json.loads(private.public) == {"event": "died", "time": 1.0, "pid": 7, "stacks": None, "reason": "hang"}


def test_events_of_all_kinds() -> None:
    """Events of all kinds are kept as `cluster2 events --json` prints them."""
    buffer, when = EventBuffer(1), 5.0
    kinds = [
        events.Died(time=when, pid=1, slot=0, generation=1, code=None, signal="SIGKILL", uptime=1.0, reason="crash"),
        events.ReloadFailed(time=when, generation=2, reason="no", traceback="T"),
        events.Signalled(time=when, signal="SIGHUP", action="reload"),
        events.Emitted(time=when, event="mine", data={"a": 1}, pid=3, slot=1),
    ]
    for kind in kinds:
        buffer.add(events.plain(kind))
    assert [json.loads(told.full) for told in buffer.newer_than(0)] == [events.plain(kind) for kind in kinds]


class Viewer:
    """A client of `/events`, as the app sees it. It reads while `takes` is set."""

    def __init__(
        self, dashboard: Dashboard, path: str = "/events", settings: Settings | None = None, **headers: str
    ) -> None:
        self.status, self.content = 0, b""
        self.takes, self.leaves = asyncio.Event(), asyncio.Event()
        self.takes.set()
        self.sent = 0
        raw_path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": "GET",
            "path": raw_path,
            "query_string": query.encode(),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
        app = make_app(dashboard.view, settings or Settings(), dashboard)
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.content += message.get("body", b"")
        self.sent += 1
        await self.takes.wait()

    def told(self) -> Told:
        """Return name, id and data of each message so far."""
        found = []
        for block in self.content.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
            if "event" in fields:
                found.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
        return found

    def names(self) -> list[str]:
        return [name for name, _, _ in self.told()]

    async def until(self, ready: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not ready():
                await asyncio.sleep(0.001)


async def leave(*viewers: Viewer) -> None:
    for viewer in viewers:
        viewer.takes.set()
        viewer.leaves.set()
    async with asyncio.timeout(30):
        await asyncio.gather(*(viewer.task for viewer in viewers))


async def test_a_viewer(board: Scoreboard) -> None:
    """A viewer gets the kept events and a report at once, then a report and a sample each second, and events as they happen."""
    dashboard = dashboard_of(board)
    worker(board, 0)
    dashboard.on_second()
    dashboard.sampler.events.add({"event": "forked", "time": 1.0, "pid": 7})
    viewer = Viewer(dashboard)
    await viewer.until(lambda: "sample" in viewer.names())
    assert viewer.content.startswith(b"retry: 2000\n\n")
    assert viewer.names() == ["forked", "facts", "sample"]
    _, number, data = viewer.told()[0]
    assert (int(number) > 0, data) == (True, {"event": "forked", "time": 1.0, "pid": 7})
    assert viewer.told()[1][1:] == ("", json.loads(msgspec.json.encode(dashboard.report())))
    dashboard.on_second()
    dashboard.sampler.events.add({"event": "facts\nid: 5\r\ndata: x", "time": 1.0, "data": "y"})
    await viewer.until(lambda: len(viewer.names()) == 6)
    assert viewer.names()[3:] in (
        ["facts", "sample", "facts?id: 5??data: x"],
        ["facts?id: 5??data: x", "facts", "sample"],
    )
    await leave(viewer)
    assert (dashboard.viewers.count, dashboard.viewers.report_viewers) == (0, 0)


async def test_report_after_an_event(board: Scoreboard) -> None:
    """After an event of the cluster a report comes within the second, one for several; after one of the app's none does."""
    dashboard = dashboard_of(board)
    dashboard.on_second()
    viewer = Viewer(dashboard)
    await viewer.until(lambda: "sample" in viewer.names())
    board.header.traffic = 0
    dashboard.sampler.events.add({"event": "mine", "time": 1.0, "data": 1})
    await asyncio.sleep(2 * EVENT_REFRESH_DELAY_S)
    assert viewer.names() == ["facts", "sample", "mine"]
    dashboard.sampler.events.add({"event": "disabled", "time": 1.0})
    dashboard.sampler.events.add({"event": "forked", "time": 1.0})
    await viewer.until(lambda: viewer.names().count("facts") == 2)
    assert viewer.names()[3:] == ["disabled", "forked", "facts"]
    assert viewer.told()[-1][2]["traffic"] == "disabled"
    dashboard.sampler.events.add({"event": "enabled", "time": 1.0})
    await viewer.until(lambda: viewer.names().count("facts") == 3)
    await leave(viewer)


async def test_where_it_left_off(board: Scoreboard) -> None:
    """With `Last-Event-ID` a viewer gets later events only; with a value that is no number of ours it gets all."""
    dashboard = dashboard_of(board)
    for slot in range(30):
        dashboard.sampler.events.add({"event": "forked", "time": 1.0, "slot": slot})
    numbers = [told.number for told in dashboard.sampler.events.newer_than(0)]
    for header, expected in ((str(numbers[27]), [28, 29]), ("x", range(30)), ("-5", range(30)), ("9" * 30, range(30))):
        viewer = Viewer(dashboard, "/events?only=events", last_event_id=header)
        await viewer.until(lambda viewer=viewer, expected=expected: len(viewer.told()) == len(expected))  # type: ignore[misc]
        assert [data["slot"] for _, _, data in viewer.told()] == list(expected)
        await leave(viewer)


async def test_events_only(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer of events alone gets no reports; comments keep its stream alive, also while others get reports."""
    monkeypatch.setattr(sse, "COMMENT_INTERVAL_S", 0.02)
    dashboard = dashboard_of(board)
    viewer, other = Viewer(dashboard, "/events?only=events"), Viewer(dashboard)
    await other.until(lambda: other.names())
    for _ in range(20):
        dashboard.on_second()
        await asyncio.sleep(0.005)
    await viewer.until(lambda: viewer.content.endswith(b"\n\n:\n\n:\n\n"))
    assert viewer.names() == []
    await leave(viewer, other)


async def test_a_slow_viewer(board: Scoreboard) -> None:
    """A slow viewer loses samples and events, costs one message, and doesn't slow down others."""
    dashboard = dashboard_of(board)
    dashboard.on_second()
    slow, quick = Viewer(dashboard), Viewer(dashboard)
    await quick.until(lambda: quick.names() == slow.names() == ["facts", "sample"])
    slow.takes.clear()
    for second in range(300):
        dashboard.on_second()
        dashboard.sampler.events.add({"event": "forked", "time": 1.0, "slot": second})
        await quick.until(lambda: {"forked", "sample"} <= {*quick.names()})
        quick.content = b""
    assert len(slow.told()) <= 4, "the one message that it was being sent"
    sent = slow.sent
    slow.takes.set()
    await slow.until(lambda: "sample" in slow.names()[-3:] and len(slow.told()) > MAX_KEPT_EVENTS)
    assert slow.sent - sent <= MAX_KEPT_EVENTS / sse.MAX_EVENTS_PER_MESSAGE + 4
    kept = [data["slot"] for name, _, data in slow.told() if name == "forked"]
    assert kept[-MAX_KEPT_EVENTS:] == list(range(300 - MAX_KEPT_EVENTS, 300))
    await leave(slow, quick)


async def test_many_viewers(board: Scoreboard) -> None:
    """The number of viewers is limited; reports are made once for all."""
    dashboard = dashboard_of(board)
    viewers = [Viewer(dashboard) for _ in range(MAX_VIEWERS)]
    await viewers[-1].until(lambda: dashboard.viewers.count == MAX_VIEWERS)
    async with client(dashboard) as asking:
        refused = await asking.get("/events")
        assert (refused.status_code, refused.text) == (503, "too many viewers already\n")
        assert (await asking.get("/events?only=all")).status_code == 400
        await leave(viewers.pop())
        assert (await asking.head("/events")).status_code == 200
    number = dashboard.viewers.latest.reports
    dashboard.on_second()
    await viewers[0].until(lambda: all(viewer.names().count("facts") == 2 for viewer in viewers))
    assert dashboard.viewers.latest.reports == number + 1
    dashboard.viewers.close()
    async with asyncio.timeout(30):
        await asyncio.gather(*(viewer.task for viewer in viewers))
    async with client(dashboard) as asking:
        refused = await asking.get("/events")
        assert (refused.status_code, refused.text) == (503, "the monitor is leaving\n"), "no others are taken"


async def test_private_fields(board: Scoreboard) -> None:
    """If a token is set, stacks are only for clients that have it, on loopback as well."""
    dashboard = dashboard_of(board)
    dashboard.sampler.events.add({"event": "died", "time": 1.0, "stacks": "File secret.py"})
    for settings, headers, sees in (
        (Settings(), {}, True),
        (Settings(monitor_token=TOKEN), {}, False),
        (Settings(monitor_token=TOKEN), BEARS, True),
    ):
        viewer = Viewer(dashboard, settings=settings, **headers)
        await viewer.until(viewer.told)
        assert (viewer.told()[0][2]["stacks"] is not None) == sees
        await leave(viewer)


async def test_what_it_costs(board: Scoreboard) -> None:
    """With 64 workers, samples and reports take less than 3 % of a core, and a report has at most 64 KiB."""
    dashboard = dashboard_of(board, master=os.getppid())
    board.header.wanted = 64
    for slot in range(64):
        worker(board, slot, requests=10**6, connections=1000)
    viewer = Viewer(dashboard)
    dashboard.on_second()  # the first sample measures memory
    await viewer.until(lambda: "sample" in viewer.names())
    began = time.process_time()
    for _ in range(20):
        dashboard.on_second()
        await asyncio.sleep(0)
    assert (time.process_time() - began) / 20 < 0.03
    assert len(dashboard.viewers.latest.report) < 64 * 1024
    assert len((await facts(dashboard))["workers"]) == 64
    await leave(viewer)
