"""Headers that restrict browsers: run only the page's own files, show the page in no frame, send no referrer.

The page shows all data as text. If that fails somewhere, the content security policy is the second defence: only the files below
`/static` run as scripts, no form sends anything, and nothing is loaded from another host or sent to one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class SecurityHeaders:
    """ASGI middleware that adds the headers to each response.

    Args:
        app: an ASGI app. A header that it sets itself stays: logs have a stricter policy.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Call the app, and add the headers to its response."""

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                names = {name.lower() for name, _ in own}
                message = message | {"headers": own + [each for each in SECURITY_HEADERS if each[0] not in names]}
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
