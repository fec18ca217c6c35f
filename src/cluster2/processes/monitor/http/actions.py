"""`POST /control/VERB`: what changes the cluster, asked of the master.

The gate lets a POST through only with `monitor_token` in its `Authorization` header, which no page of another origin can set
without our consent (there are no cookies). Without a token these paths aren't there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ....config.settings import Settings
from ....errors import ClusterError, NoAnswer, NotRunning, UsageError
from ..data.facts import Facts
from ..master_client import Tell
from .sse import COMMENT_INTERVAL_S, SSE_COMMENT, SSE_HEADERS, client_left, message

_ACTIONS = {"reload": "", "scale": "workers", "recycle": "worker", "enable": "", "disable": "", "shutdown": ""}
"""Each with the name of its parameter, a whole number; none: it takes none."""
MAX_DIGITS = 10
"""Of a number."""
NO_STORE_HEADERS = {"cache-control": "no-store"}


def routes(root: str, facts: Facts, settings: Settings) -> list[BaseRoute]:
    """Their routes, below `root`; none without a token."""
    if settings.monitor_token is None:
        return []
    return [Route(root + "/control/{verb}", ActionRoutes(facts).carry_out, methods=["POST"])]


class ActionRoutes:
    """Passes on what is asked; a body isn't read."""

    def __init__(self, facts: Facts) -> None:
        self._order = facts.order

    async def carry_out(self, request: Request) -> Response:
        """The master's answer, when that is done; to who accepts a stream, how far it is until then."""
        verb = request.path_params["verb"]
        if verb not in _ACTIONS:
            return _refusal(f"no action {verb!r:.100}: expected {', '.join(_ACTIONS)}", 404)
        try:
            params = _params(verb, request.query_params)
        except ValueError as error:
            return _refusal(str(error), 400)
        streams = "text/event-stream" in request.headers.get("accept", "")
        return Carried(partial(self._order, verb, params), streams=streams)


class Carried(Response):
    """What becomes of an order. It is waited for as long as the client does; when that leaves, it is carried out all the same.

    Args:
        order: gives it, to somebody who tells the function that it is called with how far it is.
        streams: whether the client wants to hear that.
    """

    def __init__(self, order: Callable[[Tell], Awaitable[dict[str, Any]]], *, streams: bool) -> None:
        self._order = order
        self._streams = streams
        self._said: asyncio.Queue[tuple[str, int, dict[str, Any]]] = asyncio.Queue()
        self.background = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Wait, and answer."""
        tasks = [asyncio.ensure_future(self._carry_out()), asyncio.ensure_future(self._leave(receive))]
        try:
            answer = self._stream(send) if self._streams else self._answer(scope, receive, send)
            await answer
        finally:
            for task in tasks:
                task.cancel()

    async def _carry_out(self) -> None:
        try:
            result = await self._order(lambda said: self._said.put_nowait(("progress", 200, progress(said))))
            self._said.put_nowait(("result", 200, {"ok": True, "result": result}))
        except ClusterError as error:
            self._said.put_nowait(("result", _status(error), {"ok": False, "error": error.message}))

    async def _leave(self, receive: Any) -> None:
        await client_left(receive)
        self._said.put_nowait(("left", 0, {}))

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            what, status, content = await self._said.get()
            if what == "result":
                await _closing(JSONResponse(content, status, NO_STORE_HEADERS))(scope, receive, send)
            if what != "progress":
                return

    async def _stream(self, send: Any) -> None:
        headers = [*SSE_HEADERS, (b"connection", b"close")]  # a body, if there was one, hasn't been read
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        what = ""
        while what not in ("result", "left"):
            try:
                what, _, content = await asyncio.wait_for(self._said.get(), COMMENT_INTERVAL_S)
                said = message(what, msgspec.json.encode(content))
            except TimeoutError:
                said = SSE_COMMENT
            await send({"type": "http.response.body", "body": said, "more_body": what != "result"})


def progress(said: dict[str, Any]) -> dict[str, Any]:
    """What the master says on the way: `done` of `of` are `what`; or, where there is nothing to count, a `text`."""
    what, value = next(iter(said.items()), ("", ""))
    counts = isinstance(value, int)
    return {
        "what": what,
        "done": value if counts else None,
        "of": said.get("of"),
        "text": None if counts else str(value),
    }


def _params(verb: str, query: QueryParams) -> dict[str, Any]:
    """What the master is told. Raises ValueError, for who asked."""
    name = _ACTIONS[verb]
    strange = [each for each in query if not name or each != name]
    if strange:
        raise ValueError(f"{verb} takes no {strange[0]!r:.100}")
    if name not in query:
        if verb == "scale":
            raise ValueError("scale needs workers=N")
        return {}
    text = query[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise ValueError(f"{name} = {text!r:.100}: expected a whole number")
    return {name: int(text)}


def _status(error: ClusterError) -> int:
    if isinstance(error, NotRunning):
        return 503
    if isinstance(error, NoAnswer):
        return 504
    return 400 if isinstance(error, UsageError) else 409


def _refusal(reason: str, status: int) -> Response:
    return _closing(JSONResponse({"ok": False, "error": reason}, status, NO_STORE_HEADERS))


def _closing(response: Response) -> Response:
    response.headers["connection"] = "close"  # a body, if there was one, hasn't been read
    return response
