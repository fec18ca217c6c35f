"""ECV on the app's own port, in each worker. `ecv` says what is answered; `check` asks the app how it is.

Traffic is one cell of the scoreboard's header, which each worker reads when it is asked: so what is true for one is true for all,
for those that are forked later as well. The cell is the master's. A worker that is told to change it passes that on and answers
when the master has done it; without a master (`cluster = false`) the worker does it itself, since there is nobody else.

Measured: an answer takes 1.15 × the CPU time of an empty handler's (the body is made once a second); to other requests the
comparison of the path adds 45 to 70 ns.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from ....config.settings import Settings
from ....core import health_page
from ....core.health_page import Asked, Health, HealthResponse
from ....linux.scoreboard import Header
from ....protocol import messages
from .app_check import AppHealthCheck, Ask, ask_asgi, ask_rsgi, ask_wsgi

Call = Callable[..., Any]
Peer = Callable[[Any, Any], str | None]
READ_METHODS = ("GET", "HEAD")

logger = logging.getLogger("cluster2.worker")

CONFIRMATION_TIMEOUT_S = 5.0
"""Seconds in which the master must have confirmed; a stuck one must not keep the caller."""
MAX_BODY_BYTES = 1 << 16
"""Bytes of a request's body that are read and ignored; a longer one is refused."""
_BODY_TIMEOUT_S = 5.0
"""Seconds for that body to arrive."""


class Traffic:
    """The switch, seen from a worker.

    Args:
        say: tells the master, or whoever is there.
        alone: there is no master.
    """

    def __init__(self, header: Header, say: Callable[[messages.Talk], None], *, alone: bool) -> None:
        self._header = header
        self._say = say
        self._alone = alone
        self._waiting: deque[asyncio.Future[None]] = deque()

    def health(self, *, able: bool) -> Health:
        """What holds now."""
        return health_page.health(traffic=bool(self._header.traffic), leaving=bool(self._header.leaving), able=able)

    async def switch(self, enabled: bool) -> bool:
        """Returns whether it is done, in all workers; false: the master is gone, or doesn't answer."""
        if self._alone:
            changed = bool(self._header.traffic) != enabled
            self._header.traffic = int(enabled)
            if changed:
                self._say(messages.SetTraffic(enabled))
            return True
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._say(messages.SetTraffic(enabled))
        await asyncio.wait({done}, timeout=CONFIRMATION_TIMEOUT_S)
        return done.done() and not done.cancelled()

    def confirmed(self) -> None:
        """The master has done what it was told first."""
        if self._waiting and not (first := self._waiting.popleft()).done():
            first.set_result(None)

    def orphaned(self) -> None:
        """The master is gone: nobody does anything any more."""
        while self._waiting:
            self._waiting.popleft().cancel()


@dataclass(frozen=True, slots=True)
class CheckedApp:
    """An app whose health is asked for.

    Attributes:
        app: as its engine calls it.
        peer: `Engine.peer` of that engine.
        check: decides whether it is well; None: it always is.
    """

    app: Call
    peer: Peer
    check: AppHealthCheck | None = None


