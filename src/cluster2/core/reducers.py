"""The reducers of component status: functions that make one value of those of several workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Reducer = Callable[[Sequence[Any]], Any]


def add(values: Sequence[Any]) -> Any:
    """Return the sum of the values; 0 if there are none."""
    return sum(values)


def concat(values: Sequence[Any]) -> Any:
    """Join the values: lists to one list, texts to one text."""
    if values and all(isinstance(value, str) for value in values):
        return "".join(values)
    if not all(isinstance(value, (list, tuple)) for value in values):
        raise TypeError("only lists, or only texts, can be put together")
    return [item for value in values for item in value]


def avg(values: Sequence[Any]) -> Any:
    """Return the mean of the values; None if there are none."""
    return sum(values) / len(values) if values else None


def array(values: Sequence[Any]) -> Any:
    """Return the values as a list."""
    return list(values)


def first(values: Sequence[Any]) -> Any:
    """Return the value of the lowest slot; None if there are none."""
    return values[0] if values else None


REDUCERS: dict[str, Reducer] = {"sum": add, "concat": concat, "avg": avg, "array": array, "first": first}
"""The reducers by name. A reducer gets the values in the order of the workers' slots."""


def named(reducer: str | Reducer) -> Reducer:
    """Return the function of a reducer. Raises ValueError: no reducer has that name."""
    if not isinstance(reducer, str):
        return reducer
    if reducer not in REDUCERS:
        raise ValueError(f"reducer = {reducer!r}: expected {', '.join(REDUCERS)}, or a function of a list")
    return REDUCERS[reducer]
