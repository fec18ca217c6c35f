"""The scoreboard: what every worker is doing, in memory that all processes share.

Why shared memory. A heartbeat by message costs the worker a system call and wakes the master, as often as there are
workers; a store into a shared page costs neither, and whoever wants to know (master, monitor, a sibling that looks for
its share of the connections) reads it when it wants to. A worker that hangs can't answer a question, but its row can
still be read. Measured here (CPython 3.11): `row.heartbeat = x` 0.15 µs, `row.requests += 1` 0.4 µs, a column over 64
rows 0.9 µs.

Why `memfd_create`. It has no name, so nothing is left behind after a crash and nobody else can open it; its descriptor
travels over fork, exec and `SCM_RIGHTS`. A mapping of a file that shrinks kills its readers with SIGBUS: so the file is
sealed against shrinking and growing as soon as it has its size, and a worker that goes mad can't take the master along.
`MFD_NOEXEC_SEAL` is asked for because hardened systems (`vm.memfd_noexec=2`) refuse a memfd without it; kernels before
6.3 don't know the flag and answer EINVAL.

Why no lock. Each cell is 8 bytes wide and lies on a multiple of 8, and CPython moves an item of a "q" or "d" view by a
`memcpy` of constant size, which compilers turn into one load or store: on x86-64 and on arm64 those are atomic when
aligned. So a reader sees the old value or the new one, never half of each (a test lets two processes try). Nothing is
promised about *two* cells: a reader may see the new `requests` with the old `accepted`.

Invariant: a cell has one writer at a time. A cell of the header is the master's, the keeper's or the monitor's. A row is the
master's from `claim` until it tells the worker about it, the worker's until that has been reaped, and the master's again for
`release`; `Field.writer` says who fills a cell in a life without accidents. `x += 1` is a load and a store: it is right
only because of this invariant.

What a row has counted outlives it: `ledger` adds it to its slot's `Past` before the row is given back.

Times are `time.monotonic()`, which is one clock for all processes of a machine, unless a field says otherwise.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import mmap
import os
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar, overload

from cluster2 import latencies
from cluster2.errors import ClusterError

CELL: Final = 8
CELLS: Final = 64
ROW_BYTES: Final = CELL * CELLS
ROWS: Final = 1024
SLOTS: Final = 1024
SIZE: Final = ROW_BYTES * (1 + ROWS + SLOTS)

# The last byte is the version of the layout: it changes whenever a cell gets another meaning.
MAGIC: Final = int.from_bytes(b"cluster\x03", "big")

_MFD_NOEXEC_SEAL: Final = 0x0008

T = TypeVar("T", int, float)


class Field(Generic[T]):
    """One cell: the descriptor that reads and writes it, and what is to be known about it.

    Attributes:
        name: the attribute's name.
        index: which of the 64 cells.
        kind: "q", a signed 64-bit integer, or "d", a double.
        writer: who fills it: "master", "worker", "keeper" or "monitor".
        meaning: what it says, with its unit.
    """

    kind: ClassVar[Literal["q", "d"]]

    def __init__(self, index: int, writer: Literal["master", "worker", "keeper", "monitor"], meaning: str) -> None:
        self.name = ""
        self.index = index
        self.writer = writer
        self.meaning = meaning

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name


class Integer(Field[int]):
    """A cell that holds a signed 64-bit integer."""

    kind = "q"

    @overload
    def __get__(self, cells: None, owner: type) -> Integer: ...
    @overload
    def __get__(self, cells: Cells, owner: type) -> int: ...
    def __get__(self, cells: Cells | None, owner: type) -> Integer | int:
        return self if cells is None else cells.integers[self.index]

    def __set__(self, cells: Cells, value: int) -> None:
        cells.integers[self.index] = value


class Real(Field[float]):
    """A cell that holds a double."""

    kind = "d"

    @overload
    def __get__(self, cells: None, owner: type) -> Real: ...
    @overload
    def __get__(self, cells: Cells, owner: type) -> float: ...
    def __get__(self, cells: Cells | None, owner: type) -> Real | float:
        return self if cells is None else cells.reals[self.index]

    def __set__(self, cells: Cells, value: float) -> None:
        cells.reals[self.index] = value


class Tally:
    """Integer cells side by side, one for each bucket of `latencies`."""

    def __init__(self, index: int, meaning: str) -> None:
        self.cells = slice(index, index + len(latencies.BOUNDS) + 1)
        self.meaning = meaning

    @overload
    def __get__(self, cells: None, owner: type) -> Tally: ...
    @overload
    def __get__(self, cells: Cells, owner: type) -> memoryview[int]: ...
    def __get__(self, cells: Cells | None, owner: type) -> Tally | memoryview[int]:
        return self if cells is None else cells.integers[self.cells]


class Cells:
    """64 cells under two views; a subclass names them.

    Attributes:
        integers, reals: the same memory as 64 integers and as 64 doubles. A hot path may index them itself
            (`row.integers[Row.requests.index] += 1`), which halves the cost of the attribute.
    """

    FIELDS: ClassVar[dict[str, Integer | Real]]
    __slots__ = ("integers", "reals")

    def __init_subclass__(cls) -> None:
        cls.FIELDS = {name: field for name, field in vars(cls).items() if isinstance(field, (Integer, Real))}

    def __init__(self, integers: memoryview[int], reals: memoryview[float]) -> None:
        self.integers = integers
        self.reals = reals

    def as_dict(self) -> dict[str, int | float]:
        """A copy of all named cells. Each value is whole; together they are no single moment."""
        views: dict[str, memoryview[int] | memoryview[float]] = {"q": self.integers, "d": self.reals}
        return {name: views[field.kind][field.index] for name, field in self.FIELDS.items()}

    def _release(self) -> None:
        self.integers.release()
        self.reals.release()


class Header(Cells):
    """What is true for the whole cluster. Each cell has one writer: the master, the keeper or the monitor; all others read."""

    __slots__ = ()

    magic = Integer(0, "master", "MAGIC: this is a scoreboard, of this layout")
    generation = Integer(1, "master", "the generation that new workers belong to")
    traffic = Integer(2, "master", "1 enabled, 0 disabled: what ECV answers")
    started = Real(3, "master", "when the master started: seconds since the epoch, wall time")
    high_water = Integer(4, "master", "the highest row ever claimed, plus 1: readers stop here")
    keeper_pid = Integer(5, "master", "its process id; 0: there is no keeper")
    resting = Integer(6, "keeper", "connections that rest there")
    keeper_beat = Real(7, "keeper", "monotonic time of its last sign of life")
    keeper_rate = Real(8, "keeper", "connections a second that woke there, lately")
    keeper_expired = Integer(9, "keeper", "connections that it closed because they were idle for too long")
    keeper_lost = Integer(10, "keeper", "connections lost because it had no descriptor left")
    keeper_restarts = Integer(11, "master", "how often it had to be started again")
    leaving = Integer(12, "master", "1: the cluster is about to shut down, and health checks say so")
    wanted = Integer(13, "master", "how many workers are wanted")
    beat = Real(14, "master", "monotonic time of its last look around")
    monitor_pid = Integer(15, "master", "its process id; 0: there is no monitor")
    monitor_beat = Real(16, "monitor", "monotonic time of its last sign of life")
    monitor_restarts = Integer(17, "master", "how often it had to be started again")
    burials = Integer(
        18, "master", "twice the lives that have ended; odd: what one has counted is just being carried over"
    )
    slots = Integer(21, "master", "the highest slot in which a life has ended, plus 1: readers of the past stop here")
    reloads = Integer(19, "master", "changes of generation that were carried through")
    reloads_failed = Integer(20, "master", "changes of generation that were abandoned")
    phase = Integer(22, "master", "where the cluster is: its place in lifecycle.PHASES")
    memory_at_start = Integer(
        23, "monitor", "memory of all processes when they first were ready: bytes; 0: not weighed yet"
    )


class Row(Cells):
    """One life of one worker."""

    __slots__ = ()

    pid = Integer(0, "worker", "its process id; 0: the row is free, or its worker hasn't said so yet")
    slot = Integer(1, "master", "which of the wanted workers it is")
    generation = Integer(2, "master", "which generation of the app it serves")
    state = Integer(3, "worker", "the code of its lifecycle state")
    heartbeat = Real(4, "worker", "deadline by which the next heartbeat must have come")
    request_deadline = Real(5, "worker", "deadline of its oldest request; 0: none")
    started = Real(6, "worker", "when it was forked")
    requests = Integer(7, "worker", "requests begun; -1: the engine can't know")
    connections = Integer(8, "worker", "connections open now; -1: the engine can't know")
    accepted = Integer(9, "worker", "connections accepted from a listener; -1: the engine can't know")
    in_flight = Integer(10, "worker", "requests that it is working on")
    errors = Integer(11, "worker", "requests and transactions that failed in the app")
    mode = Integer(12, "worker", "its acceptor's mode: 0 eager, 1 held")
    longest_step = Real(13, "worker", "for how long a handler held the loop at most, recently: seconds")
    long_at = Real(14, "worker", "when a handler last held the loop for too long; 0: never")
    parked = Integer(15, "worker", "connections sent to the keeper because handlers hold the loop")
    moved_in = Integer(16, "worker", "connections taken from the ready queue")
    moved_out = Integer(17, "worker", "connections sent to the keeper, for any reason")
    draining = Integer(18, "worker", "1: it retires and takes nothing new")
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


class Past(Row):
    """What the ended lives of one slot have counted together: a row of sums, filled by `ledger`; times in it are nanoseconds."""

    __slots__ = ()

    lives = Integer(62, "master", "how many lives of this slot have ended")
    crashes = Integer(63, "master", "how many of these crashed or hung")


class Scoreboard:
    """The header, 1024 rows and the past of 1024 slots, mapped into this process.

    A mapping survives a fork; over an exec the descriptor is passed on and `attach`ed again. `close` it, or leave it to
    the end of the process; after `close` its rows raise ValueError.
    """

    def __init__(self, fd: int, free: list[int] | None) -> None:
        """Use `create` or `attach`."""
        self.fd = fd
        self._free = free  # a heap: low rows are used first, so that readers have little to read; None: not the master
        self._map = mmap.mmap(fd, SIZE)
        self._integers = memoryview(self._map).cast("q")
        self._reals = memoryview(self._map).cast("d")
        self._rows: dict[int, Row] = {}
        self._pasts: dict[int, Past] = {}
        self.header = Header(self._integers[:CELLS], self._reals[:CELLS])

    @classmethod
    def create(cls) -> Scoreboard:
        """A new one, all cells zero but the magic number. The descriptor is close-on-exec.

        Raises:
            OSError: the kernel has no memory or no descriptor left.
        """
        fd = _memfd("cluster2-scoreboard")
        try:
            os.ftruncate(fd, SIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            board = cls(fd, list(range(ROWS)))
        except BaseException:
            os.close(fd)
            raise
        board.header.magic = MAGIC
        return board

    @classmethod
    def attach(cls, fd: int) -> Scoreboard:
        """Map the scoreboard behind a descriptor that was inherited or received; the descriptor becomes its own.

        Raises:
            ClusterError: it is something else, or of another version of cluster2; the descriptor stays open.
        """
        try:
            size = os.fstat(fd).st_size
            board = cls(fd, None) if size == SIZE else None
        except (OSError, ValueError) as error:
            raise ClusterError(f"descriptor {fd} can't be mapped as a scoreboard: {error}") from error
        if board is None:
            raise ClusterError(f"descriptor {fd} is no scoreboard: it has {size} bytes, not {SIZE}")
        if board.header.magic != MAGIC:
            found = board.header.magic
            board._unmap()
            raise ClusterError(f"descriptor {fd} is no scoreboard of this version: magic {found:#x}, not {MAGIC:#x}")
        return board

    def claim(self) -> int:
        """The lowest free row, zeroed. Master only.

        Raises:
            ClusterError: all rows are taken.
        """
        if self._free is None:
            raise ClusterError("only the process that created the scoreboard can claim a row")
        if not self._free:
            raise ClusterError(f"the scoreboard is full: {ROWS} workers are alive; scale down")
        index = heapq.heappop(self._free)
        self._zero(index)
        self.header.high_water = max(self.header.high_water, index + 1)
        return index

    def release(self, row: int) -> None:
        """Give a row back, zeroed. Master only, and only after its worker was reaped: until then the worker may write.

        Raises:
            ClusterError: nobody had claimed it.
        """
        if self._free is None or not 0 <= row < ROWS or row in self._free:
            raise ClusterError(f"row {row} of the scoreboard isn't claimed by this process")
        self._zero(row)
        heapq.heappush(self._free, row)

    def row(self, index: int) -> Row:
        """The cells of one row, the same object each time.

        Raises:
            IndexError: no such row.
        """
        row = self._rows.get(index)
        if row is None:
            if not 0 <= index < ROWS:
                raise IndexError(f"the scoreboard has no row {index}")
            cells = slice((index + 1) * CELLS, (index + 2) * CELLS)
            row = self._rows[index] = Row(self._integers[cells], self._reals[cells])
        return row

    def past(self, slot: int) -> Past:
        """What the ended lives of a slot have counted, the same object each time.

        Raises:
            IndexError: no such slot.
        """
        past = self._pasts.get(slot)
        if past is None:
            if not 0 <= slot < SLOTS:
                raise IndexError(f"the scoreboard has no slot {slot}")
            cells = slice((1 + ROWS + slot) * CELLS, (2 + ROWS + slot) * CELLS)
            past = self._pasts[slot] = Past(self._integers[cells], self._reals[cells])
        return past

    @overload
    def column(self, field: Integer) -> list[int]: ...
    @overload
    def column(self, field: Real) -> list[float]: ...
    @overload
    def column(self, field: str) -> list[Any]: ...
    def column(self, field: Integer | Real | str) -> list[Any]:
        """One field of all rows up to the high-water mark, in the order of the rows: item i is row i's.

        A free row is all zeros; `column("pid")` beside it tells it from one in use.

        Args:
            field: `Row.connections`, or its name "connections".
        Raises:
            KeyError: no field has that name.
        """
        if isinstance(field, str):
            field = Row.FIELDS[field]
        view = self._integers if field.kind == "q" else self._reals
        return view[CELLS + field.index : (self.header.high_water + 1) * CELLS : CELLS].tolist()

    def close(self) -> None:
        """Unmap it and close the descriptor; a second call does nothing."""
        if self.fd >= 0:
            self._unmap()
            os.close(self.fd)
            self.fd = -1

    def _zero(self, index: int) -> None:
        row = self.row(index)
        row.pid = 0  # first, so that no reader takes a half-emptied row for one in use
        for cell in range(CELLS):
            row.integers[cell] = 0

    def _unmap(self) -> None:
        # mmap refuses to close while a view of it lives.
        for cells in (self.header, *self._rows.values(), *self._pasts.values()):
            cells._release()
        self._integers.release()
        self._reals.release()
        self._map.close()


def _memfd(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)
