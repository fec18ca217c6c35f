"""The access log: a line a request, cheap enough to leave on.

A line is made when a response has ended (or its client has gone) and put into a list, which the worker's tick writes with one
call: every 10 ms under load. uvicorn's own way is a record through `logging`, with a write, for each request. What a worker
that is killed has answered within the last 10 ms isn't in the log.

The layer goes around what uvicorn calls, so it sees all that is answered: the app's responses, those to health checks, and the
500 that uvicorn answers for an app that raised. It doesn't see websockets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

AHEAD = 512
"""Lines that are written although the tick isn't due."""


class AccessLog:
    """What a worker has to write about requests.

    Args:
        slot: of the worker, told in each line.
        as_json: one JSON object a line; else Apache's combined format, with seconds and slot behind it.
        write: takes the bytes of whole lines.
    """

    def __init__(self, slot: int, as_json: bool, write: Callable[[bytes], None]) -> None:
        self.slot = slot
        self._write = write
        self._line = self._json if as_json else self._combined
        self._lines: list[bytes] = []
        self._second = 0
        self._stamp = ""

    def add(self, scope: Any, status: int, size: int | None, took: float) -> None:
        """A request was answered.

        Args:
            scope: ASGI's, of type http.
            status: 0: it was never answered.
            size: of the body, in bytes; None: isn't known.
            took: seconds.
        """
        self._lines.append(self._line(scope, status, size, took))
        if len(self._lines) >= AHEAD:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        if self._lines:
            lines, self._lines = self._lines, []
            self._write(b"".join(lines))

    def _combined(self, scope: Any, status: int, size: int | None, took: float) -> bytes:
        client = scope.get("client")
        agent = referer = "-"
        for name, value in scope["headers"]:
            if name == b"user-agent":
                agent = _clean(value)
            elif name == b"referer":
                referer = _clean(value)
        line = (
            f"{_clean(str(client[0]).encode()) if client else '-'} - - [{self._when()}] "
            f'"{_clean(scope["method"].encode())} {_target(scope)} HTTP/{scope["http_version"]}" '
            f'{status or "-"} {"-" if size is None else size} "{referer}" "{agent}" {took:.6f} {self.slot}\n'
        )
        return line.encode("ascii", "backslashreplace")

    def _json(self, scope: Any, status: int, size: int | None, took: float) -> bytes:
        client = scope.get("client")
        agent = referer = None
        for name, value in scope["headers"]:
            if name == b"user-agent":
                agent = _clean(value)
            elif name == b"referer":
                referer = _clean(value)
        entry = {
            "time": time.time(),
            "client": _clean(str(client[0]).encode()) if client else None,
            "method": _clean(scope["method"].encode()),
            "path": _target(scope),
            "version": scope["http_version"],
            "status": status or None,
            "bytes": size,
            "seconds": round(took, 6),
            "referer": referer,
            "agent": agent,
            "slot": self.slot,
        }
        return _encode(entry) + b"\n"

    def _when(self) -> str:
        now = int(time.time())
        if now != self._second:
            self._second, self._stamp = now, _stamp(now)
        return self._stamp


_encode = msgspec.json.Encoder().encode
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _stamp(now: float) -> str:
    """Apache's form of a local time, whatever the locale."""
    local = time.localtime(now)
    return f"{local.tm_mday:02d}/{_MONTHS[local.tm_mon - 1]}/{time.strftime('%Y:%H:%M:%S %z', local)}"


def _target(scope: Any) -> str:
    raw = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    query = scope["query_string"]
    return _clean(raw + b"?" + query if query else raw)


def _clean(raw: bytes) -> str:
    """Text of printable ASCII without quotes, so that a client can't forge a line or a field."""
    text = raw.decode("latin-1")
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(each if " " <= each <= "~" and each not in '"\\' else f"\\x{ord(each):02x}" for each in text)


def logged(app: Callable[..., Any], log: AccessLog) -> Callable[..., Any]:
    """The ASGI app, with a line for each request."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        began, status, size = time.perf_counter(), 0, 0

        def sending(message: Any) -> Any:
            nonlocal status, size
            body = message.get("body")
            if body is not None:
                size += len(body)
            elif message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await app(scope, receive, sending)
        except Exception:
            status = status or 500
            raise
        finally:
            log.add(scope, status, 0 if scope["method"] == "HEAD" else size, time.perf_counter() - began)

    return wrapped


GRANIANS = "%(header{user-agent})s %(header{referer})s"
"""What granian is to tell of a request beside what it always tells."""


class Handler(logging.Handler):
    """Makes our lines of what granian tells, which sees requests before any layer of ours, but not the size of bodies."""

    def __init__(self, log: AccessLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line with the others."""
        told = cast(Mapping[str, Any], record.args)
        headers = [(b"user-agent", told["_h0"]), (b"referer", told["_h1"])]
        scope = {
            "client": (told["addr"], 0),
            "method": told["method"],
            "raw_path": _bytes(told["path"]),
            "query_string": _bytes(told["query_string"]),
            "http_version": told["protocol"].removeprefix("HTTP/"),
            "headers": [(name, _bytes(value)) for name, value in headers if value != "-"],
        }
        self._log.add(scope, told["status"], None, told["dt_ms"] / 1000)


def _bytes(text: str | bytes) -> bytes:
    """As it came over the wire, most likely: granian decodes some as Latin-1, some as UTF-8."""
    if isinstance(text, bytes):
        return text
    try:
        raw = text.encode("latin-1")
        raw.decode()
    except UnicodeError:
        return text.encode("utf-8", "surrogateescape")
    return raw
