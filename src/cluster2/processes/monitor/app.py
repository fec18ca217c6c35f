"""The monitor's ASGI app: its routes, behind access control."""

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
from .data.cluster_view import ClusterView
from .data.dashboard import Dashboard
from .http import actions, deps, log_routes, metrics, page, workers

_PRIVATE_PATHS = ("/logs", "/stacks")
"""Paths that show code or the app's output."""


def make_app(view: ClusterView, settings: Settings, dashboard: Dashboard | None = None) -> Callable[..., Any]:
    """Return the app below `monitor_path`.

    Args:
        dashboard: the page's data. The caller calls its `on_second`.
    """
    dashboard = dashboard or Dashboard(view)
    root = settings.monitor_path.rstrip("/")
    health = _HealthRoutes(view, settings, root)
    routes: list[BaseRoute] = [
        Route(root + "/livez", health.livez, methods=["GET"]),
        Route(root + "/readyz", health.readyz, methods=["GET"]),
        *(_any_method(path, health.ecv) for path in health.paths),
        *page.routes(root, dashboard, settings),
        *metrics.routes(root, view.board),
        *deps.routes(root),
        *log_routes.routes(root, settings),
        *workers.routes(root, view),
        *actions.routes(root, view, settings),
    ]
    static_paths = (f"{root}/static/{name}" for name in page.files())
    public = frozenset({root + "/livez", root + "/readyz", root + settings.monitor_ecv_path, *static_paths})
    page_file = page.StaticFile(page.PAGE_FILE)

    def sign_in(path: str, accept: str) -> bytes | None:
        return page_file.content if path in (root, root + "/") and page.wants_html(accept) else None

    private = tuple(root + path for path in _PRIVATE_PATHS)
    app = Starlette(routes=routes)
    # Starlette would redirect to a URL that it makes of the Host header, which the client chooses.
    app.router.redirect_slashes = False
    return SecurityHeaders(AccessControl(app, settings, public, frozenset(health.switches), private, sign_in))


class _HealthRoutes:
    """Health checks: ECV for load balancers, `livez` and `readyz` for Kubernetes.

    Attributes:
        switches: paths that switch traffic, each with True if it enables it.
        paths: all paths of ECV.
    """

    def __init__(self, view: ClusterView, settings: Settings, root: str) -> None:
        self._view = view
        self._page = health_page.HealthPage(settings.monitor_ecv_path, view.started_at, socket.gethostname())
        self._token = settings.ecv_token
        self.switches = health_page.switches(root + settings.monitor_ecv_path) if settings.ecv_control else {}
        self.paths = [root + settings.monitor_ecv_path, *self.switches]

    async def ecv(self, request: Request) -> Response:
        """Respond with the cluster's health, or switch traffic. The cluster is healthy if at least one worker serves."""
        path, method = request.scope["path"], request.method  # request.url would be made of the Host header, too
        if path not in self.switches and method in READ_METHODS:
            ip = str(request.scope["server"][0])
            return _response(self._page.state(self._view.health(), ip, self._view.port, time.time()))
        peer = request.client.host if request.client else None
        asked = Asked.from_headers(method, path, peer, request.scope["headers"])
        objection = health_page.objection(self._page, asked, self.switches, self._token)
        if objection is not None:
            return _response(objection.closing())
        return _response(await self._switch(self.switches[path]))

    async def _switch(self, enabled: bool) -> HealthResponse:
        if await self._view.switch_traffic(enabled):
            # The request's body, if it has one, was not read. It must not be taken for the next request.
            return self._page.switched(enabled).closing()
        return self._page.master_silent()

    async def livez(self, request: Request) -> Response:
        """Respond with 200 unless only a restart can help. A disabled, draining or degraded cluster is alive."""
        return self._probe(request, self._view.not_alive())

    async def readyz(self, request: Request) -> Response:
        """Respond with 200 if traffic may come: a worker is ready, traffic is enabled, and the cluster isn't shutting down."""
        return self._probe(request, self._view.not_alive() or self._view.not_ready())

    def _probe(self, request: Request, reason: str | None) -> Response:
        status = 200 if reason is None else 503
        headers = {"cache-control": "no-cache"}
        if "application/json" not in request.headers.get("accept", ""):
            return PlainTextResponse(f"{reason or 'ok'}\n", status, headers)
        view = self._view
        content = {
            "ok": reason is None,
            "reason": reason,
            "workers": {"ready": view.ready, "wanted": view.wanted},
            "traffic": "enabled" if view.traffic else "disabled",
            "leaving": view.leaving,
        }
        return JSONResponse(content, status, headers)


def _any_method(path: str, endpoint: Callable[..., Any]) -> Route:
    route = Route(path, endpoint)
    route.methods = None  # given to Route, None would mean GET
    return route


def _response(health: HealthResponse) -> Response:
    response = Response(health.body, health.status)
    response.raw_headers = list(health.headers)
    return response
