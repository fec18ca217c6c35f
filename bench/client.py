"""A client connection that distinguishes its failures, and costs little.

The load generator runs on the same cores as the servers that it measures, so each microsecond here is taken from
them. A bare `asyncio.Protocol` needs about half of what streams need for an exchange.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import uvloop

from bench.errors import BenchError
from bench.http import Garbage, Response, parse, request

TIMEOUT = 10.0
"""Seconds that a client waits for a connection or a response before it counts a failure."""

T = TypeVar("T")


class Failed(Exception):
    """A connection or an exchange failed. The text is the kind: a few words, always the same for one kind."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server and path that a load client requests."""

    host: str
    port: int
    path: str = "/"

    @classmethod
    def of(cls, url: str) -> Target:
        """Return the target of `http://host:port/path`."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise BenchError(f"{url}: not a URL of the form http://host:port/path")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.hostname, parts.port or 80, path)

    def at(self, path: str) -> Target:
        """Return a target on this server with another path."""
        return Target(self.host, self.port, path)

    def request(self, *, close: bool = False, method: str = "GET") -> bytes:
        """Return the bytes of a request."""
        return request(self.path, f"{self.host}:{self.port}", close=close, method=method)

    @property
    def url(self) -> str:
        """Return the target as a URL."""
        return f"http://{self.host}:{self.port}{self.path}"


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time.

    Attributes:
        closed: the server has closed it, or it broke.
    """

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[Response] | None = None

    @classmethod
    async def open(cls, target: Target) -> Connection:
        """Open the connection.

        Raises:
            Failed: the server refused it, or didn't accept it within `TIMEOUT`.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT):
                _, connection = await loop.create_connection(cls, target.host, target.port)
        except TimeoutError:
            raise Failed("connect: time-out") from None
        except OSError as error:
            raise Failed(f"connect: {type(error).__name__}") from None
        return connection

    async def exchange(self, message: bytes) -> Response:
        """Send a request, and wait for the complete response.

        Raises:
            Failed: the connection ended first, the response is invalid, or it took longer than `TIMEOUT`.
        """
        if self.closed or self._transport is None:
            raise Failed("closed before the request")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Response] = loop.create_future()
        self._answer = answer
        timer = loop.call_later(TIMEOUT, self._fail, "time-out")
        self._transport.write(message)
        try:
            return await answer
        finally:
            timer.cancel()
            self._answer = None

    def close(self) -> None:
        """Close the connection, if it is still open."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._buffer = self._buffer + data if self._buffer else data
        self._look(ended=False)

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`."""
        self.closed = True
        self._look(ended=True)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.closed = True
        self._fail("closed before the answer" if error is None else f"broken: {type(error).__name__}")

    def _look(self, *, ended: bool) -> None:
        try:
            found = parse(self._buffer, ended=ended)
        except Garbage:
            self._fail("garbage")
            return
        if found is None:
            return
        response, taken = found
        if self._answer is None or self._answer.done() or len(self._buffer) > taken:
            # Bytes without a request would be taken for the response to the next one.
            self._fail("more than one answer")
            self.close()
            return
        self._buffer = b""
        self._answer.set_result(response)

    def _fail(self, kind: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Failed(kind))


def raise_descriptor_limit() -> int:
    """Raise this process's limit of descriptors to its maximum, and return it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a load on an event loop of its own, the cheapest available one."""
    raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
