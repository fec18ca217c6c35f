"""The websocket without I/O: handshakes, messages, closes, and what an app may send when."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from cluster2.engines.http.response import Defaults, InvalidResponse
from cluster2.engines.http.websocket_session import (
    ClientDisconnected,
    HandshakeRefusal,
    WebSocketPhase,
    WebSocketSession,
    open_session,
)

LIMIT = 1 << 16
KEY = base64.b64encode(bytes(16))
HANDSHAKE = {
    b"host": b"test",
    b"connection": b"keep-alive, Upgrade",
    b"upgrade": b"WebSocket",
    b"sec-websocket-key": KEY,
    b"sec-websocket-version": b"13",
}


def defaults() -> Defaults:
    made = Defaults()
    made.renew(b"Mon, 30 Nov 2026 12:00:00 GMT")
    return made


def handshake(
    *more: tuple[bytes, bytes], method: str = "GET", **changed: bytes | None
) -> WebSocketSession | HandshakeRefusal:
    """Open a session; keywords replace header fields, or leave them out."""
    fields: dict[bytes, bytes | None] = dict(HANDSHAKE)
    fields.update({name.replace("_", "-").encode(): value for name, value in changed.items()})
    headers = [(name, value) for name, value in fields.items() if value is not None]
    return open_session(method, [*headers, *more], defaults(), LIMIT)


def opened(*more: tuple[bytes, bytes]) -> WebSocketSession:
    session = handshake(*more)
    assert isinstance(session, WebSocketSession)
    return session


class Client:
    """The library's own client, connected to a session by bytes."""

    def __init__(self, *, deflate: bool = False, accept: bool = True) -> None:
        extensions = [ClientPerMessageDeflateFactory()] if deflate else None
        self.protocol = ClientProtocol(parse_uri("ws://test/"), extensions=extensions, max_size=None)
        request = self.protocol.connect()
        headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.raw_items()]
        session = open_session("GET", headers, defaults(), LIMIT)
        assert isinstance(session, WebSocketSession)
        self.session = session
        self.protocol.send_request(request)
        self.protocol.data_to_send()
        assert session.take_message() == {"type": "websocket.connect"}
        if accept:
            session.send({"type": "websocket.accept"})
            self.read()

    def read(self) -> list[Any]:
        """Return the bytes that the server has sent."""
        data = self.session.take_output()
        if data:
            self.protocol.receive_data(data)
        return self.protocol.events_received()

    def written(self) -> bytes:
        return b"".join(self.protocol.data_to_send())

    def write(self) -> None:
        """Give the server what the client has sent."""
        self.session.receive_data(self.written())


def messages(session: WebSocketSession) -> list[dict[str, Any]]:
    """Return the messages that the app would receive now."""
    found = []
    while session.received:
        found.append(session.take_message())
    return found


def frame(
    opcode: int, data: bytes, *, fin: bool = True, rsv: int = 0, masked: bool = True, length: int | None = None
) -> bytes:
    """Return a frame of a client, right or wrong."""
    size = len(data) if length is None else length
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    mask = 0x80 if masked else 0
    if size < 126:
        head += bytes([mask | size])
    elif size < 1 << 16:
        head += bytes([mask | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([mask | 127]) + size.to_bytes(8, "big")
    return head + (bytes(4) if masked else b"") + data


# ------------------------------------------------------------------------------------------------------------ handshakes


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"method": "POST"}, 405),
        ({"method": "HEAD"}, 405),
        ({"content_length": b"5"}, 400),
        ({"transfer_encoding": b"chunked"}, 400),
        ({"sec_websocket_version": b"8"}, 426),
        ({"sec_websocket_version": None}, 426),
        ({"sec_websocket_key": None}, 400),
        ({"sec_websocket_key": b"short"}, 400),
        ({"sec_websocket_key": b"AAAA"}, 400),
        ({"sec_websocket_key": b"\xff" * 24}, 400),
        ({"sec_websocket_extensions": b"=;"}, 400),
        ({"sec_websocket_protocol": b"a b"}, 400),
        ({"upgrade": b"websocket, h2c"}, 400),
        ({"connection": b"close"}, 400),
        ({"origin": b"x" * 9000}, 431),
        ({"sec_websocket_protocol": b"x" * 9000}, 431),
    ],
    ids=str,
)
def test_refused_handshakes(changed: dict[str, Any], status: int) -> None:
    """A handshake that isn't valid is answered with an error, without asking the app."""
    refused = handshake(**changed)
    assert isinstance(refused, HandshakeRefusal)
    assert refused.status == status
    assert refused.text
    assert (b"\r\nsec-websocket-version: 13" in refused.extra) == (status == 426)
    assert (b"\r\nallow: GET" in refused.extra) == (status == 405)


