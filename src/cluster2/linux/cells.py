"""The cells of the scoreboard: their names, their writers, and the values that a reader accepts.

A cell is 8 bytes, an integer or a double. Its writer is one process. A reader is another process, often one with more
privileges: the master may run as root while its workers don't. A worker can store any 64 bits into its row, because it was taken
over, because a C extension wrote through a wild pointer, or because of a bug in this project. So no reader uses a raw cell. A
`CellField` returns the value only within the bounds that are declared with it, and the nearest bound otherwise:

- A count is at least 0 (-1 where an engine may not know) and at most `MAX_COUNT`. The sums of 1,024 rows, and of all workers
  before them, then fit into the 64 bits of a cell, of a message and of JSON.
- A time is finite, at least 0 and at most `MAX_SECONDS`. A NaN is read as 0.
- A code outside its table is `UNKNOWN_VALUE`, for which `lifecycle` has a label.

The check costs 40 ns for each value that is read (CPython 3.11), and nothing when a value is written. `column` checks a whole
column at once: 4 µs for 64 rows, of which 0.9 µs are the reading.

Bounds do not prove a value. A worker can claim that it has no connections, or that its next heartbeat is due in a year.
`health.Promise` detects a worker that hides a hang in the latter way. The effect of a false claim on other processes is bounded
where the value is used (`planning.lightest`, `worker.sampling.accept_mode`, `worker.connections.handoff`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, Generic, Literal, TypeVar, overload

from cluster2.core import histogram
from cluster2.core.lifecycle import MODES, WorkerState

CELL_BYTES: Final = 8
CELLS_PER_ROW: Final = 64
ENTRY_CELLS: Final = 8
ROWS: Final = 1024
SLOTS: Final = 1024

MAX_COUNT: Final = 2**48
"""At a million requests a second a worker reaches it in nine years."""
_MAX_OPEN: Final = 2**31
"""Connections or requests that one process can have at a time: it has no more descriptors."""
MAX_SECONDS: Final = 4e9
"""Seconds; as nanoseconds they fit into a cell."""
UNKNOWN_VALUE: Final = -1
"""The value that is read for a code outside its table, and by which an engine reports that it can't know a count."""

Writer = Literal["master", "worker", "keeper", "monitor"]
T = TypeVar("T", int, float)


class CellField(Generic[T]):
    """One cell: the descriptor that reads and writes it, with its documentation.

    Attributes:
        name: the attribute's name.
        index: which of the cells.
        kind: "q", a signed 64-bit integer, or "d", a double.
        writer: the process that fills it.
        meaning: what the value is, with its unit.
        low, high: the bounds of what a reader gets.
    """

    kind: ClassVar[Literal["q", "d"]]

    def __init__(self, index: int, writer: Writer, meaning: str, low: T, high: T) -> None:
        self.name = ""
        self.index = index
        self.writer = writer
        self.meaning = meaning
        self.low: T = low
        self.high: T = high

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def sane(self, value: T) -> T:
        """Return the value if it is within the bounds, else what a reader gets instead of it."""
        raise NotImplementedError

    def sane_all(self, values: list[T]) -> list[T]:
        """Return many values of this field, each within the bounds."""
        # `min` and `max` may overlook a NaN. A sum of doubles with a NaN in it is NaN, which isn't equal to itself.
        odd = bool(values) and (min(values) < self.low or max(values) > self.high)
        if odd or (self.kind == "d" and (total := sum(values)) != total):
            return [self.sane(value) for value in values]
        return values


