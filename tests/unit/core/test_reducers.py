"""The reducers of component status."""

from __future__ import annotations

from typing import Any

import pytest

from cluster2.core.reducers import REDUCERS, named


@pytest.mark.parametrize(
    ("name", "values", "value"),
    [
        ("sum", [1, 2.5], 3.5), ("sum", [], 0), ("avg", [1, 2], 1.5), ("avg", [], None), ("first", ["a", "b"], "a"),
        ("first", [], None), ("array", [1, "a"], [1, "a"]), ("concat", [[1], [2, 3]], [1, 2, 3]), ("concat", [], []),
        ("concat", ["a", "b"], "ab"),
    ],
)  # fmt: skip
def test_reducers(name: str, values: list[Any], value: Any) -> None:
    """Each makes one value of many, also of none."""
    assert REDUCERS[name](values) == value


def test_what_can_not_be_reduced() -> None:
    """Values that don't suit are an error, and so is a name that isn't one."""
    with pytest.raises(TypeError):
        REDUCERS["sum"](["a", 1])
    with pytest.raises(TypeError, match="only lists, or only texts"):
        REDUCERS["concat"]([[1], 2])
    with pytest.raises(ValueError, match="reducer = 'max': expected sum, concat, avg, array, first"):
        named("max")
    assert named(max) is max
