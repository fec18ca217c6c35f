"""Components of this worker whose status the master can query and set."""

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
class _RegisteredComponent:
    """One component: the functions that return, combine and set its status."""

    name: str
    view: Callable[..., Any]
    reducer: str | Reducer
    update: Callable[[Any], Any] | None
    takes_params: bool


class Components:
    """The components by name, registered while the app is imported, or later. Workers inherit the registry by fork."""

    def __init__(self) -> None:
        self._by_name: dict[str, _RegisteredComponent] = {}
        self._set_before: dict[str, Any] = {}
        self.announce: Callable[[str], None] = lambda name: None

    def register(
        self, name: str, view: Callable[..., Any], reducer: str | Reducer, update: Callable[[Any], Any] | None
    ) -> None:
        """Register a component, or replace it. Raises ConfigError."""
        if not callable(reducer) and reducer not in REDUCERS:
            raise ConfigError(
                f"status({name!r}): reducer = {reducer!r}: expected {', '.join(REDUCERS)}, or a function of a list"
            )
        if not callable(view):
            raise ConfigError(f"status({name!r}): view = {view!r}: expected a function")
        self._by_name[name] = _RegisteredComponent(name, view, reducer, update, _takes_params(view))
        self.announce(name)

    def names(self) -> list[str]:
        """Return the names of all components."""
        return list(self._by_name)

    def forget(self, name: str) -> None:
        """Remove a component; for tests."""
        self._by_name.pop(name, None)

    async def view_status(self, query: messages.View | messages.Reduce) -> messages.Viewed:
        """Return the response to a query of the master's. It contains an error if there is one; this never raises."""
        component = self._by_name.get(query.name)
        if component is None:
            return messages.Viewed(query.number, error=f"there is no component {query.name!r}")
        name = component.reducer if isinstance(component.reducer, str) else ""
        try:
            result = _reduce(component, query) if isinstance(query, messages.Reduce) else _view(component, query)
            if inspect.isawaitable(result):
                result = await result
            value = codec.sendable(result, f"the status of {query.name!r}")
        except Exception as error:
            text = error.message if isinstance(error, ClusterError) else f"{type(error).__name__}: {error}"
            return messages.Viewed(query.number, error=codec.clip(text, _MAX_ERROR_CHARS), reducer=name)
        return messages.Viewed(query.number, value, name)

    async def update(self, name: str, value: Any) -> None:
        """Set the status of a component; if it isn't registered yet, when it is. Log a warning if it can't be set."""
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
        """Set a component that was registered just now to the value that the master has sent before."""
        if name in self._set_before:
            await self.update(name, self._set_before.pop(name))


def _view(component: _RegisteredComponent, query: messages.View) -> Any:
    return component.view(codec.value(query.params)) if component.takes_params else component.view()


def _reduce(component: _RegisteredComponent, query: messages.Reduce) -> Any:
    if isinstance(component.reducer, str):
        return REDUCERS[component.reducer]([codec.value(value) for value in query.values])
    return component.reducer([codec.value(value) for value in query.values])


def _takes_params(view: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(view).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.VAR_POSITIONAL) for each in parameters
    )
