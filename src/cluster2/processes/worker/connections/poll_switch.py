"""A switch for all sockets and queues from which a worker may take connections.

To watch a socket through uvloop makes a handle each time. So all sources are in one epoll instance, which the loop watches all the
time. The switch is the mask of each source in it: open, open for one connection (`EPOLLONESHOT`), or shut.

Kernel: an epoll instance inside of another one is limited by the number of paths from a file to the outermost instance
(`path_limits` in fs/eventpoll.c: 1000, 500, 100 paths of lengths 1, 2, 3). All workers share the listener, so each adds a path.
With this instance inside of the loop's the length is 2: 500 workers. A second instance that holds the mask for all sources would
save one epoll_ctl(2) for each connection in the modes that take one at a time, but ends at 100 workers.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Protocol

_SHUT = 0
_OPEN = select.EPOLLIN
_ONCE = select.EPOLLIN | select.EPOLLONESHOT


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class PollSwitch:
    """Calls a function when a source has something to take, as long as the switch is open."""

    def __init__(self) -> None:
        """Start without sources, and shut."""
        self._epoll = select.epoll()
        self._loop = asyncio.get_running_loop()
        self._watched: dict[_HasFileno, bool] = {}
        self._mask = _SHUT

    def add(self, source: _HasFileno, *, watched: bool) -> None:
        """Add a source."""
        self._watched[source] = watched
        self._epoll.register(source, self._mask if watched else 0)

    def watch(self, source: _HasFileno, watched: bool) -> None:
        """Watch a source, or ignore it for a while."""
        self._watched[source] = watched
        self._epoll.modify(source, self._mask if watched else 0)

    def remove(self, source: _HasFileno) -> None:
        """Remove a source."""
        del self._watched[source]
        self._epoll.unregister(source)

    def start(self, readable: Callable[[], None]) -> None:
        """Open the switch. From now on `readable` is called when it is open and there is something to take."""
        self.open()
        self._loop.add_reader(self._epoll, readable)

    def stop(self) -> None:
        """Stop the calls."""
        self._loop.remove_reader(self._epoll)

    def open(self) -> None:
        """Open the switch until `shut` is called."""
        self._set(_OPEN)

    def open_once(self) -> None:
        """Open the switch for one call."""
        self._set(_ONCE)

    def shut(self) -> None:
        """Shut the switch: sources without events in their mask are ignored."""
        self._set(_SHUT)

    def take_ready(self) -> bool:
        """Return whether there is something to take. If so, a switch that was opened once is shut by this."""
        if not self._epoll.poll(0, 1):
            return False
        if self._mask == _ONCE:
            self.shut()  # EPOLLONESHOT has shut only the source that was ready
        return True

    def _set(self, mask: int) -> None:
        self._mask = mask
        for source, watched in self._watched.items():
            if watched:
                self._epoll.modify(source, mask)
