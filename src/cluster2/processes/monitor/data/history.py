"""The last hour of the cluster: a ring of fixed size with a row for each second, and marks on the time line.

Eleven columns of 3,600 doubles are 310 KiB, allocated once. Adding a row costs 2 µs.

A client gets the rows thinned to as many as are worth drawing. The limits of a bucket are whole multiples of its width, and don't
depend on the time of the request. Otherwise each request would cut the same hour differently, and its peaks would jump.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

HISTORY_SECONDS = 3600
"""Rows that are kept."""
MAX_MARKS = 500
"""Marks that are kept."""

_Value = float | None
Row = list[_Value]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


HISTORY_COLUMNS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "time": min,
    "requests": _mean,
    "errors": _mean,
    "p50": _mean,
    "p99": max,
    "cpu": _mean,
    "memory": max,
    "held": _mean,
    "resting": _mean,
    "ready": min,
    "in_flight": max,
}
"""The columns, each with the function that makes one value of a bucket. Peaks and missing workers must stay visible.

`time` is in seconds since the epoch. `requests` and `errors` are rates per second. `p50` and `p99` are seconds, `cpu` is cores,
`memory` is bytes. `held` and `resting` count connections, at workers and at the keeper. `ready` counts workers, `in_flight`
requests.
"""


class History:
    """The ring of rows, and the marks.

    Args:
        rows: the size of the ring.
    """

    def __init__(self, rows: int = HISTORY_SECONDS) -> None:
        self._rows = rows
        self._count = 0
        self._columns = {name: array("d", [math.nan]) * rows for name in HISTORY_COLUMNS}
        self._marks: deque[dict[str, Any]] = deque(maxlen=MAX_MARKS)

    def add(self, values: Mapping[str, _Value]) -> Row:
        """Append a row, in which a missing value means unknown. Returns it in the order of `HISTORY_COLUMNS`."""
        index = self._count % self._rows
        self._count += 1
        for name, column in self._columns.items():
            value = values.get(name)
            column[index] = math.nan if value is None else value  # a double has no None
        return [values.get(name) for name in HISTORY_COLUMNS]

    def add_mark(self, time: float, name: str, *, slot: int | None = None, reason: str | None = None) -> None:
        """Mark an event on the time line."""
        self._marks.append({"time": time, "name": name, "slot": slot, "reason": reason})

    def rows(self, since: float, until: float, width: int) -> list[Row]:
        """Return a row for each `width` seconds between two times (seconds since the epoch), the oldest first."""
        return list(thin((row for row in self._kept() if since < row[0] <= until), width))

    def marks(self, since: float) -> list[dict[str, Any]]:
        """Return the marks later than `since`."""
        return [mark for mark in self._marks if mark["time"] > since]

    def _kept(self) -> Iterator[Sequence[float]]:
        start = max(0, self._count - self._rows)
        columns = list(self._columns.values())
        for number in range(start, self._count):
            index = number % self._rows
            yield [column[index] for column in columns]


def thin(rows: Iterable[Sequence[float]], width: int) -> Iterator[Row]:
    """Yield a row for each `width` seconds that have one, rounded to six digits. NaN, an unknown value, becomes None."""
    reducers = list(HISTORY_COLUMNS.values())
    for _, bucket in itertools.groupby(rows, key=lambda row: math.floor(row[0] / width)):
        columns = zip(*bucket, strict=True)
        known = [[value for value in column if not math.isnan(value)] for column in columns]
        yield [round(reduce(values), 6) if values else None for reduce, values in zip(reducers, known, strict=True)]
