"""The last events of the cluster, numbered and encoded, for viewers of the page.

The first number is the time in milliseconds, so numbers grow from one monitor to the next, too. A viewer that returns with the
number of the last event that it got misses nothing that is kept, and gets nothing twice. Heartbeats aren't kept: they would push
the others out, and reports have the same data, fresher.

At most `MAX_KEPT_EVENTS` and `MAX_KEPT_EMITTED` events of `MAX_EVENT_BYTES` bytes are kept. The contents of a longer one are cut
off; only an app's own event can be so long.
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
"""Events of the cluster, and events that the app emits. The app's may be many, and mustn't push the others out."""
MAX_EVENT_BYTES = 16384
"""Bytes of an event as JSON."""
_MAX_NAME_CHARS = 200
"""Characters of an event's name."""
_PRIVATE_FIELDS = frozenset({"stacks", "traceback", "data"})
"""Fields with code, or with data of the app. If a token is set, they are only for clients that have it."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event that is ready to be sent.

    Attributes:
        number: larger than those of all events before.
        full: the event as JSON, as `cluster2 events --json` prints it.
        public: the event as JSON, with null in private fields.
    """

    number: int
    name: str
    full: bytes
    public: bytes


class EventBuffer:
    """Keeps the last events, and passes each on to listeners."""

    def __init__(self, first: int | None = None) -> None:
        """Make an empty buffer.

        Args:
            first: the number of the first event; None: milliseconds since the epoch.
        """
        self._next = int(time.time() * 1000) if first is None else first
        self._kept: deque[StoredEvent] = deque(maxlen=MAX_KEPT_EVENTS)
        self._emitted: deque[StoredEvent] = deque(maxlen=MAX_KEPT_EMITTED)
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        """Functions that are called with each event as plain data."""

    def add(self, event: dict[str, Any]) -> None:
        """Keep an event, given as plain data (`events.plain`). Ignore data that is no event."""
        name = event.get("event")
        if (
            not isinstance(name, str)
            or len(name) > _MAX_NAME_CHARS
            or not isinstance(event.get("time"), (int, float))
            or name == "heartbeat"
        ):
            return
        try:
            event = cut(event, MAX_EVENT_BYTES)
        except (TypeError, ValueError, RecursionError):
            return  # a master sends nothing that can't be encoded
        full = msgspec.json.encode(event)
        private = any(event.get(field) is not None for field in _PRIVATE_FIELDS)
        public = msgspec.json.encode({**event, **dict.fromkeys(event.keys() & _PRIVATE_FIELDS)}) if private else full
        # An app can emit events of any other name; names that begin with SIG are the master's.
        kept = self._kept if name in EVENTS or name.startswith("SIG") else self._emitted
        kept.append(StoredEvent(self._next, name, full, public))
        self._next += 1
        for listener in self.listeners:
            listener(event)

    def newer_than(self, number: int) -> list[StoredEvent]:
        """Return the kept events with a larger number, the oldest first."""
        if number >= self._next:
            number = 0  # an earlier monitor gave it, when the clock was ahead
        newer = heapq.merge(self._kept, self._emitted, key=lambda each: each.number)
        return [each for each in newer if each.number > number]