@pytest.mark.parametrize("field", [b"sec-websocket-key", b"sec-websocket-version", b"origin"])
def test_fields_that_come_twice(field: bytes) -> None:
    """A field that may come once only, and comes twice, makes the handshake invalid."""
    refused = handshake((field, b"x"), (field, b"x"))
    assert isinstance(refused, HandshakeRefusal)
    assert refused.status in (400, 426)


def test_many_lines() -> None:
    """A handshake of many lines is refused; other header fields don't count, since the head was bounded already."""
    refused = handshake(*[(b"sec-websocket-protocol", b"a")] * 200)
    assert isinstance(refused, HandshakeRefusal)
    assert refused.status == 431
    assert isinstance(handshake(*[(b"x-many", b"a" * 9000)] * 200, content_length=b"0"), WebSocketSession)


def test_subprotocols() -> None:
    """The subprotocols that the client offers, in all lines, in its order."""
    assert opened().subprotocols == []
    session = opened((b"sec-websocket-protocol", b"chat, superchat"), (b"sec-websocket-protocol", b"v2.x"))
    assert session.subprotocols == ["chat", "superchat", "v2.x"]


def test_the_accepting_response() -> None:
    """The response has what the handshake needs, the default headers, and the app's own."""
    session = opened((b"sec-websocket-protocol", b"chat"))
    session.send(
        {"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"X-One", b"1"), (b"x-two", b"\xfc")]}
    )
    lines = session.take_output().split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 101 Switching Protocols"
    assert lines[-2:] == [b"", b""]
    assert sorted(lines[1:-2]) == [
        b"connection: Upgrade",
        b"date: Mon, 30 Nov 2026 12:00:00 GMT",
        b"sec-websocket-accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=",
        b"sec-websocket-protocol: chat",
        b"server: cluster2",
        b"upgrade: websocket",
        b"x-one: 1",
        b"x-two: \xfc",
    ]
    assert (session.phase, session.status, session.ended) == (WebSocketPhase.OPEN, 101, False)


def test_own_date_and_server() -> None:
    """An app's own Date and Server replace the default ones."""
    session = opened()
    session.send({"type": "websocket.accept", "headers": [(b"server", b"mine"), (b"date", b"today")]})
    output = session.take_output()
    assert output.count(b"server:") == output.count(b"date:") == 1
    assert b"\r\nserver: mine\r\n" in output


@pytest.mark.parametrize(
    "accept",
    [
        {"headers": [(b"sec-websocket-protocol", b"a")]},
        {"headers": [(b"x y", b"a")]},
        {"headers": [(b"", b"a")]},
        {"headers": [(b"x", b"a\r\nset-cookie: b")]},
        {"headers": [(b"x", b"a\0")]},
        {"subprotocol": "a\r\nb: c"},
    ],
    ids=str,
)
def test_invalid_accepts(accept: dict[str, Any]) -> None:
    """An app can't break the response; it may try again."""
    session = opened()
    with pytest.raises(RuntimeError):
        session.send({"type": "websocket.accept", **accept})
    assert (session.take_output(), session.phase) == (b"", WebSocketPhase.CONNECTING)
    session.send({"type": "websocket.accept"})


def test_refused_by_the_app() -> None:
    """`websocket.close` before `websocket.accept` is a 403, and the app gets a disconnect."""
    session = opened()
    session.send({"type": "websocket.close", "code": 4000})
    output = session.take_output()
    assert output.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"\r\nconnection: close\r\n" in output
    assert (session.status, session.ended, session.phase) == (403, True, WebSocketPhase.CLOSED)
    assert messages(session)[1:] == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


def parsed(data: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Return a response as the library's client reads it."""
    client = ClientProtocol(parse_uri("ws://test/"))
    client.send_request(client.connect())
    client.receive_data(data)
    client.receive_eof()
    (response,) = client.events_received()
    assert isinstance(response, Response)
    return (
        response.status_code,
        {name.lower(): value for name, value in response.headers.raw_items()},
        bytes(response.body or b""),
    )


@pytest.mark.parametrize("pieces", [[b"no entry"], [b"no ", b"", b"entry"], [b"no entry", b""]], ids=len)
@pytest.mark.parametrize("declared", [False, True])
def test_the_apps_own_response(pieces: list[bytes], declared: bool) -> None:
    """`websocket.http.response`: the app answers the handshake with a response of its own."""
    session = opened()
    headers = [(b"content-type", b"text/x"), *([(b"content-length", b"8")] if declared else [])]
    session.send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
    assert session.take_output() == b""
    for place, piece in enumerate(pieces):
        last = place == len(pieces) - 1
        session.send({"type": "websocket.http.response.body", "body": piece, "more_body": not last})
        assert session.ended is last
    status, fields, body = parsed(session.take_output())
    assert (status, body, fields["content-type"]) == (401, b"no entry", "text/x")
    assert fields["connection"] == "close"
    assert session.status == 401
    assert messages(session)[1:] == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]
    with pytest.raises(RuntimeError):
        session.send({"type": "websocket.http.response.body", "body": b"more"})


@pytest.mark.parametrize("body", [b"too long", b"x"])
def test_a_response_of_another_length(body: bytes) -> None:
    """A response that isn't as long as its Content-Length ends the connection before its promised end."""
    session = opened()
    session.send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"content-length", b"4")]})
    with pytest.raises(RuntimeError):
        session.send({"type": "websocket.http.response.body", "body": body})
    assert session.ended
    assert body not in session.take_output()


