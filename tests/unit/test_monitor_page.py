"""The page's part of the monitor: facts, events, history, files, headers; off real scoreboards, over ASGI."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from cluster2 import events
from cluster2.kernel import ledger
from cluster2.kernel.scoreboard import CELLS, Scoreboard
from cluster2.lifecycle import PHASES, State
from cluster2.monitor import stream
from cluster2.monitor.app import make
from cluster2.monitor.desk import Desk
from cluster2.monitor.facts import Facts
from cluster2.monitor.feed import KEPT, KEPT_EMITTED, LONGEST, Feed
from cluster2.monitor.page import STATIC, files
from cluster2.monitor.picture import Subject
from cluster2.monitor.shield import HEADERS
from cluster2.settings import Settings

pytestmark = pytest.mark.anyio
TOKEN = "a-secret-token"
BEARS = {"authorization": f"Bearer {TOKEN}"}
AS_JSON = {"accept": "application/json"}
Told = list[tuple[str, str, Any]]


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """A cluster of two wanted workers, of which there is none yet."""
    board = Scoreboard.create()
    header = board.header
    header.started, header.beat = time.time(), time.monotonic()
    header.traffic, header.wanted, header.generation, header.phase = 1, 2, 1, PHASES.index("serving")
    yield board
    board.close()


def worker(board: Scoreboard, slot: int, pid: int = 0, **values: Any) -> int:
    """A worker that serves: this process, unless told otherwise. Returns its row."""
    index = board.claim()
    row = board.row(index)
    row.slot, row.generation, row.state = slot, 1, State.READY
    row.started, row.heartbeat = time.monotonic(), time.monotonic() + 2
    for name, value in values.items():
        setattr(row, name, value)
    row.pid = pid or os.getpid()
    return index


def desk_of(board: Scoreboard, **more: Any) -> Desk:
    async def switch(enabled: bool) -> bool:
        return True

    return Desk(Facts(board, 3000, switch), Subject(**more))


def client(desk: Desk, settings: Settings | None = None) -> httpx.AsyncClient:
    app = make(desk._facts, settings or Settings(), desk)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def facts(desk: Desk) -> Any:
    async with client(desk) as asking:
        answer = await asking.get("/", headers=AS_JSON)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")
    return answer.json()


async def test_facts(board: Scoreboard) -> None:
    """What stands in the scoreboard, and what follows from the second before; times in seconds."""
    desk = desk_of(board, title="shop", master=os.getppid(), addresses=["127.0.0.1:3000"], address="127.0.0.1:3001")
    one = worker(board, 1, mode=2, requests=10, connections=3, longest_step=0.03)
    worker(board, 0, requests=1, connections=-1)
    now = time.monotonic()
    desk.watch.look(now, 1000.0)
    board.row(one).requests, board.row(one).errors = 60, 5
    board.row(one).latencies[8] = 10
    desk.watch.look(now + 2.0, 1002.0)
    found = await facts(desk)
    assert (found["title"], found["ready"], found["wanted"]) == ("shop", 2, 2)
    assert (found["master"]["state"], found["master"]["pid"], found["traffic"]) == ("serving", os.getppid(), "enabled")
    assert found["rates"]["requests"] == 25.0
    assert found["rates"]["errors"] == 2.5
    assert found["recent"]["p50"] == pytest.approx(0.175)
    assert found["connections"] == {"held": None, "resting": 0}, "one can't know"
    assert [each["slot"] for each in found["workers"]] == [0, 1]
    row = found["workers"][1]
    assert (row["mode"], row["rate"], row["error_rate"], row["longest_step"]) == ("parking", 25.0, 2.5, 0.03)
    assert row["recent"]["p99"] == pytest.approx(0.2485)
    assert 0 <= row["heartbeat_age"] < 2.0
    assert row["memory"] > 2**20
    assert found["memory"]["start"] == board.header.memory_at_start > 2**20
    assert found["host"]["load"] == pytest.approx(os.getloadavg(), abs=5)
    assert found["host"]["memory"]["total"] > found["host"]["memory"]["available"] > 0
    assert found["keeper"] is None


@pytest.mark.parametrize(
    ("options", "master", "told"),
    [
        ({}, 7, ("cluster2", False, False)),
        ({"mon_token": TOKEN, "proc_name": "shop", "log_to": "files"}, 7, ("shop", True, True)),
        ({"mon_token": TOKEN}, 0, ("cluster2", False, False)),
    ],
)
def test_what_the_options_say(options: dict[str, Any], master: int, told: tuple[Any, ...]) -> None:
    """Actions need a token and a master; there are logs where they are written to files."""
    subject = Subject.of(Settings(**options), ["127.0.0.1:3000"], "127.0.0.1:3001", master=master)
    assert (subject.title, subject.actions, subject.logs) == told


async def test_facts_without_a_master_that_answers(board: Scoreboard) -> None:
    """They don't depend on it; that it is stuck is one of them."""
    desk = desk_of(board, master=os.getppid())
    board.header.beat = time.monotonic() - 60
    assert (await facts(desk))["master"]["state"] == "stuck"


