"""Status of components: asked of all workers, reduced to one value; and values that are set in all of them.

A component is whatever a worker registered by `worker.register_status(name, …)`. Nothing is kept here but the names, and what was set
last, which workers that come later are told: a recycle doesn't undo it.
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
"""Seconds that a worker may take to answer; who hasn't by then is missing from the answer."""
_MAX_VALUES = 1024
"""Components whose value is remembered."""
MAX_STATUS_NAMES = 1024
"""Components that one worker may have."""


class ComponentStatus(msgspec.Struct, frozen=True):
    """The status of a component over its workers.

    Attributes:
        value: what the reducer made of the answers; None if they can't be reduced.
        workers: each answer, by pid, in the order of slots.
        missing: pids of workers that died meanwhile, or didn't answer in time.
        errors: why a worker has no value, by pid; by 0 why the values can't be reduced.
    """

    name: str
    value: Any
    workers: dict[int, Any]
    missing: list[int] = []
    errors: dict[int, str] = {}

    def plain(self) -> dict[str, Any]:
        """It as plain data, for JSON."""
        return {
            "component": self.name,
            "value": self.value,
            "workers": [{"pid": pid, "value": value} for pid, value in self.workers.items()],
            "missing": self.missing,
            "errors": [{"pid": pid, "error": text} for pid, text in self.errors.items()],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ComponentStatus:
        """The inverse."""
        workers = {each["pid"]: each["value"] for each in plain["workers"]}
        errors = {each["pid"]: each["error"] for each in plain["errors"]}
        return cls(plain["component"], plain["value"], workers, plain["missing"], errors)

    @property
    def partial(self) -> bool:
        """Whether a worker is missing from it."""
        return bool(self.missing or self.errors)


class _Gathering:
    """Answers to one question."""

    def __init__(self, asked: set[WorkerLink]) -> None:
        self.awaited = asked
        """Who may still answer."""
        self.answers: dict[WorkerLink, messages.Viewed] = {}
        self.complete = asyncio.Event()

    def on_answer(self, link: WorkerLink, answer: messages.Viewed | None) -> None:
        """One has answered; None: it never will."""
        if link in self.awaited:
            self.awaited.discard(link)
            if answer is not None:
                self.answers[link] = answer
            if not self.awaited:
                self.complete.set()


class ComponentStatuses:
    """The components of the workers."""

    def __init__(self) -> None:
        self._names: dict[WorkerLink, set[str]] = {}
        self._numbers = itertools.count(1)
        self._gatherings: dict[int, _Gathering] = {}
        self._set: dict[str, messages.Update] = {}

    def names(self) -> list[str]:
        """All components that a worker has."""
        return sorted(set().union(*self._names.values()))

    def on_connect(self, link: WorkerLink) -> None:
        """A worker has come: it is told what was set before."""
        self._names[link] = set()
        for update in self._set.values():
            link.send(update)

    def on_disconnect(self, link: WorkerLink) -> None:
        """It is gone: who waits for its answer needn't any more."""
        self._names.pop(link, None)
        for gathering in self._gatherings.values():
            gathering.on_answer(link, None)

    def register(self, link: WorkerLink, name: str) -> None:
        """A worker has that component. Raises codec.Garbled if it has too many."""
        names = self._names.get(link)
        if names is not None:
            names.add(name)
            if len(names) > MAX_STATUS_NAMES:
                raise codec.ProtocolError(f"it has more than {MAX_STATUS_NAMES} components")

    def viewed(self, link: WorkerLink, answer: messages.Viewed) -> None:
        """A worker answers."""
        gathering = self._gatherings.get(answer.number)
        if gathering is not None:
            gathering.on_answer(link, answer)

    def update(self, name: str, value: object, worker: int | None = None) -> int:
        """Set a component in all workers that are and that come, or in the one of that pid or slot; how many were told."""
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
        """Ask all workers that have it, or the one of that pid or slot.

        Raises:
            ClusterError: no such worker has it.
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
        """Have the values reduced by the component's own function, which only a worker has."""
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
        self, links: list[WorkerLink], question: Callable[[int], messages.Talk]
    ) -> dict[WorkerLink, messages.Viewed]:
        """What each answered; who didn't isn't there."""
        number = next(self._numbers)
        gathering = self._gatherings[number] = _Gathering(set(links))
        try:
            for link in links:
                if not link.send_if_room(question(number)):
                    gathering.on_answer(link, None)
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                await gathering.complete.wait()
        except TimeoutError:
            pass  # the answer says who is missing
        finally:
            del self._gatherings[number]
        return gathering.answers

    def _links(self, worker: int | None) -> list[WorkerLink]:
        """The links of that pid or slot, or all, by slot."""
        found = [link for link in self._names if worker is None or worker in (link.pid, link.slot)]
        return sorted(found, key=lambda link: link.slot)


def _is_value(answer: messages.Viewed | None) -> bool:
    return answer is not None and answer.error is None
