"""What the monitor answers: an ordinary ASGI app."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ...config.settings import Settings
from ...core import health_page
from ...core.health_page import Asked, HealthResponse
from .access.access_control import READ_METHODS, AccessControl
from .access.security_headers import SecurityHeaders
from .data.dashboard import Dashboard
from .data.facts import Facts
from .http import actions, deps, log_routes, metrics, page, workers

PRIVATE_PATHS = ("/logs", "/stacks")
"""What shows code, or what the app has written."""


def make(facts: Facts, settings: Settings, desk: Dashboard | None = None) -> Callable[..., Any]:
    """The app, behind its gate, below `monitor_path`.

    Args:
        desk: shows the cluster; somebody has to tell it the seconds.
    """
    desk = desk or Dashboard(facts)
    root = settings.monitor_path.rstrip("/")
    probes = Probes(facts, settings, root)
    routes: list[BaseRoute] = [
        Route(root + "/livez", probes.livez, methods=["GET"]),
        Route(root + "/readyz", probes.readyz, methods=["GET"]),
        *(_any_method(path, probes.ecv) for path in probes.paths),
        *page.routes(root, desk, settings),
        *metrics.routes(root, facts.board),
        *deps.routes(root),
        *log_routes.routes(root, settings),
        *workers.routes(root, facts),
        *actions.routes(root, facts, settings),
    ]
    statics = (f"{root}/static/{name}" for name in page.files())
    open_ones = frozenset({root + "/livez", root + "/readyz", root + settings.monitor_ecv_path, *statics})
    shell = page.File(page.PAGE_FILE)

    def sign_in(path: str, accept: str) -> bytes | None:
        return shell.content if path in (root, root + "/") and page.wants_html(accept) else None

    private = tuple(root + path for path in PRIVATE_PATHS)
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False  # to a URL made of the Host header
    return SecurityHeaders(AccessControl(app, settings, open_ones, frozenset(probes.switches), private, sign_in))


class Probes:
    """Health checks: ECV for load balancers, `livez` and `readyz` for Kubernetes.

    Attributes:
        switches: paths that steer traffic, and whether they enable it.
        paths: all paths of ECV.
    """

    def __init__(self, facts: Facts, settings: Settings, root: str) -> None:
        self._facts = facts
        self._page = health_page.HealthPage(settings.monitor_ecv_path, facts.since, socket.gethostname())
        self._token = settings.ecv_token
        self.switches = health_page.switches(root + settings.monitor_ecv_path) if settings.ecv_control else {}
        self.paths = [root + settings.monitor_ecv_path, *self.switches]

    async def ecv(self, request: Request) -> Response:
        """The cluster's, whatever the kind of its app: fine if at least one worker serves."""
        path, method = request.scope["path"], request.method  # a URL would be made of the Host header, too
        if path not in self.switches and method in READ_METHODS:
            ip = str(request.scope["server"][0])
            return _response(self._page.state(self._facts.health(), ip, self._facts.port, time.time()))
        peer = request.client.host if request.client else None
        asked = Asked.from_headers(method, path, peer, request.scope["headers"])
        objection = health_page.objection(self._page, asked, self.switches, self._token)
        if objection is not None:
            return _response(objection.closing())
        return _response(await self._switch(self.switches[path]))

    async def _switch(self, enabled: bool) -> HealthResponse:
        if await self._facts.switch(enabled):
            # The body, if there was one, hasn't been read: it must not be taken for the next request.
            return self._page.switched(enabled).closing()
        return self._page.master_silent()

    async def livez(self, request: Request) -> Response:
        """200, unless only a new start can help. A disabled, draining or degraded cluster lives."""
        return self._probe(request, self._facts.not_alive())

    async def readyz(self, request: Request) -> Response:
        """200 if traffic may come: a worker is ready, traffic is enabled, the cluster isn't about to leave."""
        return self._probe(request, self._facts.not_alive() or self._facts.not_ready())

    def _probe(self, request: Request, reason: str | None) -> Response:
        status = 200 if reason is None else 503
        headers = {"cache-control": "no-cache"}
        if "application/json" not in request.headers.get("accept", ""):
            return PlainTextResponse(f"{reason or 'ok'}\n", status, headers)
        facts = self._facts
        content = {
            "ok": reason is None,
            "reason": reason,
            "workers": {"ready": facts.ready, "wanted": facts.wanted},
            "traffic": "enabled" if facts.traffic else "disabled",
            "leaving": facts.leaving,
        }
        return JSONResponse(content, status, headers)


def _any_method(path: str, endpoint: Callable[..., Any]) -> Route:
    route = Route(path, endpoint)
    route.methods = None  # given to Route, None would mean GET
    return route


def _response(answer: HealthResponse) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = list(answer.headers)
    return response
