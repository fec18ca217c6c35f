"""The page's routes over ASGI, with real scoreboards: the report, the history, files, headers."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cluster2.config.settings import Settings
from cluster2.linux import ledger
from cluster2.linux.scoreboard import CELLS_PER_ROW, Scoreboard
from cluster2.processes.monitor.access.security_headers import SECURITY_HEADERS
from cluster2.processes.monitor.data.report import ClusterInfo
from cluster2.processes.monitor.http.page import STATIC_DIRECTORY, files
from tests.unit.monitored import AS_JSON, BEARS, TOKEN, a_board, client, dashboard_of, facts, worker

pytestmark = pytest.mark.anyio


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    yield from a_board()


async def test_report(board: Scoreboard) -> None:
    """A report has the values of the scoreboard, and those that follow from the second before."""
    dashboard = dashboard_of(
        board, title="shop", master=os.getppid(), addresses=["127.0.0.1:3000"], address="127.0.0.1:3001"
    )
    one = worker(board, 1, mode=2, requests=10, connections=3, longest_step=0.03)
    worker(board, 0, requests=1, connections=-1)
    now = time.monotonic()
    dashboard.sampler.sample(now, 1000.0)
    board.row(one).requests, board.row(one).errors = 60, 5
    board.row(one).latencies[8] = 10
    dashboard.sampler.sample(now + 2.0, 1002.0)
    found = await facts(dashboard)
    assert (found["title"], found["ready"], found["wanted"]) == ("shop", 2, 2)
    assert (found["master"]["state"], found["master"]["pid"], found["traffic"]) == ("serving", os.getppid(), "enabled")
    assert found["rates"]["requests"] == 25.0
    assert found["rates"]["errors"] == 2.5
    assert found["recent"]["p50"] == pytest.approx(0.175)
    assert found["connections"] == {"held": None, "resting": 0, "waiting": 0}, "one can't know"
    assert [each["slot"] for each in found["workers"]] == [0, 1]
    row = found["workers"][1]
    assert (row["mode"], row["rate"], row["error_rate"], row["longest_step"]) == ("handoff", 25.0, 2.5, 0.03)
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
        ({}, 7, ("cluster2", False, True)),
        ({"monitor_token": TOKEN, "proc_name": "shop", "log_to": "files"}, 7, ("shop", True, True)),
        ({"monitor_token": TOKEN, "log_to": "stderr"}, 0, ("cluster2", False, False)),
    ],
)
def test_what_the_options_say(options: dict[str, Any], master: int, told: tuple[Any, ...]) -> None:
    """A report says whether there are actions, which need a token and a master, and logs, which need files."""
    subject = ClusterInfo.from_settings(Settings(**options), ["127.0.0.1:3000"], "127.0.0.1:3001", master=master)
    assert (subject.title, subject.actions, subject.logs) == told


async def test_report_with_a_stuck_master(board: Scoreboard) -> None:
    """A report doesn't depend on the master, and says that it is stuck."""
    dashboard = dashboard_of(board, master=os.getppid())
    board.header.beat = time.monotonic() - 60
    assert (await facts(dashboard))["master"]["state"] == "stuck"


async def test_counts_go_on_over_workers(board: Scoreboard) -> None:
    """The counts of a worker that ends are added to its slot's, so the cluster's rate doesn't jump."""
    dashboard = dashboard_of(board)
    first = worker(board, 0, requests=100)
    dashboard.sampler.sample(1.0, 1001.0)
    ledger.fold_life(board, first, 0, lived=True, crashed=True)
    worker(board, 0, requests=30)
    look = dashboard.sampler.sample(2.0, 1002.0)
    assert look.rates["requests"] == 30.0
    (each,) = look.by_worker.values()
    assert each["rate"] is None


async def test_while_counts_are_added(board: Scoreboard) -> None:
    """If a master was killed while it added counts, the sums are unknown, and nothing waits for them."""
    dashboard = dashboard_of(board)
    worker(board, 0, requests=100)
    board.header.burials = 1
    began = time.monotonic()
    for second in range(3):
        look = dashboard.sampler.sample(1.0 + second, 1001.0 + second)
        assert look.rates["requests"] is None
    assert time.monotonic() - began < 1.0
    assert (await facts(dashboard))["workers"][0]["requests"] == 100


@pytest.mark.parametrize("seed", range(30))
async def test_a_row_with_any_values(board: Scoreboard, seed: int) -> None:
    """A row with any values doesn't affect the others, and the report is valid JSON."""
    chance, dashboard = random.Random(seed), dashboard_of(board)
    mad = board.row(worker(board, 1))
    good = board.row(worker(board, 0))
    for second in range(3):
        for cell in range(CELLS_PER_ROW):
            mad.integers[cell] = chance.choice((0, 1, 5, -1, chance.getrandbits(63), -chance.getrandbits(63)))
        good.requests += 10
        dashboard.sampler.sample(1.0 + second, 1001.0 + second)
        found = msgspec.json.decode(msgspec.json.encode(dashboard.report()))
    (told,) = (each for each in found["workers"] if each["slot"] == 0)
    assert told["rate"] == 10.0
    assert len(dashboard.history(3600, 600)["rows"]) <= 3


