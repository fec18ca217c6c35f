"""What becomes of a generation: what its zygote says, and what follows from that.

Facts about zygotes come here, as those about workers do in `lives`. A generation that can't be loaded ends the first boot, has a
reload abandoned, and otherwise is tried again: its workers serve on meanwhile, only that none can be made.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from ....config.settings import Settings
from ....errors import AppError, ClusterError, ConfigError, as_cluster_error, by_exit_code
from ....protocol import messages
from ..inbox import ZygoteMessage
from ..resources import MasterPhase

if TYPE_CHECKING:
    from ..master import Master

logger = logging.getLogger("cluster2.master")

ZYGOTE_RETRY_S = 1.0
"""Seconds between two attempts to start a zygote that died or can't load what was loaded before."""


class GenerationLoader:
    """The generations of a master, as they are loaded."""

    def __init__(self, master: Master) -> None:
        """Nothing is loaded yet."""
        self._master = master
        self._again_at: float | None = None

    def on_message(self, fact: ZygoteMessage) -> None:
        """A zygote said something, or an executed worker that loads the app; None: the zygote is gone."""
        master = self._master
        generation, message = fact.generation, fact.message
        match message:
            case messages.Prepared():
                try:
                    self._prepared(generation, message)
                except Exception as error:  # whatever it is, it is the new generation's, and the old one goes on
                    self._failed(generation, as_cluster_error(error))
            case messages.Chosen():
                try:
                    master.adopt(generation, message)
                except Exception as error:
                    self._failed(generation, as_cluster_error(error))
            case messages.PrepareFailed():
                self._failed(generation, by_exit_code(message.exit_code, message.message, detail=message.detail))
            case messages.WorkerForked():
                master.lives.on_forked(message.incarnation, message.pid)
            case messages.ForkFailed():
                if message.detail:
                    logger.warning("stacks of the fork:\n%s", message.detail)
                master.lives.on_fork_failed(message.incarnation, message.message)
            case None:
                text = f"the process that imports the app died ({fact.how}); its log says why"
                self._failed(generation, AppError(text, detail=fact.detail))
                for handle in list(master.roster):
                    if handle.generation == generation and handle.pid is None and handle.talk is None:
                        master.lives.forget(handle)
            case _:
                logger.warning("a zygote said what only a master says: %r", message)

    def load_again(self) -> None:
        """The wanted generation has no zygote: load it once more at the next look."""
        self._again_at = time.monotonic()

    def load_if_due(self, now: float) -> None:
        """Load again if that is due."""
        master = self._master
        if self._again_at is not None and now >= self._again_at and master.phase.serves:
            self._again_at = None
            master.generations.load(master.wanted.generation)

    def _prepared(self, generation: int, message: messages.Prepared) -> None:
        master = self._master
        settings = master.generations.settings(generation)
        if (why := self._unaffordable(settings, message)) is not None:
            self._failed(generation, ConfigError(why))
            return
        try:
            if master.keeping is not None and master.keeping.serves:
                master.steering.check_change(master.wanted.generation, message.steered)
            master.steering.open(generation, message.steered, settings.workers)
        except ConfigError as error:
            names = " and ".join(sorted({message.engines[site] for site in message.steered}))
            self._failed(generation, ConfigError(f"engine {names}: {error.message}"))
            return
        self._again_at = None
        if master.estate.logbook is not None:
            master.estate.logbook.set_owner(message.owner)
        if master.keeping is not None:
            master.keeping.apply_settings(settings, message.movable)
        master.generations.on_ready(generation)
        if settings.preload:
            for warning in message.warnings:
                master.warn(warning)
        if message.threads or not settings.preload:
            master.generations.each_executed(generation)
        if master.reloader.proves(generation):
            master.lives.restarts.release()  # slots of the old code that back off: the new code is tried at once
            master.reloader.on_loaded()

    def _unaffordable(self, settings: Settings, message: messages.Prepared) -> str | None:
        """Return why the limit of descriptors doesn't allow the workers of a new generation, or None."""
        master = self._master
        slots = master.wanted.slots if settings.workers == master.settings.workers else settings.workers
        if master.phase.serves and slots <= master.wanted.slots:
            return None  # there are as many already
        executed = bool(message.threads) or not settings.preload
        return master.unaffordable(slots, settings.max_surge, message.steered, 2, executed=executed)

    def _failed(self, generation: int, error: ClusterError) -> None:
        master = self._master
        if master.phase is MasterPhase.BOOTING:
            master.departure.fail(error)
        elif master.reloader.proves(generation):
            master.reloader.abandon(error)
        elif master.phase.serves and generation == master.wanted.generation and self._again_at is None:
            master.warn(f"no new worker can be made now: {error.message}; trying again")
            if error.detail:
                logger.error("%s", error.detail)
            if master.generations.nursery(generation) is not None:
                return  # each worker is executed: only that one is concerned, and its exit is counted
            self._again_at = time.monotonic() + ZYGOTE_RETRY_S
