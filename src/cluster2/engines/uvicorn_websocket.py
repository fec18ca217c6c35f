"""uvicorn's websocket connection, which survives a handshake that the `websockets` library refuses to parse.

The HTTP parser accepts what that library doesn't: a handshake with a body, more than 128 header lines, a line of more than 8,192
bytes, another method than GET. uvicorn doesn't notice: the client waits for ever, and `shutdown` raises, since the library has
ended its side already. For a path that isn't ASCII uvicorn raises itself.

uvicorn's internals that this file uses: the protocol's `conn`, `transport`, `logger`, `handshake_initiated`,
`handshake_complete`, `close_sent`, and its methods `data_received` and `handle_connect`.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 27\r\nconnection: close\r\n\r\nInvalid websocket handshake"
)


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A websocket."""

    def data_received(self, data: bytes) -> None:
        """Answer 400 to a handshake that can't be parsed; uvicorn answers those that are parsed, and errors in frames."""
        super().data_received(data)
        error = self.conn.handshake_exc
        if error is not None and not (self.handshake_initiated or self.close_sent):
            self._refuse(error)

    def handle_connect(self, event: Any) -> None:
        """Begin the app's task, unless the head can't be made a scope."""
        try:
            super().handle_connect(event)
        except UnicodeError as error:
            self._refuse(error)

    def _refuse(self, error: Exception | None) -> None:
        self.logger.warning("Invalid websocket handshake received: %s", error)
        self.handshake_complete = self.close_sent = True
        self.transport.write(_REFUSAL)
        self.transport.close()
