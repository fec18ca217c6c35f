"""The cluster as its health checks and actions see it: the scoreboard now, and the ways to ask the master."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ....core import health, health_page
from ....core.health_page import Health
from ....core.lifecycle import WorkerState
from ....errors import NotRunning
from ....linux.scoreboard import Row, Scoreboard

_STUCK_MASTER_AFTER_S = 30.0
"""Seconds without a heartbeat of the master after which it counts as stuck. It gives one each second."""


_QueryFunction = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""Asks the master a verb with its params. Returns the result, raises ClusterError."""


_CommandFunction = Callable[[str, Mapping[str, Any], Callable[[dict[str, Any]], None]], Awaitable[dict[str, Any]]]
"""Has the master carry out a verb. It waits for the end; the third argument is called with each report of progress."""


async def _no_master(verb: str, params: Mapping[str, Any]) -> dict[str, Any]:
    raise NotRunning(f"{verb}: there is no master to ask (cluster = false)")


async def _no_master_to_command(
    verb: str, params: Mapping[str, Any], on_progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    return await _no_master(verb, params)


class ClusterView:
    """The state of the cluster, read off the scoreboard at each access.

    Args:
        board: the scoreboard.
        port: the app's port, for ECV's body; 0: it has none.
        switch_traffic: enables or disables traffic; returns False if the master doesn't respond.
        query: asks the master for what the scoreboard doesn't have.
        command: has the master do something.
    """

    def __init__(
        self,
        board: Scoreboard,
        port: int,
        switch_traffic: Callable[[bool], Awaitable[bool]],
        query: _QueryFunction = _no_master,
        command: _CommandFunction = _no_master_to_command,
    ) -> None:
        self.port = port
        self.switch_traffic = switch_traffic
        self.query = query
        self.command = command
        self.board = board
        self._header = board.header

    @property
    def started_at(self) -> float:
        """When the cluster started: seconds since the epoch."""
        return self._header.started

    @property
    def ready(self) -> int:
        """The number of workers that serve. One whose heartbeat is overdue doesn't count."""
        now = time.monotonic()
        rows = zip(self.board.column(Row.state), self.board.column(Row.heartbeat), strict=True)
        return sum(state == WorkerState.READY and health.serves(deadline, now) for state, deadline in rows)

    @property
    def wanted(self) -> int:
        """The number of workers that should serve."""
        return self._header.wanted

    @property
    def traffic(self) -> bool:
        """True unless traffic was disabled."""
        return bool(self._header.traffic)

    @property
    def leaving(self) -> bool:
        """True while the cluster shuts down, or is about to."""
        return bool(self._header.leaving)

    def health(self) -> Health:
        """Return the health that ECV reports. One worker that serves is enough."""
        return health_page.health(traffic=self.traffic, leaving=self.leaving, able=self.ready > 0)

    def not_ready(self) -> str | None:
        """Return the reason why no traffic should come, or None."""
        if self.leaving:
            return "shutting down"
        if not self.traffic:
            return "traffic is disabled"
        return None if self.ready else "no worker is ready"

    def not_alive(self) -> str | None:
        """Return the reason why only a restart can help, or None."""
        # CLOCK_MONOTONIC stands still while the machine is suspended, so a suspend doesn't make the master look stuck.
        silence = time.monotonic() - self._header.beat
        return (
            f"the master has been stuck for {silence:.0f} s"
            if self._header.beat and silence > _STUCK_MASTER_AFTER_S
            else None
        )
