"""`POST /control/VERB`: what changes the cluster, asked of the master.

The gate lets a POST through only with `mon_token` in its `Authorization` header, which no page of another origin can set without
our consent (there are no cookies). Without a token these paths aren't there.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ..errors import ClusterError, NoAnswer, NotRunning, UsageError
from ..settings import Settings
from .facts import Facts

VERBS = {"reload": "", "scale": "workers", "recycle": "worker", "enable": "", "disable": "", "shutdown": ""}
"""Each with the name of its parameter, a whole number; none: it takes none."""
DIGITS = 10
"""Of a number."""
FRESH = {"cache-control": "no-store"}


def routes(root: str, facts: Facts, settings: Settings) -> list[BaseRoute]:
    """Their routes, below `root`; none without a token."""
    if settings.mon_token is None:
        return []
    return [Route(root + "/control/{verb}", Control(facts).carry_out, methods=["POST"])]


class Control:
    """Passes on what is asked; a body isn't read."""

    def __init__(self, facts: Facts) -> None:
        self._ask = facts.ask

    async def carry_out(self, request: Request) -> Response:
        """The master's answer. One that takes longer than it is waited for is 504, and goes on."""
        verb = request.path_params["verb"]
        if verb not in VERBS:
            return _refusal(f"no action {verb!r:.100}: expected {', '.join(VERBS)}", 404)
        try:
            result = await self._ask(verb, _params(verb, request.query_params))
        except ValueError as error:
            return _refusal(str(error), 400)
        except ClusterError as error:
            return _refusal(error.message, _status(error))
        return _closing(JSONResponse({"ok": True, "result": result}, headers=FRESH))


def _params(verb: str, query: QueryParams) -> dict[str, Any]:
    """What the master is told. Raises ValueError, for who asked."""
    name = VERBS[verb]
    strange = [each for each in query if not name or each != name]
    if strange:
        raise ValueError(f"{verb} takes no {strange[0]!r:.100}")
    if name not in query:
        if verb == "scale":
            raise ValueError("scale needs workers=N")
        return {}
    text = query[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS):
        raise ValueError(f"{name} = {text!r:.100}: expected a whole number")
    return {name: int(text)}


def _status(error: ClusterError) -> int:
    if isinstance(error, NotRunning):
        return 503
    if isinstance(error, NoAnswer):
        return 504
    return 400 if isinstance(error, UsageError) else 409


def _refusal(reason: str, status: int) -> Response:
    return _closing(JSONResponse({"ok": False, "error": reason}, status, FRESH))


def _closing(response: Response) -> Response:
    response.headers["connection"] = "close"  # a body, if there was one, hasn't been read
    return response