@pytest.mark.parametrize(
    "start", [{"status": 99}, {"status": 101}, {"status": 400, "headers": [(b"x", b"\n")]}], ids=str
)
def test_an_invalid_response(start: dict[str, Any]) -> None:
    """A head that HTTP doesn't allow is refused, and the handshake is still unanswered."""
    session = opened()
    with pytest.raises(InvalidResponse):
        session.send({"type": "websocket.http.response.start", **start})
    assert session.phase is WebSocketPhase.CONNECTING
    session.app_failed()
    assert session.take_output().startswith(b"HTTP/1.1 500 ")


# -------------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("deflate", [False, True])
def test_messages(deflate: bool) -> None:
    """Text and bytes in both directions, compressed or not, whole or in fragments."""
    client = Client(deflate=deflate)
    client.protocol.send_text("grüß".encode())
    client.protocol.send_binary(b"\0" * 300)
    client.protocol.send_text(b"gr\xc3", fin=False)
    client.protocol.send_continuation(b"\xbc", fin=False)
    client.protocol.send_ping(b"between")
    client.protocol.send_continuation(b"n", fin=True)
    client.write()
    assert client.session.received_bytes == 6 + 300 + 5
    assert messages(client.session) == [
        {"type": "websocket.receive", "text": "grüß"},
        {"type": "websocket.receive", "bytes": b"\0" * 300},
        {"type": "websocket.receive", "text": "grün"},
    ]
    assert client.session.received_bytes == 0
    client.session.send({"type": "websocket.send", "text": "süß"})
    client.session.send({"type": "websocket.send", "text": None, "bytes": b"\xff" * 70_000})
    client.session.send({"type": "websocket.send", "bytes": b""})
    frames = client.read()
    assert [(each.opcode, bytes(each.data)) for each in frames] == [
        (Opcode.PONG, b"between"),
        (Opcode.TEXT, "süß".encode()),
        (Opcode.BINARY, b"\xff" * 70_000),
        (Opcode.BINARY, b""),
    ]


