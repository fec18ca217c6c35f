"""Raw requests, and what comes back, byte for byte; what may differ between two servers is taken out."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field

PATIENCE = 30.0
APART = {b"date", b"expires", b"server", b"connection", b"keep-alive"}
"""Headers that are the server's own, or tell the time."""


@dataclass(frozen=True)
class Answer:
    """What a server answered to one request, to the end of the connection.

    Attributes:
        code: the status; 0: none came. Phrases and versions differ, and say nothing (RFC 9112, 4; RFC 9110, 2.5).
        interim: status lines of answers 1xx before it.
        headers: names in lower case with values, sorted; those that are the server's own left out.
        whole: the body came to its promised end.
    """

    code: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    whole: bool
    interim: list[bytes] = field(default_factory=list, compare=False)


def exchange(address: tuple[str, int], raw: bytes, later: bytes = b"") -> Answer:
    """Send a request as it stands, and read to the end of the connection.

    Args:
        raw: the bytes; they ask for `Connection: close`.
        later: what is sent when the first bytes of an answer have come (after `100 Continue`).
    """
    with socket.create_connection(address, PATIENCE) as connection:
        received = b""
        try:
            connection.sendall(raw)
            if b"keep-alive" in raw:
                connection.shutdown(socket.SHUT_WR)  # else the connection would have no end
            if later:
                received = connection.recv(65536)
                connection.sendall(later)
            while data := connection.recv(65536):
                received += data
        except (ConnectionResetError, BrokenPipeError):
            received += b""  # it was cut off: what has come until then counts
    # Ports have five digits both, so lengths stay the same.
    return parse(received.replace(str(address[1]).encode(), b"_PORT"), raw.startswith(b"HEAD "))


def parse(received: bytes, bodyless: bool) -> Answer:
    """An answer's parts."""
    interim: list[bytes] = []
    while True:
        head, found, rest = received.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        if not found or not status.startswith(b"HTTP/1.1 1"):
            break
        interim.append(status)
        received = rest
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.strip().lower(), value.strip()))
    body, whole = _body(dict(headers), rest, bodyless or status[9:12] in (b"204", b"304"))
    if b"_PORT" in body:
        headers = [each for each in headers if each[0] != b"etag"]  # the tag of a body that tells the port
    kept = sorted((name, value) for name, value in headers if name not in APART)
    code = re.match(rb"HTTP/1\.[01] (\d{3}) ", status)
    return Answer(int(code[1]) if code else 0, kept, body, bool(found) and whole, interim)


def _body(headers: dict[bytes, bytes], rest: bytes, bodyless: bool) -> tuple[bytes, bool]:
    if bodyless:
        return rest, not rest
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return _dechunked(rest)
    if b"content-length" in headers:
        return rest, len(rest) == int(headers[b"content-length"])
    return rest, True


def _dechunked(rest: bytes) -> tuple[bytes, bool]:
    body = b""
    while match := re.match(rb"([0-9a-fA-F]+)\r\n", rest):
        size = int(match[1], 16)
        start, end = match.end(), match.end() + size
        body += rest[start:end]
        if not size:
            return body, rest[start:] == b"\r\n"
        if rest[end : end + 2] != b"\r\n":
            break
        rest = rest[end + 2 :]
    return body, False


def request(line: str, *headers: str, body: bytes = b"", host: str | None = "test") -> bytes:
    """A request of one connection: its length is told unless the headers say how the body comes."""
    lines = [f"{line} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), "Connection: close", *headers]
    told = "".join(lines).lower()
    if body and "transfer-encoding" not in told and "content-length" not in told:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


def form(*parts: tuple[str, str, str, bytes]) -> tuple[str, bytes]:
    """A multipart form: its header, and its body. A part is a name, a filename or "", a type or "", and its bytes."""
    boundary = "----boundary7MA4YWxk"
    body = b""
    for name, filename, kind, data in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\n" + (f"Content-Type: {kind}\r\n" if kind else "")
        body += head.encode() + b"\r\n" + data + b"\r\n"
    return f"Content-Type: multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()
