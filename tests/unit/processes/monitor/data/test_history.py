"""Rates, recent latencies, the history and its thinning, and the sampling of memory, without a real clock."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.core.histogram import BUCKET_BOUNDS_S
from cluster2.processes.monitor.data.history import HISTORY_COLUMNS, MAX_MARKS, History, thin
from cluster2.processes.monitor.data.memory import MEMORY_TIME_SHARE, UNMEASURED_TURN_S, MemorySampler
from cluster2.processes.monitor.data.rates import RateMeter, RecentLatency

Looks = st.lists(st.tuples(st.floats(0.01, 100.0), st.integers(0, 10**9)), min_size=2, max_size=30)


@given(Looks)
def test_rates_add_up(looks: list[tuple[float, int]]) -> None:
    """For any pauses between turns, the rates multiplied by the pauses give the counts."""
    meter, now, count, seen = RateMeter(), 0.0, 0, 0.0
    for number, (pause, more) in enumerate(looks):
        now, count = now + pause, count + more
        meter.advance(now)
        rate = meter.rate("requests", count)
        assert (rate is None) == (number == 0)
        seen += (rate or 0.0) * pause
    assert seen == pytest.approx(sum(more for _, more in looks[1:]), rel=1e-6, abs=1e-3)


def test_rates_that_are_not_known() -> None:
    """There is no rate without a count in the turn before, or without time between them; a count that falls has begun anew."""
    meter = RateMeter()
    found = []
    for now, count in ((1.0, 5), (2.0, None), (3.0, 9), (4.0, 11), (5.0, 1), (5.0, 2)):
        meter.advance(now)
        found.append(meter.rate("requests", count))
    assert found == [None, None, None, 2.0, 0.0, None]


def test_recent_latency() -> None:
    """Only measurements of the last turns count; without any, or for a new key, the result is None."""
    lately, fast, slow = RecentLatency(2), [0] * (len(BUCKET_BOUNDS_S) + 1), [0] * (len(BUCKET_BOUNDS_S) + 1)
    slow[8] = 100  # 0.1 to 0.25 s
    none = {"p50": None, "p99": None}
    lately.advance()
    assert lately.summary("a", fast) == none
    lately.advance()
    assert lately.summary("a", slow)["p99"] == pytest.approx(0.2485)
    for expected in (pytest.approx(0.175), None):
        lately.advance()
        assert lately.summary("a", slow)["p50"] == expected
    lately.advance()
    assert lately.summary("b", slow) == none
    lately.advance()
    assert lately.summary("a", None) == lately.summary("b", slow) == none


def filled(seconds: int, rows: int = 50) -> History:
    history = History(rows)
    for second in range(seconds):
        history.add({"time": 1000.0 + second, "requests": second, "p99": second, "ready": second})
    return history


@given(st.integers(0, 200), st.integers(1, 100), st.integers(1, 100))
def test_the_ring(seconds: int, window: int, points: int) -> None:
    """The ring keeps the last rows; a request gets them in order, thinned to about as many as it wants, with all peaks."""
    history, now = filled(seconds), 1000.0 + seconds - 1
    kept = [second for second in range(max(0, seconds - 50), seconds) if 1000 + second > now - window]
    rows = history.rows(now - window, now, math.ceil(window / points))
    assert len(rows) <= min(len(kept), points + 1)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)  # type: ignore[type-var]
    if kept:
        names = list(HISTORY_COLUMNS)
        column = {name: [row[place] for row in rows] for place, name in enumerate(names)}
        assert max(column["p99"]) == kept[-1]  # type: ignore[type-var]
        assert min(column["ready"]) == kept[0]  # type: ignore[type-var]
        assert set(column["cpu"]) == {None}


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=60), st.integers(1, 20), st.integers(0, 1000))
def test_thinning_keeps_its_buckets(values: list[float | None], width: int, start: int) -> None:
    """Buckets begin at multiples of their width: as time goes on, all but the first and the last stay the same."""
    rows = [[float(start + at), *[math.nan if value is None else value] * 10] for at, value in enumerate(values)]
    whole, later = list(thin(rows, width)), list(thin(rows[1:], width))
    assert later[1:] == whole[len(whole) - len(later) :][1:]
    for row in whole:
        assert all(value is None or math.isfinite(value) for value in row)


def test_means_and_peaks() -> None:
    """Rates are averages, p99 and memory maxima, ready is the minimum; unknown values don't count."""
    told = (
        {"p99": 0.5, "requests": 10, "ready": 2},
        {"requests": 20, "ready": 1},
        {"p99": 0.1, "ready": 2, "memory": 7},
    )
    history = History()
    for second, values in enumerate(told):
        history.add({"time": 1000.0 + second, **values})
    (row,) = history.rows(0, 2000, 2000)
    found = dict(zip(HISTORY_COLUMNS, row, strict=True))
    expected = {"time": 1000, "requests": 15, "p99": 0.5, "ready": 1, "memory": 7}
    assert {name: value for name, value in found.items() if value is not None} == expected


