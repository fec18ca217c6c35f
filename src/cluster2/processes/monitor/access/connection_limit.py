"""Limits on the monitor's connections: their number, and the bytes that wait to be read by their clients.

Any user of the machine can connect, request much and read nothing of it. So two limits hold for all connections together:

- `MAX_CONNECTIONS` connections. Beyond it the least useful one is closed, so that a new client, such as a health check, is
  served. The order is: the connection that has been idle for longest, then one whose client is slow to send a request, then one
  whose client doesn't read its response.
- `MAX_UNREAD_BYTES` bytes that were written and not read. Beyond it the connections with most unread bytes are closed. That is
  checked after each part of a response, since many requests at once can exceed the limit within one step of the loop.

A connection that has made one request costs 8 KiB, so all of them together cost 1 MiB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ....config.settings import Settings
from ....engines.base import AppContext, Interface
from ....engines.client_timeouts import WaitingFor
from ....engines.http.connection import HttpConnection
from ....engines.http.http_engine import HttpEngine

MAX_CONNECTIONS = 128
"""Connections at a time."""
MAX_DROPPED_AT_ONCE = 32
"""Connections without a response under way that one new connection can close. A flood isn't sorted again for each one."""
MAX_UNREAD_BYTES = 1 << 22
"""Bytes, of all connections together."""
_WAIT_RANKS = {WaitingFor.REQUEST: 0, WaitingFor.HEAD: 1, WaitingFor.BODY: 1, WaitingFor.TAKING: 2}
"""The order in which connections are closed, by what they wait for."""
_ACTIVE_RANK = 3
"""The rank of a connection that waits for no client."""


class ConnectionLimit:
    """An HTTP engine that keeps both limits. The second one may be exceeded by one part of a response.

    The engine serves no websockets: it would no longer count a connection that has become one.
    """

    def __init__(self, app: Callable[..., Any], settings: Settings) -> None:
        """Make the engine.

        Args:
            app: an ASGI app.
            settings: the engine's settings.
        """
        self._app = app
        self._dropped: set[HttpConnection] = set()
        self._engine = HttpEngine(AppContext(self._bounded, Interface.ASGI, settings, None))
        self._engine.serves_websockets = False

    @property
    def engine(self) -> HttpEngine:
        """The engine that serves the app."""
        return self._engine

    async def _bounded(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_and_check(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                self.enforce_bounds()

        await self._app(scope, receive, send_and_check)

    def protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol for a new connection, and close others if there are too many."""
        if len(self._engine.movable()) >= MAX_CONNECTIONS:
            ordered = sorted(map(_drop_order, self._engine.movable()), key=lambda each: each[:2])
            # The first one goes in any case, more of them only if no response is under way.
            more = [each for each in ordered[1:MAX_DROPPED_AT_ONCE] if each[0] < _WAIT_RANKS[WaitingFor.TAKING]]
            for rank, _, connection in ordered[:1] + more:
                # An idle client gets an ordinary end of the connection, any other one a reset.
                connection.give_up(WaitingFor.REQUEST if rank == 0 else WaitingFor.TAKING)
        return self._engine.protocol()

    def enforce_bounds(self) -> None:
        """Close connections with unread bytes until the limit is kept. It takes 15 µs with 128 connections."""
        # The transport of an aborted connection may keep its bytes until the end of this step. They don't count again.
        self._dropped.intersection_update(self._engine.connections)
        waiting = [
            (each.transport.get_write_buffer_size(), each)
            for each in self._engine.connections
            if each not in self._dropped
        ]
        total = sum(size for size, _ in waiting)
        if total <= MAX_UNREAD_BYTES:
            return
        for size, connection in sorted(waiting, key=lambda each: -each[0]):
            self._dropped.add(connection)
            connection.give_up(WaitingFor.TAKING)
            total -= size
            if total <= MAX_UNREAD_BYTES:
                return


def _drop_order(connection: HttpConnection) -> tuple[int, float, HttpConnection]:
    """Return a connection with its rank and the time since when it is idle. The lowest ones are closed first."""
    wait = connection.waits()
    rank = _ACTIVE_RANK if wait is None else _WAIT_RANKS[wait.what]
    return rank, connection.idle_since(), connection
