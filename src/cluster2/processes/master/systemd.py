"""Notify the service manager of the state of the cluster (`linux.sd_notify` has the protocol)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from ... import events
from ...linux.sd_notify import ServiceNotifier


class SystemdNotifier:
    """Translates events into notifications."""

    def __init__(self, notifier: ServiceNotifier, environ: Mapping[str, str]) -> None:
        """Make a notifier. It sends nothing yet.

        Args:
            environ: in SYSTEMD_EXEC_PID systemd gives the pid of the process that it has started.
        """
        self._notifier = notifier
        self._main = os.getpid() if environ.get("SYSTEMD_EXEC_PID", str(os.getpid())) != str(os.getpid()) else None

    def serves(self, workers: int) -> None:
        """Notify that all workers are ready, for the first time."""
        self._notifier.ready(f"serving with {workers} worker{'s' * (workers > 1)}", main=self._main)

    def live(self) -> None:
        """Feed the watchdog on the running loop from now on, where there is no master whose ticks do that."""
        if self._notifier.watchdog:
            self._notifier.alive()
            asyncio.get_running_loop().call_later(self._notifier.watchdog / 2, self.live)

    def notify(self, event: events.Event) -> None:
        """Notify of an event, if it concerns the service manager."""
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
