"""The last hour, a row a second, in a ring of fixed size.

Eleven columns of 3,600 doubles are 310 KiB, allocated once; adding a row costs 2 µs. Who asks gets it thinned to as many rows
as are worth drawing. Buckets lie on whole multiples of their width, not on the moment of the question: else the same hour,
asked for again, would be cut differently each time, and its peaks would dance.
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

Value = float | None
Row = list[Value]


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
"""Each with what becomes of the values that fall into one bucket: peaks, and workers that were missing, must stay visible.

`time` is in seconds since the epoch; `requests` and `errors` are a second; `p50` and `p99` are seconds; `cpu` is cores;
`memory` is bytes; `held` and `resting` are connections, at workers and at the keeper; `ready` counts workers, `in_flight`
requests.
"""


class History:
    """The ring, and the marks on its time line.

    Args:
        rows: how many are kept.
    """

    def __init__(self, rows: int = HISTORY_SECONDS) -> None:
        self._rows = rows
        self._count = 0
        self._columns = {name: array("d", [math.nan]) * rows for name in HISTORY_COLUMNS}
        self._marks: deque[dict[str, Any]] = deque(maxlen=MAX_MARKS)

    def add(self, values: Mapping[str, Value]) -> Row:
        """The next row; what is missing isn't known. Returns it in the order of `HISTORY_COLUMNS`."""
        place = self._count % self._rows
        self._count += 1
        for name, column in self._columns.items():
            value = values.get(name)
            column[place] = math.nan if value is None else value
        return [values.get(name) for name in HISTORY_COLUMNS]

    def add_mark(self, time: float, name: str, *, slot: int | None = None, reason: str | None = None) -> None:
        """Something happened."""
        self._marks.append({"time": time, "name": name, "slot": slot, "reason": reason})

    def rows(self, since: float, until: float, width: int) -> list[Row]:
        """What happened between the two times (seconds since the epoch), a row for `width` seconds, the oldest first."""
        return list(thin((row for row in self._kept() if since < row[0] <= until), width))

    def marks(self, since: float) -> list[dict[str, Any]]:
        """Those that were made later than that."""
        return [mark for mark in self._marks if mark["time"] > since]

    def _kept(self) -> Iterator[Sequence[float]]:
        start = max(0, self._count - self._rows)
        columns = list(self._columns.values())
        for at in range(start, self._count):
            place = at % self._rows
            yield [column[place] for column in columns]


def thin(rows: Iterable[Sequence[float]], width: int) -> Iterator[Row]:
    """One row for each `width` seconds in which there was one, rounded to six digits; NaN, what isn't known, becomes None."""
    combine = list(HISTORY_COLUMNS.values())
    for _, bucket in itertools.groupby(rows, key=lambda row: math.floor(row[0] / width)):
        columns = zip(*bucket, strict=True)
        known = [[value for value in column if not math.isnan(value)] for column in columns]
        yield [round(how(values), 6) if values else None for how, values in zip(combine, known, strict=True)]
