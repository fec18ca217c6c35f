"""Who may ask the monitor what.

Four dangers.

- *Others on the network*: where they can reach the port (`monitor_host` isn't loopback), everything but the answers to health checks
  needs `monitor_token`; those say no more than the app's own port does, and a kubelet's probe can bear no secret.
- *Changes*: whatever isn't GET or HEAD needs the token everywhere.
- *Other users of this machine*: where there is a token, what shows code or what the app has written needs it everywhere.
- *Pages in a browser on this machine*: a page whose host's name was made to point to 127.0.0.1 (DNS rebinding) is of the same
  origin as we are, for the browser, and could read everything. It can't choose the `Host` header, though: that bears its name,
  which isn't ours. A page under its true name can't read what we answer, but could have its reader's browser take all places of
  those who watch: what a browser asks for on behalf of another origin (`Sec-Fetch-Site`) is refused, unless a link is followed.

The page's own files are those of the published package, and open to all, like health checks. So a browser can show the page
without the token, as the body of a 401; it asks for the token then, and sends it along with whatever it wants to know.
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
"""What `Sec-Fetch-Site` says of whoever typed our address, and of our own page."""


class AccessRefusal(NamedTuple):
    """An answer of the gate's."""

    status: int
    text: bytes


_TOKEN_INVALID = AccessRefusal(401, b"a valid bearer token is needed\n")
_TOKEN_NOT_SET = AccessRefusal(403, b"this needs monitor_token, which isn't set\n")
FOREIGN_ORIGIN = AccessRefusal(403, b"a page of another origin asks\n")
_FOREIGN_HOST = AccessRefusal(421, b"the Host header names another host; ask for localhost or an address\n")


class AccessControl:
    """Stands around the whole app.

    Args:
        app: an ASGI app.
        settings: `monitor_host` and `monitor_token` count.
        probes: paths of health checks and of the page's files, open to whoever reaches the port.
        switches: paths that have a rule of their own.
        private: paths that need the token everywhere, if there is one, and so does what is below them.
        sign_in: the page that asks for the token, given path and Accept header of who was refused; None: there is none.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        settings: Settings,
        probes: frozenset[str],
        switches: frozenset[str],
        private: tuple[str, ...] = (),
        sign_in: Callable[[str, str], bytes | None] = lambda path, accept: None,
    ) -> None:
        self._app = app
        self._host = settings.monitor_host.lower()
        self._token = settings.monitor_token
        self._local = is_loopback(settings.monitor_host)
        self._probes = probes
        self._switches = switches
        self._private = private
        self._sign_in = sign_in

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer at once what may not pass."""
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await _refuse(send, refusal, self._page(scope) if refusal is _TOKEN_INVALID else None)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Any) -> AccessRefusal | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        several = sum(name == b"host" for name, _ in scope["headers"]) > 1  # which one counts? (RFC 9112, 3.2: neither)
        if self._local and (several or not self._names_us(host)):
            return _FOREIGN_HOST
        if headers.get(b"sec-fetch-site", b"none") not in _SAME_SITE_VALUES and not _follows_a_link(
            scope["method"], headers
        ):
            return FOREIGN_ORIGIN
        path, reads = scope["path"], scope["method"] in READ_METHODS
        if path in self._probes or path in self._switches:
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

    def _page(self, scope: Any) -> bytes | None:
        """What a browser shows of a 401 whose scheme it doesn't know: the page, without any fact, which asks for the token."""
        accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        return self._sign_in(scope["path"], accept) if scope["method"] == "GET" else None

    def _names_us(self, host: str) -> bool:
        """Whether a `Host` header can't be a stranger's: no header at all, an address, or a name that is ours for certain."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        if name.lower() in ("", "localhost", self._host):
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


def _follows_a_link(method: str, headers: dict[bytes, bytes]) -> bool:
    """Whether somebody comes to us from another page; a form that is sent, or a frame of that page, isn't it."""
    opens = headers.get(b"sec-fetch-mode") == b"navigate" and headers.get(b"sec-fetch-dest", b"document") == b"document"
    return opens and method in READ_METHODS


async def _refuse(send: Any, refusal: AccessRefusal, page: bytes | None) -> None:
    status, body = refusal.status, page or refusal.text
    headers = [
        (b"content-type", b"text/html; charset=utf-8" if page else b"text/plain"),
        (b"cache-control", b"no-store"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # a body, if there was one, hasn't been read
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
