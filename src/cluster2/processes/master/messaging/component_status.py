"""Collect the status of components from all workers and reduce it to one value, and set values in all of them.

A component is anything that a worker has registered by `worker.register_status(name, …)`. This module keeps only the names, and
the value that was set last. Workers that start later get it as well, so a recycle doesn't undo it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ....core.reducers import REDUCERS, Reducer, named
from ....errors import ClusterError
from ....protocol import codec, messages
from .worker_link import WorkerLink

STATUS_TIMEOUT_S = 3.0
"""Seconds that a worker may take to respond. After that it is missing from the status."""
_MAX_VALUES = 1024
"""Components whose value is kept."""
_MAX_STATUS_NAMES = 1024
"""Components that one worker may have."""


class ComponentStatus(msgspec.Struct, frozen=True):
    """The status of a component over its workers.

    Attributes:
        value: the responses, reduced to one value; None if they can't be reduced.
        workers: the value of each worker by pid, in the order of slots.
        missing: pids of workers that ended meanwhile, or didn't respond in time.
        errors: the reason why a worker has no value, by pid. Under 0, the reason why the values can't be reduced.
    """

    name: str
    value: Any
    workers: dict[int, Any]
    missing: list[int] = []
    errors: dict[int, str] = {}

    def plain(self) -> dict[str, Any]:
        """Return the status as plain data, for JSON."""
        return {
            "component": self.name,
            "value": self.value,
            "workers": [{"pid": pid, "value": value} for pid, value in self.workers.items()],
            "missing": self.missing,
            "errors": [{"pid": pid, "error": text} for pid, text in self.errors.items()],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ComponentStatus:
        """Make a status from the result of `plain`."""
        workers = {each["pid"]: each["value"] for each in plain["workers"]}
        errors = {each["pid"]: each["error"] for each in plain["errors"]}
        return cls(plain["component"], plain["value"], workers, plain["missing"], errors)

    @property
    def partial(self) -> bool:
        """True if a worker is missing from it."""
        return bool(self.missing or self.errors)


class _Gathering:
    """The responses to one request.

    Attributes:
        awaited: links of the workers that may still respond.
    """

    def __init__(self, awaited: set[WorkerLink]) -> None:
        self.awaited = awaited
        self.answers: dict[WorkerLink, messages.Viewed] = {}
        self.complete = asyncio.Event()

    def on_answer(self, link: WorkerLink, answer: messages.Viewed | None) -> None:
        """Record the response of a worker; None: the worker has gone."""
        if link in self.awaited:
            self.awaited.discard(link)
            if answer is not None:
                self.answers[link] = answer
            if not self.awaited:
                self.complete.set()


class ComponentStatuses:
    """The components of all workers."""

    def __init__(self) -> None:
        self._names: dict[WorkerLink, set[str]] = {}
        self._numbers = itertools.count(1)
        self._gatherings: dict[int, _Gathering] = {}
        self._set: dict[str, messages.Update] = {}

    def names(self) -> list[str]:
        """Return the names of all components."""
        return sorted(set().union(*self._names.values()))

    def on_connect(self, link: WorkerLink) -> None:
        """Add a worker, and send it the values that were set before."""
        self._names[link] = set()
        for update in self._set.values():
            link.send(update)

    def on_disconnect(self, link: WorkerLink) -> None:
        """Remove a worker, so that no request waits for it any more."""
        self._names.pop(link, None)
        for gathering in self._gatherings.values():
            gathering.on_answer(link, None)

    def register(self, link: WorkerLink, name: str) -> None:
        """Add a component of a worker. Raises codec.ProtocolError if the worker has too many."""
        names = self._names.get(link)
        if names is not None:
            names.add(name)
            if len(names) > _MAX_STATUS_NAMES:
                raise codec.ProtocolError(f"it has more than {_MAX_STATUS_NAMES} components")

    def viewed(self, link: WorkerLink, answer: messages.Viewed) -> None:
        """Take the response of a worker."""
        gathering = self._gatherings.get(answer.number)
        if gathering is not None:
            gathering.on_answer(link, answer)

    def update(self, name: str, value: object, worker: int | None = None) -> int:
        """Set a component in all workers, also later ones, or in that of one pid or slot. Return how many are reached now."""
        update = messages.Update(name, codec.sendable(value, f"the value of component {name!r}"))
        if worker is None:
            self._set.pop(name, None)
            self._set[name] = update
            if len(self._set) > _MAX_VALUES:
                del self._set[next(iter(self._set))]
        return sum(link.send_if_room(update) for link in self._links(worker))

    async def view(
        self, name: str, worker: int | None = None, params: object = None, reducer: str | Reducer | None = None
    ) -> ComponentStatus:
        """Return the status of a component over all workers that have it, or of the one of that pid or slot.

        Raises:
            ClusterError: no such worker has the component.
            ValueError: no reducer has that name.
        """
        function = None if reducer is None else named(reducer)
        links = [link for link in self._links(worker) if name in self._names[link]]
        if not links:
            raise ClusterError(f"no worker{'' if worker is None else f' {worker}'} has a component {name!r}")
        given = messages.NO_PAYLOAD if params is None else codec.sendable(params, f"the params of component {name!r}")
        answers = await self._ask(links, lambda number: messages.View(number, name, given))
        values = {link.pid: codec.value(answers[link].value) for link in links if _is_value(answers.get(link))}
        errors = {link.pid: answer.error for link, answer in answers.items() if answer.error is not None}
        missing = [link.pid for link in links if link not in answers]
        found = ComponentStatus(name, None, values, missing, errors)
        try:
            kinds = [answer.reducer for answer in answers.values() if answer.error is None]
            if function is None and "" in kinds:
                value = await self._reduce_there(name, links, answers)
            else:
                value = (function or REDUCERS.get(kinds[0] if kinds else "array", list))(list(values.values()))
        except Exception as error:
            errors[0] = f"{type(error).__name__}: {error}"
            return found
        return ComponentStatus(name, value, values, missing, errors)

    async def _reduce_there(
        self, name: str, links: list[WorkerLink], answers: dict[WorkerLink, messages.Viewed]
    ) -> Any:
        """Have a worker reduce the values, by the component's own function, which the master doesn't have."""
        able = [link for link in links if _is_value(answers.get(link)) and not answers[link].reducer]
        values = [answers[link].value for link in links if _is_value(answers.get(link))]
        for link in able:
            done = await self._ask([link], lambda number: messages.Reduce(number, name, values))
            if link in done:
                if done[link].error is not None:
                    raise ClusterError(str(done[link].error))
                return codec.value(done[link].value)
        raise ClusterError("the workers that could reduce it are gone")

    async def _ask(
        self, links: list[WorkerLink], request: Callable[[int], messages.ChannelMessage]
    ) -> dict[WorkerLink, messages.Viewed]:
        """Return the responses of the workers that have responded in time."""
        number = next(self._numbers)
        gathering = self._gatherings[number] = _Gathering(set(links))
        try:
            for link in links:
                if not link.send_if_room(request(number)):
                    gathering.on_answer(link, None)
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                await gathering.complete.wait()
        except TimeoutError:
            pass  # the status names the workers that are missing
        finally:
            del self._gatherings[number]
        return gathering.answers

    def _links(self, worker: int | None) -> list[WorkerLink]:
        """Return the links of that pid or slot, or all, by slot."""
        found = [link for link in self._names if worker is None or worker in (link.pid, link.slot)]
        return sorted(found, key=lambda link: link.slot)


def _is_value(answer: messages.Viewed | None) -> bool:
    return answer is not None and answer.error is None
