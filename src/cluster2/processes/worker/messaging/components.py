"""Components of this worker whose status the master can ask for, and set."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....core.reducers import REDUCERS, Reducer
from ....errors import ClusterError, ConfigError, raised_in
from ....protocol import codec, messages

logger = logging.getLogger("cluster2.worker")
_MAX_ERROR_CHARS = 1 << 12


@dataclass(frozen=True, slots=True)
class RegisteredComponent:
    """One component: what tells its status, how several become one, what sets it."""

    name: str
    view: Callable[..., Any]
    reducer: str | Reducer
    update: Callable[[Any], Any] | None
    takes_params: bool


class Components:
    """By name. Registered while the app is imported, or later; the registry is inherited by fork."""

    def __init__(self) -> None:
        self._by_name: dict[str, RegisteredComponent] = {}
        self._set_before: dict[str, Any] = {}
        self.announce: Callable[[str], None] = lambda name: None

    def register(
        self, name: str, view: Callable[..., Any], reducer: str | Reducer, update: Callable[[Any], Any] | None
    ) -> None:
        """Have a component, or another view of it. Raises ConfigError."""
        if not callable(reducer) and reducer not in REDUCERS:
            raise ConfigError(
                f"status({name!r}): reducer = {reducer!r}: expected {', '.join(REDUCERS)}, or a function of a list"
            )
        if not callable(view):
            raise ConfigError(f"status({name!r}): view = {view!r}: expected a function")
        self._by_name[name] = RegisteredComponent(name, view, reducer, update, _takes_params(view))
        self.announce(name)

    def names(self) -> list[str]:
        """All components."""
        return list(self._by_name)

    def forget(self, name: str) -> None:
        """Have it no more; for tests."""
        self._by_name.pop(name, None)

    async def view_status(self, question: messages.View | messages.Reduce) -> messages.Viewed:
        """The answer to a question of the master's; it tells of errors instead of raising."""
        component = self._by_name.get(question.name)
        if component is None:
            return messages.Viewed(question.number, error=f"there is no component {question.name!r}")
        name = component.reducer if isinstance(component.reducer, str) else ""
        try:
            result = (
                _reduced(component, question) if isinstance(question, messages.Reduce) else _asked(component, question)
            )
            if inspect.isawaitable(result):
                result = await result
            value = codec.sendable(result, f"the status of {question.name!r}")
        except Exception as error:
            text = error.message if isinstance(error, ClusterError) else f"{type(error).__name__}: {error}"
            return messages.Viewed(question.number, error=codec.clip(text, _MAX_ERROR_CHARS), reducer=name)
        return messages.Viewed(question.number, value, name)

    async def update(self, name: str, value: Any) -> None:
        """The master sets a component. One that isn't there yet gets it when it is; one that can't be set says so in the log."""
        component = self._by_name.get(name)
        if component is None:
            self._set_before[name] = value
            return
        if component.update is None:
            logger.warning("component %r can't be set: it was registered without update=", name)
            return
        try:
            result = component.update(value)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            logger.error("the updater of component %r raised", name, exc_info=raised_in(error))

    async def update_late(self, name: str) -> None:
        """A component has been registered: set it to what it was told before."""
        if name in self._set_before:
            await self.update(name, self._set_before.pop(name))


def _asked(component: RegisteredComponent, question: messages.View) -> Any:
    return component.view(codec.value(question.params)) if component.takes_params else component.view()


def _reduced(component: RegisteredComponent, question: messages.Reduce) -> Any:
    if isinstance(component.reducer, str):
        return REDUCERS[component.reducer]([codec.value(value) for value in question.values])
    return component.reducer([codec.value(value) for value in question.values])


def _takes_params(view: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(view).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.VAR_POSITIONAL) for each in parameters
    )