def test_types_of_messages() -> None:
    """Bytes are bytes, also of fragments; text is str."""
    client = Client()
    client.session.receive_data(frame(2, b"a", fin=False) + frame(0, b"b") + frame(1, b"c"))
    first, second = messages(client.session)
    assert type(first["bytes"]) is bytes
    assert type(second["text"]) is str


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(1, b"\xff"), 1007),
        (frame(1, b"a\xc3", fin=False) + frame(0, b"a"), 1007),
        (frame(2, b"", length=LIMIT + 1), 1009),
        (frame(2, b"a" * LIMIT, fin=False) + frame(0, b"a"), 1009),
        (frame(2, b"a" * (LIMIT // 2), fin=False) * 1 + frame(0, b"a" * (LIMIT // 2 + 1), fin=False), 1009),
        (frame(2, b"a", masked=False), 1002),
        (frame(2, b"a", rsv=4), 1002),
        (frame(3, b"a"), 1002),
        (frame(0, b"a"), 1002),
        (frame(1, b"a", fin=False) + frame(1, b"a"), 1002),
        (frame(9, b"a", fin=False), 1002),
        (frame(9, b"a" * 126), 1002),
        (frame(8, b"\x03"), 1002),
        (frame(8, b"\x03\xed"), 1002),  # 1005
        (frame(8, b"\x03\xe8\xff"), 1007),
    ],
    ids=range(15),
)
def test_broken_protocol(data: bytes, code: int) -> None:
    """A client that breaks the protocol gets the reason, the app gets the same code, and the connection ends."""
    client = Client()
    client.session.receive_data(frame(1, b"before") + data + frame(1, b"after"))
    before, last = messages(client.session)
    assert before == {"type": "websocket.receive", "text": "before"}
    assert (last["type"], last["code"]) == ("websocket.disconnect", code)
    client.read()
    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd.code == code
    assert client.session.ended
    with pytest.raises(ClientDisconnected):
        client.session.send({"type": "websocket.send", "text": "late"})
    client.session.receive_data(frame(1, b"more"))
    assert messages(client.session) == []


def test_a_bomb() -> None:
    """A compressed message that would become too large closes the websocket (1009)."""
    client = Client(deflate=True)
    client.protocol.send_binary(bytes(100 * LIMIT))
    data = client.written()
    assert len(data) < LIMIT
    client.session.receive_data(data)
    assert [each["code"] for each in messages(client.session)] == [1009]


def test_many_empty_fragments() -> None:
    """Fragments without payload cost nothing."""
    client = Client()
    client.session.receive_data(frame(2, b"a", fin=False) + frame(0, b"", fin=False) * 10_000 + frame(0, b"b"))
    assert messages(client.session) == [{"type": "websocket.receive", "bytes": b"ab"}]


# ---------------------------------------------------------------------------------------------------------------- closes


@pytest.mark.parametrize(
    ("sent", "told"), [((1000, "bye"), (1000, "bye")), ((4001, ""), (4001, "")), (None, (1005, ""))]
)
def test_closed_by_the_client(sent: tuple[int, str] | None, told: tuple[int, str]) -> None:
    """The app gets code and reason once, after the messages before. Close is echoed, and our side ends."""
    client = Client()
    client.protocol.send_text(b"last")
    client.protocol.send_close(*(sent or ()))
    client.write()
    assert messages(client.session) == [
        {"type": "websocket.receive", "text": "last"},
        {"type": "websocket.disconnect", "code": told[0], "reason": told[1]},
    ]
    client.session.receive_eof()
    assert messages(client.session) == []
    with pytest.raises(ClientDisconnected):
        client.session.take_message()
    client.read()
    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd.code == told[0]
    assert client.session.ended
    client.session.send({"type": "websocket.close"})
    with pytest.raises(ClientDisconnected):
        client.session.send({"type": "websocket.send", "text": "late"})
    assert issubclass(ClientDisconnected, OSError)


def test_closed_by_the_app() -> None:
    """Close is sent with code and reason. Later messages of the client don't reach the app. The client's Close ends the connection."""
    client = Client()
    client.session.send({"type": "websocket.close", "code": 4000, "reason": "ü" * 100})
    assert messages(client.session) == [{"type": "websocket.disconnect", "code": 4000, "reason": "ü" * 61}]
    client.protocol.send_text(b"on the way")
    client.write()
    assert not client.session.ended
    client.read()
    assert client.protocol.close_rcvd is not None
    assert (client.protocol.close_rcvd.code, client.protocol.close_rcvd.reason) == (4000, "ü" * 61)
    client.write()
    assert client.session.ended
    assert messages(client.session) == []
    client.session.send({"type": "websocket.close"})
    with pytest.raises(RuntimeError, match="websocket.send"):
        client.session.send({"type": "websocket.send", "text": "late"})


@pytest.mark.parametrize("message", [{}, {"code": 1000, "reason": None}])
def test_defaults_of_close(message: dict[str, Any]) -> None:
    """A close without a code is 1000."""
    client = Client()
    client.session.send({"type": "websocket.close", **message})
    client.read()
    assert client.protocol.close_rcvd is not None
    assert (client.protocol.close_rcvd.code, client.protocol.close_rcvd.reason) == (1000, "")


@pytest.mark.parametrize("code", [0, 999, 1005, 1006, 1015, 5000])
def test_codes_that_cannot_be_sent(code: int) -> None:
    """A code that no endpoint may send is the app's error; the websocket is still open."""
    client = Client()
    with pytest.raises(RuntimeError, match=str(code)):
        client.session.send({"type": "websocket.close", "code": code})
    assert client.session.phase is WebSocketPhase.OPEN


def test_closed_by_the_server() -> None:
    """A close by the server: the app gets its code, and its messages are dropped."""
    client = Client()
    client.session.close(1012)
    client.session.close(1012)
    assert messages(client.session) == [{"type": "websocket.disconnect", "code": 1012, "reason": ""}]
    with pytest.raises(ClientDisconnected):
        client.session.send({"type": "websocket.send", "text": "late"})
    client.read()
    client.write()
    assert client.session.ended


def test_lost() -> None:
    """A connection that is lost without Close has code 1006."""
    client = Client()
    client.session.receive_data(frame(1, b"half", fin=False))
    client.session.receive_eof()
    assert messages(client.session) == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]
    assert client.session.take_output() == b""


