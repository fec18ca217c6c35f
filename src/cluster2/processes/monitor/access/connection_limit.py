"""Those who are connected: how many there may be, and how much may wait for them.

Anybody on this machine can connect, ask for much and take nothing of it. So there is a bound for connections, and one for what
was said and hasn't been taken, of all together. Beyond the first whoever is missed least leaves, so that one who comes, a
health check say, is heard: the one that has been idle for longest, then one that takes its time to ask, then one that doesn't
take its answer. Beyond the second those leave for whom most is waiting; that is looked at after each part of an answer, since
what many ask for at once comes to more than the bound within one step of the loop.

A connection that has asked once costs 8 KiB: so all of them are 1 MiB.
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
"""Connections."""
MAX_DROPPED_AT_ONCE = 32
"""Connections that leave at once, of those that aren't in the middle of an answer: a flood isn't looked through each time."""
MAX_UNREAD_BYTES = 1 << 22
"""Bytes, of all connections together."""
_RANKS = {WaitingFor.REQUEST: 0, WaitingFor.HEAD: 1, WaitingFor.BODY: 1, WaitingFor.TAKING: 2}
_AT_WORK = 3


class ConnectionLimit:
    """Keeps the connections of an engine within both bounds, the second one but for one part of an answer.

    It speaks no websockets: a connection that has become one would count no more.
    """

    def __init__(self, app: Callable[..., Any], settings: Settings) -> None:
        """Make the engine.

        Args:
            app: an ASGI app.
            settings: the engine's.
        """
        self._app = app
        self._given_up: set[HttpConnection] = set()
        self._engine = HttpEngine(AppContext(self._bounded, Interface.ASGI, settings, None))
        self._engine.serves_websockets = False

    @property
    def engine(self) -> HttpEngine:
        """What serves the app."""
        return self._engine

    async def _bounded(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                self.enforce_bounds()

        await self._app(scope, receive, sent)

    def protocol(self) -> asyncio.BaseProtocol:
        """For one more connection."""
        if len(self._engine.movable()) >= MAX_CONNECTIONS:
            found = sorted(map(_missed, self._engine.movable()), key=lambda each: each[:2])
            for rank, _, connection in found[:1] + [
                each for each in found[1:MAX_DROPPED_AT_ONCE] if each[0] < _RANKS[WaitingFor.TAKING]
            ]:
                connection.give_up(
                    WaitingFor.REQUEST if rank == 0 else WaitingFor.TAKING
                )  # without a word; with a reset
        return self._engine.protocol()

    def enforce_bounds(self) -> None:
        """Part with those who don't take what they asked for, if it's too much. 128 connections take 15 µs."""
        # A transport that was aborted may still have its bytes for the rest of this step.
        self._given_up.intersection_update(self._engine.connections)
        waiting = [
            (each.transport.get_write_buffer_size(), each)
            for each in self._engine.connections
            if each not in self._given_up
        ]
        total = sum(size for size, _ in waiting)
        if total <= MAX_UNREAD_BYTES:
            return
        for size, connection in sorted(waiting, key=lambda each: -each[0]):
            self._given_up.add(connection)
            connection.give_up(WaitingFor.TAKING)
            total -= size
            if total <= MAX_UNREAD_BYTES:
                return


def _missed(connection: HttpConnection) -> tuple[int, float, HttpConnection]:
    """How much it would be missed: the least is who comes first."""
    wait = connection.waits()
    rank = _AT_WORK if wait is None else _RANKS[wait.what]
    return rank, connection.idle_since(), connection
