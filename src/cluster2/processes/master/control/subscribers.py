"""Those who hear on the control socket what happens.

Each hears all events, unless it has asked for less: the monitor, which always listens, has no use for heartbeats, and wants
no more of what the app emits than somebody could read. An event that nobody hears isn't put into words.
"""

from __future__ import annotations

import time
from typing import Any

from .... import events
from ....errors import ClusterError, UsageError
from ..state.inbox import Command


class EventSubscriber:
    """One of them."""

    def __init__(self, command: Command) -> None:
        """Raises UsageError, for who asked.

        Args:
            command: of its params `heartbeats` (a bool) says whether it hears these, `emitted` how many of the users' own events
                it hears each second at most, `longest` above how many bytes it hears of an event without the contents.
        """
        params = command.params
        heartbeats = params.get("heartbeats", True)
        if not isinstance(heartbeats, bool):
            raise UsageError(f"heartbeats = {heartbeats!r}: expected true or false")
        self.command = command
        self._heartbeats = heartbeats
        self._most = _number(params, "emitted")
        self._longest = _number(params, "longest")
        self._heard = 0
        self._since = 0.0

    def wants(self, event: events.Event) -> bool:
        """Whether it is to hear this one."""
        if isinstance(event, events.Heartbeat):
            return self._heartbeats
        if self._most is None or not isinstance(event, events.Emitted):
            return True
        now = time.monotonic()
        if now - self._since >= 1.0:
            self._since, self._heard = now, 0
        self._heard += 1
        return self._heard <= self._most

    def send(self, told: dict[str, Any]) -> object:
        """Tell it; whether it still listens."""
        return self.command.send_progress(told if self._longest is None else events.cut(told, self._longest))


def _number(params: dict[str, Any], name: str) -> int | None:
    found = params.get(name)
    if found is not None and (type(found) is not int or found < 0):
        raise UsageError(f"{name} = {found!r}: expected a whole number")
    return found


class EventSubscribers:
    """All of them."""

    def __init__(self) -> None:
        """There are none yet."""
        self._followers: list[EventSubscriber] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._followers)

    def join(self, command: Command) -> None:
        """Somebody wants to hear; it is answered when it can't any more. Raises UsageError."""
        self._followers.append(EventSubscriber(command))

    def publish(self, event: events.Event) -> None:
        """Something has happened."""
        wanting = [each for each in self._followers if each.wants(event)]
        if not wanting:
            return
        told = events.plain(event)
        for follower in wanting:
            if not follower.send(told):
                self._followers.remove(follower)
                follower.command.answer(ClusterError("it has left, or is too slow"))