def test_lost_before_the_answer() -> None:
    """A client that leaves before the app has answered: the app gets a disconnect, and its accept raises."""
    session = opened()
    session.receive_eof()
    assert messages(session)[1:] == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]
    with pytest.raises(ClientDisconnected):
        session.send({"type": "websocket.accept"})
    session.send({"type": "websocket.close"})
    assert session.take_output() == b""


def test_the_app_fails() -> None:
    """An app that raises: 500 before its answer, an unfinished response in it, 1011 after."""
    session = opened()
    session.app_failed()
    assert session.take_output().startswith(b"HTTP/1.1 500 ")
    session = opened()
    session.send({"type": "websocket.http.response.start", "status": 401})
    session.app_failed()
    assert session.take_output().startswith(b"HTTP/1.1 500 ")
    session = opened()
    session.send({"type": "websocket.http.response.start", "status": 401})
    session.send({"type": "websocket.http.response.body", "body": b"a", "more_body": True})
    session.app_failed()
    assert session.ended
    assert not session.take_output().endswith(b"0\r\n\r\n")
    client = Client()
    client.session.app_failed()
    client.read()
    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd.code == 1011


def test_the_app_returns() -> None:
    """An app that returns has closed the websocket (1000); without an answer it has failed."""
    session = opened()
    assert not session.app_returned()
    assert session.take_output().startswith(b"HTTP/1.1 500 ")
    client = Client()
    assert client.session.app_returned()
    client.read()
    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd.code == 1000
    assert client.session.app_returned()


ALL = [
    {"type": "websocket.accept"},
    {"type": "websocket.send", "text": "x"},
    {"type": "websocket.close"},
    {"type": "websocket.http.response.start", "status": 400},
    {"type": "websocket.http.response.body", "body": b"x"},
    {"type": "http.response.start", "status": 200},
]
TAKEN = {
    WebSocketPhase.CONNECTING: {"websocket.accept", "websocket.close", "websocket.http.response.start"},
    WebSocketPhase.OPEN: {"websocket.send", "websocket.close"},
    WebSocketPhase.DENYING: {"websocket.http.response.body"},
    WebSocketPhase.CLOSING: {"websocket.close"},
    WebSocketPhase.CLOSED: {"websocket.close"},
}


@pytest.mark.parametrize("message", ALL, ids=lambda message: message["type"])
@pytest.mark.parametrize("phase", WebSocketPhase)
def test_what_an_app_may_send_when(phase: WebSocketPhase, message: dict[str, Any]) -> None:
    """Each message in each phase: taken, or an error that names it."""
    client = Client(accept=phase not in (WebSocketPhase.CONNECTING, WebSocketPhase.DENYING))
    session = client.session
    if phase is WebSocketPhase.DENYING:
        session.send({"type": "websocket.http.response.start", "status": 401})
    elif phase in (WebSocketPhase.CLOSING, WebSocketPhase.CLOSED):
        session.send({"type": "websocket.close"})
        if phase is WebSocketPhase.CLOSED:
            client.read()
            client.write()
    assert session.phase is phase
    if message["type"] in TAKEN[phase]:
        session.send(dict(message))
    else:
        with pytest.raises(RuntimeError, match=message["type"]):
            session.send(dict(message))


