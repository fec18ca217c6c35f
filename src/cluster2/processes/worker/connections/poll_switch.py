"""One switch for all that a worker may take connections from.

Arming a socket through uvloop makes a handle each time. So all sources sit in an epoll of our own, that one sits in another, with
`EPOLLONESHOT` where one connection is taken at a time, and the loop watches the outer one once and for all: to open and to shut
the gate is one epoll_ctl(2), however many sources there are.
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
    """Calls when there is something to take, as long as it is open."""

    def __init__(self) -> None:
        """Nothing is behind it."""
        self._inner = select.epoll()
        self._outer = select.epoll()
        self._loop = asyncio.get_running_loop()

    def add(self, source: _HasFileno, *, watched: bool) -> None:
        """Put something behind it."""
        self._inner.register(source, select.EPOLLIN if watched else 0)

    def watch(self, source: _HasFileno, watched: bool) -> None:
        """Whether a source counts."""
        self._inner.modify(source, select.EPOLLIN if watched else 0)

    def remove(self, source: _HasFileno) -> None:
        """Nothing comes from there any more."""
        self._inner.unregister(source)

    def start(self, readable: Callable[[], None]) -> None:
        """Open it. From now on `readable` is called when there is something to take and it is open."""
        self._outer.register(self._inner, select.EPOLLIN)
        self._loop.add_reader(self._outer, readable)

    def stop(self) -> None:
        """Call no more."""
        self._loop.remove_reader(self._outer)

    def open(self) -> None:
        """For as long as it isn't told otherwise."""
        self._outer.modify(self._inner, select.EPOLLIN)

    def open_once(self) -> None:
        """For one who passes."""
        self._outer.modify(self._inner, _ONCE)

    def shut(self) -> None:
        """For everybody."""
        self._outer.modify(self._inner, 0)

    def take_ready(self) -> bool:
        """Whether there is something to take; then a gate that was opened once is shut."""
        return bool(self._outer.poll(0, 1))