async def test_counts_go_on_over_lives(board: Scoreboard) -> None:
    """A worker that dies takes its counts along into its slot's past: the rate of the whole doesn't notice."""
    desk = desk_of(board)
    first = worker(board, 0, requests=100)
    desk.watch.look(1.0, 1001.0)
    ledger.bury(board, first, 0, lived=True, crashed=True)
    worker(board, 0, requests=30)
    look = desk.watch.look(2.0, 1002.0)
    assert look.rates["requests"] == 30.0
    (each,) = look.each.values()
    assert each["rate"] is None


async def test_while_a_life_is_carried_over(board: Scoreboard) -> None:
    """A master that died in the middle of it leaves the sums unreadable: they aren't known, and nothing waits."""
    desk = desk_of(board)
    worker(board, 0, requests=100)
    board.header.burials = 1
    began = time.monotonic()
    for second in range(3):
        look = desk.watch.look(1.0 + second, 1001.0 + second)
        assert look.rates["requests"] is None
    assert time.monotonic() - began < 1.0
    assert (await facts(desk))["workers"][0]["requests"] == 100


@pytest.mark.parametrize("seed", range(30))
async def test_a_worker_gone_mad(board: Scoreboard, seed: int) -> None:
    """Whatever stands in a row, the others are told as ever, and what is told is JSON."""
    chance, desk = random.Random(seed), desk_of(board)
    mad = board.row(worker(board, 1))
    good = board.row(worker(board, 0))
    for second in range(3):
        for cell in range(CELLS):
            mad.integers[cell] = chance.choice((0, 1, 5, -1, chance.getrandbits(63), -chance.getrandbits(63)))
        mad.slot, mad.pid = chance.choice((1, 5, 10**12, -1)), chance.choice((0, 7, 2**62, -(2**62), os.getpid()))
        good.requests += 10
        desk.watch.look(1.0 + second, 1001.0 + second)
        found = msgspec.json.decode(msgspec.json.encode(desk.facts()))
    (told,) = (each for each in found["workers"] if each["slot"] == 0)
    assert told["rate"] == 10.0
    assert len(desk.history(3600, 600)["rows"]) <= 3


async def test_what_goes_wrong_is_logged_once(board: Scoreboard, caplog: pytest.LogCaptureFixture) -> None:
    """And health checks, which the same loop answers, go on."""
    desk = desk_of(board)
    desk.watch.scales.turn = None  # type: ignore[assignment, method-assign]
    for _ in range(3):
        desk.second()
    assert [record.message for record in caplog.records] == ["the cluster can't be looked at"]


async def test_history(board: Scoreboard) -> None:
    """Rows by second, thinned on request, with marks; a bad question is 400."""
    desk, now = desk_of(board), time.time()
    for second in range(100):
        board.header.wanted = 2 + (second > 50)
        desk.watch.look(1.0 + second, now - 100 + second)
    died = {"event": "died", "time": now - 5, "pid": 7, "slot": 1, "reason": "crash"}
    for event in (died, died | {"reason": "reload"}, {"event": "mine", "time": now, "data": 1}):
        desk.watch.feed.heard(event)
    async with client(desk) as asking:
        whole = (await asking.get("/history?seconds=600")).json()
        part = (await asking.get("/history?seconds=60&points=10")).json()
        for query in ("seconds=0", "seconds=3601", "points=x", "points=-1", "seconds=%C2%B2", "points=" + "9" * 5000):
            assert (await asking.get(f"/history?{query}")).status_code == 400
    assert (len(whole["rows"]), whole["columns"][0]) == (100, "time")
    assert len(part["rows"]) in (10, 11)
    assert [(mark["name"], mark["slot"], mark["reason"]) for mark in whole["marks"]] == [
        ("scaled", None, "2 → 3"),
        ("died", 1, "crash"),
    ]


