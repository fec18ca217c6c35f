"""What the monitor knows: read off the scoreboard when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ....core import health, health_page
from ....core.health_page import Health
from ....core.lifecycle import WorkerState
from ....errors import NotRunning
from ....linux.scoreboard import Row, Scoreboard

STUCK_MASTER_AFTER_S = 30.0
"""Seconds after which a master that hasn't looked around is stuck; it does so once a second."""


Ask = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""Asks the master a verb with its params; returns the result, raises ClusterError."""


Order = Callable[[str, Mapping[str, Any], Callable[[dict[str, Any]], None]], Awaitable[dict[str, Any]]]
"""The same for what takes time: it is waited for, and the third argument hears how far it is."""


async def _nobody(verb: str, params: Mapping[str, Any]) -> dict[str, Any]:
    raise NotRunning(f"{verb}: there is no master to ask (cluster = false)")


async def _nobody_obeys(verb: str, params: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    return await _nobody(verb, params)


class Facts:
    """The cluster as the scoreboard has it.

    Args:
        board: the scoreboard.
        port: of the app, for ECV's body; 0: it has none.
        switch: enables or disables traffic; returns whether it is done.
        ask: asks the master what isn't in the scoreboard.
        order: has the master do something.
    """

    def __init__(
        self,
        board: Scoreboard,
        port: int,
        switch: Callable[[bool], Awaitable[bool]],
        ask: Ask = _nobody,
        order: Order = _nobody_obeys,
    ) -> None:
        self.port = port
        self.switch = switch
        self.ask = ask
        self.order = order
        self.board = board
        self._header = board.header

    @property
    def since(self) -> float:
        """When the cluster started: seconds since the epoch."""
        return self._header.started

    @property
    def ready(self) -> int:
        """How many workers serve; one whose sign of life is overdue doesn't."""
        now = time.monotonic()
        rows = zip(self.board.column(Row.state), self.board.column(Row.heartbeat), strict=True)
        return sum(state == WorkerState.READY and health.serves(deadline, now) for state, deadline in rows)

    @property
    def wanted(self) -> int:
        """How many should."""
        return self._header.wanted

    @property
    def traffic(self) -> bool:
        """Whether nobody has disabled it."""
        return bool(self._header.traffic)

    @property
    def leaving(self) -> bool:
        """Whether the cluster is about to shut down."""
        return bool(self._header.leaving)

    def health(self) -> Health:
        """What ECV answers: one worker that serves is enough."""
        return health_page.health(traffic=self.traffic, leaving=self.leaving, able=self.ready > 0)

    def not_ready(self) -> str | None:
        """Why no traffic should come, or None if it may."""
        if self.leaving:
            return "shutting down"
        if not self.traffic:
            return "traffic is disabled"
        return None if self.ready else "no worker is ready"

    def not_alive(self) -> str | None:
        """Why only a new start can help, or None if all is well."""
        silence = time.monotonic() - self._header.beat
        return (
            f"the master has been stuck for {silence:.0f} s"
            if self._header.beat and silence > STUCK_MASTER_AFTER_S
            else None
        )
