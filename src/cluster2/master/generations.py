"""The generations that workers can be made of: of each the options, and where its workers come from.

Usually there is one; while a reload is under way there are two, so that the old one can go on if the new one is no good.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import wire
from ..settings import Settings
from .estate import Estate, Options
from .facts import Fact
from .nursery import Nursery


class Generations:
    """Nurseries by generation."""

    def __init__(self, estate: Estate, put: Callable[[Fact], None]) -> None:
        """The first generation has the options that the master was started with."""
        self._estate = estate
        self._put = put
        self._options: dict[int, Options] = {1: estate.options}
        self._nurseries: dict[int, Nursery] = {}
        self._admitted: set[int] = set()
        self._leaving: list[Nursery] = []

    def read_options(self, generation: int) -> Options:
        """Return the options of a generation; a new generation's are read now.

        Raises:
            ClusterError: the options are bad.
        """
        if generation not in self._options:
            self._options[generation] = self._estate.reread()
        return self._options[generation]

    def load(self, generation: int) -> None:
        """Start to load the app as it is now (again, if its zygote has died).

        Raises:
            ClusterError: the options of a new generation, read again, are bad.
        """
        self.read_options(generation)
        settings, sources, _ = self._options[generation]
        self._close(generation)
        log = "" if self._estate.logbook is None else self._estate.logbook.output
        prepare = wire.Prepare(generation, settings.to_wire(), dict(sources), log)
        nursery = self._nurseries[generation] = Nursery(prepare, self._estate.argv, self._put, settings.boot_timeout)
        nursery.load()

    def reopen_logs(self) -> None:
        """Zygotes are to open their log again."""
        for nursery in self._nurseries.values():
            nursery.reopen_logs()

    def drop(self, generation: int) -> None:
        """No worker of that generation is made any more."""
        self._close(generation)
        self._options.pop(generation, None)

    def settings(self, generation: int) -> Settings:
        """Its options."""
        return self._options[generation][0]

    def nursery(self, generation: int) -> Nursery | None:
        """Where its workers come from, if workers can be ordered there now."""
        nursery = self._nurseries.get(generation) if generation in self._admitted else None
        return nursery if nursery is not None and nursery.ready else None

    def available(self) -> frozenset[int]:
        """Return the generations of which workers can be ordered now."""
        return frozenset(number for number in self._nurseries if self.nursery(number) is not None)

    def admit(self, generation: int) -> None:
        """What its workers need is there: order some.

        A nursery is ready as soon as its zygote has said so. That fact may still stand in the queue when another one has the
        master make workers: they would lack the keeper, or their places.
        """
        self._admitted.add(generation)

    def each_executed(self, generation: int) -> None:
        """Its workers are executed from now on, not forked."""
        self._nurseries[generation].each_executed()

    def pids(self) -> set[int]:
        """Processes that are reaped here."""
        return {pid for nursery in (*self._nurseries.values(), *self._leaving) for pid in nursery.pids()}

    def close(self) -> None:
        """Let all zygotes go: no worker is made any more."""
        for generation in list(self._nurseries):
            self._close(generation)

    async def gone(self, patience: float) -> None:
        """Wait for zygotes that were let go; those that hang are killed after `patience` seconds."""
        self.close()
        for nursery in self._leaving:
            await nursery.gone(patience)

    def _close(self, generation: int) -> None:
        self._admitted.discard(generation)
        nursery = self._nurseries.pop(generation, None)
        if nursery is not None:
            nursery.close()
            self._leaving = [each for each in self._leaving if each.pids()] + [nursery]
