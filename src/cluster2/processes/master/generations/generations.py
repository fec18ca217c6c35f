"""Hold the generations of the app: the options of each, and the factory of its workers.

Usually there is one. While a reload is under way there are two, so that the old one can go on if the new one fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable

from .... import events
from ....config.settings import FILE_OPTIONS, OPTIONS, Settings
from ....errors import ConfigError
from ....linux import file_snapshots
from ....protocol import messages
from ....runtime.option_sources import restart_warning
from ..resources import MasterResources, Options
from ..state.inbox import InboxMessage
from .worker_factory import WorkerFactory


class GenerationTable:
    """The generations by number."""

    def __init__(
        self,
        resources: MasterResources,
        post: Callable[[InboxMessage], None],
        emit: Callable[[events.Event], None] = lambda event: None,
    ) -> None:
        """Make the table. The first generation has the options that the master was started with."""
        self._resources = resources
        self._post = post
        self._emit = emit
        self._options: dict[int, Options] = {1: resources.options}
        self._files: dict[int, dict[str, int]] = {}
        self._objects: dict[int, list[str]] = {1: resources.options[0].objects()}
        self._open = set[int]()
        self._factories: dict[int, WorkerFactory] = {}
        self._admitted: set[int] = set()
        self._closing_factories: list[WorkerFactory] = []

    def read_options(self, generation: int) -> Options:
        """Return the options of a generation. Those of a new generation are read now.

        Raises:
            ClusterError: the options are bad.
        """
        if generation not in self._options:
            self._options[generation] = self._resources.reread()
            self._objects[generation] = self._options[generation].settings.objects()
            if self._resources.scripted:
                self._open.add(generation)
        return self._options[generation]

    def load(self, generation: int) -> None:
        """Start to load the app as it is now, or load it again because its zygote has ended.

        The files that its options name are read only the first time.

        Raises:
            ClusterError: the options of a new generation are bad, or a file can't be read.
        """
        self.read_options(generation)
        settings = self.settings(generation)
        if generation not in self._files:
            self._files[generation] = _read_files(settings)
        self._close(generation)
        factory = self._factories[generation] = WorkerFactory(
            self._order(generation),
            self._resources.argv,
            self._post,
            settings.boot_timeout,
            self._descriptors(generation),
            scripted=self._resources.scripted,
            emit=self._emit,
        )
        factory.load()

    def fix_options(self, generation: int, chosen: messages.Chosen) -> list[str]:
        """Fix the options of a new generation, which its script has chosen. Return warnings about them, a line each.

        Only the first message counts: it was sent before the app's code ran as the user of the workers.

        Raises:
            ConfigError: a file that the options name can't be read.
        """
        if generation not in self._open:
            return []
        self._open.discard(generation)
        before, _, known = self._options[generation]
        settings = Settings.from_wire(chosen.settings)
        kept = {option.field for option in OPTIONS.values() if option.restart}.union(chosen.objects)
        settings = dataclasses.replace(settings, **{name: getattr(before, name) for name in kept})
        warnings = [each for each in chosen.warnings if each not in known]
        if "recycle_when" in chosen.objects and not callable(before.recycle_when):
            warnings.append(restart_warning("recycle_when", "a function in the script"))
        changed = {name for name in FILE_OPTIONS if getattr(settings, name) != getattr(before, name)}
        self._options[generation] = Options(settings, chosen.sources, (*known, *warnings))
        self._objects[generation] = chosen.objects
        if changed:
            self._forget_files(generation)
            self._files[generation] = _read_files(settings)
        self._factories[generation].fix_options(self._order(generation), self._descriptors(generation))
        return warnings

    def _order(self, generation: int) -> messages.Prepare:
        settings, sources, _ = self._options[generation]
        values = settings.to_wire()
        if not self._resources.scripted:
            values["monitor_token"] = None  # only the monitor may have it; a script has it anyway, and compares it
        return messages.Prepare(
            generation,
            values,
            dict(sources),
            "" if self._resources.log_directory is None else self._resources.log_directory.output,
            list(self._files[generation]),
            self._objects[generation],
            pinned=generation not in self._open,
        )

    def _descriptors(self, generation: int) -> list[int]:
        return list(self._files[generation].values())

    def reopen_logs(self) -> None:
        """Have the zygotes open their log files again."""
        for factory in self._factories.values():
            factory.reopen_logs()

    def drop(self, generation: int) -> None:
        """Forget a generation of which no worker is made any more."""
        self._close(generation)
        self._options.pop(generation, None)
        self._objects.pop(generation, None)
        self._open.discard(generation)
        self._forget_files(generation)

    def settings(self, generation: int) -> Settings:
        """Return the settings of a generation."""
        return self._options[generation][0]

    def factory(self, generation: int) -> WorkerFactory | None:
        """Return the factory of a generation, or None while no worker can be ordered."""
        factory = self._factories.get(generation) if generation in self._admitted else None
        return factory if factory is not None and factory.ready else None

    def available(self) -> frozenset[int]:
        """Return the generations of which workers can be ordered now."""
        return frozenset(number for number in self._factories if self.factory(number) is not None)

    def on_ready(self, generation: int) -> None:
        """Allow workers of a generation to be ordered: all that they need exists.

        A factory is ready as soon as its zygote has sent `Prepared`. That message may still be in the inbox when another one
        makes the master order workers. They would lack the keeper, or their places in the steered groups.
        """
        self._admitted.add(generation)

    def each_executed(self, generation: int) -> None:
        """Execute the workers of a generation from now on, instead of forking them."""
        self._factories[generation].each_executed()

    def pids(self) -> set[int]:
        """Return the pids of the processes that the factories reap."""
        return {pid for factory in (*self._factories.values(), *self._closing_factories) for pid in factory.pids()}

    def close(self) -> None:
        """Let all zygotes exit. No worker is made any more."""
        for generation in list(self._factories):
            self._close(generation)

    async def wait_closed(self, patience: float) -> None:
        """Let all zygotes exit and wait for them. Those that hang are killed after `patience` seconds."""
        self.close()
        for generation in list(self._files):
            self._forget_files(generation)
        for factory in self._closing_factories:
            await factory.wait_closed(patience)

    def _close(self, generation: int) -> None:
        self._admitted.discard(generation)
        factory = self._factories.pop(generation, None)
        if factory is not None:
            factory.close()
            self._closing_factories = [each for each in self._closing_factories if each.pids()] + [factory]

    def _forget_files(self, generation: int) -> None:
        for descriptor in self._files.pop(generation, {}).values():
            os.close(descriptor)


def _read_files(settings: Settings) -> dict[str, int]:
    """Return a descriptor of a copy of each file that the options name, by field. Raises ConfigError if one can't be had."""
    found: dict[str, int] = {}
    with contextlib.ExitStack() as unfinished:
        for name in FILE_OPTIONS:
            if (path := getattr(settings, name)) is None:
                continue
            try:
                found[name] = file_snapshots.take(path)
            except OSError as error:
                raise ConfigError(f"{name} = {path!r}: can't be read: {error.strerror}") from error
            unfinished.callback(os.close, found[name])
        unfinished.pop_all()
    return found
