"""What the service manager is told of what happens (`kernel.notify` has the protocol)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from ... import events
from ...linux.sd_notify import ServiceNotifier


class SystemdNotifier:
    """Tells it of the events that it should know of."""

    def __init__(self, notifier: ServiceNotifier, environ: Mapping[str, str]) -> None:
        """Nothing is told yet.

        Args:
            environ: in SYSTEMD_EXEC_PID systemd says whom it has started.
        """
        self._notifier = notifier
        self._main = os.getpid() if environ.get("SYSTEMD_EXEC_PID", str(os.getpid())) != str(os.getpid()) else None

    def serves(self, workers: int) -> None:
        """All workers are ready, for the first time."""
        self._notifier.ready(f"serving with {workers} worker{'s' * (workers > 1)}", main=self._main)

    def live(self) -> None:
        """Give signs of life on the running loop from now on: for a process without a master, whose ticks do so else."""
        if self._notifier.watchdog:
            self._notifier.alive()
            asyncio.get_running_loop().call_later(self._notifier.watchdog / 2, self.live)

    def notify(self, event: events.Event) -> None:
        """Something has happened."""
        match event:
            case events.Reloading():
                self._notifier.reloading(f"loading generation {event.generation}")
            case events.Reloaded():
                self._notifier.ready(f"generation {event.generation} serves")
            case events.ReloadFailed():
                self._notifier.ready(f"reload abandoned, the old generation goes on: {event.reason}")
            case events.Degraded():
                self._notifier.status(f"degraded: {event.ready} of {event.wanted} workers serve")
            case events.Recovered():
                self._notifier.status(f"recovered: {event.ready} workers serve")
            case events.ShuttingDown() if event.lame_duck:
                self._notifier.stopping(f"leaving: serves on for {event.lame_duck:g} s")
            case events.ShuttingDown():
                self._notifier.stopping("draining" if event.graceful else "stopping")
            case _:
                pass
