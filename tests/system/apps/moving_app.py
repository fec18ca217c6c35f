"""The app that the tests of moving connections serve: it answers with what it was asked, so that each byte can be compared."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from typing import Any


def expected(nonce: str, body: bytes, size: int) -> bytes:
    """The body of the answer: what was asked and a hash of what was sent, repeated up to `size` bytes."""
    unit = f"{nonce}:{len(body)}:{hashlib.sha256(body).hexdigest()};".encode()
    return unit * max(1, -(-size // len(unit)))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`/KIND/NONCE/SIZE/BLOCK`: KIND echo, stream, unread or late; BLOCK ms of holding the loop. Websockets: echo."""
    if scope["type"] == "websocket":
        await socket(receive, send)
    if scope["type"] != "http":
        return
    _, kind, nonce, size, block = scope["path"].split("/")
    body = b"" if kind in ("unread", "late") else await read(receive)
    if float(block):
        time.sleep(float(block) / 1000)
    whole = expected(nonce, body, int(size))
    headers = [(b"x-nonce", nonce.encode()), (b"x-worker", b"%d" % os.getpid())]
    if kind == "stream":
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        third = max(1, len(whole) // 3)
        for begin in range(0, len(whole), third):
            await send({"type": "http.response.body", "body": whole[begin : begin + third], "more_body": True})
            await asyncio.sleep(0.001)
        await send({"type": "http.response.body"})
        return
    headers.append((b"content-length", b"%d" % len(whole)))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": whole})
    if kind == "late":
        await read(receive)  # after the answer: what frameworks do with a body that nobody wanted


async def read(receive: Any) -> bytes:
    """The request's body."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    return body


async def socket(receive: Any, send: Any) -> None:
    """Echo messages, each with the worker's pid."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{os.getpid()} {message['text']}"})
