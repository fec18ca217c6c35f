"""ECV on the app's own port, in each worker: health checks, and the switch of traffic.

`core.health_page` decides the responses; `app_check` sends a request to the app.

*Traffic* is one cell of the scoreboard's header, which each worker reads when a check comes. So a change holds for all workers,
and for those that are forked later. Only the master writes the cell. A worker that receives a request to change it sends that to
the master, and responds when the master has done it. Without a master (`cluster = false`) the worker writes the cell itself.

Measured: a response takes 1.15 × the CPU time of an empty handler (the body is made once a second). To other requests the
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
"""Seconds in which the master must confirm a change: a stuck master must not block the caller."""
_MAX_BODY_BYTES = 1 << 16
"""Bytes of a request's body that are read and ignored; a longer body is refused."""
_BODY_TIMEOUT_S = 5.0
"""Seconds that this body may take to arrive."""


class Traffic:
    """The switch of traffic, as a worker sees it.

    Args:
        send: sends a message to the master, or to its stand-in.
        alone: there is no master.
    """

    def __init__(self, header: Header, send: Callable[[messages.ChannelMessage], None], *, alone: bool) -> None:
        self._header = header
        self._send = send
        self._alone = alone
        self._waiting: deque[asyncio.Future[None]] = deque()

    def health(self, *, able: bool) -> Health:
        """Return the state of the cluster, and of the app if the cluster takes traffic."""
        return health_page.health(traffic=bool(self._header.traffic), leaving=bool(self._header.leaving), able=able)

    async def switch(self, enabled: bool) -> bool:
        """Switch traffic in all workers. Return whether that is done; False: the master is gone, or does not respond."""
        if self._alone:
            changed = bool(self._header.traffic) != enabled
            self._header.traffic = int(enabled)
            if changed:
                self._send(messages.SetTraffic(enabled))
            return True
        # The master confirms changes in order, so the oldest future belongs to the next confirmation.
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._send(messages.SetTraffic(enabled))
        await asyncio.wait({done}, timeout=CONFIRMATION_TIMEOUT_S)
        return done.done() and not done.cancelled()

    def confirmed(self) -> None:
        """Complete the oldest change, which the master has confirmed: it confirms them in order."""
        if self._waiting and not (first := self._waiting.popleft()).done():
            first.set_result(None)

    def orphaned(self) -> None:
        """Fail all changes under way, since the master is gone."""
        while self._waiting:
            self._waiting.popleft().cancel()


@dataclass(frozen=True, slots=True)
class CheckedApp:
    """An app whose health can be checked.

    Attributes:
        app: as its engine calls it.
        peer: `Engine.peer` of that engine.
        check: decides whether the app is healthy; None: it always is.
    """

    app: Call
    peer: Peer
    check: AppHealthCheck | None = None


