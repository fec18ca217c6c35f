"""The state of a cluster, as the parts of the master share it.

A part of the master takes this object, and the other parts that it calls by name. No part takes the master: so each import goes
in one direction, and a part can be tested with a state of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import Enum

from .... import events
from ....config.settings import Settings
from ....core import planning
from ....core.rollout import Rollout
from ....linux.scoreboard import Header
from ....runtime.step_guard import StepGuard
from .inbox import InboxMessage
from .worker_registry import WorkerRegistry

logger = logging.getLogger("cluster2.master")


class MasterPhase(Enum):
    """The phase of a cluster, from its start to its end."""

    BOOTING = "booting"  # not all workers have been ready yet: a failure ends the cluster
    SERVING = "serving"
    LAME_DUCK = "leaving"  # health checks say so, and the cluster serves until its time is over
    DRAINING = "draining"  # a graceful shutdown
    STOPPING = "stopping"  # at once

    @property
    def serves(self) -> bool:
        """True while the cluster serves and repairs itself."""
        return self in (MasterPhase.SERVING, MasterPhase.LAME_DUCK)


class ClusterState:
    """The phase of the cluster, the wanted workers and the workers that exist.

    Attributes:
        phase: changed by `Shutdown`, and by `Master` when the first workers are ready.
        wanted: the wanted number of workers and their generation.
        settings: the options of the wanted generation.
        registry: the workers that exist.
        rollout: the change of generation that is under way, or None. `Reloader` owns it.
        restarts: the times at which crashed workers may be replaced.
        header: the header of the scoreboard.
        emit: takes events for the handlers in this process and the subscribers of the control socket.
        post: puts a message into the inbox of the master.
        guard: reports a step that fails, and lets the caller go on.
    """

    def __init__(
        self,
        settings: Settings,
        header: Header,
        emit: Callable[[events.Event], None],
        post: Callable[[InboxMessage], None],
    ) -> None:
        """Describe a cluster that has no workers yet.

        Args:
            settings: the options of the first generation.
        """
        self.phase = MasterPhase.BOOTING
        self.wanted = planning.Wanted(settings.workers, 1, settings.max_surge)
        self.settings = settings
        self.registry = WorkerRegistry()
        self.rollout: Rollout | None = None
        self.restarts = planning.Restarts(settings.restart_limit, settings.restart_window)
        self.header = header
        self.emit = emit
        self.post = post
        self.guard = StepGuard(self._report)

    @property
    def label(self) -> str:
        """One of `lifecycle.PHASES`, as users see it."""
        return "degraded" if self.restarts.degraded else self.phase.value

    @property
    def ending(self) -> bool:
        """True when the cluster drains or stops: no worker is made any more."""
        return self.phase in (MasterPhase.DRAINING, MasterPhase.STOPPING)

    def is_new(self, generation: int) -> bool:
        """Return True if the change of generation that is under way leads to this generation."""
        return self.rollout is not None and generation == self.rollout.new

    def is_on_trial(self, generation: int) -> bool:
        """Return True if a failure of this generation ends the first start, or abandons the reload."""
        return self.phase is MasterPhase.BOOTING or self.is_new(generation)

    def resize(self, slots: int) -> None:
        """Set the number of wanted workers. Do nothing unless the cluster serves."""
        if self.phase is MasterPhase.SERVING and slots >= 1:
            self.wanted = planning.Wanted(slots, self.wanted.generation, self.wanted.surge)

    def set_traffic(self, enabled: bool) -> None:
        """Set the response to health checks. All workers read it from the scoreboard, later ones as well."""
        if bool(self.header.traffic) != enabled:
            self.header.traffic = int(enabled)
            event = events.Enabled if enabled else events.Disabled
            self.emit(event(time=time.time()))

    def warn(self, text: str) -> None:
        """Log a warning and emit it as an event."""
        logger.warning("%s", text)
        self.emit(events.Warned(time=time.time(), text=text))

    def _report(self, text: str, detail: str) -> None:
        """Report a step that has failed."""
        self.warn(text)
        if detail:
            logger.error("%s", detail)
