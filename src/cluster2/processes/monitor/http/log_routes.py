"""`/logs`: the log files, listed and streamed.

- A file is never loaded whole. It is sent block by block, as fast as the client reads.
- A request can only name a log file of the cluster in its one directory (`linux.log_files: open_to_read`). A pattern for names
  keeps clients inside of it, not a comparison of paths.
- A log is text, whatever its contents look like. Headers forbid browsers to guess another type, and to run anything.
- A response has the bytes that the file has at the time of the request, even if it is rotated during the response, since the
  descriptor belongs to the file and not to the name. If the file is truncated, the connection is closed before the announced
  length has come, so the client notices.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ....config.settings import Settings
from ....linux import log_files
from .sse import client_left

_MAX_LOG_LINES = 100_000
"""Lines of `?tail=`."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_HEADERS = {
    "content-type": "text/plain; charset=utf-8",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "no-store",
    "accept-ranges": "bytes",
}


def routes(root: str, settings: Settings) -> list[BaseRoute]:
    """Return the routes below `root`."""
    files = _LogRoutes(settings.logs)
    return [
        Route(root + "/logs", files.listed, methods=["GET"]),
        Route(root + "/logs/{name}", files.one, methods=["GET"]),
    ]


class _LogRoutes:
    """Responds with the files of a directory of logs."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    async def listed(self, request: Request) -> Response:
        """Respond with the names, sizes and last changes of the files, as JSON if the client accepts it, otherwise as lines."""
        found = await asyncio.to_thread(log_files.log_files, self._directory)
        if "application/json" in request.headers.get("accept", ""):
            files = [{"name": each.name, "size": each.size, "changed": each.changed} for each in found]
            return JSONResponse({"logs": files}, headers={"cache-control": "no-store"})
        lines = [f"{each.size:>12}  {_when(each.changed)}  {each.name}\n" for each in found]
        text = "".join(lines) or "no log files: this cluster writes none (log_to = stderr)\n"
        return PlainTextResponse(text, headers=_HEADERS)

    async def one(self, request: Request) -> Response:
        """Respond with a file, with its last lines (`?tail=N`), or with a range of its bytes."""
        lines = request.query_params.get("tail")
        if lines is not None and not (re.fullmatch(r"\d{1,6}", lines, re.ASCII) and int(lines) <= _MAX_LOG_LINES):
            return PlainTextResponse(f"tail is a number of lines from 0 to {_MAX_LOG_LINES}\n", 400, _HEADERS)
        try:
            fd = await asyncio.to_thread(log_files.open_to_read, self._directory, request.path_params["name"])
        except (OSError, ValueError):
            return PlainTextResponse("no such log\n", 404, _HEADERS)
        try:
            state = os.fstat(fd)
            start = None if lines is None else await asyncio.to_thread(log_files.tail, fd, int(lines))
        except BaseException:
            os.close(fd)
            raise
        # The inode distinguishes a rotated file from its successor of the same name.
        size, tag = state.st_size, f'"{state.st_ino:x}-{state.st_mtime_ns:x}-{state.st_size:x}"'
        if start is not None:
            return _LogStream(fd, min(start, size), size)
        # RFC 9110, 13.1.5: if the file has changed, or is another one by now, a part wouldn't fit the parts that the client has.
        whole = request.headers.get("if-range", tag) != tag
        part = None if whole else _part(request.headers.get("range"), size)
        if part is None:
            return _LogStream(fd, 0, size, {"etag": tag})
        if part[0] >= part[1]:
            os.close(fd)  # no _LogStream owns it
            return PlainTextResponse("", 416, {**_HEADERS, "content-range": f"bytes */{size}"})
        return _LogStream(fd, *part, {"etag": tag, "content-range": f"bytes {part[0]}-{part[1] - 1}/{size}"}, 206)


class _LogStream(Response):
    """The bytes of a file from `start` to `end`. The response owns the descriptor."""

    def __init__(self, fd: int, start: int, end: int, more: dict[str, str] | None = None, status: int = 200) -> None:
        self._fd, self._start, self._end = fd, start, end
        super().__init__(None, status, {**_HEADERS, **(more or {}), "content-length": str(end - start)})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the bytes until the client leaves."""
        left = asyncio.ensure_future(client_left(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            at = self._end if scope["method"] == "HEAD" else self._start
            while at < self._end and not left.done():
                block = await asyncio.to_thread(os.pread, self._fd, min(log_files.READ_BLOCK_BYTES, self._end - at), at)
                if not block:
                    return  # truncated: the engine closes the connection, since bytes are missing
                at += len(block)
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            left.cancel()
            os.close(self._fd)


def _part(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the requested range of bytes, end excluded. An empty one can't be satisfied.

    Returns:
        None for the whole file. That is also the response to several ranges and to a header that isn't understood, as RFC 9110,
        14.2, allows.
    """
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
