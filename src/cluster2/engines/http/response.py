"""The head of a response, from the app's status and headers to the bytes on the wire. Pure.

A head is checked and assembled once, with few steps for each header. Names are looked up in a cache of checked names. Values
are checked together, by one scan for control characters over the whole head: if there are more of them than those of the line
ends, an app has put one into a value.

Framing belongs to the connection (RFC 9112, 6), so an app's `Transfer-Encoding: chunked` and `Connection` headers are dropped,
except `Connection: close`. For two headers the check takes 0.53 µs; a search by a regular expression and two counts took 1.95.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import cast

from ..wsgi.pep3333 import CONTROL_BYTES

_SERVER_LINE = b"\r\nserver: cluster2"
HEAD_END = b"\r\n\r\n"
CLOSE_LINE = b"\r\nconnection: close"
CLOSE_LINE_AND_END = CLOSE_LINE + HEAD_END
KEEP_ALIVE_LINE = b"\r\nconnection: keep-alive"
CHUNKED_LINE = b"\r\ntransfer-encoding: chunked"
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE_RESPONSE = b"HTTP/1.1 100 Continue\r\n\r\n"

_MAX_NAMES = 1024
"""The number of names that are cached. An app can invent any number of them."""
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PLAIN: dict[bytes, bytes] = {}
"""Checked names, as the app writes them, with the beginning of their header line."""
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"date", b"server"})


class InvalidResponse(RuntimeError):
    """The app's response breaks HTTP, or ASGI."""


def _status_line(status: int) -> bytes:
    """Return the first line of a response, without its end."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}".encode()


class Defaults:
    """The beginnings of heads: a status line and the headers of each response, cached until the date changes."""

    def __init__(self) -> None:
        self._date = b""
        self.beginnings: dict[int, bytes] = {}

    def renew(self, date: bytes) -> None:
        """Use another date.

        Args:
            date: the value of the header.
        """
        self._date = b"\r\ndate: " + date
        self.beginnings = {}

    def beginning(self, status: int) -> bytes:
        """Return the beginning of a head. Raises InvalidResponse if an app can't have this status."""
        found = self.beginnings.get(status)
        if found is None:
            if not isinstance(cast(object, status), int) or not 200 <= status <= 999:
                raise InvalidResponse(f"the app's status {status!r} isn't one that ends a request")
            found = self.beginnings[status] = _status_line(status) + self._date + _SERVER_LINE
        return found

    def without(self, status: int, names: set[bytes]) -> bytes:
        """Return the beginning of a head without the default headers that the app sends itself."""
        date = b"" if b"date" in names else self._date
        return _status_line(status) + date + (b"" if b"server" in names else _SERVER_LINE)


class Head:
    """The checked head of an app's response, without its framing.

    Attributes:
        data: the bytes, without the end of the head.
        length: the declared length of the body; None: the app hasn't declared one.
        close: the app wants the connection to end.
    """

    __slots__ = ("close", "data", "length")

    def __init__(self, defaults: Defaults, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Assemble a head. Raises InvalidResponse, or TypeError for headers that aren't pairs of bytes."""
        self.length: int | None = None
        self.close = False
        parts = [defaults.beginnings.get(status) or defaults.beginning(status)]
        lines = 2  # date and server: control characters that are already in the beginning, two for each line end
        own: set[bytes] | None = None
        plain = _PLAIN
        for name, value in headers:
            line = plain.get(name)
            if line is not None:
                parts.append(line)
                parts.append(value)
                continue
            low = name.lower()
            if low not in _FRAMING:
                parts.append(_learn(name, low))
                parts.append(value)
            elif low == b"content-length":
                self._declare(status, value, parts)
            elif low == b"connection":
                self.close = self.close or b"close" in [token.strip() for token in value.lower().split(b",")]
            elif low != b"transfer-encoding":
                own = {low} if own is None else own | {low}
                parts += (b"\r\n" + low + b": ", value)
            elif value.strip().lower() != b"chunked":
                raise InvalidResponse(f"the app's Transfer-Encoding {value!r} isn't supported")
        if own is not None:
            parts[0] = defaults.without(status, own)
            lines -= len(own)
        self.data = head = b"".join(parts)
        # Two parts, and one line end of two control characters, for each of the app's headers: so their numbers are equal.
        if len(head) - len(head.translate(None, CONTROL_BYTES)) != 2 * lines + len(parts) - 1:
            raise InvalidResponse("the app's headers have a control character in a value")

    def _declare(self, status: int, value: bytes, parts: list[bytes]) -> None:
        """Note the length of the body. No response has two lengths, and a 204 has none (RFC 9110, 8.6)."""
        value = value.strip(b" \t")
        if not value.isdigit():
            raise InvalidResponse(f"the app's Content-Length {value!r} is no length")
        length = int(value)
        if self.length is not None and self.length != length:
            raise InvalidResponse("the app declares two lengths of its body that differ")
        if self.length is None and status != 204:
            parts.append(b"\r\ncontent-length: ")
            parts.append(value)
        self.length = length


def _learn(name: bytes, low: bytes) -> bytes:
    """Check a name, and return the beginning of its header line."""
    if not _TOKEN.fullmatch(name):
        raise InvalidResponse(f"the app's header {name!r} has a name that HTTP doesn't allow")
    line = b"\r\n" + low + b": "
    if len(_PLAIN) < _MAX_NAMES:
        _PLAIN[name] = line
    return line


def refusal(status: int, text: str, defaults: Defaults, extra: bytes = b"") -> bytes:
    """Return a whole response of the server itself, which ends the connection.

    Args:
        status: an error status.
        text: the body.
        defaults: the beginnings of heads.
        extra: more header lines, each beginning with a line end.
    """
    body = text.encode()
    head = defaults.beginning(status) + extra + b"\r\ncontent-type: text/plain; charset=utf-8"
    return b"%b\r\ncontent-length: %d%b%b%b" % (head, len(body), CLOSE_LINE, HEAD_END, body)
