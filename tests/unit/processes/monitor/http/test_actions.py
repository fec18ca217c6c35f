"""`POST /control`: the commands to the master, and the responses made of its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from cluster2.config.settings import Settings
from cluster2.errors import ClusterError, NoAnswer, NotRunning, UsageError
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.monitor.app import make_app
from cluster2.processes.monitor.async_control_client import OnProgress
from cluster2.processes.monitor.data.cluster_view import ClusterView

pytestmark = pytest.mark.anyio
TOKEN = "a-secret-token"
Asked = list[tuple[str, Mapping[str, Any]]]


async def post(
    path: str,
    *,
    token: str | None = TOKEN,
    bears: str | None = TOKEN,
    error: ClusterError | None = None,
    verb: str = "POST",
    accept: str = "*/*",
    progress: Sequence[dict[str, Any]] = (),
) -> tuple[httpx.Response, Asked]:
    asked: Asked = []

    async def order(what: str, params: Mapping[str, Any], tell: OnProgress) -> dict[str, Any]:
        asked.append((what, params))
        for said in progress:
            tell(said)
        if error is not None:
            raise error
        return {"done": what}

    async def switch(enabled: bool) -> bool:
        return True

    board = Scoreboard.create()
    try:
        app = make_app(ClusterView(board, 0, switch, command=order), Settings(monitor_token=token))
        headers = {"accept": accept} | ({} if bears is None else {"authorization": f"Bearer {bears}"})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.request(verb, path, headers=headers), asked
    finally:
        board.close()


@pytest.mark.parametrize(
    ("query", "verb", "params"),
    [
        ("reload", "reload", {}),
        ("scale?workers=3", "scale", {"workers": 3}),
        ("recycle", "recycle", {}),
        ("recycle?worker=0", "recycle", {"worker": 0}),
        ("enable", "enable", {}),
        ("disable", "disable", {}),
        ("shutdown", "shutdown", {}),
    ],
)
async def test_actions(query: str, verb: str, params: dict[str, Any]) -> None:
    """Each action is a verb of the master's, whose result is passed on."""
    answer, asked = await post("/control/" + query)
    assert (answer.status_code, asked) == (200, [(verb, params)])
    assert answer.json() == {"ok": True, "result": {"done": verb}}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("stop", 404),
        ("status", 404),
        ("__class__", 404),
        ("scale", 400),
        ("scale?workers=-1", 400),
        ("scale?workers=" + "9" * 5000, 400),
        ("scale?workers=%C2%B2", 400),
        ("recycle?worker=x", 400),
        ("reload?worker=1", 400),
        ("enable?=1", 400),
    ],
)
async def test_bad_actions(query: str, status: int) -> None:
    """An unknown action or a bad number is refused, and the master gets no command."""
    answer, asked = await post("/control/" + query)
    assert (answer.status_code, asked) == (status, [])
    assert answer.json()["ok"] is False


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotRunning("no master"), 503),
        (NoAnswer("the master didn't finish"), 504),
        (UsageError("workers = 9999"), 400),
        (ClusterError("the reload was abandoned"), 409),
    ],
)
async def test_errors(error: ClusterError, status: int) -> None:
    """The master's error is passed on with a status."""
    answer, _ = await post("/control/reload", error=error)
    assert (answer.status_code, answer.json()) == (status, {"ok": False, "error": error.message})


async def test_access() -> None:
    """Actions need the token and POST; if no token is set they don't exist."""
    for given in ({"bears": None}, {"bears": "another-token"}):
        answer, asked = await post("/control/reload", **given)
        assert (answer.status_code, asked) == (401, [])
    answer, asked = await post("/control/reload", token=None)
    assert (answer.status_code, asked) == (403, [])
    answer, asked = await post("/control/reload", verb="GET")
    assert (answer.status_code, asked) == (405, [])


async def test_progress() -> None:
    """A client that accepts a stream gets the progress, then the ordinary response."""
    said = [{"replaced": 1, "of": 2}, {"leaving": "serves on for 5 s"}]
    answer, _ = await post("/control/reload", accept="text/event-stream, application/json", progress=said)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.text.split("\n\n") == [
        'event: progress\ndata: {"what":"replaced","done":1,"of":2,"text":null}',
        'event: progress\ndata: {"what":"leaving","done":null,"of":null,"text":"serves on for 5 s"}',
        'event: result\ndata: {"ok":true,"result":{"done":"reload"}}',
        "",
    ]
    answer, _ = await post("/control/reload", accept="text/event-stream", error=ClusterError("abandoned"))
    assert answer.text == 'event: result\ndata: {"ok":false,"error":"abandoned"}\n\n'
    answer, _ = await post("/control/recycle", progress=said)
    assert answer.json() == {"ok": True, "result": {"done": "recycle"}}