def test_the_feed() -> None:
    """Numbers only grow; the last events are kept, the app's own apart, so that they can't push the others out."""
    feed = Feed(1000)
    feed.heard({"event": "reloading", "time": 1.0, "generation": 2})
    for number in range(500):
        feed.heard({"event": "mine", "time": 1.0, "data": number, "pid": 0, "slot": None})
    assert [told.name for told in feed.after(0)] == ["reloading", *["mine"] * KEPT_EMITTED]
    for number in range(500):
        feed.heard({"event": "SIGHUP" if number % 2 else "forked", "time": 1.0})
    told = feed.after(0)
    assert len(told) == KEPT + KEPT_EMITTED
    assert [each.number for each in told] == sorted(each.number for each in told)
    assert told[-1].number == 1000 + 1000
    assert feed.after(told[-2].number) == told[-1:]
    assert feed.after(told[-1].number) == []
    assert feed.after(10**15) == told, "a number that we never gave"
    assert Feed().after(0) == []
    assert Feed()._next > 1.7e12


@pytest.mark.parametrize(
    "garbage",
    [{}, {"event": 1, "time": 1}, {"event": "x"}, {"event": "heartbeat", "time": 1.0}, {"following": 7}],
)
def test_what_is_no_event(garbage: dict[str, Any]) -> None:
    """It is passed over, and so are heartbeats."""
    feed = Feed(1)
    feed.heard(garbage)
    assert feed.after(0) == []


def test_long_and_private_events() -> None:
    """A long one comes without its contents; code, and what the app says, only for who may see it."""
    feed = Feed(1)
    feed.heard({"event": "mine", "time": 1.0, "pid": 7, "slot": 1, "data": "x" * LONGEST})
    feed.heard({"event": "died", "time": 1.0, "pid": 7, "stacks": "File secret.py", "reason": "hang"})
    feed.heard({"event": "x" * LONGEST, "time": 1.0})
    long, private = feed.after(0)
    expected = {"event": "mine", "time": 1.0, "pid": 7, "slot": 1}
    assert json.loads(long.full) == expected | {"cut": len(msgspec.json.encode(expected | {"data": "x" * LONGEST}))}
    assert json.loads(private.full)["stacks"] == "File secret.py"
    assert json.loads(private.public) == {"event": "died", "time": 1.0, "pid": 7, "stacks": None, "reason": "hang"}


class Viewer:
    """A client of `/events`, as the app sees it; it takes what is sent as long as `takes` is set."""

    def __init__(self, desk: Desk, path: str = "/events", settings: Settings | None = None, **headers: str) -> None:
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
        app = make(desk._facts, settings or Settings(), desk)
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
        """Name, id and data of each message so far."""
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
    """It has the kept events and the facts at once, then facts and a sample each second, and events as they happen."""
    desk = desk_of(board)
    worker(board, 0)
    desk.second()
    desk.watch.feed.heard({"event": "forked", "time": 1.0, "pid": 7})
    viewer = Viewer(desk)
    await viewer.until(lambda: "sample" in viewer.names())
    assert viewer.content.startswith(b"retry: 2000\n\n")
    assert viewer.names() == ["forked", "facts", "sample"]
    _, number, data = viewer.told()[0]
    assert (int(number) > 0, data) == (True, {"event": "forked", "time": 1.0, "pid": 7})
    assert viewer.told()[1][1:] == ("", json.loads(msgspec.json.encode(desk.facts())))
    desk.second()
    desk.watch.feed.heard({"event": "facts\nid: 5\r\ndata: x", "time": 1.0, "data": "y"})
    await viewer.until(lambda: len(viewer.names()) == 6)
    assert viewer.names()[3:] in (
        ["facts", "sample", "facts?id: 5??data: x"],
        ["facts?id: 5??data: x", "facts", "sample"],
    )
    await leave(viewer)
    assert (desk.viewers.count, desk.viewers.watching) == (0, 0)


async def test_where_it_left_off(board: Scoreboard) -> None:
    """`Last-Event-ID`: only what came later; anything else that stands there means all."""
    desk = desk_of(board)
    for slot in range(30):
        desk.watch.feed.heard({"event": "forked", "time": 1.0, "slot": slot})
    numbers = [told.number for told in desk.watch.feed.after(0)]
    for header, expected in ((str(numbers[27]), [28, 29]), ("x", range(30)), ("-5", range(30)), ("9" * 30, range(30))):
        viewer = Viewer(desk, "/events?only=events", last_event_id=header)
        await viewer.until(lambda viewer=viewer, expected=expected: len(viewer.told()) == len(expected))  # type: ignore[misc]
        assert [data["slot"] for _, _, data in viewer.told()] == list(expected)
        await leave(viewer)