class Integer(CellField[int]):
    """A cell that holds a signed 64-bit integer.

    Attributes:
        otherwise: what a reader gets for a value out of bounds; None: the nearest bound.
    """

    kind = "q"

    def __init__(
        self,
        index: int,
        writer: Writer,
        meaning: str,
        low: int = 0,
        high: int = MAX_COUNT,
        otherwise: int | None = None,
    ) -> None:
        super().__init__(index, writer, meaning, low, high)
        self.otherwise = otherwise

    @overload
    def __get__(self, cells: None, owner: type) -> Integer: ...
    @overload
    def __get__(self, cells: Cells, owner: type) -> int: ...
    def __get__(self, cells: Cells | None, owner: type) -> Integer | int:
        if cells is None:
            return self
        value = cells.integers[self.index]
        return value if self.low <= value <= self.high else self.sane(value)

    def __set__(self, cells: Cells, value: int) -> None:
        cells.integers[self.index] = value

    def sane(self, value: int) -> int:
        """Return the value if it is within the bounds, else `otherwise` or the nearest bound."""
        if self.low <= value <= self.high:
            return value
        return min(max(value, self.low), self.high) if self.otherwise is None else self.otherwise


class Real(CellField[float]):
    """A cell that holds a double."""

    kind = "d"

    def __init__(self, index: int, writer: Writer, meaning: str, low: float = 0.0, high: float = MAX_SECONDS) -> None:
        super().__init__(index, writer, meaning, low, high)

    @overload
    def __get__(self, cells: None, owner: type) -> Real: ...
    @overload
    def __get__(self, cells: Cells, owner: type) -> float: ...
    def __get__(self, cells: Cells | None, owner: type) -> Real | float:
        if cells is None:
            return self
        value = cells.reals[self.index]
        return value if self.low <= value <= self.high else self.sane(value)

    def __set__(self, cells: Cells, value: float) -> None:
        cells.reals[self.index] = value

    def sane(self, value: float) -> float:
        """Return the value, or the nearest bound; the lower one for a NaN."""
        # A comparison with NaN is false.
        return min(value, self.high) if value > self.low else self.low


class SeparateInteger(Integer):
    """An integer cell in the memory of another writer than that of the cells beside it (`Cells.others`)."""

    @overload
    def __get__(self, cells: None, owner: type) -> Integer: ...
    @overload
    def __get__(self, cells: Cells, owner: type) -> int: ...
    def __get__(self, cells: Cells | None, owner: type) -> Integer | int:
        return self if cells is None else self.sane(cells.others[self.writer].integers[self.index])

    def __set__(self, cells: Cells, value: int) -> None:
        cells.others[self.writer].integers[self.index] = value


class SeparateReal(Real):
    """A cell that holds a double, in the memory of another writer than that of the cells beside it (`Cells.others`)."""

    @overload
    def __get__(self, cells: None, owner: type) -> Real: ...
    @overload
    def __get__(self, cells: Cells, owner: type) -> float: ...
    def __get__(self, cells: Cells | None, owner: type) -> Real | float:
        return self if cells is None else self.sane(cells.others[self.writer].reals[self.index])

    def __set__(self, cells: Cells, value: float) -> None:
        cells.others[self.writer].reals[self.index] = value


class Tally:
    """Integer cells side by side, one for each bucket of `latencies`. Only their writer uses them as they are."""

    def __init__(self, index: int, meaning: str) -> None:
        self.cells = slice(index, index + len(histogram.BUCKET_BOUNDS_S) + 1)
        self.meaning = meaning

    @overload
    def __get__(self, cells: None, owner: type) -> Tally: ...
    @overload
    def __get__(self, cells: Cells, owner: type) -> memoryview[int]: ...
    def __get__(self, cells: Cells | None, owner: type) -> Tally | memoryview[int]:
        return self if cells is None else cells.integers[self.cells]

    def sane(self, counts: list[int]) -> list[int]:
        """Return the counts as a reader may use them."""
        if min(counts) >= 0 and max(counts) <= MAX_COUNT:
            return counts
        return [min(max(0, count), MAX_COUNT) for count in counts]


