"""Clients that notice everything: one connection at a time, and a load that counts what fails."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPResponse
from typing import Any, Self

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""


@dataclass(frozen=True)
class Response:
    """An answer that arrived whole."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One client connection; nothing is sent or read but what a test says."""

    def __init__(self, address: Address, timeout: float = 30) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            try:
                self.socket.connect(address)
            except OSError:
                self.socket.close()
                raise
        else:
            self.socket = socket.create_connection(address, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, path: str = "/", *, method: str = "GET", headers: str = "") -> None:
        """Send a request's head."""
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode())

    def receive(self) -> Response:
        """The answer. Raises OSError or http.client.HTTPException if none comes."""
        with HTTPResponse(self.socket) as answer:
            answer.begin()
            body = answer.read()
            return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)

    def get(self, path: str = "/", *, headers: str = "") -> Response:
        """Send a request and return its answer."""
        self.send(path, headers=headers)
        return self.receive()

    def closed(self) -> bool:
        """Wait for the server's next bytes; true if there are none, because it has closed the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def get(address: Address, path: str = "/", *, headers: str = "") -> Response:
    """One request on a connection of its own."""
    with Connection(address) as connection:
        return connection.get(path, headers=headers)


@dataclass
class Counts:
    """What a load has seen."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)  # requests that were sent and got no whole answer
    refused: list[str] = field(default_factory=list)  # connections that couldn't be opened
    closed: int = 0  # kept-alive connections that the server closed between two requests
    workers: set[int] = field(default_factory=set)  # pids that answered, where the app tells them


class Load:
    """So many clients, each one request after the other, from `with` on until its end.

    `keep_alive=False`: a connection for each request. `reconnect=False`: a client leaves when its connection has ended.
    `pause`: seconds that a client waits after each answer; without it they take all the time that the machine has.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        clients: int = 8,
        keep_alive: bool = True,
        reconnect: bool = True,
        path: str = "/",
        pause: float = 0.0,
    ) -> None:
        self.counts = Counts()
        self._pause = pause
        self._reconnect = reconnect
        self._address = address
        self._clients = clients
        self._keep_alive = keep_alive
        kept = "" if keep_alive else "Connection: close\r\n"
        self._request = f"GET {path} HTTP/1.1\r\nHost: test\r\n{kept}\r\n".encode()
        self._ended = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._clients)))

    async def _client(self) -> None:
        while not self._ended:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
            except OSError as error:
                self.counts.refused.append(repr(error))
                await asyncio.sleep(0.01)
                continue
            try:
                await self._requests(reader, writer)
            finally:
                writer.transport.abort()
            if not self._reconnect:
                return

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self._ended:
            if reader.at_eof():
                self.counts.closed += 1
                return
            writer.write(self._request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                assert length is not None, head
                await reader.readexactly(int(length[1]))
            except (OSError, asyncio.IncompleteReadError) as error:
                self.counts.failed.append(repr(error))
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self.counts.failed.append(head.decode(errors="replace"))
                return
            self.counts.answered += 1
            if worker := re.search(rb"(?i)x-worker: (\d+)", head):
                self.counts.workers.add(int(worker[1]))
            if self._pause:
                await asyncio.sleep(self._pause)
            if not self._keep_alive or b"connection: close" in head.lower():
                return


def wrk(url: str, *options: str, seconds: int = 2) -> dict[str, Any]:
    """Run wrk for a moment; requests answered and its complaints (none: an empty list)."""
    return _said_by(subprocess.Popen(_wrk(url, options, seconds), stdout=subprocess.PIPE, text=True), seconds + 30)


def wrk_while(do: Callable[[], None], url: str, *options: str) -> dict[str, Any]:
    """Run it while something is done; the same."""
    process = subprocess.Popen(_wrk(url, options, 60), stdout=subprocess.PIPE, text=True)
    try:
        do()
        assert process.poll() is None, "wrk has ended before"
    finally:
        process.send_signal(signal.SIGINT)  # it says what it has seen so far
        seen = _said_by(process, 30)
    return seen


def _wrk(url: str, options: tuple[str, ...], seconds: int) -> list[str]:
    return ["wrk", "-t1", "-c16", f"-d{seconds}s", *options, url]


def _said_by(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    output, _ = process.communicate(timeout=timeout)
    answered = re.search(r"(\d+) requests in", output)
    assert answered is not None, output
    complaints = re.findall(r"(?:Non-2xx|Socket errors).*", output)
    return {"requests": int(answered[1]), "complaints": complaints}
