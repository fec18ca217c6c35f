"""`master.sock`: commands from the shell, the API and the monitor, as JSON lines.

A line `{"verb": …, "params": {…}}` is answered by one line, `{"ok": true, "result": …}` or `{"ok": false, "error": …}`. Only
the user that the master runs as, and root, may speak: the socket's mode says so, and the peer's credentials are checked as
well. The monitor, which may be another user, has a way of its own: a connection of which it gives us one end, through its
channel; there it is heard as far as `serve_client` says. A connection stays open after its answer; its end tells that the master is
gone, which is what `stop` waits for.
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
"""The longest request in bytes."""
MAX_CLIENTS = 256
"""Connections at a time that came through `serve_client`."""
_MAX_UNREAD_BYTES = 1 << 20
"""Bytes that may wait for a client who follows; one that is slower is left behind."""


class ControlRequest(msgspec.Struct, frozen=True):
    """What a client sends."""

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
        """Take clients from a listening Unix socket, and from no other any more; connections that are open stay."""
        if self._server is not None:
            self._server.close()
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE_BYTES)

    async def close(self) -> None:
        """The master is as good as gone: end all connections."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)  # a turn in which answers are written; closing a connection lets what was written arrive
        for answered in [each for each in self._unanswered if not each.done()]:
            answered.set_result(ClusterError("the master has left"))
        for writer in list(self._clients):
            writer.close()
        if self._serving:
            await asyncio.wait(self._serving, timeout=1.0)

    def serve_client(self, sock: socket.socket, may: Container[str]) -> None:
        """Hear somebody over a connected stream socket, whoever that is.

        Args:
            may: the verbs that may be asked for there; others are refused.
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
        except (OSError, ValueError):  # no stream, or it has left
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
        """Answer what is asked. `may` says what may be; None: all, by those that the socket is for."""
        self._clients.add(writer)
        try:
            if may is None and not _may_speak(writer):
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
            request = msgspec.json.decode(line, type=ControlRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            _answer(writer, UsageError(f"not a request: {error}"))
            return
        if may is not None and request.verb not in may:
            _answer(writer, ClusterError(f"{request.verb!r} may not be asked for here"))
            return
        if self._closed:  # it was under way: nobody handles it any more
            _answer(writer, ClusterError("the master has left"))
            return
        answered: asyncio.Future[dict[str, Any] | ClusterError] = asyncio.get_running_loop().create_future()

        def answer(result: dict[str, Any] | ClusterError) -> None:
            if not answered.done():
                answered.set_result(result)

        said: dict[str, Any] = {}

        def send_progress(progress: dict[str, Any]) -> bool:
            nonlocal said
            if writer.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
                writer.transport.abort()
            if writer.is_closing():
                return False
            if progress != said:
                said = progress
                writer.write(msgspec.json.encode({"progress": progress}) + b"\n")
            return True

        self._unanswered.add(answered)
        self._post(Command(request.verb, request.params, answer, send_progress))
        result = await answered
        self._unanswered.discard(answered)
        _answer(writer, result)
        await writer.drain()


def _may_speak(writer: asyncio.StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in (0, os.geteuid())


def _answer(writer: asyncio.StreamWriter, result: dict[str, Any] | ClusterError) -> None:
    if writer.is_closing():
        return  # who asked has left; uvloop raises RuntimeError for what is written to a closed transport
    if isinstance(result, ClusterError):
        error = {"message": result.message, "detail": result.detail, "exit_code": result.exit_code}
        line = {"ok": False, "error": error}
    else:
        line = {"ok": True, "result": result}
    writer.write(msgspec.json.encode(line) + b"\n")
