"""The access log: one line for each request, cheap enough to leave on.

A line is made when a response has ended or its client has left. It is put into a list, which the worker's tick writes with one
call: every 10 ms under load. Most servers send a record through `logging`, with a write, for each request. If a worker is killed,
the lines of its last 10 ms are lost.

All responses are logged: those of the app, those to health checks, and the 500 for an app that raised or returned without
a response. Websockets aren't logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, cast, overload

import msgspec

MAX_HELD_LINES = 512
"""Lines that may wait for the tick. With more, they are written at once."""


class AccessLog:
    """The access log of one worker.

    Args:
        slot: the worker's slot, which each line shows.
        as_json: write one JSON object a line, else Apache's combined format with seconds and slot behind it.
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
        """Add the line of a request that has ended.

        Args:
            scope: the ASGI scope, of type http.
            status: the status that was sent; 0: there was no response.
            size: bytes of the response's body; None: not known.
            took: seconds from the head of the request to the end of the response.
        """
        version = scope["http_version"]
        fields = _fields(scope)
        line = self._line(fields, version, status, size, took)
        if not self._is_plain(
            line
        ):  # one check of the whole line is cheaper than one of each field: nearly all are plain
            line = self._line(_escaped(fields), version, status, size, took)
        self._lines.append(line)
        if len(self._lines) >= MAX_HELD_LINES:
            self.flush()

    def flush(self) -> None:
        """Write the lines that are held."""
        if self._lines:
            lines, self._lines = self._lines, []
            lines.append("")
            self._write("\n".join(lines).encode("ascii", "backslashreplace"))

    def _combined(self, fields: _Fields, version: str, status: int, size: int | None, took: float) -> str:
        client, method, target, referer, agent = fields
        return (
            f'{"-" if client is None else client} - - [{self._when()}] "{method} {target} HTTP/{version}" '
            f"{status or '-'} {'-' if size is None else size} "
            f'"{"-" if referer is None else referer}" "{"-" if agent is None else agent}" {took:.6f} {self.slot}'
        )

    def _json(self, fields: _Fields, version: str, status: int, size: int | None, took: float) -> str:
        client, method, target, referer, agent = fields
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
    """Return a local time in Apache's format, whatever the locale (%b of strftime(3) depends on it)."""
    local = time.localtime(now)
    return f"{local.tm_mday:02d}/{_MONTHS[local.tm_mon - 1]}/{time.strftime('%Y:%H:%M:%S %z', local)}"


_Fields = tuple[str | None, str, str, str | None, str | None]
"""Client, method, target, referer and agent, as they came: one character for each byte."""


def _fields(scope: Any) -> _Fields:
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
    """Return whether a line equals the one with its fields escaped. In JSON, all that is escaped has a backslash."""
    return line.isascii() and line.isprintable() and "\\" not in line


def _is_plain_combined(line: str) -> bool:
    """Return the same of a line in the combined format, which has six quotes of its own."""
    return line.count('"') == 6 and _is_plain(line)


def _escaped(fields: _Fields) -> _Fields:
    """Return the fields as printable ASCII without quotes, so that a client can't forge a line or a field."""
    client, method, target, referer, agent = fields
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
"""The fields that granian adds to its log records for us."""


class GranianLogHandler(logging.Handler):
    """A handler of granian's log records, which makes our lines of them.

    granian sees requests before any layer of ours, but it doesn't know the size of bodies.
    """

    def __init__(self, log: AccessLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Add the line of a request."""
        atoms = cast(Mapping[str, Any], record.args)
        headers = [(b"user-agent", atoms["_h0"]), (b"referer", atoms["_h1"])]
        scope = {
            "client": (atoms["addr"], 0),
            "method": atoms["method"],
            "raw_path": _bytes(atoms["path"]),
            "query_string": _bytes(atoms["query_string"]),
            "http_version": atoms["protocol"].removeprefix("HTTP/"),
            "headers": [(name, _bytes(value)) for name, value in headers if value != "-"],
        }
        self._log.add(scope, atoms["status"], None, atoms["dt_ms"] / 1000)


def _bytes(text: str | bytes) -> bytes:
    """Return a text most likely as it came over the wire: granian decodes some fields as Latin-1, some as UTF-8."""
    if isinstance(text, bytes):
        return text
    try:
        raw = text.encode("latin-1")
        raw.decode()
    except UnicodeError:
        return text.encode("utf-8", "surrogateescape")
    return raw
