"""What browsers are told with each response: run nothing but the page's own files, show us in no frame, tell nobody who we are.

What the page shows is put there as text. Should that fail somewhere, the policy is behind it: no script runs but the files
below `/static`, no form sends anything, nothing is loaded from, or sent to, another host.
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
    """Stands around everything.

    Args:
        app: an ASGI app. A header that it sets itself is left as it is: a log may say something stricter.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Add them to whatever is answered."""

        async def shielded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                named = {name.lower() for name, _ in own}
                message = message | {"headers": own + [each for each in SECURITY_HEADERS if each[0] not in named]}
            await send(message)

        await self._app(scope, receive, shielded if scope["type"] == "http" else send)