async def test_errors_are_logged_once(board: Scoreboard, caplog: pytest.LogCaptureFixture) -> None:
    """An error in a sample is logged once, and health checks go on."""
    dashboard = dashboard_of(board)
    dashboard.sampler.memory.measure_some = None  # type: ignore[assignment, method-assign]
    for _ in range(3):
        dashboard.on_second()
    assert [record.message for record in caplog.records] == ["the cluster can't be surveyed"]


async def test_history(board: Scoreboard) -> None:
    """The history has a row for each second, thinned on request, and marks; bad parameters are a 400."""
    dashboard, now = dashboard_of(board), time.time()
    for second in range(100):
        board.header.wanted = 2 + (second > 50)
        dashboard.sampler.sample(1.0 + second, now - 100 + second)
    died = {"event": "died", "time": now - 5, "pid": 7, "slot": 1, "reason": "crash"}
    for event in (died, died | {"reason": "reload"}, {"event": "mine", "time": now, "data": 1}):
        dashboard.sampler.events.add(event)
    async with client(dashboard) as asking:
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
async def test_page_or_report(board: Scoreboard, accept: str, html: bool) -> None:
    """A browser gets the page, which has no data; a client that accepts JSON alone gets the report."""
    dashboard = dashboard_of(board, title="SECRET-TITLE")
    async with client(dashboard) as asking:
        answer = await asking.get("/", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("text/html" if html else "application/json")
    assert ("SECRET-TITLE" in answer.text) != html


async def test_files(board: Scoreboard) -> None:
    """The page's files are served with tags, a second time as 304, and no other files are."""
    paths = files()
    assert set(paths) == {
        path.relative_to(STATIC_DIRECTORY).as_posix() for path in STATIC_DIRECTORY.rglob("*") if path.is_file()
    }
    async with client(dashboard_of(board)) as asking:
        for name in paths:
            answer = await asking.get(f"/static/{name}")
            assert (answer.status_code, answer.content) == (200, (STATIC_DIRECTORY / name).read_bytes())
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


def test_no_data_and_no_script_in_the_page() -> None:
    """The page obeys its own policy: scripts and styles are files, and no data is in it."""
    page = (STATIC_DIRECTORY / "page.html").read_text().lower()
    for bad in ("<style", "style=", "onclick", "onload=", "javascript:", "http://", "https://", "//cdn"):
        assert bad not in page, bad
    assert page.count("<script") == page.count("<script src=") + page.count('<script type="module" src=')


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/livez", 200), ("/nothing", 404), ("/control/reload", 403), ("/static/page.html", 200)],
)
async def test_headers(board: Scoreboard, path: str, status: int) -> None:
    """Each response has the security headers, refusals included."""
    async with client(dashboard_of(board)) as asking:
        answer = await asking.request("POST" if "control" in path else "GET", path)
        strange = await asking.get(path, headers={"host": "evil.example"})
    assert (answer.status_code, strange.status_code) == (status, 421)
    for each in (answer, strange):
        for name, value in SECURITY_HEADERS:
            assert each.headers[name.decode()] == value.decode()


async def test_below_a_path(board: Scoreboard) -> None:
    """`monitor_path` without its slash redirects to the page, behind a proxy as well."""
    async with client(dashboard_of(board), Settings(monitor_path="/inner")) as asking:
        answer = await asking.get("/inner")
        assert (answer.status_code, answer.headers["location"]) == (307, "inner/")
        assert (await asking.get("/inner/", headers=AS_JSON)).json()["title"] == "cluster2"
        assert (await asking.get("/")).status_code == 404


async def test_sign_in(board: Scoreboard) -> None:
    """On an address that isn't loopback only the page's files need no token; a browser gets the page with a 401."""
    dashboard = dashboard_of(board, title="SECRET-TITLE")
    async with client(dashboard, Settings(monitor_host="0.0.0.0", monitor_token=TOKEN)) as asking:
        page = await asking.get("/", headers={"accept": "text/html"})
        assert (page.status_code, page.headers["www-authenticate"]) == (401, "Bearer")
        assert page.content == (STATIC_DIRECTORY / "page.html").read_bytes()
        for path in ("/", "/events", "/history", "/metrics", "/deps", "/logs"):
            refused = await asking.get(path, headers=AS_JSON)
            assert (refused.status_code, refused.text) == (401, "a valid bearer token is needed\n")
        assert (await asking.get("/static/page.html")).status_code == 200
        assert (await asking.get("/", headers=AS_JSON | BEARS)).json()["title"] == "SECRET-TITLE"
