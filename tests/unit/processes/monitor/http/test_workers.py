"""`/component-status` and `/stacks`: the queries to the master, and the responses made of its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from cluster2.errors import ClusterError, NoAnswer, NotRunning, UsageError
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.monitor.data.cluster_view import ClusterView
from cluster2.processes.monitor.http.workers import routes

pytestmark = pytest.mark.anyio
STACKS = {"workers": [{"pid": 7, "slot": 0, "stacks": "Thread <script>"}]}


class Master:
    """A master that records the monitor's queries, and returns a result or raises."""

    def __init__(self, answer: dict[str, Any] | ClusterError) -> None:
        self.answer = answer
        self.asked: list[tuple[str, Mapping[str, Any]]] = []

    async def query(self, verb: str, params: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append((verb, params))
        if isinstance(self.answer, ClusterError):
            raise self.answer
        return self.answer

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async def switch(enabled: bool) -> bool:
            return True

        board = Scoreboard.create()
        try:
            app = Starlette(routes=routes("", ClusterView(board, 0, switch, self.query)))
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.get(path, headers=headers)
        finally:
            board.close()


@pytest.mark.parametrize(
    ("query", "verb", "params"),
    [
        ("", "statuses", {}),
        ("?component=queue", "component", {"component": "queue"}),
        ("?component=queue&worker=0", "component", {"component": "queue", "worker": 0}),
        ("?component=a%20b&params=%7B%22n%22%3A1%7D", "component", {"component": "a b", "params": {"n": 1}}),
    ],
)
async def test_component_status(query: str, verb: str, params: dict[str, Any]) -> None:
    """The parameters go to the master, and its result is passed on."""
    master = Master({"value": "<b>"})
    answer = await master.get("/component-status" + query)
    assert master.asked == [(verb, params)]
    assert answer.json() == {"value": "<b>"}
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "query",
    ["worker=x", "worker=-1", "worker=" + "9" * 5000, "params={", "params=" + "[" * 8000, "params=" + "1" * 9000],
)
async def test_bad_queries(query: str) -> None:
    """Bad parameters are a 400 that names them, and the master gets no query."""
    master = Master({})
    answer = await master.get(f"/component-status?component=queue&{query}")
    assert (answer.status_code, master.asked) == (400, [])
    assert answer.json()["error"].startswith(query.partition("=")[0])


@pytest.mark.parametrize(
    ("error", "component", "stacks"),
    [
        (ClusterError("no worker has a component 'queue'"), 404, 404),
        (UsageError("component: no reducer has that name"), 400, 404),
        (NoAnswer("the master didn't finish"), 503, 503),
        (NotRunning("no master"), 503, 503),
    ],
)
async def test_errors(error: ClusterError, component: int, stacks: int) -> None:
    """A missing component is a 404 and a master that doesn't respond a 503, each with the reason."""
    for path, status in (("/component-status?component=queue", component), ("/stacks/7", stacks)):
        answer = await Master(error).get(path)
        assert (answer.status_code, answer.json()) == (status, {"error": error.message})


async def test_stacks() -> None:
    """Stacks are plain text, or JSON for a client that accepts it."""
    master = Master(STACKS)
    answer = await master.get("/stacks/7")
    assert answer.text == "worker 7 (slot 0)\nThread <script>\n"
    assert answer.headers["content-type"].startswith("text/plain")
    assert (await master.get("/stacks/7", accept="application/json")).json() == STACKS
    assert master.asked == [("stacks", {"worker": 7})] * 2


@pytest.mark.parametrize("worker", ["x", "-1", "9" * 5000, "%C2%B2"])
async def test_stacks_without_a_pid(worker: str) -> None:
    """A path without a pid is a 404, and the master gets no query."""
    master = Master(STACKS)
    assert ((await master.get(f"/stacks/{worker}")).status_code, master.asked) == (404, [])
