"""The workers that the master supervises."""

from __future__ import annotations

from collections.abc import Iterator

from ....core.lifecycle import WorkerState
from ....core.planning import WorkerView
from .handle import WorkerHandle


class WorkerRegistry:
    """Handles by incarnation.

    Invariant: each belongs to a worker whose exit isn't recorded yet.
    """

    def __init__(self) -> None:
        self._handles: dict[int, WorkerHandle] = {}
        self._last = 0

    def next_incarnation(self) -> int:
        """Return a number that no worker had before."""
        self._last += 1
        return self._last

    def add(self, handle: WorkerHandle) -> None:
        """Add a worker that was ordered."""
        self._handles[handle.incarnation] = handle

    def remove(self, handle: WorkerHandle) -> None:
        """Remove a worker whose exit is recorded."""
        del self._handles[handle.incarnation]

    def find(self, incarnation: int) -> WorkerHandle | None:
        """Return the worker of that number, or None if it has been removed."""
        return self._handles.get(incarnation)

    def __iter__(self) -> Iterator[WorkerHandle]:
        return iter(sorted(self._handles.values(), key=lambda each: (each.slot, each.incarnation)))

    def __len__(self) -> int:
        return len(self._handles)

    def pids(self) -> set[int]:
        """Return the pids of all workers that have a process."""
        return {handle.pid for handle in self._handles.values() if handle.pid is not None}

    def views(self) -> list[WorkerView]:
        """Return all workers in the form that decisions take."""
        return [handle.view() for handle in self]

    def ready(self) -> int:
        """Return the number of workers that are ready."""
        return sum(handle.state is WorkerState.READY for handle in self._handles.values())
