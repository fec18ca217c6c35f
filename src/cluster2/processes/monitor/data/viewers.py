"""The data that all viewers of the stream share: the latest report, and a future that is done when anything is new."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from .event_buffer import EventBuffer

MAX_VIEWERS = 32
"""Viewers at a time."""


class _Latest:
    """The latest report and the latest sample as JSON, encoded once for all viewers.

    Attributes:
        reports: the number of reports so far.
        samples: the number of samples so far.
    """

    def __init__(self) -> None:
        """Begin without a report."""
        self.reports = self.samples = 0
        self.report = self.sample = b""

    def publish(self, report: Any, sample: Any = None) -> None:
        """Replace the report and, if a sample is given, the sample, which is the newest row of the history."""
        self.reports += 1
        self.report = msgspec.json.encode(report)
        if sample is not None:
            self.samples += 1
            self.sample = msgspec.json.encode(sample)


class Viewers:
    """The clients that read the stream now.

    Attributes:
        count: the number of viewers.
        report_viewers: the number of viewers that get reports. The others get events only.
        closed: the process ends, and so do all streams.
    """

    def __init__(self, events: EventBuffer) -> None:
        """Begin without viewers."""
        self.events = events
        events.listeners.append(lambda event: self.wake())
        self.latest = _Latest()
        self.count = 0
        self.report_viewers = 0
        self.closed = False
        self._changed: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Have all viewers send what is new."""
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    def next_change(self) -> asyncio.Future[None]:
        """Return a future that is done at the next `wake`. All viewers share it."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def close(self) -> None:
        """End all streams, since the process leaves."""
        self.closed = True
        self.wake()

    def refusal(self) -> str | None:
        """Return the reason why no other viewer is accepted, or None."""
        if self.closed:
            return "the monitor is leaving"
        return "too many viewers already" if self.count >= MAX_VIEWERS else None
