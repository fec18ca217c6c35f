"""Parsing of HTTP/1.1 responses, as much as a load client needs. Pure: bytes in, responses out."""

from __future__ import annotations

from dataclasses import dataclass


class Garbage(ValueError):
    """These bytes are no HTTP/1.1 response."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response.

    Attributes:
        headers: by lower-case name; the last one of several with the same name.
        framed: a length or chunks marked the end, not the end of the connection.
    """

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    framed: bool = True

    @property
    def closing(self) -> bool:
        """Return whether the server announced that the connection ends with this response."""
        return not self.framed or self.headers.get(b"connection", b"").lower() == b"close"


def request(path: str, host: str, *, close: bool = False, method: str = "GET") -> bytes:
    """Return the bytes of a request without a body."""
    last = "Connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{last}\r\n".encode()


def _head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise Garbage(f"not a status line: {first[:80]!r}")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise Garbage(f"not a header: {line[:80]!r}")
        headers[name.lower()] = value.strip()
    return int(words[1]), headers


def _chunks(data: bytes, at: int) -> tuple[bytes, int] | None:
    body = bytearray()
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        try:
            size = int(data[at:end].split(b";")[0], 16)
        except ValueError:
            raise Garbage(f"not the size of a chunk: {data[at:end][:80]!r}") from None
        after = end + 2 + size + 2
        if len(data) < after:
            return None
        body += data[end + 2 : after - 2]
        at = after
        if not size:
            return bytes(body), at


def parse(data: bytes, *, ended: bool = False) -> tuple[Response, int] | None:
    """Take the first final response from the start of `data`. Skip interim ones (1xx).

    Args:
        ended: the server has closed its side, so the body of a response without framing is complete.

    Returns:
        The response and the number of its bytes; None if bytes are missing.

    Raises:
        Garbage: the bytes are no response.
    """
    start = 0
    while True:
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            if data and not b"HTTP/1.".startswith(data[start : start + 7]):
                raise Garbage(f"not a status line: {data[start : start + 80]!r}")
            return None
        status, headers = _head(data[start:end])
        start = end + 4
        if status >= 200:
            break
    if b"content-length" in headers:
        if not headers[b"content-length"].isdigit():
            raise Garbage(f"not a length: {headers[b'content-length'][:80]!r}")
        after = start + int(headers[b"content-length"])
        return (Response(status, headers, data[start:after]), after) if len(data) >= after else None
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        chunked = _chunks(data, start)
        return (Response(status, headers, chunked[0]), chunked[1]) if chunked else None
    if status in (204, 304):
        return Response(status, headers, b""), start
    return (Response(status, headers, data[start:], framed=False), len(data)) if ended else None
