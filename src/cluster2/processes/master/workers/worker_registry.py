"""All workers that the master knows of."""

from __future__ import annotations

from collections.abc import Iterator

from ....core.lifecycle import WorkerState
from ....core.planning import WorkerView
from .handle import Handle


class WorkerRegistry:
    """Handles by incarnation. Invariant: each is of a worker that isn't buried."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._last = 0

    def next_incarnation(self) -> int:
        """A number that no worker had before."""
        self._last += 1
        return self._last

    def add(self, handle: Handle) -> None:
        """A worker was asked for."""
        self._handles[handle.incarnation] = handle

    def remove(self, handle: Handle) -> None:
        """A worker was buried."""
        del self._handles[handle.incarnation]

    def find(self, incarnation: int) -> Handle | None:
        """The worker of that number, or None if it was buried."""
        return self._handles.get(incarnation)

    def __iter__(self) -> Iterator[Handle]:
        return iter(sorted(self._handles.values(), key=lambda each: (each.slot, each.incarnation)))

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, pid: object) -> bool:
        return any(handle.pid == pid for handle in self._handles.values())

    def seen(self) -> list[WorkerView]:
        """All of them, as decisions want it."""
        return [handle.seen() for handle in self]

    def ready(self) -> int:
        """How many serve."""
        return sum(handle.state is WorkerState.READY for handle in self._handles.values())
