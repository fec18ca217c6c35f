"""One websocket without I/O: from bytes to ASGI messages, and back.

The `websockets` library's Sans-I/O server (`websockets.server.ServerProtocol`) parses and makes frames. This module adds the
layer between that and an app:

- the handshake of ASGI, which the app may accept, refuse, or answer with a response of its own,
- messages instead of frames,
- the rules which message an app may send in which phase.

| phase | meaning | leaves it when |
|---|---|---|
| `CONNECTING` | the app hasn't answered the handshake | it accepts: `OPEN`, responds: `DENYING`, refuses or is left: `CLOSED` |
| `OPEN` | messages go both ways | either side sends Close, or the client breaks the protocol: `CLOSING` or `CLOSED` |
| `DENYING` | the app sends an HTTP response (extension `websocket.http.response`) | the response is complete: `CLOSED` |
| `CLOSING` | we have sent Close, and wait for the client's | it comes, or the client leaves: `CLOSED` |
| `CLOSED` | no message goes either way | never |

The library gets a handshake with only the header fields that a handshake needs. `connection` has parsed and limited the head
already. The library's own limits (128 lines, 8 KiB each) would refuse requests with large cookies.

*After the end.* The app receives `websocket.disconnect` once, with the code and the reason of the client's Close frame, or of
ours. The code is 1006 if the connection was lost. Then `websocket.send` raises `ClientDisconnected`, an OSError, as the ASGI
specification requires from version 2.4 on. `websocket.close` does nothing, so that apps can close in a `finally`.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable, MutableMapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from websockets.exceptions import ProtocolError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import SEND_EOF
from websockets.server import ServerProtocol

from .response import CHUNKED_LINE, CLOSE_LINE, HEAD_END, LAST_CHUNK, Defaults, Head, refusal

_Headers = Iterable[tuple[bytes, bytes]]
Message = MutableMapping[str, Any]

SPEC_VERSION = "2.4"
"""Version of the ASGI websocket specification, for the scope."""
_MAX_HANDSHAKE_BYTES = 1 << 13
"""Bytes of the header fields that make a handshake (431). The library takes no longer lines."""
_MAX_REASON_BYTES = 123
"""The longest reason: a control frame has at most 125 bytes (RFC 6455, 5.5), two of which are the code."""
_FIELDS = frozenset(
    {
        b"host",
        b"connection",
        b"upgrade",
        b"origin",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-protocol",
        b"sec-websocket-extensions",
    }
)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROLS = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_VERSION_13 = b"\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13"

# 4 KiB of window and 16 KiB of state for each direction instead of 32 and 256: a worker may have thousands of connections.
_DEFLATE = ServerPerMessageDeflateFactory(
    server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5}
)
# The library logs each connection at info.
_library_logger = logging.getLogger("cluster2.http.websocket.library")
_library_logger.setLevel(logging.ERROR)


class ClientDisconnected(OSError):
    """An app has sent to, or waits for, a client that has gone."""


class HandshakeRefusal(NamedTuple):
    """An error response to a handshake.

    Attributes:
        status, text: the status and the body.
        extra: header lines, each beginning with a line end.
    """

    status: int
    text: str
    extra: bytes = b""


class WebSocketPhase(Enum):
    """A phase of a websocket; see the module's docstring. The value completes an error message."""

    CONNECTING = "before websocket.accept"
    OPEN = "after websocket.accept"
    DENYING = "after websocket.http.response.start"
    CLOSING = "after websocket.close"
    CLOSED = "after the end of the websocket"


CONNECTING, OPEN, DENYING, CLOSING, CLOSED = WebSocketPhase


