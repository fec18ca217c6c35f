"""Load generations of the app, and handle the messages of their zygotes.

A generation that can't be loaded ends the first start and abandons a reload. A generation that already serves is loaded again,
each `_ZYGOTE_RETRY_S`: its workers serve on, but no more can be made until then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from ....config.settings import Settings
from ....errors import AppError, ClusterError, ConfigError, as_cluster_error, by_exit_code
from ....protocol import messages
from ..descriptor_budget import DescriptorBudget
from ..helpers.keeper import KeeperProcess
from ..resources import MasterResources
from ..state.cluster_state import ClusterState
from ..state.inbox import GenerationFailed, ZygoteMessage
from ..workers.health_monitor import HealthMonitor
from ..workers.steering import Steering
from ..workers.supervisor import WorkerSupervisor
from .generations import GenerationTable
from .reloader import Reloader

logger = logging.getLogger("cluster2.master")

_ZYGOTE_RETRY_S = 1.0
"""Seconds between two attempts to start a zygote that ended, or can't load what was loaded before."""


class GenerationLoader:
    """Loads the generations of a cluster."""

    def __init__(
        self,
        state: ClusterState,
        resources: MasterResources,
        *,
        generations: GenerationTable,
        reloader: Reloader,
        supervisor: WorkerSupervisor,
        steering: Steering,
        health_monitor: HealthMonitor,
        keeper: KeeperProcess | None,
        budget: DescriptorBudget,
    ) -> None:
        self._state = state
        self._resources = resources
        self._generations = generations
        self._reloader = reloader
        self._supervisor = supervisor
        self._steering = steering
        self._health_monitor = health_monitor
        self._keeper = keeper
        self._budget = budget
        self._again_at: float | None = None

    def load(self, generation: int) -> Sequence[str]:
        """Check all that a new generation needs in this process, and start to load its code.

        Returns:
            Warnings about its options, a line each.

        Raises:
            ClusterError: an option is bad.
        """
        options = self._generations.read_options(generation)
        self._health_monitor.prepare(generation, options.settings)
        self._generations.load(generation)
        for warning in options.warnings:
            self._state.warn(warning)
        return options.warnings

    def drop(self, generation: int) -> None:
        """Forget a generation of which no worker is made any more."""
        self._generations.drop(generation)
        self._health_monitor.drop_rules(generation)

    def on_message(self, received: ZygoteMessage) -> None:
        """Handle a message of a zygote, or of an executed worker that loads the app."""
        generation, message = received.generation, received.message
        match message:
            case messages.Prepared():
                self._carry_out(generation, lambda: self._on_prepared(generation, message))
            case messages.Chosen():
                self._carry_out(generation, lambda: self._on_chosen(generation, message))
            case messages.PrepareFailed():
                self._fail(generation, by_exit_code(message.exit_code, message.message, detail=message.detail))
            case messages.WorkerForked():
                self._supervisor.on_forked(message.incarnation, message.pid)
            case messages.ForkFailed():
                if message.detail:
                    logger.warning("stacks of the fork:\n%s", message.detail)
                self._supervisor.on_fork_failed(message.incarnation, message.message)
            case None:
                text = f"the process that imports the app ended ({received.how}); its log says why"
                self._fail(generation, AppError(text, detail=received.detail))
                self._supervisor.on_zygote_exited(generation)
            case _:
                logger.warning("a zygote sent a message that only a master sends: %r", message)

    def report_failure(self, generation: int, error: ClusterError) -> None:
        """Report that a generation which serves can't be loaded now, and schedule the next attempt."""
        if not self._state.phase.serves or generation != self._state.wanted.generation or self._again_at is not None:
            return
        self._state.warn(f"no new worker can be made now: {error.message}; trying again")
        if error.detail:
            logger.error("%s", error.detail)
        # Where each worker is executed the failure concerns one worker only, and its exit is counted.
        if self._generations.factory(generation) is None:
            self._again_at = time.monotonic() + _ZYGOTE_RETRY_S

    def load_again(self) -> None:
        """Schedule another load of the wanted generation, whose zygote has ended, for the next tick."""
        self._again_at = time.monotonic()

    def load_if_due(self, now: float) -> None:
        """Load the wanted generation again if that is due."""
        if self._again_at is not None and now >= self._again_at and self._state.phase.serves:
            self._again_at = None
            self._generations.load(self._state.wanted.generation)

    def scale_refusal(self, slots: int) -> str | None:
        """Return why the limit of descriptors doesn't allow so many workers of the wanted generation, or None."""
        wanted = self._state.wanted
        factory = self._generations.factory(wanted.generation)
        executed = factory is not None and not factory.forks
        steered = self._steering.steered_apps(wanted.generation)
        return self._budget.refusal(slots, wanted.surge, steered, 1, executed=executed)

    def _fail(self, generation: int, error: ClusterError) -> None:
        self._state.post(GenerationFailed(generation, error))

    def _carry_out(self, generation: int, step: Callable[[], None]) -> None:
        """Take a step of a new generation. Any error is a failure of that generation: the old one must go on."""
        try:
            step()
        except Exception as error:
            self._fail(generation, as_cluster_error(error))

    def _on_chosen(self, generation: int, chosen: messages.Chosen) -> None:
        """Give a new generation the options that its script has chosen.

        Raises:
            ClusterError: an option is bad.
        """
        warnings = self._generations.fix_options(generation, chosen)
        self._health_monitor.prepare(generation, self._generations.settings(generation))
        self._reloader.add_warnings(warnings)
        for warning in warnings:
            self._state.warn(warning)

    def _on_prepared(self, generation: int, message: messages.Prepared) -> None:
        """Let workers be made of a generation that is loaded.

        Raises:
            ClusterError: the system, or the options beside those of the old generation, don't allow it.
        """
        settings = self._generations.settings(generation)
        if (why := self._unaffordable(settings, message)) is not None:
            raise ConfigError(why)
        try:
            if self._keeper is not None and self._keeper.serves:
                self._steering.check_change(self._state.wanted.generation, message.steered)
            self._steering.open(generation, message.steered, settings.workers)
        except ConfigError as error:
            names = " and ".join(sorted({message.engines[app_index] for app_index in message.steered}))
            raise ConfigError(f"engine {names}: {error.message}") from error
        self._again_at = None
        if self._resources.log_directory is not None:
            self._resources.log_directory.set_owner(message.owner)
        if self._keeper is not None:
            self._keeper.apply_settings(settings, message.movable)
        self._generations.on_ready(generation)
        if settings.preload:
            for warning in message.warnings:
                self._state.warn(warning)
        if message.threads or not settings.preload:
            self._generations.each_executed(generation)
        if self._state.is_new(generation):
            self._state.restarts.release()  # slots of the old code that back off: the new code is tried at once
            self._reloader.on_loaded()

    def _unaffordable(self, settings: Settings, message: messages.Prepared) -> str | None:
        """Return why the limit of descriptors doesn't allow the workers of a new generation, or None."""
        wanted = self._state.wanted
        slots = wanted.slots if settings.workers == self._state.settings.workers else settings.workers
        if self._state.phase.serves and slots <= wanted.slots:
            return None  # there are as many already
        executed = bool(message.threads) or not settings.preload
        return self._budget.refusal(slots, settings.max_surge, message.steered, 2, executed=executed)
