"""`/component-status`, `/stacks/WORKER`: data that only the workers have. The master asks them for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ....errors import ClusterError, NoAnswer, NotRunning, UsageError
from ..data.cluster_view import ClusterView

_MAX_PID_DIGITS = 10
"""Digits of a pid or a slot."""
_MAX_PARAMS_CHARS = 8192
"""Characters of `params`."""
_MAX_CONCURRENT_QUERIES = 8
"""Queries at a time; others wait. Each is a connection to the master, and at least one message to each worker."""
_NO_CACHE = {"cache-control": "no-cache"}


def routes(root: str, view: ClusterView) -> list[BaseRoute]:
    """Return the routes below `root`."""
    workers = _WorkerRoutes(view)
    return [
        Route(root + "/component-status", workers.component_status, methods=["GET"]),
        Route(root + "/stacks/{worker}", workers.stacks, methods=["GET"]),
    ]


class _WorkerRoutes:
    """Responds with the status of components, and with stacks."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT_QUERIES)

    async def _query(self, verb: str, params: Mapping[str, Any]) -> dict[str, Any]:
        async with self._slots:
            return await self._view.query(verb, params)

    async def component_status(self, request: Request) -> Response:
        """Respond with the names of all components or with the status of one.

        That takes `?component=NAME`, and optionally `&worker=PID|SLOT` and `&params=JSON`.
        """
        try:
            params = _component(request.query_params)
        except ValueError as error:
            return _refusal(str(error), 400)
        try:
            found = await self._query("component" if params else "statuses", params)
        except ClusterError as error:
            return _refusal(error.message, _status(error, 400 if isinstance(error, UsageError) else 404))
        return JSONResponse(found, headers=_NO_CACHE)

    async def stacks(self, request: Request) -> Response:
        """Respond with the stack of each thread of a worker."""
        try:
            found = await self._query("stacks", {"worker": _number(request.path_params["worker"])})
        except ValueError as error:
            return _refusal(str(error), 404)
        except ClusterError as error:
            return _refusal(error.message, _status(error, 404))
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse(found, headers=_NO_CACHE)
        lines = (f"worker {each['pid']} (slot {each['slot']})\n{each['stacks']}\n" for each in found["workers"])
        return PlainTextResponse("\n".join(lines), headers=_NO_CACHE)


def _component(query: QueryParams) -> dict[str, Any]:
    """Return the parameters of the query; none if it names no component. Raises ValueError with a text for the client."""
    if "component" not in query:
        return {}
    params: dict[str, Any] = {"component": query["component"]}
    if "worker" in query:
        params["worker"] = _number(query["worker"])
    if "params" in query:
        given = query["params"]
        if len(given) > _MAX_PARAMS_CHARS:
            raise ValueError(f"params has {len(given)} characters: expected {_MAX_PARAMS_CHARS} at most")
        try:
            params["params"] = json.loads(given)
        except (ValueError, RecursionError):  # deep nesting exceeds the interpreter's recursion limit
            raise ValueError(f"params = {given!r:.100}: expected JSON") from None
    return params


def _number(text: str) -> int:
    # isdecimal alone would accept the digits of all scripts.
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_PID_DIGITS):
        raise ValueError(f"worker = {text!r:.100}: expected a pid or a slot")
    return int(text)


def _status(error: ClusterError, default: int) -> int:
    return 503 if isinstance(error, (NotRunning, NoAnswer)) else default


def _refusal(reason: str, status: int) -> Response:
    return JSONResponse({"error": reason}, status)
