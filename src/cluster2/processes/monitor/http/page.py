"""`/`: the page for people, or the facts as JSON; `/events`, `/history`: what the page is made of.

The page itself is files of the package (`static/`), the same for everybody: no fact is ever put into HTML. Its script asks
for the facts as anybody may, so what needs the token needs it there as well.
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

STATIC_DIRECTORY = Path(__file__).parents[1] / "static"
PAGE_FILE = "page.html"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    "": "text/plain; charset=utf-8",
}
"""Content types by suffix; what has another isn't served."""
_MAX_POINTS = 600
"""Rows of the history, unless asked for otherwise."""
NO_CACHE_HEADERS = {"cache-control": "no-cache"}


def routes(root: str, desk: Dashboard, settings: Settings) -> list[BaseRoute]:
    """Theirs, below `root`."""
    page = PageRoutes(desk, settings)
    to_root = [Route(root, _to_root, methods=["GET"])] if root else []
    return [
        *to_root,
        Route(root + "/", page.root, methods=["GET"]),
        Route(root + "/events", page.events, methods=["GET"]),
        Route(root + "/history", page.history, methods=["GET"]),
        *(Route(f"{root}/static/{name}", file.answer, methods=["GET"]) for name, file in files().items()),
    ]


@dataclass
class File:
    """One that the page consists of. It is read when it is first asked for, and kept.

    Attributes:
        name: its path below `static`.
    """

    name: str

    @cached_property
    def content(self) -> bytes:
        """What is in it."""
        return (STATIC_DIRECTORY / self.name).read_bytes()

    @cached_property
    def headers(self) -> dict[str, str]:
        """With a tag: a browser asks each time whether its copy is still good, and gets no other after an upgrade."""
        tag = hashlib.sha256(self.content).hexdigest()[:16]
        return {"content-type": CONTENT_TYPES[Path(self.name).suffix], "cache-control": "no-cache", "etag": f'"{tag}"'}

    async def answer(self, request: Request) -> Response:
        """It, or that the browser has it."""
        if self.headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def files() -> dict[str, File]:
    """All files of the page, by their path below `static`: nothing else is ever served from there."""
    found = (
        path.relative_to(STATIC_DIRECTORY).as_posix() for path in sorted(STATIC_DIRECTORY.rglob("*")) if path.is_file()
    )
    return {name: File(name) for name in found if Path(name).suffix in CONTENT_TYPES}


def wants_html(accept: str) -> bool:
    """Whether who accepts that is shown the page: a browser says text/html, a program that wants JSON says so."""
    return "text/html" in accept or "application/json" not in accept


async def _to_root(request: Request) -> Response:
    name = request.scope["path"].rpartition("/")[2]
    # Relative: behind a proxy we may be elsewhere.
    return Response(status_code=307, headers={"location": f"{name}/"})


class PageRoutes:
    """Answers what the page asks."""

    def __init__(self, desk: Dashboard, settings: Settings) -> None:
        self._desk = desk
        self._token = settings.monitor_token
        self.shell = File(PAGE_FILE)

    async def root(self, request: Request) -> Response:
        """The page, or the facts."""
        if wants_html(request.headers.get("accept", "")):
            return await self.shell.answer(request)
        return _json(self._desk.facts_now())

    async def history(self, request: Request) -> Response:
        """`?seconds=` of it, in about `?points=` rows."""
        try:
            seconds = _number(request.query_params, "seconds", HISTORY_SECONDS)
            points = _number(request.query_params, "points", _MAX_POINTS)
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", 400, NO_CACHE_HEADERS)
        return _json(self._desk.history(seconds, points))

    async def events(self, request: Request) -> Response:
        """A stream of server-sent events: facts and a sample each second, and what happens; `?only=events`: the latter alone."""
        only = request.query_params.get("only")
        if only not in (None, "events"):
            return PlainTextResponse(f"only = {only!r:.100}: expected events\n", 400, NO_CACHE_HEADERS)
        if (refusal := self._desk.viewers.refusal()) is not None:
            return PlainTextResponse(f"{refusal}\n", 503, {"retry-after": "5"})
        trusted = self._token is None or health_page.bears(request.headers.get("authorization"), self._token)
        return EventStream(
            self._desk, _last(request.headers.get("last-event-id", "")), facts=only is None, full=trusted
        )


class EventStream(Response):
    """Makes whoever asked a viewer."""

    def __init__(self, desk: Dashboard, after: int, *, facts: bool, full: bool) -> None:
        self._desk = desk
        self._wants: dict[str, Any] = {"after": after, "facts": facts, "full": full}
        self.background = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """For as long as it stays."""
        self._desk.open()
        await self._desk.viewers.serve(receive, send, head=scope["method"] == "HEAD", **self._wants)


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), headers=NO_CACHE_HEADERS, media_type="application/json")


def _number(query: QueryParams, name: str, otherwise: int) -> int:
    """A parameter from 1 to an hour. Raises ValueError, for who asked."""
    text = query.get(name, str(otherwise))
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= HISTORY_SECONDS):
        raise ValueError(f"{name} = {text!r:.100}: expected a whole number from 1 to {HISTORY_SECONDS}")
    return int(text)


def _last(header: str) -> int:
    """The number of the last event that a viewer has seen; 0: none, or nothing that we ever said."""
    return int(header) if header.isascii() and header.isdecimal() and len(header) < 20 else 0
