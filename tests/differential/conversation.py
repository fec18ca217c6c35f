"""Send raw bytes over one connection, and name the answers that come back."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence

PATIENCE_S = 20.0
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


def converse(
    address: tuple[str, int] | str, segments: Sequence[bytes], *, half_close: bool, patience_s: float = PATIENCE_S
) -> list[str]:
    """Send segments, and return the answers to the end of the connection.

    Args:
        segments: each is sent when the server has taken the one before, so that it reads them apart.
        half_close: end our side afterwards.
        patience_s: how long the server may say nothing. If it does, the last answer is "waits".
    """
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_s)
        connection.connect(address)
        if family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received, ending = b"", []
        try:
            for place, segment in enumerate(segments):
                if place:
                    received += _a_moment(connection)
                connection.sendall(segment)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except (ConnectionResetError, BrokenPipeError):
            pass  # the server has ended the connection: what it has said is read below
        try:
            while data := connection.recv(1 << 16):
                received += data
        except TimeoutError:
            ending = ["waits"]
        except ConnectionResetError:
            ending = ["reset"]
    return answers(received) + ending


def _a_moment(connection: socket.socket) -> bytes:
    """Give the server time to read a segment on its own; return what it says meanwhile. Nothing is decided by this."""
    deadline, received = time.monotonic() + 0.05, b""
    while (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            data = connection.recv(1 << 16)
        except TimeoutError:
            break
        finally:
            connection.settimeout(PATIENCE_S)
        if not data:
            break
        received += data
    return received


def answers(received: bytes) -> list[str]:
    """Name the answers in a stream: the status, and the body of a 200. None of them is to a HEAD."""
    found = []
    while received:
        head, complete, rest = received.partition(b"\r\n\r\n")
        match = _STATUS.match(head)
        if match is None or not complete:
            return [*found, "cut"]
        status = match[1].decode()
        fields = {
            name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in head.split(b"\r\n"))
        }
        if status.startswith("1"):
            found.append(status)
            received = rest
            continue
        body, received = _body(fields, rest)
        if body is None:
            return [*found, status, "cut"]
        announced = fields.get(b"connection", b"").lower() == b"close"
        found.append(
            f"200 {body.decode('latin-1')}" if status == "200" else status if announced else f"{status} and no close"
        )
    return found


def _body(fields: dict[bytes, bytes], rest: bytes) -> tuple[bytes | None, bytes]:
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        body = b""
        while match := re.match(rb"([0-9a-fA-F]+)\r\n", rest):
            size, start = int(match[1], 16), match.end()
            body, rest = body + rest[start : start + size], rest[start + size + 2 :]
            if not size:
                return body, rest
        return None, b""
    if b"content-length" not in fields:
        return rest, b""
    size = int(fields[b"content-length"])
    return (None, b"") if len(rest) < size else (rest[:size], rest[size:])