class Ecv:
    """Answers for one app.

    Attributes:
        paths: what it answers; all else is the app's.
    """

    def __init__(self, settings: Settings, since: float, traffic: Traffic, served: CheckedApp, root: str = "") -> None:
        """Args: since: wall time of the cluster's start; root: what the engine puts before each path."""
        self._loop = asyncio.get_running_loop()
        self._page = health_page.HealthPage(settings.ecv_path, since, socket.gethostname())
        self._traffic = traffic
        self._served = served
        self._root = root
        self._monitor = settings.ecv_monitor
        self._token = settings.ecv_token
        self._switches = health_page.switches(root + settings.ecv_path) if settings.ecv_control else {}
        self.paths = frozenset({root + settings.ecv_path, *self._switches})

    async def asgi(self, scope: Any, receive: Call, send: Call) -> None:
        """Answer a request whose path is one of ours."""
        method, path = scope["method"], scope["path"]
        if method in READ_METHODS and path not in self._switches:
            answer = await self._read(scope.get("server"), lambda: self._ask_asgi(scope))
        else:
            asked = Asked.from_headers(method, path, self._served.peer(scope, receive), scope["headers"])
            answer = self._refused(asked) or await _swallow(self._page, scope, receive) or await self._switch(asked)
        if answer.status >= 400 and _brings_body(scope):
            answer = answer.closing()  # what wasn't read stands in the way of the next request
        answer = _for(scope["http_version"], answer)
        start = {"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)}
        await send(start)
        await send({"type": "http.response.body", "body": answer.body})

    async def rsgi(self, scope: Any, protocol: Any) -> None:
        """The same for RSGI."""
        method, path = scope.method, scope.path
        if method in READ_METHODS and path not in self._switches:
            answer = await self._read(_place(scope.server), lambda: self._ask_rsgi(scope))
        else:
            headers = [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in scope.headers.items()
            ]
            asked = Asked.from_headers(method, path, self._served.peer(scope, protocol), headers)
            answer = self._refused(asked) or await self._switch(asked)
        answer = _for(scope.http_version, answer)
        text = [(name.decode(), value.decode()) for name, value in answer.headers]
        protocol.response_bytes(answer.status, text, b"" if method == "HEAD" else answer.body)

    def wsgi(self, environ: Mapping[str, Any], start_response: Call) -> list[bytes]:
        """The same for an engine that calls its app in threads: the loop decides, and the thread waits for it."""
        answer = asyncio.run_coroutine_threadsafe(self._wsgi(environ), self._loop).result()
        headers = [(name.decode(), value.decode()) for name, value in answer.headers]
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else answer.body]

    async def _wsgi(self, environ: Mapping[str, Any]) -> HealthResponse:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method in READ_METHODS and path not in self._switches:
            port = str(environ["SERVER_PORT"])
            place = (environ["SERVER_NAME"], int(port)) if port.isdecimal() else None
            return _for(environ["SERVER_PROTOCOL"], await self._read(place, lambda: self._ask_wsgi(environ)))
        headers = [
            (name[5:].lower().replace("_", "-").encode("latin-1"), value.encode("latin-1"))
            for name, value in environ.items()
            if name.startswith("HTTP_")
        ]
        asked = Asked.from_headers(method, path, self._served.peer(environ, None), headers)
        return _for(environ["SERVER_PROTOCOL"], self._refused(asked) or await self._switch(asked))

    async def _read(self, server: Any, ask: Ask) -> HealthResponse:
        able = self._traffic.health(able=True)
        if able is Health.FINE and self._served.check is not None and not await self._served.check.passes(ask):
            able = self._traffic.health(able=False)
        ip, port = (server[0], server[1]) if server and server[1] else ("", 0)
        return self._page.state(able, ip, port, time.time())

    def _refused(self, asked: Asked) -> HealthResponse | None:
        answer = health_page.objection(self._page, asked, self._switches, self._token)
        if answer is not None and answer.status != 405:
            logger.warning("%s %s from %s: refused (%d)", asked.method, asked.path, asked.peer, answer.status)
        return answer

    async def _switch(self, asked: Asked) -> HealthResponse:
        enabled = self._switches[asked.path]
        if await self._traffic.switch(enabled):
            return self._page.switched(enabled)
        return self._page.master_silent()

    async def _ask_asgi(self, scope: Any) -> Any:
        return await ask_asgi(self._served.app, scope, self._root, self._monitor or "/")

    async def _ask_wsgi(self, environ: Mapping[str, Any]) -> Any:
        return await ask_wsgi(self._served.app, environ, self._monitor or "/")

    async def _ask_rsgi(self, scope: Any) -> Any:
        return await ask_rsgi(self._served.app, scope, self._monitor or "/")


def _for(version: str, answer: HealthResponse) -> HealthResponse:
    """HTTP/2 has no `Connection` header, and forbids it."""
    if version.removeprefix("HTTP/").startswith("1") or (b"connection", b"close") not in answer.headers:
        return answer
    headers = tuple(header for header in answer.headers if header[0] != b"connection")
    return HealthResponse(answer.status, headers, answer.body)


def _place(server: str) -> tuple[str, int]:
    """Host and port of `host:port`."""
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else 0


def _brings_body(scope: Any) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in scope["headers"]
    )


async def _swallow(page: health_page.HealthPage, scope: Any, receive: Call) -> HealthResponse | None:
    """Read the body, which says nothing to us, so that the connection can go on. Returns an answer if it is too much."""
    size = 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while _brings_body(scope):
                message = await receive()
                size += len(message.get("body", b""))
                if size > MAX_BODY_BYTES:
                    return page._response(413, b"no body is needed\n").closing()
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        return page._response(408, b"the body didn't arrive\n").closing()
    return None
