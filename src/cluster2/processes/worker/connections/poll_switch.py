"""A switch for all sockets and queues from which a worker may take connections.

To watch a socket through uvloop makes a handle each time. So all sources are in one epoll instance, which is in a second one,
with `EPOLLONESHOT` where one connection is taken at a time. The loop watches the second one all the time. To open or shut the
switch is one epoll_ctl(2), for any number of sources.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Protocol

_ONCE = select.EPOLLIN | select.EPOLLONESHOT


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class PollSwitch:
    """Calls a function when a source has something to take, as long as the switch is open."""

    def __init__(self) -> None:
        """Start without sources."""
        self._inner = select.epoll()  # readable when any source is
        self._outer = select.epoll()  # has the inner one as its only member, with a mask that is the switch
        self._loop = asyncio.get_running_loop()

    def add(self, source: _HasFileno, *, watched: bool) -> None:
        """Add a source."""
        self._inner.register(source, select.EPOLLIN if watched else 0)

    def watch(self, source: _HasFileno, watched: bool) -> None:
        """Watch a source, or ignore it for a while."""
        self._inner.modify(source, select.EPOLLIN if watched else 0)

    def remove(self, source: _HasFileno) -> None:
        """Remove a source."""
        self._inner.unregister(source)

    def start(self, readable: Callable[[], None]) -> None:
        """Open the switch. From now on `readable` is called when it is open and there is something to take."""
        self._outer.register(self._inner, select.EPOLLIN)
        self._loop.add_reader(self._outer, readable)

    def stop(self) -> None:
        """Stop the calls."""
        self._loop.remove_reader(self._outer)

    def open(self) -> None:
        """Open the switch until `shut` is called."""
        self._outer.modify(self._inner, select.EPOLLIN)

    def open_once(self) -> None:
        """Open the switch for one call: `EPOLLONESHOT` shuts it."""
        self._outer.modify(self._inner, _ONCE)

    def shut(self) -> None:
        """Shut the switch: with no events in its mask the inner epoll is ignored."""
        self._outer.modify(self._inner, 0)

    def take_ready(self) -> bool:
        """Return whether there is something to take. If so, a switch that was opened once is shut by this."""
        return bool(self._outer.poll(0, 1))
