"""Access control: which requests the monitor refuses."""

from __future__ import annotations

from typing import Any

import pytest

from cluster2.config.settings import Settings
from cluster2.processes.monitor.access.access_control import AccessControl

pytestmark = pytest.mark.anyio
TOKEN = "a-secret-token"
BEARS = (b"authorization", b"Bearer a-secret-token")


async def status(settings: Settings, path: str, *headers: tuple[bytes, bytes], method: str = "GET") -> int:
    """Return the status of the response; 200: the request reached the app."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    gate = AccessControl(
        app, settings, frozenset({"/livez", "/ecv"}), frozenset({"/ecv/disable"}), ("/m/logs", "/m/stacks")
    )
    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await gate(scope, None, send)
    found: int = sent[0]["status"]
    return found


LOCAL, OPEN = Settings(monitor_token=TOKEN), Settings(monitor_host="0.0.0.0", monitor_token=TOKEN)


@pytest.mark.parametrize(
    ("settings", "method", "path", "without", "bearing"),
    [
        (LOCAL, "GET", "/livez", 200, 200),
        (LOCAL, "GET", "/", 200, 200),
        (LOCAL, "HEAD", "/metrics", 200, 200),
        (LOCAL, "GET", "/m/logs", 401, 200),
        (LOCAL, "GET", "/m/logs/", 401, 200),
        (LOCAL, "HEAD", "/m/logs/master.log", 401, 200),
        (LOCAL, "GET", "/m/stacks/7", 401, 200),
        (LOCAL, "GET", "/m/logsomething", 200, 200),
        (Settings(), "GET", "/m/logs/master.log", 200, 200),
        (Settings(), "GET", "/m/stacks/7", 200, 200),
        (LOCAL, "POST", "/control/reload", 401, 200),
        (LOCAL, "DELETE", "/livez", 200, 200),
        (LOCAL, "POST", "/ecv/disable", 200, 200),
        (Settings(), "GET", "/", 200, 200),
        (Settings(), "POST", "/control/reload", 403, 403),
        (OPEN, "GET", "/livez", 200, 200),
        (OPEN, "HEAD", "/ecv", 200, 200),
        (OPEN, "GET", "/", 401, 200),
        (OPEN, "OPTIONS", "/", 401, 200),
        (OPEN, "POST", "/control/reload", 401, 200),
        (OPEN, "POST", "/ecv/disable", 200, 200),
    ],
)
async def test_token(settings: Settings, method: str, path: str, without: int, bearing: int) -> None:
    """Health checks need no token, changes always do, and all other pages do on an address that isn't loopback.

    If a token is set, logs and stacks need it on loopback as well. Switches check access themselves.
    """
    assert await status(settings, path, method=method) == without
    assert await status(settings, path, BEARS, method=method) == bearing
    assert await status(settings, path, (b"authorization", b"Bearer another-token"), method=method) == without


@pytest.mark.parametrize(
    ("host", "known"),
    [
        (b"localhost", True),
        (b"LocalHost:3001", True),
        (b"127.0.0.1:3001", True),
        (b"127.0.0.1", True),
        (b"[::1]:3001", True),
        (b"[::1]", True),
        (b"10.1.2.3:3001", True),
        (b"", True),
        (b"evil.example", False),
        (b"evil.example:3001", False),
        (b"127.0.0.1.evil.example:3001", False),
        (b"localhost.evil.example", False),
        (b"localhost:evil", False),
        (b"\xff\xfe", False),
    ],
)
async def test_host(host: bytes, known: bool) -> None:
    """On loopback a request for a foreign host name is refused, health checks included (DNS rebinding)."""
    assert await status(LOCAL, "/livez", (b"host", host)) == (200 if known else 421)
    assert await status(OPEN, "/livez", (b"host", host)) == 200


@pytest.mark.parametrize(
    ("site", "mode", "passes"),
    [
        (b"none", b"navigate", True),
        (b"same-origin", b"cors", True),
        (b"cross-site", b"navigate", True),
        (b"same-site", b"navigate", True),
        (b"cross-site", b"no-cors", False),
        (b"cross-site", b"cors", False),
        (b"same-site", b"no-cors", False),
    ],
)
async def test_pages_of_others(site: bytes, mode: bytes, passes: bool) -> None:
    """A request that a browser makes for another origin is refused, unless the user follows a link."""
    headers = ((b"sec-fetch-site", site), (b"sec-fetch-mode", mode))
    for settings, path in ((LOCAL, "/events"), (LOCAL, "/livez"), (OPEN, "/livez")):
        assert await status(settings, path, *headers) == (200 if passes else 403)


@pytest.mark.parametrize(
    ("method", "dest", "found"),
    [("GET", b"document", 200), ("GET", b"iframe", 403), ("GET", b"object", 403), ("POST", b"document", 403)],
)
async def test_what_is_no_link(method: str, dest: bytes, found: int) -> None:
    """A frame in a page of another origin, or a form sent from there, is refused: it could use up the viewers."""
    headers = [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", dest)]
    assert await status(LOCAL, "/events", *headers, BEARS, method=method) == found


async def test_two_hosts() -> None:
    """A request with two Host headers is refused, in any order."""
    names = (b"host", b"localhost"), (b"host", b"evil.example")
    assert await status(LOCAL, "/", *names) == await status(LOCAL, "/", *reversed(names)) == 421


async def test_no_host() -> None:
    """A request without a Host header is accepted: an HTTP/1.0 probe has none, and browsers always send one."""
    assert await status(LOCAL, "/livez") == 200
