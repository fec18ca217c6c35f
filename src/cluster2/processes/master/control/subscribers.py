"""Send events to the clients of the control socket that have subscribed.

A subscriber gets all events, unless it has asked for fewer: the monitor, which always subscribes, needs no heartbeats, and takes
only as many of the app's own events as a person could read. An event without a subscriber isn't encoded.
"""

from __future__ import annotations

import time
from typing import Any

from .... import events
from ....errors import ClusterError, UsageError
from ..state.inbox import Command


class EventSubscriber:
    """One subscriber."""

    def __init__(self, command: Command) -> None:
        """Make a subscriber from its command. Raises UsageError if the params are bad.

        Args:
            command: its params are `heartbeats` (a bool: whether it gets these), `emitted` (the number of the app's own events
                that it gets in a second at most) and `longest` (bytes above which it gets an event without its contents).
        """
        params = command.params
        heartbeats = params.get("heartbeats", True)
        if not isinstance(heartbeats, bool):
            raise UsageError(f"heartbeats = {heartbeats!r}: expected true or false")
        self.command = command
        self._heartbeats = heartbeats
        self._most = _number(params, "emitted")
        self._longest = _number(params, "longest")
        self._sent = 0
        self._since = 0.0

    def wants(self, event: events.Event) -> bool:
        """Return True if it gets this event."""
        if isinstance(event, events.Heartbeat):
            return self._heartbeats
        if self._most is None or not isinstance(event, events.Emitted):
            return True
        now = time.monotonic()
        if now - self._since >= 1.0:
            self._since, self._sent = now, 0
        self._sent += 1
        return self._sent <= self._most

    def send(self, event: dict[str, Any]) -> object:
        """Send an encoded event. Return a false value if the subscriber has left."""
        return self.command.send_progress(event if self._longest is None else events.cut(event, self._longest))


def _number(params: dict[str, Any], name: str) -> int | None:
    found = params.get(name)
    if found is not None and (type(found) is not int or found < 0):
        raise UsageError(f"{name} = {found!r}: expected a whole number")
    return found


class EventSubscribers:
    """All subscribers."""

    def __init__(self) -> None:
        """Make an empty list."""
        self._subscribers: list[EventSubscriber] = []

    def __len__(self) -> int:
        """Return the number of subscribers."""
        return len(self._subscribers)

    def join(self, command: Command) -> None:
        """Subscribe a client. Its command is answered when it can't take events any more. Raises UsageError."""
        self._subscribers.append(EventSubscriber(command))

    def publish(self, event: events.Event) -> None:
        """Send an event to all subscribers that get it."""
        recipients = [each for each in self._subscribers if each.wants(event)]
        if not recipients:
            return
        plain = events.plain(event)
        for subscriber in recipients:
            if not subscriber.send(plain):
                self._subscribers.remove(subscriber)
                subscriber.command.answer(ClusterError("it has left, or is too slow"))