async def test_events_only(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """No facts are made for it; a comment now and then says that it isn't forgotten, also while others are told something."""
    monkeypatch.setattr(stream, "QUIET", 0.02)
    desk = desk_of(board)
    viewer, other = Viewer(desk, "/events?only=events"), Viewer(desk)
    await other.until(lambda: other.names())
    for _ in range(20):
        desk.second()
        await asyncio.sleep(0.005)
    await viewer.until(lambda: viewer.content.endswith(b"\n\n:\n\n:\n\n"))
    assert viewer.names() == []
    await leave(viewer, other)


async def test_a_slow_viewer(board: Scoreboard) -> None:
    """It loses samples and events, and costs no more than one message; others don't wait for it."""
    desk = desk_of(board)
    desk.second()
    slow, quick = Viewer(desk), Viewer(desk)
    await quick.until(lambda: quick.names() == slow.names() == ["facts", "sample"])
    slow.takes.clear()
    for second in range(300):
        desk.second()
        desk.watch.feed.heard({"event": "forked", "time": 1.0, "slot": second})
        await quick.until(lambda: {"forked", "sample"} <= {*quick.names()})
        quick.content = b""
    assert len(slow.told()) <= 4, "the one message that it was being sent"
    sent = slow.sent
    slow.takes.set()
    await slow.until(lambda: slow.told()[-1][0] == "sample" and len(slow.told()) > KEPT)
    assert slow.sent - sent <= KEPT / stream.AT_ONCE + 3
    kept = [data["slot"] for name, _, data in slow.told() if name == "forked"]
    assert kept[-KEPT:] == list(range(300 - KEPT, 300))
    await leave(slow, quick)


async def test_many_viewers(board: Scoreboard) -> None:
    """There is a bound, and a place again when one leaves; facts are made once for all."""
    desk = desk_of(board)
    viewers = [Viewer(desk) for _ in range(stream.MOST)]
    await viewers[-1].until(lambda: desk.viewers.count == stream.MOST)
    async with client(desk) as asking:
        assert (await asking.get("/events")).status_code == 503
        assert (await asking.get("/events?only=all")).status_code == 400
        await leave(viewers.pop())
        assert (await asking.head("/events")).status_code == 200
    number = desk.viewers.latest.number
    desk.second()
    await viewers[0].until(lambda: all(viewer.names().count("facts") == 2 for viewer in viewers))
    assert desk.viewers.latest.number == number + 1
    desk.viewers.close()
    async with asyncio.timeout(30):
        await asyncio.gather(*(viewer.task for viewer in viewers))
    assert desk.viewers.full, "no others are taken"


async def test_who_sees_code(board: Scoreboard) -> None:
    """Where there is a token, stacks are for those who bear it, on loopback as well."""
    desk = desk_of(board)
    desk.watch.feed.heard({"event": "died", "time": 1.0, "stacks": "File secret.py"})
    for settings, headers, sees in (
        (Settings(), {}, True),
        (Settings(mon_token=TOKEN), {}, False),
        (Settings(mon_token=TOKEN), BEARS, True),
    ):
        viewer = Viewer(desk, settings=settings, **headers)
        await viewer.until(viewer.told)
        assert (viewer.told()[0][2]["stacks"] is not None) == sees
        await leave(viewer)


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("text/html,application/xhtml+xml,*/*;q=0.8", True),
        ("application/json", False),
        ("application/json, text/html", True),
        ("*/*", True),
        ("", True),
    ],
)
async def test_page_or_facts(board: Scoreboard, accept: str, html: bool) -> None:
    """A browser gets the page, in which no fact stands; who asks for JSON alone gets facts."""
    desk = desk_of(board, title="SECRET-TITLE")
    async with client(desk) as asking:
        answer = await asking.get("/", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("text/html" if html else "application/json")
    assert ("SECRET-TITLE" in answer.text) != html


async def test_files(board: Scoreboard) -> None:
    """Those of the package, with their tags: a second time there is nothing to send; nothing else is served."""
    paths = files()
    assert set(paths) == {path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file()}
    async with client(desk_of(board)) as asking:
        for name in paths:
            answer = await asking.get(f"/static/{name}")
            assert (answer.status_code, answer.content) == (200, (STATIC / name).read_bytes())
            tag = {"if-none-match": answer.headers["etag"]}
            again = await asking.get(f"/static/{name}", headers=tag)
            assert (again.status_code, again.content) == (304, b"")
        for path in (
            "/static/",
            "/static/../page.py",
            "/static/%2e%2e/page.py",
            "/static/page.py",
            "/static/page.html/",
        ):
            assert (await asking.get(path)).status_code == 404


def test_no_fact_and_no_script_in_the_page() -> None:
    """What the policy forbids isn't in it: scripts and styles are files of our own."""
    page = (STATIC / "page.html").read_text().lower()
    for bad in ("<style", "style=", "onclick", "onload=", "javascript:", "http://", "https://", "//cdn"):
        assert bad not in page, bad
    assert page.count("<script") == page.count("<script src=") + page.count('<script type="module" src=')


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/livez", 200), ("/nothing", 404), ("/control/reload", 403), ("/static/page.html", 200)],
)
async def test_headers(board: Scoreboard, path: str, status: int) -> None:
    """Each response says what browsers may do with it, refusals included."""
    async with client(desk_of(board)) as asking:
        answer = await asking.request("POST" if "control" in path else "GET", path)
        strange = await asking.get(path, headers={"host": "evil.example"})
    assert (answer.status_code, strange.status_code) == (status, 421)
    for each in (answer, strange):
        for name, value in HEADERS:
            assert each.headers[name.decode()] == value.decode()