def test_marks() -> None:
    """The last marks are kept, and can be requested since a time."""
    history = History()
    for second in range(MAX_MARKS + 10):
        history.add_mark(float(second), "died", slot=3, reason="crash")
    assert len(history.marks(0)) == MAX_MARKS
    assert history.marks(MAX_MARKS + 8) == [{"time": MAX_MARKS + 9, "name": "died", "slot": 3, "reason": "crash"}]


class Measuring:
    """A clock, and a memory sampler whose measurements take `takes` seconds each."""

    def __init__(self, takes: float) -> None:
        self.now, self.takes, self.asked = 0.0, takes, list[int]()
        self.sampler = MemorySampler(self.measure, lambda: self.now)

    def measure(self, pid: int) -> int | None:
        self.now += self.takes
        self.asked.append(pid)
        return None if pid == 13 else pid * 100

    def turns(self, pids: list[int], count: int) -> list[int]:
        """Return the pids that `count` turns measure."""
        before = len(self.asked)
        for _ in range(count):
            self.sampler.measure_some(pids)
            self.now = math.floor(self.now) + 1.0
        return self.asked[before:]


def test_new_processes_are_measured_first() -> None:
    """New processes are measured at once, as far as there is time, then each in turn; one that has ended is forgotten."""
    small = Measuring(UNMEASURED_TURN_S / 16)
    assert small.turns([1, 2, 3], 1) == [1, 2, 3]
    assert small.turns([1, 2, 3], 8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert small.turns([1, 2, 3, 4], 2) == [4, 3]
    assert small.sampler.memory_of(4) == 400
    small.turns([1, 2], 1)
    assert small.sampler.memory_of(4) is None


def test_large_processes_are_measured_seldom() -> None:
    """Measuring takes no more than its share of the time, for any sizes."""
    large = Measuring(0.1)
    large.turns([1, 2], 1000)
    assert len(large.asked) * 0.1 <= 1000 * MEMORY_TIME_SHARE + 0.2
    assert len(large.asked) >= 40


def test_totals() -> None:
    """A process that wasn't measured, or can't be, counts as the average of the others."""
    measuring = Measuring(UNMEASURED_TURN_S / 2)
    sampler = measuring.sampler
    assert sampler.total([1, 2]) is None
    assert measuring.turns([1, 3, 5, 7], 1) == [1, 3]
    assert sampler.total([1, 3]) == 400
    assert (sampler.total([1, 3, 5, 7]), sampler.all_measured([1, 3, 5, 7])) == (800, False)
    assert measuring.turns([13], 3) == [13, 13]
    assert (sampler.memory_of(13), sampler.all_measured([13]), sampler.total([13])) == (None, True, None)


def test_the_ring_is_small() -> None:
    """An hour takes less than a MiB, however long the monitor runs."""
    history = History()
    columns = history._columns.values()
    size = sum(column.itemsize * len(column) for column in columns)
    for second in itertools.islice(itertools.count(), 4000):
        history.add(dict.fromkeys(HISTORY_COLUMNS, float(second)))
    assert sum(column.itemsize * len(column) for column in columns) == size < 2**20
