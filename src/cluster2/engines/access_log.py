"""The access log: a line a request, cheap enough to leave on.

A line is made when a response has ended (or its client has gone) and put into a list, which the worker's tick writes with one
call: every 10 ms under load. The usual way is a record through `logging`, with a write, for each request. What a worker that is
killed has answered within the last 10 ms isn't in the log.

All that is answered is logged: the app's responses, those to health checks, and the 500 for an app that raised, or answered
nothing. Websockets aren't.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, cast, overload

import msgspec

FORMATTED_AHEAD_LINES = 512
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
        self._line, self._is_plain = (self._json, _is_plain) if as_json else (self._combined, _is_plain_combined)
        self._lines: list[str] = []
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
        version = scope["http_version"]
        facts = _facts(scope)
        line = self._line(facts, version, status, size, took)
        if not self._is_plain(line):  # one look at the whole, not one at each field: nearly all are plain
            line = self._line(_escaped(facts), version, status, size, took)
        self._lines.append(line)
        if len(self._lines) >= FORMATTED_AHEAD_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        if self._lines:
            lines, self._lines = self._lines, []
            lines.append("")
            self._write("\n".join(lines).encode("ascii", "backslashreplace"))

    def _combined(self, facts: Facts, version: str, status: int, size: int | None, took: float) -> str:
        client, method, target, referer, agent = facts
        return (
            f'{"-" if client is None else client} - - [{self._when()}] "{method} {target} HTTP/{version}" '
            f"{status or '-'} {'-' if size is None else size} "
            f'"{"-" if referer is None else referer}" "{"-" if agent is None else agent}" {took:.6f} {self.slot}'
        )

    def _json(self, facts: Facts, version: str, status: int, size: int | None, took: float) -> str:
        client, method, target, referer, agent = facts
        entry = {
            "time": time.time(),
            "client": client,
            "method": method,
            "path": target,
            "version": version,
            "status": status or None,
            "bytes": size,
            "seconds": round(took, 6),
            "referer": referer,
            "agent": agent,
            "slot": self.slot,
        }
        return _encode(entry).decode()

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


Facts = tuple[str | None, str, str, str | None, str | None]
"""Client, method, target, referer and agent, as they came: a byte a character."""


def _facts(scope: Any) -> Facts:
    client = scope.get("client")
    agent = referer = None
    for name, value in scope["headers"]:
        if name == b"user-agent":
            agent = value.decode("latin-1")
        elif name == b"referer":
            referer = value.decode("latin-1")
    raw = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
    query = scope["query_string"]
    target = (raw + b"?" + query if query else raw).decode("latin-1")
    return str(client[0]) if client else None, scope["method"], target, referer, agent


def _is_plain(line: str) -> bool:
    """Whether a line is as it would be with its fields escaped. In one of JSON, whatever it escapes has a backslash."""
    return line.isascii() and line.isprintable() and "\\" not in line


def _is_plain_combined(line: str) -> bool:
    """The same of one in the combined format, which has six quotes of its own."""
    return line.count('"') == 6 and _is_plain(line)


def _escaped(facts: Facts) -> Facts:
    """As printable ASCII without quotes, so that a client can't forge a line or a field."""
    client, method, target, referer, agent = facts
    return _clean(client), _clean(method), _clean(target), _clean(referer), _clean(agent)


@overload
def _clean(text: str) -> str: ...
@overload
def _clean(text: None) -> None: ...
def _clean(text: str | None) -> str | None:
    if text is None:
        return None
    return "".join(each if " " <= each <= "~" and each not in '"\\' else f"\\x{ord(each):02x}" for each in text)


GRANIAN_FORMAT = "%(header{user-agent})s %(header{referer})s"
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
