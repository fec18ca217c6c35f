"""A WSGI app that uses features of PEP 3333, some of which servers leave out."""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Environ = dict[str, Any]
Start = Callable[..., Callable[[bytes], None]]
seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")
inherited: contextvars.ContextVar[str] = contextvars.ContextVar("inherited", default="nothing")
inherited.set("from import")
closed: list[str] = []


class Closing:
    """A body that notes that it was closed."""

    def __init__(self, name: str, parts: Iterator[Any]) -> None:
        self.name, self.parts = name, parts

    def __iter__(self) -> Iterator[Any]:
        return self.parts

    def close(self) -> None:
        """Note the call."""
        closed.append(self.name)


def read(environ: Environ) -> Iterator[object]:
    """Read in all ways. The body is two lines of ten bytes, and much more."""
    body = environ["wsgi.input"]
    yield body.readline(3)
    yield body.read(0)
    yield body.readline()
    yield body.readline(-1)
    yield body.read(4)
    yield body.readlines(1)
    yield next(iter(body))
    yield len(body.read(100_000))
    yield len(body.read(-1))
    yield body.read(), body.read(5), body.readline(), body.readlines(), list(body)


def late(start_response: Start) -> Iterator[bytes]:
    """Start the response with its first part."""
    start_response("201 Created", [("X-Late", "yes")])
    yield b"late"


def changed(start_response: Start) -> Iterator[bytes]:
    """Start the response anew after an error, before its first part."""
    try:
        raise LookupError("first")
    except LookupError:
        start_response("503 Away", [("X-Changed", "yes")], sys.exc_info())
    yield b""
    yield b"changed"


def kept() -> Iterator[bytes]:
    """Set a context variable in each part, which the next one sees."""
    seen.set("a part")
    yield b"begun "
    yield seen.get().encode()


VIOLATIONS: dict[str, tuple[list[tuple[str, str]], list[bytes]]] = {
    "short": ([("Content-Length", "9")], [b"hel", b"lo"]),
    "long": ([("Content-Length", "4")], [b"hel", b"lo"]),
    "length": ([("Content-Length", "five")], [b"hello"]),
    "lengths": ([("Content-Length", "5"), ("Content-Length", "6")], [b"hello"]),
    "value": ([("X-Name", "value\r\nX-Smuggled: yes")], [b"hello"]),
    "name": ([("X Name", "value")], [b"hello"]),
    "beyond": ([("X-Name", "\N{EURO SIGN}")], [b"hello"]),
}
"""Responses that HTTP does not allow: headers and body. `/violation/NAME` sends one in one piece, `/parts/NAME` part by part."""


def app(environ: Environ, start_response: Start) -> Iterable[Any]:
    """Answer as the path says."""
    path = environ["PATH_INFO"]
    _, kind, name = [*path.split("/"), "", ""][:3]
    if name in VIOLATIONS:
        headers, body = VIOLATIONS[name]
        start_response("200 OK", headers)
        return body if kind == "violation" else iter(body)
    if path == "/late":
        return late(start_response)
    if path == "/never":
        return Closing("never", iter([b"part"]))
    write = start_response("200 OK", [("X-Path", path)])
    match path:
        case "/write":
            write(b"written ")
            write(b"twice, ")
            return [b"returned"]
        case "/write-and-yield":
            write(b"written, ")
            return Closing("write-and-yield", (write(each) or b"yielded " for each in (b"a ", b"b ")))
        case "/only-written":
            write(b"written")
            return []
        case "/twice":
            start_response("200 OK", [])
            return [b"twice"]
        case "/changed":
            return changed(start_response)
        case "/tuple":
            return (b"a ", b"tuple")
        case "/empty":
            return Closing("empty", iter([b"", b"not ", b"", b"the end", b""]))
        case "/nothing":
            return iter([])
        case "/text" | "/none":
            return Closing(path[1:], iter([b"x" * 70_000, "text" if path == "/text" else None, b"more"]))
        case "/raises":
            return Closing("raises", (b"x" * 70_000 if each else 1 / each for each in (1, 0)))  # type: ignore[misc]
        case "/context":
            before = seen.get()
            seen.set("a request before")
            return [f"{before}, {inherited.get()}".encode()]
        case "/context-of-parts":
            return kept()
        case "/read":
            return [repr(list(read(environ))).encode()]
        case "/closed":
            return [" ".join(closed).encode()]
        case _:
            return [b"?"]
