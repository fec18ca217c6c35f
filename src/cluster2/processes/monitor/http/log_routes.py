"""`/logs`: the log files, listed and streamed.

A file is never loaded whole: it goes out block by block, as fast as its reader takes it. What can be asked for is a name of ours
in the one directory (`kernel.logfiles: open_to_read`): a pattern is what keeps readers inside, not a comparison of paths. What a
log says is text, whatever it looks like: browsers are told not to guess, and not to run anything.

What is sent is what the file has when it is asked for, also if it is rotated meanwhile: the descriptor is the file's, not the
name's. If it is cut meanwhile, the connection is closed before as much has come as was announced, which tells the reader.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ....config.settings import Settings
from ....linux import log_files

_MAX_LOG_LINES = 100_000
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_HEADERS = {
    "content-type": "text/plain; charset=utf-8",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "no-store",
    "accept-ranges": "bytes",
}


def routes(root: str, settings: Settings) -> list[BaseRoute]:
    """Those of the logs of a cluster."""
    files = LogRoutes(settings.logs)
    return [
        Route(root + "/logs", files.listed, methods=["GET"]),
        Route(root + "/logs/{name}", files.one, methods=["GET"]),
    ]


class LogRoutes:
    """A directory of logs."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    async def listed(self, request: Request) -> Response:
        """The files with size and last change: as JSON if that is accepted, else as lines."""
        found = await asyncio.to_thread(log_files.log_files, self._directory)
        if "application/json" in request.headers.get("accept", ""):
            files = [{"name": each.name, "size": each.size, "changed": each.changed} for each in found]
            return JSONResponse({"logs": files}, headers={"cache-control": "no-store"})
        lines = [f"{each.size:>12}  {_when(each.changed)}  {each.name}\n" for each in found]
        text = "".join(lines) or "no log files: this cluster writes none (log_to = stderr)\n"
        return PlainTextResponse(text, headers=_HEADERS)

    async def one(self, request: Request) -> Response:
        """A file, or `?tail=N`: its last lines; or a range of its bytes."""
        asked = request.query_params.get("tail")
        if asked is not None and not (re.fullmatch(r"\d{1,6}", asked, re.ASCII) and int(asked) <= _MAX_LOG_LINES):
            return PlainTextResponse(f"tail is a number of lines from 0 to {_MAX_LOG_LINES}\n", 400, _HEADERS)
        try:
            fd = await asyncio.to_thread(log_files.open_to_read, self._directory, request.path_params["name"])
        except (OSError, ValueError):
            return PlainTextResponse("no such log\n", 404, _HEADERS)
        try:
            seen = os.fstat(fd)
            start = None if asked is None else await asyncio.to_thread(log_files.tail, fd, int(asked))
        except BaseException:
            os.close(fd)
            raise
        size, tag = seen.st_size, f'"{seen.st_ino:x}-{seen.st_mtime_ns:x}-{seen.st_size:x}"'
        if start is not None:
            return LogStream(fd, min(start, size), size)
        # Another state of the file, or another file by now: its parts don't fit to those that were had.
        whole = request.headers.get("if-range", tag) != tag
        part = None if whole else _part(request.headers.get("range"), size)
        if part is None:
            return LogStream(fd, 0, size, {"etag": tag})
        if part[0] >= part[1]:
            os.close(fd)
            return PlainTextResponse("", 416, {**_HEADERS, "content-range": f"bytes */{size}"})
        return LogStream(fd, *part, {"etag": tag, "content-range": f"bytes {part[0]}-{part[1] - 1}/{size}"}, 206)


class LogStream(Response):
    """The bytes of a file from `start` to `end`. It owns the descriptor."""

    def __init__(self, fd: int, start: int, end: int, more: dict[str, str] | None = None, status: int = 200) -> None:
        self._fd, self._start, self._end = fd, start, end
        super().__init__(None, status, {**_HEADERS, **(more or {}), "content-length": str(end - start)})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it, for as long as somebody takes it."""
        left = asyncio.ensure_future(_left(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            at = self._end if scope["method"] == "HEAD" else self._start
            while at < self._end and not left.done():
                block = await asyncio.to_thread(os.pread, self._fd, min(log_files.READ_BLOCK_BYTES, self._end - at), at)
                if not block:
                    return  # it was cut: the engine closes the connection, since something is missing
                at += len(block)
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            left.cancel()
            os.close(self._fd)


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass  # its body, which means nothing here


def _part(header: str | None, size: int) -> tuple[int, int] | None:
    """The one range that is asked for, end excluded; an empty one can't be had. None: the whole, as for what isn't understood."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        return max(0, size - int(match[2])), size
    start = int(match[1])
    if match[2] and int(match[2]) < start:
        return None
    return start, min(size, int(match[2]) + 1) if match[2] else size


def _when(changed: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(changed))