class Ecv:
    """Responds to health checks of one app.

    Attributes:
        paths: the paths to which it responds; all others are the app's.
    """

    def __init__(self, settings: Settings, since: float, traffic: Traffic, app: CheckedApp, root: str = "") -> None:
        """Prepare the page.

        Args:
            since: wall time of the cluster's start.
            root: the path that the engine puts before each path.
        """
        self._loop = asyncio.get_running_loop()
        self._page = health_page.HealthPage(settings.ecv_path, since, socket.gethostname())
        self._traffic = traffic
        self._app = app
        self._root = root
        self._monitor = settings.ecv_monitor
        self._token = settings.ecv_token
        self._switches = health_page.switches(root + settings.ecv_path) if settings.ecv_control else {}
        self.paths = frozenset({root + settings.ecv_path, *self._switches})

    async def asgi(self, scope: Any, receive: Call, send: Call) -> None:
        """Respond to an ASGI request for one of `paths`."""
        method, path = scope["method"], scope["path"]
        if method in READ_METHODS and path not in self._switches:
            response = await self._read(scope.get("server"), lambda: self._ask_asgi(scope))
        else:
            asked = Asked.from_headers(method, path, self._app.peer(scope, receive), scope["headers"])
            response = (
                self._refused(asked) or await _discard_body(self._page, scope, receive) or await self._switch(asked)
            )
        if response.status >= 400 and _brings_body(scope):
            response = response.closing()  # the unread body would be taken for the next request
        response = _for_version(scope["http_version"], response)
        start = {"type": "http.response.start", "status": response.status, "headers": list(response.headers)}
        await send(start)
        await send({"type": "http.response.body", "body": response.body})

    async def rsgi(self, scope: Any, protocol: Any) -> None:
        """Respond to an RSGI request for one of `paths`."""
        method, path = scope.method, scope.path
        if method in READ_METHODS and path not in self._switches:
            response = await self._read(_host_and_port(scope.server), lambda: self._ask_rsgi(scope))
        else:
            headers = [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in scope.headers.items()
            ]
            asked = Asked.from_headers(method, path, self._app.peer(scope, protocol), headers)
            response = self._refused(asked) or await self._switch(asked)
        response = _for_version(scope.http_version, response)
        text = [(name.decode(), value.decode()) for name, value in response.headers]
        protocol.response_bytes(response.status, text, b"" if method == "HEAD" else response.body)

    def wsgi(self, environ: Mapping[str, Any], start_response: Call) -> list[bytes]:
        """Respond to a WSGI request for one of `paths`. The engine calls this in a thread, which waits for the loop."""
        response = asyncio.run_coroutine_threadsafe(self._wsgi(environ), self._loop).result()
        headers = [(name.decode(), value.decode()) for name, value in response.headers]
        start_response(f"{response.status} {HTTPStatus(response.status).phrase}", headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else response.body]

    async def _wsgi(self, environ: Mapping[str, Any]) -> HealthResponse:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if method in READ_METHODS and path not in self._switches:
            port = str(environ["SERVER_PORT"])
            server = (environ["SERVER_NAME"], int(port)) if port.isdecimal() else None
            return _for_version(environ["SERVER_PROTOCOL"], await self._read(server, lambda: self._ask_wsgi(environ)))
        headers = [
            (name[5:].lower().replace("_", "-").encode("latin-1"), value.encode("latin-1"))
            for name, value in environ.items()
            if name.startswith("HTTP_")
        ]
        asked = Asked.from_headers(method, path, self._app.peer(environ, None), headers)
        return _for_version(environ["SERVER_PROTOCOL"], self._refused(asked) or await self._switch(asked))

    async def _read(self, server: Any, ask: Ask) -> HealthResponse:
        able = self._traffic.health(able=True)  # the app is checked only if the cluster takes traffic
        if able is Health.FINE and self._app.check is not None and not await self._app.check.passes(ask):
            able = self._traffic.health(able=False)
        ip, port = (server[0], server[1]) if server and server[1] else ("", 0)
        return self._page.state(able, ip, port, time.time())

    def _refused(self, asked: Asked) -> HealthResponse | None:
        response = health_page.objection(self._page, asked, self._switches, self._token)
        if response is not None and response.status != 405:
            logger.warning("%s %s from %s: refused (%d)", asked.method, asked.path, asked.peer, response.status)
        return response

    async def _switch(self, asked: Asked) -> HealthResponse:
        enabled = self._switches[asked.path]
        if await self._traffic.switch(enabled):
            return self._page.switched(enabled)
        return self._page.master_silent()

    async def _ask_asgi(self, scope: Any) -> Any:
        return await ask_asgi(self._app.app, scope, self._root, self._monitor or "/")

    async def _ask_wsgi(self, environ: Mapping[str, Any]) -> Any:
        return await ask_wsgi(self._app.app, environ, self._monitor or "/")

    async def _ask_rsgi(self, scope: Any) -> Any:
        return await ask_rsgi(self._app.app, scope, self._monitor or "/")


def _for_version(version: str, response: HealthResponse) -> HealthResponse:
    """Return a response without the `Connection` header where HTTP/2 forbids it (RFC 9113, 8.2.2)."""
    if version.removeprefix("HTTP/").startswith("1") or (b"connection", b"close") not in response.headers:
        return response
    headers = tuple(header for header in response.headers if header[0] != b"connection")
    return HealthResponse(response.status, headers, response.body)


def _host_and_port(server: str) -> tuple[str, int]:
    """Return the host and port of `host:port`."""
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else 0


def _brings_body(scope: Any) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in scope["headers"]
    )


async def _discard_body(page: health_page.HealthPage, scope: Any, receive: Call) -> HealthResponse | None:
    """Read and ignore a request's body, so that the connection can go on. Return a response if the body is too long or late."""
    size = 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            while _brings_body(scope):
                message = await receive()
                size += len(message.get("body", b""))
                if size > _MAX_BODY_BYTES:
                    return page._response(413, b"no body is needed\n").closing()
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        return page._response(408, b"the body didn't arrive\n").closing()
    return None
