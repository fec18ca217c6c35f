"""The cluster's events as the monitor has heard them: the last ones are kept, numbered, ready to be sent.

Numbers grow over the life of one monitor and on to the next, which begins with the time: a viewer that comes back with the
last number that it saw misses nothing that is kept, and gets nothing twice. Heartbeats aren't kept: they would push the
others out, and the facts tell the same, fresher.

*Bounds*: `MAX_KEPT_EVENTS` and `MAX_KEPT_EMITTED` events of `MAX_EVENT_BYTES` bytes each. One that is longer (a user's own) is told without its
contents.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ....events import EVENTS, cut

MAX_KEPT_EVENTS, MAX_KEPT_EMITTED = 150, 50
"""Of the cluster's own, and of those that the app emits: these may be many, and mustn't push the others out."""
MAX_EVENT_BYTES = 16384
PRIVATE_FIELDS = frozenset({"stacks", "traceback", "data"})
"""Fields that show code, or what the app itself has said: where there is a token they are only for who bears it."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event.

    Attributes:
        number: larger than all before.
        full: it as JSON, as `cluster2 events --json` prints it.
        public: the same without private fields.
    """

    number: int
    name: str
    full: bytes
    public: bytes


class EventBuffer:
    """Takes events, keeps the last ones."""

    def __init__(self, first: int | None = None) -> None:
        """Nothing was heard yet.

        Args:
            first: the number of the first event; None: milliseconds since the epoch.
        """
        self._next = int(time.time() * 1000) if first is None else first
        self._kept: deque[StoredEvent] = deque(maxlen=MAX_KEPT_EVENTS)
        self._emitted: deque[StoredEvent] = deque(maxlen=MAX_KEPT_EMITTED)
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        """Called with each event as plain data."""

    def add(self, event: dict[str, Any]) -> None:
        """Something happened; what that is, is plain data (`events.plain`). What isn't an event is passed over."""
        name = event.get("event")
        if (
            not isinstance(name, str)
            or len(name) > 200
            or not isinstance(event.get("time"), (int, float))
            or name == "heartbeat"
        ):
            return
        try:
            event = cut(event, MAX_EVENT_BYTES)
        except (TypeError, ValueError, RecursionError):
            return  # no master says what isn't JSON
        full = msgspec.json.encode(event)
        private = any(event.get(field) is not None for field in PRIVATE_FIELDS)
        public = msgspec.json.encode({**event, **dict.fromkeys(event.keys() & PRIVATE_FIELDS)}) if private else full
        kept = self._kept if name in EVENTS or name.startswith("SIG") else self._emitted
        kept.append(StoredEvent(self._next, name, full, public))
        self._next += 1
        for listener in self.listeners:
            listener(event)

    def after(self, number: int) -> list[StoredEvent]:
        """Those that are kept and have a larger number, the oldest first."""
        if number >= self._next:
            number = 0  # of a monitor before us, whose clock was ahead
        newer = heapq.merge(self._kept, self._emitted, key=lambda told: told.number)
        return [told for told in newer if told.number > number]
