"""The head of a response: what an app may say, and what comes of it on the wire."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.engines.http.response import Defaults, Head, InvalidResponse, refusal

DATE = b"Mon, 30 Nov 2026 12:00:00 GMT"


def defaults() -> Defaults:
    made = Defaults()
    made.renew(DATE)
    return made


def lines(head: Head) -> list[bytes]:
    return head.data.split(b"\r\n")


def test_a_head() -> None:
    """The status line comes first, then the server's own headers, then the app's with names in lower case."""
    head = Head(defaults(), 200, [(b"Content-Type", b"text/plain"), (b"content-length", b"5"), (b"x", b"")])
    assert lines(head) == [
        b"HTTP/1.1 200 OK",
        b"date: " + DATE,
        b"server: cluster2",
        b"content-type: text/plain",
        b"content-length: 5",
        b"x: ",
    ]
    assert (head.length, head.close) == (5, False)


def test_a_status_without_a_name() -> None:
    """A status that isn't registered has an empty phrase, and still the space before it (RFC 9112, 4)."""
    assert lines(Head(defaults(), 299, []))[0] == b"HTTP/1.1 299 "


def test_the_apps_own_date_and_server() -> None:
    """The app's date and server replace the server's: a response has one of each."""
    head = Head(defaults(), 200, [(b"date", b"never"), (b"Server", b"me"), (b"server", b"again")])
    assert lines(head) == [b"HTTP/1.1 200 OK", b"date: never", b"server: me", b"server: again"]
    assert lines(Head(defaults(), 200, [(b"server", b"me")]))[1:] == [b"date: " + DATE, b"server: me"]


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close", b" close"])
def test_connection_close(value: bytes) -> None:
    """`Connection: close` is noted, not copied: the connection sends it when it ends."""
    head = Head(defaults(), 200, [(b"connection", value)])
    assert head.close
    assert b"connection" not in head.data
    assert not Head(defaults(), 200, [(b"connection", b"keep-alive")]).close


def test_framing_is_the_servers() -> None:
    """Chunks are the connection's business, equal lengths are one, and 204 has none."""
    assert b"transfer-encoding" not in Head(defaults(), 200, [(b"Transfer-Encoding", b"chunked")]).data
    assert Head(defaults(), 200, [(b"content-length", b"5")] * 2).data.count(b"content-length") == 1
    assert b"content-length" not in Head(defaults(), 204, [(b"content-length", b"0")]).data


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (99, []),
        (101, []),
        (1000, []),
        ("200", []),
        (200, [(b"x y", b"")]),
        (200, [(b"", b"")]),
        (200, [(b"x:", b"")]),
        (200, [(b"x\r\ny", b"")]),
        (200, [("ü".encode(), b"")]),
        (200, [(b"x", b"a\r\nset-cookie: b")]),
        (200, [(b"x", b"a\nb")]),
        (200, [(b"x", b"a\rb")]),
        (200, [(b"x", b"a\0b")]),
        (200, [(b"x", b"\x7f")]),
        (200, [(b"content-length", b"-1")]),
        (200, [(b"content-length", b"5 5")]),
        (200, [(b"content-length", b"")]),
        (200, [(b"content-length", b"5"), (b"content-length", b"6")]),
        (200, [(b"transfer-encoding", b"gzip")]),
        (200, [(b"date", b"a\r\nb")]),
        (200, [(b"server", b"a\nb")]),
    ],
)
def test_what_is_refused(status: Any, headers: list[tuple[bytes, bytes]]) -> None:
    """A header that would break the framing, or another header, is the app's error."""
    with pytest.raises(InvalidResponse, match="^the app"):
        Head(defaults(), status, headers)


@pytest.mark.parametrize("headers", [[("x", "y")], [(b"x", "y")], [(b"x", 1)], [(b"x",)], [None]])
def test_headers_of_other_types(headers: Any) -> None:
    """Headers that aren't pairs of bytes are the app's error, too."""
    with pytest.raises((TypeError, ValueError, InvalidResponse)):
        Head(defaults(), 200, headers)


@given(st.lists(st.tuples(st.binary(max_size=4), st.binary(max_size=6)), max_size=5))
def test_no_header_can_make_another(headers: list[tuple[bytes, bytes]]) -> None:
    """Any header of an app is refused, or comes out as one line; no byte of it ends a line."""
    try:
        head = Head(defaults(), 200, headers)
    except InvalidResponse:
        return
    own = lines(head)[3:] if not {b"date", b"server"} & {name.lower() for name, _ in headers} else lines(head)
    expected = [name.lower() + b": " + value for name, value in headers]
    assert own == expected
    assert all((byte >= 32 and byte != 127) or byte == 9 for line in own for byte in line)


def test_a_refusal() -> None:
    """A refusal is a whole response, and says that the connection ends."""
    data = refusal(426, "no", defaults(), b"\r\nupgrade: websocket")
    head, _, body = data.partition(b"\r\n\r\n")
    assert body == b"no"
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 426 Upgrade Required",
        b"date: " + DATE,
        b"server: cluster2",
        b"upgrade: websocket",
        b"content-type: text/plain; charset=utf-8",
        b"content-length: 2",
        b"connection: close",
    ]
