"""WSGI apps that do what is hard to serve. `/held/NAME` holds its thread until the file `release` exists."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Environ = dict[str, Any]
Start = Callable[..., Any]


def hold(name: str) -> None:
    Path(f"held.{name}.{os.getpid()}").touch()
    while not Path("release").exists():
        time.sleep(0.01)


def stream(environ: Environ, start_response: Start) -> Iterator[bytes]:
    start_response("200 OK", [])
    try:
        while True:
            yield b"x" * 10_000
    finally:
        Path(f"closed.{os.getpid()}").touch()


def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """By path."""
    _, kind, name = [*environ["PATH_INFO"].split("/"), "", ""][:3]
    if kind == "stream":
        return stream(environ, start_response)
    if kind == "broken":
        return [b"never started"]
    if kind == "slow":
        time.sleep(0.03)
    if kind == "held":
        hold(name)
    body = environ["wsgi.input"].read()
    if kind == "flags":
        flags = (
            "wsgi.multithread",
            "wsgi.multiprocess",
            "wsgi.url_scheme",
            "SCRIPT_NAME",
            "REMOTE_ADDR",
            "REMOTE_PORT",
        )
        body = "|".join(str(environ.get(flag)) for flag in flags).encode()
    answer = body or b"hello"
    start_response("200 OK", [("Content-Length", str(len(answer))), ("X-Worker", str(os.getpid()))])
    return [answer]
