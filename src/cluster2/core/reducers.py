"""How the answers of several workers become one: the reducers of component status, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Reducer = Callable[[Sequence[Any]], Any]


def add(values: Sequence[Any]) -> Any:
    """Their sum; 0 of nothing."""
    return sum(values)


def concat(values: Sequence[Any]) -> Any:
    """One list of all their items; one text, if they are texts."""
    if values and all(isinstance(value, str) for value in values):
        return "".join(values)
    if not all(isinstance(value, (list, tuple)) for value in values):
        raise TypeError("only lists, or only texts, can be put together")
    return [item for value in values for item in value]


def avg(values: Sequence[Any]) -> Any:
    """Their mean; None of nothing."""
    return sum(values) / len(values) if values else None


def array(values: Sequence[Any]) -> Any:
    """The values themselves."""
    return list(values)


def first(values: Sequence[Any]) -> Any:
    """That of the lowest slot; None of nothing."""
    return values[0] if values else None


REDUCERS: dict[str, Reducer] = {"sum": add, "concat": concat, "avg": avg, "array": array, "first": first}
"""By name. They get the values in the order of the workers' slots."""


def named(reducer: str | Reducer) -> Reducer:
    """The function of a reducer. Raises ValueError for a name that isn't one."""
    if not isinstance(reducer, str):
        return reducer
    if reducer not in REDUCERS:
        raise ValueError(f"reducer = {reducer!r}: expected {', '.join(REDUCERS)}, or a function of a list")
    return REDUCERS[reducer]
