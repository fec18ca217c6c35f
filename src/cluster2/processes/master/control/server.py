"""Serve `master.sock`: commands from the shell, the API and the monitor, as JSON lines.

The response to a line `{"verb": …, "params": {…}}` is one line, `{"ok": true, "result": …}` or `{"ok": false, "error": …}`,
perhaps after lines `{"progress": …}`. Only the user that the master runs as, and root, may send commands: the mode of the socket
allows no other, and the peer's credentials are checked as well.

The monitor may run as another user. It sends one end of a connection through its channel instead, and may send the commands there
that `serve_client` allows. A connection stays open after its response. When it closes, the master has ended; `stop` waits for
that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Container
from typing import Any

import msgspec

from ....errors import ClusterError, UsageError
from ..state.inbox import Command, InboxMessage

logger = logging.getLogger("cluster2.master")
MAX_LINE_BYTES = 1 << 16
"""Bytes of the longest request."""
MAX_CLIENTS = 256
"""Connections at a time that came by `serve_client`."""
_MAX_UNREAD_BYTES = 1 << 20
"""Bytes that may wait for a client that reads progress or events. The connection of a slower client is closed."""


class _ControlRequest(msgspec.Struct, frozen=True):
    """A request of a client."""

    verb: str
    params: dict[str, Any] = {}


class ControlServer:
    """The master's end of the control socket."""

    def __init__(self, post: Callable[[InboxMessage], None]) -> None:
        self._post = post
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[Any]] = set()
        self._admitted = 0
        self._unanswered: set[asyncio.Future[dict[str, Any] | ClusterError]] = set()
        self._closed = False

    async def open(self, listener: socket.socket) -> None:
        """Accept clients from a listening Unix socket instead of the former one. Open connections stay."""
        if self._server is not None:
            self._server.close()
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE_BYTES)

    async def close(self) -> None:
        """Answer all requests that wait, then close all connections: the master ends."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(
            0
        )  # a turn in which responses are written; they arrive although the connections are closed then
        for answered in [each for each in self._unanswered if not each.done()]:
            answered.set_result(ClusterError("the master has left"))
        for writer in list(self._clients):
            writer.close()
        if self._serving:
            await asyncio.wait(self._serving, timeout=1.0)

    def serve_client(self, sock: socket.socket, may: Container[str]) -> None:
        """Serve a client over a connected stream socket, without a check of its credentials.

        Args:
            may: the commands that it may send; others are refused.
        """
        if self._closed or self._admitted >= MAX_CLIENTS:
            sock.close()
            return
        self._admitted += 1
        task = asyncio.ensure_future(self._open(sock, may))
        self._serving.add(task)
        task.add_done_callback(self._dismiss)

    def _dismiss(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._admitted -= 1

    async def _open(self, sock: socket.socket, may: Container[str]) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_BYTES)
        except (OSError, ValueError):  # no stream socket, or its peer has closed it
            sock.close()
            return
        await self._answer_requests(reader, writer, may)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        await self._answer_requests(reader, writer, None)

    async def _answer_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may: Container[str] | None
    ) -> None:
        """Respond to the requests of a client.

        Args:
            may: the commands that it may send; None: all, after a check of its credentials.
        """
        self._clients.add(writer)
        try:
            if may is None and not _is_permitted(writer):
                _answer(writer, ClusterError("only the user of the master, and root, may control it"))
                return
            while line := await reader.readline():
                await self._ask(line, writer, may)
        except (ConnectionError, ValueError, asyncio.LimitOverrunError) as error:
            logger.debug("a control connection was given up: %s", error)
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _ask(self, line: bytes, writer: asyncio.StreamWriter, may: Container[str] | None) -> None:
        try:
            request = msgspec.json.decode(line, type=_ControlRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            _answer(writer, UsageError(f"not a request: {error}"))
            return
        if may is not None and request.verb not in may:
            _answer(writer, ClusterError(f"{request.verb!r} may not be asked for here"))
            return
        if self._closed:  # the inbox isn't read any more
            _answer(writer, ClusterError("the master has left"))
            return
        answered: asyncio.Future[dict[str, Any] | ClusterError] = asyncio.get_running_loop().create_future()

        def answer(result: dict[str, Any] | ClusterError) -> None:
            if not answered.done():
                answered.set_result(result)

        reported: dict[str, Any] = {}

        def send_progress(progress: dict[str, Any]) -> bool:
            nonlocal reported
            if writer.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
                writer.transport.abort()
            if writer.is_closing():
                return False
            if progress != reported:
                reported = progress
                writer.write(msgspec.json.encode({"progress": progress}) + b"\n")
            return True

        self._unanswered.add(answered)
        self._post(Command(request.verb, request.params, answer, send_progress))
        result = await answered
        self._unanswered.discard(answered)
        _answer(writer, result)
        await writer.drain()


def _is_permitted(writer: asyncio.StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in (0, os.geteuid())


def _answer(writer: asyncio.StreamWriter, result: dict[str, Any] | ClusterError) -> None:
    if writer.is_closing():
        return  # the client has left, and uvloop raises RuntimeError for a write to a closed transport
    if isinstance(result, ClusterError):
        error = {"message": result.message, "detail": result.detail, "exit_code": result.exit_code}
        line = {"ok": False, "error": error}
    else:
        line = {"ok": True, "result": result}
    writer.write(msgspec.json.encode(line) + b"\n")
