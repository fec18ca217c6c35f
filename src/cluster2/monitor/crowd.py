"""Those who are connected: how many there may be, and how much may wait for them.

Anybody on this machine can connect, ask for much and take nothing of it. So there is a bound for connections, and one for what
was said and hasn't been taken, of all together. Beyond the first whoever is missed least leaves, so that one who comes, a
health check say, is heard: the one that has been idle for longest, then one that takes its time to ask, then one that doesn't
take its answer. Beyond the second those leave for whom most is waiting.

A connection that has asked once costs 8 KiB: so all of them are 1 MiB.
"""

from __future__ import annotations

import asyncio

from ..engines.http.connection import Connection
from ..engines.http.engine import HttpEngine
from ..engines.patience import For

MOST = 128
"""Connections."""
LEAVING = 32
"""Connections that leave at once, of those that aren't in the middle of an answer: a flood isn't looked through each time."""
UNTAKEN = 1 << 22
"""Bytes, of all connections together."""
_RANKS = {For.REQUEST: 0, For.HEAD: 1, For.BODY: 1, For.TAKING: 2}
_AT_WORK = 3


class Crowd:
    """Keeps the connections of an engine within both bounds, the second one but for what 16 who came last have asked for."""

    def __init__(self, engine: HttpEngine) -> None:
        self._engine = engine
        self._came = 0

    def protocol(self) -> asyncio.BaseProtocol:
        """For one more connection."""
        self._came += 1
        if self._came % 16 == 0:
            self.press()
        if len(self._engine.movable()) >= MOST:
            found = sorted(map(_missed, self._engine.movable()), key=lambda each: each[:2])
            for rank, _, connection in found[:1] + [each for each in found[1:LEAVING] if each[0] < _RANKS[For.TAKING]]:
                connection.give_up(For.REQUEST if rank == 0 else For.TAKING)  # without a word; with a reset
        return self._engine.protocol()

    def press(self) -> None:
        """Part with those who don't take what they asked for, if it's too much. To be called once a second."""
        waiting = [(each.transport.get_write_buffer_size(), each) for each in self._engine.movable()]
        total = sum(size for size, _ in waiting)
        if total <= UNTAKEN:
            return
        for size, connection in sorted(waiting, key=lambda each: -each[0]):
            connection.give_up(For.TAKING)
            total -= size
            if total <= UNTAKEN:
                return


def _missed(connection: Connection) -> tuple[int, float, Connection]:
    """How much it would be missed: the least is who comes first."""
    wait = connection.waits()
    rank = _AT_WORK if wait is None else _RANKS[wait.what]
    return rank, connection.idle_since(), connection