class Cells:
    """Cells under two views; a subclass names them.

    Attributes:
        integers, reals: the same memory as integers and as doubles, without bounds. A hot path of the writer may index them
            itself (`row.integers[Row.requests.index] += 1`), which halves the cost of the attribute.
        others: cells of other writers that belong to these, by writer.
    """

    FIELDS: ClassVar[dict[str, Integer | Real]]
    __slots__ = ("integers", "others", "reals")

    def __init_subclass__(cls) -> None:
        cls.FIELDS = {name: field for name, field in vars(cls).items() if isinstance(field, (Integer, Real))}

    def __init__(
        self, integers: memoryview[int], reals: memoryview[float], others: Mapping[Writer, Cells] | None = None
    ) -> None:
        self.integers = integers
        self.reals = reals
        self.others = others or {}

    def as_dict(self) -> dict[str, int | float]:
        """Return a copy of all named cells, within their bounds. Each value is whole; together they are no single moment."""
        return {name: getattr(self, name) for name in self.FIELDS}

    def release(self) -> None:
        """Give up the views, so that the memory can be unmapped."""
        self.integers.release()
        self.reals.release()
        for cells in self.others.values():
            cells.release()


class Header(Cells):
    """The state of the whole cluster. The cells of the keeper and of the monitor are in a page of their own each."""

    __slots__ = ()

    magic = Integer(0, "master", "MAGIC: this is a scoreboard, of this layout", -(2**63), 2**63 - 1)
    generation = Integer(1, "master", "the generation that new workers belong to")
    traffic = Integer(2, "master", "1 enabled, 0 disabled: what ECV answers")
    started = Real(3, "master", "when the master started: seconds since the epoch, wall time")
    high_water = Integer(4, "master", "the highest row ever claimed, plus 1: readers stop here", high=ROWS)
    keeper_pid = Integer(5, "master", "its process id; 0: there is no keeper")
    resting = SeparateInteger(6, "keeper", "connections that rest there")
    keeper_beat = SeparateReal(7, "keeper", "monotonic time of its last heartbeat")
    keeper_rate = SeparateReal(8, "keeper", "connections a second that woke there, lately", high=1e6)
    keeper_expired = SeparateInteger(9, "keeper", "connections that it closed because they were idle for too long")
    keeper_lost = SeparateInteger(10, "keeper", "connections lost because it had no descriptor left")
    keeper_restarts = Integer(11, "master", "how often it had to be started again")
    leaving = Integer(12, "master", "1: the cluster is about to shut down, and health checks say so")
    wanted = Integer(13, "master", "how many workers are wanted")
    beat = Real(14, "master", "monotonic time of its last look around")
    monitor_pid = Integer(15, "master", "its process id; 0: there is no monitor")
    monitor_beat = SeparateReal(16, "monitor", "monotonic time of its last heartbeat")
    monitor_restarts = Integer(17, "master", "how often it had to be started again")
    burials = Integer(
        18, "master", "twice the lives that have ended; odd: what one has counted is just being carried over"
    )
    slots = Integer(
        21, "master", "the highest slot in which a life has ended, plus 1: readers of the past stop here", high=SLOTS
    )
    reloads = Integer(19, "master", "changes of generation that were carried through")
    reloads_failed = Integer(20, "master", "changes of generation that were abandoned")
    phase = Integer(22, "master", "where the cluster is: its place in lifecycle.PHASES")
    waiting = Integer(24, "master", "connections that wait to be accepted; -1: not known", UNKNOWN_VALUE, _MAX_OPEN)
    memory_at_start = SeparateInteger(
        23, "monitor", "memory of all processes when they first were ready: bytes; 0: not weighed yet"
    )


