"""The app that the tests of rolling serve: answers of all kinds, each of which says what it must look like.

`/small/ID`, `/big/ID` (1 MiB), `/stream/ID` (in pieces, with pauses), `/slow/ID` (50 ms), `/upload/ID` and
`/trickle/ID` (a hash of what was sent), `/wait/ID` (when the file `release` is there). Each answer tells the worker and the
client's port. If the file `note` is there, each request's ID is noted in `begun.PID` when its handler begins.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

MIB = b"0123456789abcdef" * (1 << 16)
PIECES = [b"piece %d of the stream\n" % number for number in range(8)]
PAUSE = 0.005
SLOW = 0.05
_notes: dict[int, int] = {}


def expected(kind: str, number: str, sent: bytes) -> bytes:
    """The body of the right answer."""
    if kind in ("upload", "trickle"):
        return hashlib.sha256(sent).hexdigest().encode()
    bodies = {"big": MIB, "stream": b"".join(PIECES)}
    return bodies.get(kind, f"{kind} {number}".encode())


def note(number: str) -> None:
    """Write down that this request's handler has begun."""
    pid = os.getpid()
    if pid not in _notes:
        wanted = Path("note").exists()
        _notes[pid] = os.open(f"begun.{pid}", os.O_WRONLY | os.O_CREAT | os.O_APPEND) if wanted else -1
    if _notes[pid] >= 0:
        os.write(_notes[pid], f"{number}\n".encode())


def _mark(number: str) -> None:
    Path(f"held.{number}.{os.getpid()}").touch()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """For ASGI."""
    if scope["type"] == "websocket":
        await _socket(receive, send)
    if scope["type"] != "http":
        return
    _, kind, number = scope["path"].split("/")
    note(number)
    sent = b"" if scope["method"] == "GET" else await _read(receive)
    headers = [(b"x-worker", b"%d" % os.getpid()), (b"x-port", b"%d" % int((scope["client"] or ("", 0))[1]))]
    if kind == "stream":
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in PIECES:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(PAUSE)
        await send({"type": "http.response.body"})
        return
    if kind == "slow":
        await asyncio.sleep(SLOW)
    if kind == "wait":
        _mark(number)
        while not Path("release").exists():
            await asyncio.sleep(0.01)
    body = expected(kind, number, sent)
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Any) -> bytes:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    return body


async def _socket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def rsgi(scope: Any, protocol: Any) -> None:
    """For RSGI."""
    if scope.proto != "http":
        return
    _, kind, number = scope.path.split("/")
    note(number)
    sent = b"" if scope.method == "GET" else await protocol()
    headers = [("x-worker", str(os.getpid()))]
    if kind == "stream":
        transport = protocol.response_stream(200, headers)
        for piece in PIECES:
            await transport.send_bytes(piece)
            await asyncio.sleep(PAUSE)
        return
    if kind == "slow":
        await asyncio.sleep(SLOW)
    if kind == "wait":
        Path(f"held.{number}.{os.getpid()}").touch()
        while not Path("release").exists():
            await asyncio.sleep(0.01)
    protocol.response_bytes(200, headers, expected(kind, number, sent))


def make_flask() -> Callable[..., Iterable[bytes]]:
    """The same with Flask."""
    from flask import Flask, Response, request

    flask = Flask(__name__)

    @flask.route("/<kind>/<number>", methods=["GET", "POST"])
    def handle(kind: str, number: str) -> Response:
        note(number)
        sent = request.get_data()
        headers = {"x-worker": str(os.getpid())}
        if kind == "stream":
            return Response(_pieces(), headers=headers)
        if kind == "slow":
            time.sleep(SLOW)
        if kind == "wait":
            _mark(number)
            while not Path("release").exists():
                time.sleep(0.01)
        return Response(expected(kind, number, sent), headers=headers)

    return flask


def _pieces() -> Iterable[bytes]:
    for piece in PIECES:
        yield piece
        time.sleep(PAUSE)
