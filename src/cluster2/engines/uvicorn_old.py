"""Responses to clients of HTTP/1.0, which know no chunks (RFC 9112, 6.1: none may be sent to them).

uvicorn frames a response whose length nobody has told by chunks, whoever has asked. To such a client its body ends with the
connection instead, as in gunicorn. That is why one that breaks off must end in a reset: after a FIN it would look whole.

Who has asked is seen where a request's task is made (`HttpConnection._start_asgi_task`), for requests that don't keep their
connection alive only, as none of HTTP/1.0 does: nothing is added to the path of the others.
"""

from __future__ import annotations

import math
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from .ending import reset

_FRAMING = (b"content-length", b"transfer-encoding")


class OldCycle(RequestResponseCycle):
    """A request of HTTP/1.0; a cycle becomes one before its app runs.

    Attributes:
        unbounded: nobody has told how long the response is.
    """

    unbounded = False

    async def run_asgi(self, app: Any) -> None:
        """uvicorn's."""
        await super().run_asgi(app)
        if self.unbounded and not self.response_complete and not self.disconnected:
            reset(self.transport)

    async def send(self, message: Any) -> None:
        """uvicorn's, told that the response has any length: the right one turns out at its end."""
        if message["type"] == "http.response.start" and not self.response_started:
            message = self._unchunked(message)
        elif self.unbounded and not message.get("more_body", False):
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)

    def _unchunked(self, message: dict[str, Any]) -> dict[str, Any]:
        headers = list(message.get("headers", ()))
        names = {name.lower() for name, _ in headers}
        if _FRAMING[0] in names:
            return message | {"headers": headers}
        self.unbounded, self.chunked_encoding, self.expected_content_length = True, False, math.inf  # type: ignore[assignment]
        return message | {"headers": [each for each in headers if each[0].lower() not in _FRAMING]}