class Row(Cells):
    """The counters of one worker. The cells that identify the worker are the master's, in memory that no worker can write."""

    __slots__ = ()

    pid = SeparateInteger(0, "master", "its process id; 0: the row is free, or its worker has no process yet")
    slot = SeparateInteger(1, "master", "which of the wanted workers it is")
    generation = SeparateInteger(2, "master", "which generation of the app it serves")
    state = Integer(3, "worker", "the code of its lifecycle state", high=max(WorkerState), otherwise=UNKNOWN_VALUE)
    heartbeat = Real(4, "worker", "deadline by which the next heartbeat must have come")
    request_deadline = Real(5, "worker", "deadline of its oldest request; 0: none")
    started = SeparateReal(6, "master", "when it was ordered")
    requests = Integer(7, "worker", "requests that have ended; -1: the engine can't know", UNKNOWN_VALUE)
    connections = Integer(8, "worker", "connections open now; -1: the engine can't know", UNKNOWN_VALUE, _MAX_OPEN)
    accepted = Integer(9, "worker", "connections accepted from a listener; -1: the engine can't know", UNKNOWN_VALUE)
    in_flight = Integer(10, "worker", "requests that it is working on", high=_MAX_OPEN)
    errors = Integer(11, "worker", "requests answered with 5xx or failed in another way, and transactions that failed")
    mode = Integer(
        12,
        "worker",
        "how it takes connections: its place in lifecycle.MODES",
        high=len(MODES) - 1,
        otherwise=UNKNOWN_VALUE,
    )
    longest_step = Real(13, "worker", "for how long a handler held the loop at most, recently: seconds")
    long_at = Real(14, "worker", "when a handler last held the loop for too long; 0: never")
    parked = Integer(15, "worker", "connections sent to the keeper because handlers hold the loop")
    moved_in = Integer(16, "worker", "connections taken from the ready queue")
    moved_out = Integer(17, "worker", "connections sent to the keeper, for any reason")
    draining = Integer(18, "worker", "1: it retires and takes nothing new", high=1)
    lost = Integer(19, "worker", "connections from the ready queue that were lost because it had no descriptor left")
    timed_out = Integer(24, "worker", "connections given up because the client took too long")
    stalled = Integer(25, "worker", "of these, the ones in the middle of a request or a response")
    cpu = Real(26, "worker", "CPU time that it has used: seconds")
    memory = Integer(27, "worker", "its resident memory: bytes")
    transactions = Integer(28, "worker", "transactions that the app has counted itself")
    duration = Real(29, "worker", "how long those took together: seconds")
    begun = Integer(30, "worker", "requests begun, at once, by an engine that takes connections itself")
    ended = Integer(31, "worker", "of these, the ones that have ended")
    latency = Real(32, "worker", "how long the requests took together that were measured: seconds")
    latencies = Tally(33, "how many of them took how long, by bucket; the worker fills it")
    status_1xx = Integer(
        49, "worker", "requests that ended with 1xx: websockets; -1: the engine can't know", UNKNOWN_VALUE
    )
    status_2xx = Integer(50, "worker", "requests that ended with 2xx; -1: the engine can't know", UNKNOWN_VALUE)
    status_3xx = Integer(51, "worker", "requests that ended with 3xx; -1: the engine can't know", UNKNOWN_VALUE)
    status_4xx = Integer(
        52, "worker", "requests that ended with 4xx, or whose client left before a status; -1: the engine can't know",
        UNKNOWN_VALUE,
    )  # fmt: skip
    status_5xx = Integer(53, "worker", "requests that ended with 5xx; -1: the engine can't know", UNKNOWN_VALUE)
    disconnects = Integer(
        54,
        "worker",
        "requests whose connection ended before the response did; -1: the engine can't know",
        UNKNOWN_VALUE,
    )

    slowest = Real(55, "worker", "how long the slowest request took of those that were measured: seconds")
    slowest_lately = Real(56, "worker", "the same of the last ten to twenty seconds: seconds")

    STATUS_CLASSES: ClassVar[Mapping[str, str]] = {f"{digit}xx": f"status_{digit}xx" for digit in range(1, 6)}
    """The cells of requests by status class."""

    def by_class(self) -> dict[str, int | None]:
        """Return how many requests have ended with a status of each class; None: the engine can't know."""
        counts = ((label, getattr(self, cell)) for label, cell in self.STATUS_CLASSES.items())
        return {label: None if count < 0 else count for label, count in counts}

    def measured(self) -> list[int]:
        """Return how many requests took how long, by bucket, as a reader may use it."""
        return Row.latencies.sane(self.latencies.tolist())


class SlotTotals(Row):
    """The totals of all ended workers of one slot: a row of sums, written by `ledger`. Its times are nanoseconds."""

    __slots__ = ()

    lives = Integer(62, "master", "how many lives of this slot have ended")
    crashes = Integer(63, "master", "how many of these crashed or hung")