class WebSocketSession:
    """A websocket, from its handshake on. Make one with `open_session`.

    Attributes:
        phase: see the module's docstring.
        received: messages that the app hasn't received yet, with the size of their payload. Take them with `take_message`.
        received_bytes: the size of all these payloads.
        disconnect_taken: the app has received `websocket.disconnect`.
        ended: our side of the connection is to end when the output is written.
        output: bytes that are to be written. Take them with `take_output`.
        status: the status of the response to the handshake; 0: there is none yet.
        subprotocols: the subprotocols that the client offers.
    """

    __slots__ = (
        "_chunked",
        "_closed_by_app",
        "_defaults",
        "_disconnected",
        "_head",
        "_left",
        "_opcode",
        "_partial",
        "_protocol",
        "_response",
        "disconnect_taken",
        "ended",
        "output",
        "phase",
        "received",
        "received_bytes",
        "status",
        "subprotocols",
    )

    def __init__(
        self, protocol: ServerProtocol, response: Response, subprotocols: Sequence[str], defaults: Defaults
    ) -> None:
        """Begin with a valid handshake.

        Args:
            protocol: the library's protocol, which has read the handshake.
            response: the library's response, by which it accepts.
            subprotocols: the subprotocols that the client offers.
            defaults: the beginnings of responses.
        """
        self.phase = CONNECTING
        self.received: deque[tuple[dict[str, Any], int]] = deque([({"type": "websocket.connect"}, 0)])
        self.received_bytes = 0
        self.disconnect_taken = False
        self.ended = False
        self.status = 0
        self.subprotocols = list(subprotocols)
        self._protocol = protocol
        self._response = response
        self._defaults = defaults
        self.output: list[bytes] = []
        self._opcode = Opcode.BINARY
        self._partial: bytearray | None = None
        self._head: Head | None = None
        self._chunked = False
        self._left = 0  # bytes that a denial's declared length still promises
        self._disconnected = False
        self._closed_by_app = False

    # The client's side.

    def receive_data(self, data: bytes) -> None:
        """Parse bytes. Don't call this in `CONNECTING` or `DENYING`: the client has to wait (RFC 6455, 4.1)."""
        protocol = self._protocol
        if self.phase is CLOSED:
            return
        protocol.receive_data(data)
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            if self.phase is OPEN:
                self._frame(frame)
        if self.phase is OPEN and protocol.parser_exc is not None:
            self._failed()
        self._collect()

    def receive_eof(self) -> None:
        """Note the end of the client's side, or the loss of the connection."""
        self._disconnect(CloseCode.ABNORMAL_CLOSURE, "")
        self.phase = CLOSED
        self.ended = True

    def _frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            if frame.fin:
                self._message(opcode, frame.data)
            else:
                self._opcode, self._partial = opcode, bytearray(frame.data)
        elif opcode is Opcode.CONT:
            assert self._partial is not None  # the library refuses a continuation without a beginning
            self._partial += frame.data
            if frame.fin:
                whole, self._partial = self._partial, None
                self._message(self._opcode, whole)
        elif opcode is Opcode.CLOSE:
            close = self._protocol.close_rcvd
            assert close is not None
            self._disconnect(close.code, close.reason)
            self.phase = CLOSED

    def _message(self, opcode: Opcode, data: Any) -> None:
        if opcode is Opcode.TEXT:
            try:
                message: dict[str, Any] = {"type": "websocket.receive", "text": str(data, "utf-8")}
            except UnicodeDecodeError as error:
                self._protocol.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
                self._failed()
                return
        else:
            message = {"type": "websocket.receive", "bytes": bytes(data)}
        self.received.append((message, len(data)))
        self.received_bytes += len(data)

    def _failed(self) -> None:
        """End the websocket, since the library has failed the connection, and has sent Close already."""
        close = self._protocol.close_sent
        self._disconnect(*((close.code, close.reason) if close is not None else (CloseCode.ABNORMAL_CLOSURE, "")))
        self.phase = CLOSED

    def _collect(self) -> None:
        """Take the library's output."""
        writes = self._protocol.data_to_send()
        if writes:
            self.output += writes
            if writes[-1] == SEND_EOF:  # the library wants our side to end
                self.phase = CLOSED
                self.ended = True

    # The app's side.

    def take_message(self) -> dict[str, Any]:
        """Return the next message for the app. Raises ClientDisconnected if it has received `websocket.disconnect`."""
        if not self.received:
            raise ClientDisconnected("the websocket has been closed")
        message, size = self.received.popleft()
        self.received_bytes -= size
        self.disconnect_taken = message["type"] == "websocket.disconnect"
        return message

    def send(self, message: Message) -> None:
        """Take a message of the app.

        Raises:
            RuntimeError: it isn't allowed in this phase, or isn't valid.
            ClientDisconnected: the websocket was closed, but not by the app.
        """
        kind = message["type"]
        if self.phase is OPEN and kind == "websocket.send":
            self._send_message(message.get("bytes"), message.get("text"))
        elif self.phase is OPEN and kind == "websocket.close":
            self._closed_by_app = True
            self.close(message.get("code", CloseCode.NORMAL_CLOSURE), message.get("reason") or "")
        elif self.phase is CONNECTING and kind == "websocket.accept":
            self._accept(message.get("subprotocol"), message.get("headers") or ())
        elif self.phase is CONNECTING and kind == "websocket.close":
            self.refuse(HandshakeRefusal(403, "Forbidden"))
        elif self.phase is CONNECTING and kind == "websocket.http.response.start":
            self._start_denial(message["status"], message.get("headers") or ())
        elif self.phase is DENYING and kind == "websocket.http.response.body":
            self._deny(message.get("body", b""), message.get("more_body", False))
        elif self.phase in (CLOSING, CLOSED) and kind == "websocket.close":
            pass
        elif self.phase in (CLOSING, CLOSED) and not self._closed_by_app:
            raise ClientDisconnected("the websocket has been closed")
        else:
            raise RuntimeError(f"Unexpected ASGI message {kind!r} {self.phase.value}.")

    def _send_message(self, data: bytes | None, text: str | None) -> None:
        if data is not None:
            self._protocol.send_binary(data)
        elif text is not None:
            self._protocol.send_text(text.encode())
        else:
            raise RuntimeError("websocket.send must have bytes or text.")
        self._collect()

    def close(self, code: int, reason: str = "") -> None:
        """Send Close in `OPEN`. In other phases, do nothing.

        Raises:
            RuntimeError: no endpoint may send this code.
        """
        if self.phase is not OPEN:
            return
        reason = reason.encode()[:_MAX_REASON_BYTES].decode(
            errors="ignore"
        )  # "ignore": the cut may be within a character
        try:
            self._protocol.send_close(code, reason)
        except ProtocolError:
            raise RuntimeError(f"A websocket can't be closed with code {code}.") from None
        self.phase = CLOSING
        self._disconnect(code, reason)
        self._collect()

    def _accept(self, subprotocol: str | None, headers: _Headers) -> None:
        """Answer the handshake with 101."""
        own = [(name.lower(), value) for name, value in headers]
        if any(name == b"sec-websocket-protocol" for name, _ in own):
            raise RuntimeError("websocket.accept must name the subprotocol as `subprotocol`, not in its headers.")
        if subprotocol is not None:
            own.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        for name, value in own:
            if not _TOKEN.fullmatch(name) or _CONTROLS.search(value):
                raise RuntimeError(f"websocket.accept has an invalid header {name!r}.")
        lines = [self._defaults.without(101, {name for name, _ in own})]
        lines += [
            f"\r\n{name.lower()}: {value}".encode("latin-1")
            for name, value in self._response.headers.raw_items()
            if name not in ("Date", "Server")
        ]
        lines += [b"\r\n%b: %b" % each for each in own]
        self._protocol.send_response(self._response)
        self._protocol.data_to_send()  # drop the library's own head, which lacks the app's headers
        self.output += [*lines, HEAD_END]
        self.phase = OPEN
        self.status = 101

    def refuse(self, refused: HandshakeRefusal) -> None:
        """Answer the handshake with an error."""
        self.output.append(refusal(refused.status, refused.text, self._defaults, refused.extra))
        self.status = refused.status
        self._end()

    def _start_denial(self, status: int, headers: _Headers) -> None:
        self._head = Head(self._defaults, status, headers)
        self.phase = DENYING
        self.status = status

    def _deny(self, body: bytes, more: bool) -> None:
        """Send a part of the app's own response. Raises RuntimeError if the body isn't as long as declared."""
        head, self._head = self._head, None
        if head is not None:
            self._begin_denial(head, body, more)
        if self._chunked:
            self.output += [b"%x\r\n" % len(body), body, b"\r\n"] if body else []
            self.output += [] if more else [LAST_CHUNK]
        else:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                self._end()
                raise RuntimeError("The app's body isn't as long as its Content-Length.")
            self.output.append(body)
        if not more:
            self._end()

    def _begin_denial(self, head: Head, body: bytes, more: bool) -> None:
        """Decide the framing of the app's own response, and send the head."""
        length = head.length
        framing = b""
        if length is None and more:
            self._chunked, framing = True, CHUNKED_LINE
        elif length is None:
            length = len(body)
            framing = b"\r\ncontent-length: %d" % length
        self._left = length or 0
        self.output += [head.data, framing, CLOSE_LINE, HEAD_END]

    def app_failed(self) -> None:
        """End the handshake or the websocket, since the app has raised an exception."""
        if self.phase is CONNECTING or self._head is not None:
            self._head = None
            self.refuse(HandshakeRefusal(500, "Internal Server Error"))
        elif self.phase is DENYING:
            self._end()
        else:
            self.close(CloseCode.INTERNAL_ERROR)

    def app_returned(self) -> bool:
        """End the websocket, since the app has returned. Return False if it hasn't completed the handshake."""
        if self.phase in (CONNECTING, DENYING):
            self.app_failed()
            return False
        self.close(CloseCode.NORMAL_CLOSURE)
        return True

    def ping(self) -> None:
        """Send a ping in `OPEN`, to see whether the client is there."""
        if self.phase is OPEN:
            self._protocol.send_ping(b"")
            self._collect()

    def give_up(self, reason: str) -> None:
        """Fail the connection, since the client doesn't answer."""
        if self.phase is OPEN:
            self._protocol.fail(CloseCode.INTERNAL_ERROR, reason)
            self._failed()
            self._collect()

    def take_output(self) -> bytes:
        """Return the bytes that are to be written, and forget them."""
        output = self.output
        if not output:
            return b""
        self.output = []
        return output[0] if len(output) == 1 else b"".join(output)

    # Both sides.

    def _end(self) -> None:
        """End a handshake that wasn't accepted."""
        self.phase = CLOSED
        self.ended = True
        self._closed_by_app = True
        self._disconnect(CloseCode.ABNORMAL_CLOSURE, "")

    def _disconnect(self, code: int, reason: str) -> None:
        """Queue `websocket.disconnect` for the app, once."""
        if not self._disconnected:
            self._disconnected = True
            self.received.append(({"type": "websocket.disconnect", "code": int(code), "reason": reason}, 0))


