"""`POST /control/VERB`: actions that change the cluster, which the master carries out.

Access control lets a POST through only with `monitor_token` in its `Authorization` header. No page of another origin can set that
header without our consent, and there are no cookies. Without a token the paths don't exist.
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
from ..async_control_client import OnProgress
from ..data.cluster_view import ClusterView
from .sse import COMMENT_INTERVAL_S, SSE_COMMENT, SSE_HEADERS, client_left, message

_ACTIONS = {"reload": "", "scale": "workers", "recycle": "worker", "enable": "", "disable": "", "shutdown": ""}
"""The actions, each with the name of its parameter, a whole number. An empty name: it takes none."""
_MAX_DIGITS = 10
"""Digits of a number."""
_NO_STORE_HEADERS = {"cache-control": "no-store"}


def routes(root: str, view: ClusterView, settings: Settings) -> list[BaseRoute]:
    """Return the routes below `root`; none if there is no token."""
    if settings.monitor_token is None:
        return []
    return [Route(root + "/control/{verb}", _ActionRoutes(view).run, methods=["POST"])]


class _ActionRoutes:
    """Passes actions on to the master. It reads no request body."""

    def __init__(self, view: ClusterView) -> None:
        self._command = view.command

    async def run(self, request: Request) -> Response:
        """Respond with the master's result when the action is done. A client that accepts a stream gets its progress, too."""
        verb = request.path_params["verb"]
        if verb not in _ACTIONS:
            return _refusal(f"no action {verb!r:.100}: expected {', '.join(_ACTIONS)}", 404)
        try:
            params = _params(verb, request.query_params)
        except ValueError as error:
            return _refusal(str(error), 400)
        streams = "text/event-stream" in request.headers.get("accept", "")
        return _ActionResponse(partial(self._command, verb, params), streams=streams)


class _ActionResponse(Response):
    """The result of an action. The response waits for it as long as the client does.

    The master carries the action out even if the client leaves.

    Args:
        command: starts the action and returns its result; it calls the function that it gets with each report of progress.
        streams: the client wants reports of progress.
    """

    def __init__(self, command: Callable[[OnProgress], Awaitable[dict[str, Any]]], *, streams: bool) -> None:
        self._command = command
        self._streams = streams
        # (kind, HTTP status, content); the kind is progress, result or left.
        self._messages: asyncio.Queue[tuple[str, int, dict[str, Any]]] = asyncio.Queue()
        self.background = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the action, and respond."""
        tasks = [asyncio.ensure_future(self._run()), asyncio.ensure_future(self._watch_client(receive))]
        try:
            await (self._send_stream(send) if self._streams else self._send_result(scope, receive, send))
        finally:
            for task in tasks:
                task.cancel()

    async def _run(self) -> None:
        try:
            result = await self._command(lambda report: self._messages.put_nowait(("progress", 200, _progress(report))))
            self._messages.put_nowait(("result", 200, {"ok": True, "result": result}))
        except ClusterError as error:
            self._messages.put_nowait(("result", _status(error), {"ok": False, "error": error.message}))

    async def _watch_client(self, receive: Any) -> None:
        await client_left(receive)
        self._messages.put_nowait(("left", 0, {}))

    async def _send_result(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            kind, status, content = await self._messages.get()
            if kind == "result":
                await _closing(JSONResponse(content, status, _NO_STORE_HEADERS))(scope, receive, send)
            if kind != "progress":
                return

    async def _send_stream(self, send: Any) -> None:
        headers = [*SSE_HEADERS, (b"connection", b"close")]  # as in _closing
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        kind = ""
        while kind not in ("result", "left"):
            try:
                kind, _, content = await asyncio.wait_for(self._messages.get(), COMMENT_INTERVAL_S)
                body = message(kind, msgspec.json.encode(content))
            except TimeoutError:
                body = SSE_COMMENT
            await send({"type": "http.response.body", "body": body, "more_body": kind != "result"})


def _progress(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report of the master's in the monitor's shape: `done` of `of` are `what`, or a `text` if nothing is counted."""
    what, value = next(iter(report.items()), ("", ""))
    counts = isinstance(value, int)
    return {
        "what": what,
        "done": value if counts else None,
        "of": report.get("of"),
        "text": None if counts else str(value),
    }


def _params(verb: str, query: QueryParams) -> dict[str, Any]:
    """Return the parameters for the master. Raises ValueError with a text for the client."""
    name = _ACTIONS[verb]
    unknown = [each for each in query if not name or each != name]
    if unknown:
        raise ValueError(f"{verb} takes no {unknown[0]!r:.100}")
    if name not in query:
        if verb == "scale":
            raise ValueError("scale needs workers=N")
        return {}
    text = query[name]
    # isdecimal alone would accept the digits of all scripts.
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise ValueError(f"{name} = {text!r:.100}: expected a whole number")
    return {name: int(text)}


def _status(error: ClusterError) -> int:
    if isinstance(error, NotRunning):
        return 503
    if isinstance(error, NoAnswer):
        return 504
    return 400 if isinstance(error, UsageError) else 409


def _refusal(reason: str, status: int) -> Response:
    return _closing(JSONResponse({"ok": False, "error": reason}, status, _NO_STORE_HEADERS))


def _closing(response: Response) -> Response:
    # The request's body, if it has one, was not read. It must not be taken for the next request.
    response.headers["connection"] = "close"
    return response