def test_a_message_without_content() -> None:
    """websocket.send with neither bytes nor text is an error."""
    with pytest.raises(RuntimeError, match="bytes or text"):
        Client().session.send({"type": "websocket.send"})


def test_pings() -> None:
    """A ping reaches the client, whose pong isn't the app's; a client that doesn't answer is failed (1011)."""
    client = Client()
    client.session.ping()
    assert [each.opcode for each in client.read()] == [Opcode.PING]
    client.write()
    assert messages(client.session) == []
    client.session.give_up("silent")
    assert messages(client.session) == [{"type": "websocket.disconnect", "code": 1011, "reason": "silent"}]
    assert client.session.ended
    client.session.ping()
    client.session.give_up("silent")


# -------------------------------------------------------------------------------------------------------------- splitting

payloads = st.one_of(st.binary(max_size=300), st.integers(0, 70_000).map(lambda size: b"x" * size))
frames = st.lists(
    st.one_of(
        st.builds(frame, st.sampled_from([0, 1, 2, 2, 8, 9, 10, 3, 11]), payloads, fin=st.booleans()),
        st.builds(frame, st.sampled_from([1, 2]), payloads, rsv=st.sampled_from([0, 0, 4, 2]), masked=st.booleans()),
        st.binary(max_size=8),
    ),
    max_size=8,
).map(b"".join)


def outcome(data: bytes, cuts: list[int], deflate: bool) -> tuple[Any, ...]:
    """All that there is to see after these bytes, split at these places."""
    client = Client(deflate=deflate)
    session = client.session
    sent = []
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        session.receive_data(data[start:end])
        sent.append(session.take_output())
    return messages(session), b"".join(sent), session.phase, session.ended


@settings(max_examples=200, deadline=None)
@given(frames, st.lists(st.integers(0, 1 << 20), max_size=12), st.booleans())
def test_splits(data: bytes, cuts: list[int], deflate: bool) -> None:
    """Equal bytes, right or wrong, have equal outcomes, however they are split.

    The library parses ahead: if a text that isn't UTF-8 is followed by another end of the websocket in the same read, that is
    noticed first. So the reason may be either, and what is written for frames in between may differ.
    """
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    split, whole = outcome(data, places, deflate), outcome(data, [], deflate)
    codes = {each["code"] for received in (split[0], whole[0]) for each in received if "code" in each}
    if len(codes) > 1 or 1007 in codes:
        assert 1007 in codes
        assert split[0][:-1] == whole[0][:-1]
        assert split[2:] == whole[2:]
    else:
        assert split == whole


def test_every_split() -> None:
    """A conversation split at every single place has the same outcome."""
    data = (
        frame(1, "grüß".encode(), fin=False)
        + frame(9, b"?")
        + frame(0, b"!")
        + frame(2, b"x" * 130)
        + frame(8, b"\x03\xe8bye")
    )
    whole = outcome(data, [], False)
    assert [each["type"] for each in whole[0]] == ["websocket.receive", "websocket.receive", "websocket.disconnect"]
    for cut in range(1, len(data)):
        assert outcome(data, [cut], False) == whole
    assert outcome(data, list(range(1, len(data))), False) == whole


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.text(max_size=200), st.lists(st.integers(0, 200), max_size=3)),
        max_size=6,
    ),
    st.booleans(),
)
def test_random_messages(sent: list[tuple[bool, str, list[int]]], deflate: bool) -> None:
    """Messages of the library's client, in random fragments, arrive as they were sent, and come back as they are echoed."""
    client = Client(deflate=deflate)
    for is_text, text, cuts in sent:
        data = text.encode()
        places = sorted(cut % (len(data) + 1) for cut in cuts)
        pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
        (client.protocol.send_text if is_text else client.protocol.send_binary)(pieces[0], fin=len(pieces) == 1)
        for place, piece in enumerate(pieces[1:], 2):
            client.protocol.send_continuation(piece, fin=place == len(pieces))
    client.write()
    received = messages(client.session)
    assert [each.get("text", each.get("bytes")) for each in received] == [
        text if is_text else text.encode() for is_text, text, _ in sent
    ]
    for message in received:
        client.session.send({**message, "type": "websocket.send"})
    echoed = [each for each in client.read() if isinstance(each, Frame)]
    assert [bytes(each.data) for each in echoed] == [text.encode() for _, text, _ in sent]
