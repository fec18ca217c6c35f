"""Access to the monitor: which client may request what.

It protects against four dangers:

- *Other hosts on the network*: if they can reach the port (`monitor_host` isn't loopback), all pages except health checks need
  `monitor_token`. Health checks say no more than the app's own port does, and a kubelet's probe can't send a secret.
- *Changes*: any method other than GET and HEAD needs the token, on loopback as well.
- *Other users of this machine*: if a token is set, pages that show code or the app's output need it, on loopback as well.
- *Pages in a browser on this machine*. A page whose host name was made to resolve to 127.0.0.1 (DNS rebinding) has our origin, as
  far as the browser knows, and could read everything. But it can't choose the `Host` header, which has its name and not ours. A
  page under its true name can't read our responses, but it could make the browser open as many streams as the monitor allows
  viewers. So a request that the browser makes for another origin (`Sec-Fetch-Site`) is refused, unless the user follows a link.

The page's own files are those of the published package, and need no token, like health checks. So a browser can show the page as
the body of a 401. The page then asks for the token, and sends it with each request for data.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, NamedTuple

from ....config.settings import Settings
from ....config.value_types import is_loopback
from ....core import health_page

READ_METHODS = ("GET", "HEAD")
_SAME_SITE_VALUES = (b"none", b"same-origin")
"""Values of `Sec-Fetch-Site` for an address that the user typed, and for our own page."""


class _AccessRefusal(NamedTuple):
    """A response of access control."""

    status: int
    text: bytes


_TOKEN_INVALID = _AccessRefusal(401, b"a valid bearer token is needed\n")
_TOKEN_NOT_SET = _AccessRefusal(403, b"this needs monitor_token, which isn't set\n")
_FOREIGN_ORIGIN = _AccessRefusal(403, b"a page of another origin makes this request\n")
_FOREIGN_HOST = _AccessRefusal(421, b"the Host header names another host; ask for localhost or an address\n")


class AccessControl:
    """ASGI middleware around the whole app.

    Args:
        app: an ASGI app.
        settings: `monitor_host` and `monitor_token` are used.
        public: paths of health checks and of the page's files, which need no token.
        switches: paths that check access themselves (`ecv_token`).
        private: paths that need the token, if one is set, even on loopback; so do the paths below them.
        sign_in: returns the page that asks for the token, given the path and the Accept header of a refused request, or None.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        settings: Settings,
        public: frozenset[str],
        switches: frozenset[str],
        private: tuple[str, ...] = (),
        sign_in: Callable[[str, str], bytes | None] = lambda path, accept: None,
    ) -> None:
        self._app = app
        self._host = settings.monitor_host.lower()
        self._token = settings.monitor_token
        self._local = is_loopback(settings.monitor_host)
        self._public = public
        self._switches = switches
        self._private = private
        self._sign_in = sign_in

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuse the request, or pass it on to the app."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await _refuse(send, refusal, self._sign_in_page(scope) if refusal is _TOKEN_INVALID else None)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Any) -> _AccessRefusal | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        several = sum(name == b"host" for name, _ in scope["headers"]) > 1  # RFC 9112, 3.2: such a request is invalid
        if self._local and (several or not self._is_own_host(host)):
            return _FOREIGN_HOST
        if headers.get(b"sec-fetch-site", b"none") not in _SAME_SITE_VALUES and not _follows_a_link(
            scope["method"], headers
        ):
            return _FOREIGN_ORIGIN
        path, reads = scope["path"], scope["method"] in READ_METHODS
        # The checks above hold for health checks, too. The token doesn't.
        if path in self._public or path in self._switches:
            return None
        if self._local and reads and (self._token is None or not self._is_private(path)):
            return None
        if self._token is None:
            return _TOKEN_NOT_SET
        return (
            None
            if health_page.bears(headers.get(b"authorization", b"").decode("latin-1"), self._token)
            else _TOKEN_INVALID
        )

    def _is_private(self, path: str) -> bool:
        return any(path == each or path.startswith(each + "/") for each in self._private)

    def _sign_in_page(self, scope: Any) -> bytes | None:
        """Return the body of a 401 for a browser, which shows it since it can't ask for a bearer token itself."""
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        return self._sign_in(scope["path"], accept) if scope["method"] == "GET" else None

    def _is_own_host(self, host: str) -> bool:
        """Return True if a page of another site can't have this `Host` header: it is missing, an address, or surely our name."""
        # "[::1]" has colons and no port.
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        if name.lower() in ("", "localhost", self._host):
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


def _follows_a_link(method: str, headers: dict[bytes, bytes]) -> bool:
    """Return True if the user follows a link from another page. A form that is sent, or a frame in that page, is no link."""
    opens = headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest", b"document") == b"document"
    return opens and method in READ_METHODS


async def _refuse(send: Any, refusal: _AccessRefusal, page: bytes | None) -> None:
    status, body = refusal.status, page or refusal.text
    headers = [
        (b"content-type", b"text/html; charset=utf-8" if page else b"text/plain"),
        (b"cache-control", b"no-store"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the request's body, if it has one, was not read
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
