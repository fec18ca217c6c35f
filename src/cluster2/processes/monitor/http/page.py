"""`/`: the page, or the report as JSON; `/events` and `/history`: the data of the page.

The page is plain files of the package (`static/`), the same for all clients: no data is ever put into HTML. Its script requests
the data as any other client does, so it needs the token where they do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ....config.settings import Settings
from ....core import health_page
from ..data.dashboard import Dashboard
from ..data.history import HISTORY_SECONDS
from . import sse

STATIC_DIRECTORY = Path(__file__).parents[1] / "static"
PAGE_FILE = "page.html"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    "": "text/plain; charset=utf-8",
}
"""Content types by suffix. Files with another suffix aren't served."""
_MAX_POINTS = 600
"""Rows of the history if `?points=` is missing."""
_NO_CACHE_HEADERS = {"cache-control": "no-cache"}


def routes(root: str, dashboard: Dashboard, settings: Settings) -> list[BaseRoute]:
    """Return the routes below `root`."""
    page = PageRoutes(dashboard, settings)
    to_root = [Route(root, _to_root, methods=["GET"])] if root else []
    return [
        *to_root,
        Route(root + "/", page.root, methods=["GET"]),
        Route(root + "/events", page.events, methods=["GET"]),
        Route(root + "/history", page.history, methods=["GET"]),
        *(Route(f"{root}/static/{name}", file.respond, methods=["GET"]) for name, file in files().items()),
    ]


@dataclass
class StaticFile:
    """A file of the page. It is read at the first request, and kept.

    Attributes:
        name: its path below `static`.
    """

    name: str

    @cached_property
    def content(self) -> bytes:
        """The bytes of the file."""
        return (STATIC_DIRECTORY / self.name).read_bytes()

    @cached_property
    def headers(self) -> dict[str, str]:
        """The headers of the response. The tag has the browser validate its copy, so it gets a new file after an upgrade."""
        tag = hashlib.sha256(self.content).hexdigest()[:16]
        return {"content-type": _CONTENT_TYPES[Path(self.name).suffix], "cache-control": "no-cache", "etag": f'"{tag}"'}

    async def respond(self, request: Request) -> Response:
        """Respond with the file, or with 304 if the browser has it."""
        if self.headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def files() -> dict[str, StaticFile]:
    """Return all files of the page by their path below `static`. Nothing else is ever served from there."""
    paths = (
        path.relative_to(STATIC_DIRECTORY).as_posix() for path in sorted(STATIC_DIRECTORY.rglob("*")) if path.is_file()
    )
    return {name: StaticFile(name) for name in paths if Path(name).suffix in _CONTENT_TYPES}


def wants_html(accept: str) -> bool:
    """Return True if a client with this Accept header gets the page. Browsers accept text/html; other clients ask for JSON."""
    return "text/html" in accept or "application/json" not in accept


async def _to_root(request: Request) -> Response:
    name = request.scope["path"].rpartition("/")[2]
    # A relative URL, since a proxy may serve us below another path.
    return Response(status_code=307, headers={"location": f"{name}/"})


class PageRoutes:
    """Responds with the page and its data."""

    def __init__(self, dashboard: Dashboard, settings: Settings) -> None:
        self._dashboard = dashboard
        self._token = settings.monitor_token
        self._page = StaticFile(PAGE_FILE)

    async def root(self, request: Request) -> Response:
        """Respond with the page, or with the report."""
        if wants_html(request.headers.get("accept", "")):
            return await self._page.respond(request)
        return _json(self._dashboard.current_report())

    async def history(self, request: Request) -> Response:
        """Respond with the last `?seconds=` of the history in about `?points=` rows."""
        try:
            seconds = _number(request.query_params, "seconds", HISTORY_SECONDS)
            points = _number(request.query_params, "points", _MAX_POINTS)
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", 400, _NO_CACHE_HEADERS)
        return _json(self._dashboard.history(seconds, points))

    async def events(self, request: Request) -> Response:
        """Respond with a stream of server-sent events.

        It has `facts` (the report) and a `sample` each second, and each event of the cluster; with `?only=events` the events
        alone.
        """
        only = request.query_params.get("only")
        if only not in (None, "events"):
            return PlainTextResponse(f"only = {only!r:.100}: expected events\n", 400, _NO_CACHE_HEADERS)
        if (refusal := self._dashboard.viewers.refusal()) is not None:
            return PlainTextResponse(f"{refusal}\n", 503, {"retry-after": "5"})
        # Access control has let the request pass. On loopback it may have no token, and then gets no private fields.
        trusted = self._token is None or health_page.bears(request.headers.get("authorization"), self._token)
        return _EventStream(
            self._dashboard,
            _last_event_id(request.headers.get("last-event-id", "")),
            reports=only is None,
            full=trusted,
        )


class _EventStream(Response):
    """A response that makes the client a viewer."""

    def __init__(self, dashboard: Dashboard, after: int, *, reports: bool, full: bool) -> None:
        self._dashboard = dashboard
        self._options: dict[str, Any] = {"after": after, "reports": reports, "full": full}
        self.background = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Stream until the client leaves."""
        self._dashboard.prepare()
        # A HEAD request gets the headers of a stream, and occupies no viewer.
        await sse.serve(self._dashboard.viewers, receive, send, head=scope["method"] == "HEAD", **self._options)


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), headers=_NO_CACHE_HEADERS, media_type="application/json")


def _number(query: QueryParams, name: str, default: int) -> int:
    """Return a parameter from 1 to an hour. Raises ValueError with a text for the client."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= HISTORY_SECONDS):
        raise ValueError(f"{name} = {text!r:.100}: expected a whole number from 1 to {HISTORY_SECONDS}")
    return int(text)


def _last_event_id(header: str) -> int:
    """Return the number of the last event that a viewer got; 0: none, or no number of ours."""
    return int(header) if header.isascii() and header.isdecimal() and len(header) < 20 else 0
