"""Requests with random faults in them get the same answers however they are split, and never an exception of the server's."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster2.engines.base import Interface
from tests.unit.http_exchange import Message, Receive, Send, connect, feed, serving, settle

pytestmark = pytest.mark.anyio

HOST = b"Host: a\r\n"
REQUESTS = [
    b"GET /a HTTP/1.1\r\n%b\r\n" % HOST,
    b"POST /b HTTP/1.1\r\n%bContent-Length: 5\r\n\r\nhello" % HOST,
    b"POST /unread HTTP/1.1\r\n%bContent-Length: 5\r\n\r\nhello" % HOST,
    b"POST /c HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: v\r\nConnection: close\r\n\r\n"
    % HOST,
    b"POST /unread HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % HOST,
    b"POST /d HTTP/1.1\r\n%bUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\nhello" % HOST,
    b"POST /e HTTP/1.1\r\n%bUpgrade: h2c\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % HOST,
    b"GET /f HTTP/1.0\r\n\r\n",
    b"GET /g HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET http://h:80/x?y HTTP/1.1\r\n%b\r\n" % HOST,
    b"CONNECT /i HTTP/1.1\r\n%bContent-Length: 5\r\n\r\nhello" % HOST,
    b"POST /j HTTP/1.1\r\n%bExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello" % HOST,
    b"\r\n\r\nGET /k HTTP/1.1\r\n%bX-Forwarded-For: 1.2.3.4\r\n\r\n" % HOST,
    b"HEAD /l HTTP/1.1\r\n%bConnection: close\r\n\r\n" % HOST,
]
TOKENS = [b"\r\n", b"\n", b"\r", b" ", b":", b"\x00", b"\xff", b"0", b";", b"\t", b"chunked", b"HTTP/1.1", b"0\r\n\r\n"]
TOKENS += [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Upgrade: x\r\nConnection: upgrade\r\n"]
TOKENS += [b"Connection: close\r\n", b"Expect: 100-continue\r\n"]
MOMENT = re.compile(rb"\r\ndate: [^\r]*|\r\nconnection: close|HTTP/1.1 100 Continue\r\n\r\n")
"""Differences that depend on timing, such as whether an app that doesn't read has answered before the fault in its body came."""


def fault(rng: random.Random, data: bytes) -> bytes:
    """Insert, remove, change or repeat something."""
    at, draw = rng.randrange(len(data) + 1), rng.random()
    if draw < 0.4:
        return data[:at] + rng.choice(TOKENS) + data[at:]
    if draw < 0.6:
        return data[:at] + data[at + rng.randint(1, 6) :]
    if draw < 0.8:
        return data[:at] + rng.choice(TOKENS)[:1] + data[at + 1 :]
    return data[:at] + data[at // 2 : at // 2 + 40] + data[at:]


def told(environ: dict[str, Any]) -> bytes:
    return repr(sorted((key, value) for key, value in environ.items())).encode()


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    body = b""
    while scope["path"] != "/unread":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    named = {name: scope[name] for name in ("method", "path", "raw_path", "query_string", "headers", "client")}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": told(named) + hashlib.md5(body).hexdigest().encode()})


def wsgi(environ: Any, start_response: Any) -> Any:
    body = b"" if environ["PATH_INFO"] == "/unread" else environ["wsgi.input"].read()
    start_response("200 OK", [])
    named = {name: value for name, value in environ.items() if isinstance(value, str)}
    return [told(named) + hashlib.md5(body).hexdigest().encode()]


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 32),
    faults=st.integers(0, 3),
    half_close=st.booleans(),
    interface=st.sampled_from(Interface),
)
async def test_faults(seed: int, faults: int, half_close: bool, interface: Interface) -> None:
    """In one piece, in two and in six: the same responses, and the connection ends or goes on alike."""
    rng = random.Random(seed)
    data = b"".join(rng.choice(REQUESTS) for _ in range(rng.choice((1, 2, 3, 6))))
    for _ in range(faults):
        data = fault(rng, data)
    options: Any = {} if interface is Interface.ASGI else {"threads": 0}
    outcomes = []
    async with serving(asgi if interface is Interface.ASGI else wsgi, interface, **options) as engine:
        for parts in (1, 2, 6):
            cuts = sorted(rng.randrange(len(data) + 1) for _ in range(parts - 1))
            pieces = [data[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(data)])]
            _, transport = connect(engine)
            await feed(transport, [piece for piece in pieces if piece], half_close=half_close)
            outcomes.append((MOMENT.sub(b"", bytes(transport.output)), transport.closed or transport.ended))
            if not transport.closed:
                transport.close()
                await settle()
    assert outcomes[1:] == outcomes[:-1], data