def open_session(
    method: str, headers: Sequence[tuple[bytes, bytes]], defaults: Defaults, max_message_bytes: int
) -> WebSocketSession | HandshakeRefusal:
    """Check a handshake (RFC 6455, 4.2.1), and begin a session with it.

    Args:
        method: the method of the request, which asks for an upgrade to `websocket` over HTTP/1.1.
        headers: the headers of the request, with names in lower case.
        defaults: the beginnings of responses.
        max_message_bytes: the longest message of the client. A longer one closes the websocket (1009).

    Returns:
        The session, or the error response if the handshake isn't valid.
    """
    refused = _misfit(method, headers)
    if refused is not None:
        return refused
    # Other fields may be long or many, and would exceed the library's limits.
    fields = [(name, value) for name, value in headers if name in _FIELDS]
    lines = [b"GET / HTTP/1.1\r\n", *(b"%b: %b\r\n" % field for field in fields), b"\r\n"]
    if sum(map(len, lines)) > _MAX_HANDSHAKE_BYTES or len(lines) > 100:
        return HandshakeRefusal(431, "the websocket handshake is too long")
    protocol = ServerProtocol(extensions=[_DEFLATE], max_size=max_message_bytes, logger=_library_logger)
    protocol.receive_data(b"".join(lines))
    events = protocol.events_received()
    if not events:
        return HandshakeRefusal(400, "the websocket handshake is invalid")
    request = events[0]
    assert isinstance(request, Request)
    response = protocol.accept(request)
    if response.status_code != 101:
        return HandshakeRefusal(
            400, bytes(response.body or b"").decode().strip() or "the websocket handshake isn't valid"
        )
    offers = (value.decode("latin-1").split(",") for name, value in fields if name == b"sec-websocket-protocol")
    return WebSocketSession(protocol, response, [token.strip() for offer in offers for token in offer], defaults)


def _misfit(method: str, headers: _Headers) -> HandshakeRefusal | None:
    """Refuse a handshake for reasons that the library doesn't check, or to which it responds in another way; else None."""
    if method != "GET":
        return HandshakeRefusal(405, "a websocket begins with GET", b"\r\nallow: GET")
    versions = []
    for name, value in headers:
        if name == b"sec-websocket-version":
            versions.append(value)
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            return HandshakeRefusal(400, "a websocket handshake has no body")
    if versions != [b"13"]:
        return HandshakeRefusal(426, "the version of the websocket protocol must be 13", _VERSION_13)
    return None