async def test_below_a_path(board: Scoreboard) -> None:
    """`mon_path` without its slash leads to the page with it, wherever a proxy has put us."""
    async with client(desk_of(board), Settings(mon_path="/inner")) as asking:
        answer = await asking.get("/inner")
        assert (answer.status_code, answer.headers["location"]) == (307, "inner/")
        assert (await asking.get("/inner/", headers=AS_JSON)).json()["title"] == "cluster2"
        assert (await asking.get("/")).status_code == 404


async def test_sign_in(board: Scoreboard) -> None:
    """Where others come, all but the page's files needs the token; a browser is shown the page with the refusal."""
    desk = desk_of(board, title="SECRET-TITLE")
    async with client(desk, Settings(mon_host="0.0.0.0", mon_token=TOKEN)) as asking:
        page = await asking.get("/", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["www-authenticate"]) == (401, "Bearer")
        assert page.content == (STATIC / "page.html").read_bytes()
        for path in ("/", "/events", "/history", "/metrics", "/deps", "/logs"):
            refused = await asking.get(path, headers=AS_JSON)
            assert (refused.status_code, refused.text) == (401, "a valid bearer token is needed\n")
        assert (await asking.get("/static/page.html")).status_code == 200
        assert (await asking.get("/", headers=AS_JSON | BEARS)).json()["title"] == "SECRET-TITLE"


def test_events_as_the_master_tells_them() -> None:
    """All events that there are can be kept and marked, in the words of `cluster2 events --json`."""
    feed, when = Feed(1), 5.0
    kinds = [
        events.Died(time=when, pid=1, slot=0, generation=1, code=None, signal="SIGKILL", uptime=1.0, reason="crash"),
        events.ReloadFailed(time=when, generation=2, reason="no", traceback="T"),
        events.Signalled(time=when, signal="SIGHUP", action="reload"),
        events.Emitted(time=when, event="mine", data={"a": 1}, pid=3, slot=1),
    ]
    for kind in kinds:
        feed.heard(events.plain(kind))
    assert [json.loads(told.full) for told in feed.after(0)] == [events.plain(kind) for kind in kinds]


async def test_what_it_costs(board: Scoreboard) -> None:
    """With 64 workers a second of looking and showing is less than 3 % of a core, and a message of facts no more than 64 KiB."""
    desk = desk_of(board, master=os.getppid())
    board.header.wanted = 64
    for slot in range(64):
        worker(board, slot, requests=10**6, connections=1000)
    viewer = Viewer(desk)
    desk.second()  # the first look weighs processes
    await viewer.until(lambda: "sample" in viewer.names())
    began = time.process_time()
    for _ in range(20):
        desk.second()
        await asyncio.sleep(0)
    assert (time.process_time() - began) / 20 < 0.03
    assert len(desk.viewers.latest.content) < 64 * 1024
    assert len((await facts(desk))["workers"]) == 64
    await leave(viewer)
