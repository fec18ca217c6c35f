"""What only the workers know, asked through the master: the status of their components, and where they are in their code."""

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
from ..data.facts import Facts

MAX_PID_DIGITS = 10
"""Of a pid or a slot."""
_MAX_QUERY_BYTES = 8192
"""Characters."""
MAX_CONCURRENT_STACKS = 8
"""Questions; others wait for their turn: each is a connection to the master, and one message or more to each worker."""
NO_CACHE = {"cache-control": "no-cache"}


def routes(root: str, facts: Facts) -> list[BaseRoute]:
    """Their routes, below `root`."""
    workers = WorkerRoutes(facts)
    return [
        Route(root + "/component-status", workers.component_status, methods=["GET"]),
        Route(root + "/stacks/{worker}", workers.stacks, methods=["GET"]),
    ]


class WorkerRoutes:
    """Answers about them."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._turns = asyncio.Semaphore(MAX_CONCURRENT_STACKS)

    async def _ask(self, verb: str, params: Mapping[str, Any]) -> dict[str, Any]:
        async with self._turns:
            return await self._facts.ask(verb, params)

    async def component_status(self, request: Request) -> Response:
        """The names of all components; or one's status: `?component=NAME`, `&worker=PID|SLOT`, `&params=JSON`."""
        try:
            params = _component(request.query_params)
        except ValueError as error:
            return _refusal(str(error), 400)
        try:
            found = await self._ask("component" if params else "statuses", params)
        except ClusterError as error:
            return _refusal(error.message, _status(error, 400 if isinstance(error, UsageError) else 404))
        return JSONResponse(found, headers=NO_CACHE)

    async def stacks(self, request: Request) -> Response:
        """Where each thread of a worker is."""
        try:
            found = await self._ask("stacks", {"worker": _number(request.path_params["worker"])})
        except ValueError as error:
            return _refusal(str(error), 404)
        except ClusterError as error:
            return _refusal(error.message, _status(error, 404))
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse(found, headers=NO_CACHE)
        lines = (f"worker {each['pid']} (slot {each['slot']})\n{each['stacks']}\n" for each in found["workers"])
        return PlainTextResponse("\n".join(lines), headers=NO_CACHE)


def _component(query: QueryParams) -> dict[str, Any]:
    """What to ask; nothing if no component is named. Raises ValueError, for who asked."""
    if "component" not in query:
        return {}
    asked: dict[str, Any] = {"component": query["component"]}
    if "worker" in query:
        asked["worker"] = _number(query["worker"])
    if "params" in query:
        given = query["params"]
        if len(given) > _MAX_QUERY_BYTES:
            raise ValueError(f"params has {len(given)} characters: expected {_MAX_QUERY_BYTES} at most")
        try:
            asked["params"] = json.loads(given)
        except (ValueError, RecursionError):
            raise ValueError(f"params = {given!r:.100}: expected JSON") from None
    return asked


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_PID_DIGITS):
        raise ValueError(f"worker = {text!r:.100}: expected a pid or a slot")
    return int(text)


def _status(error: ClusterError, otherwise: int) -> int:
    return 503 if isinstance(error, (NotRunning, NoAnswer)) else otherwise


def _refusal(reason: str, status: int) -> Response:
    return JSONResponse({"error": reason}, status)
