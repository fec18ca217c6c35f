"""The scoreboard: the state and the counters of every worker, in memory that all processes share.

**Why shared memory.** A heartbeat by message costs the worker a system call and wakes the master, as often as there are workers.
A store into a shared page costs neither. The master, the monitor, or a sibling that compares connection counts reads it on
demand. A worker that hangs can't answer a message, but its row can still be read. Measured (CPython 3.11): `row.heartbeat = x`
0.15 µs, `row.requests += 1` 0.4 µs, a column over 64 rows 4 µs.

**Why `memfd_create`.** It has no name, so nothing is left behind after a crash and no other process can open it. Its descriptor
can be passed over fork, exec and `SCM_RIGHTS`. A mapping of a file that shrinks kills its readers with SIGBUS. So the files are
sealed against shrinking and growing as soon as they have their size, and a broken worker can't crash the master.
`MFD_NOEXEC_SEAL` is set because hardened systems (`vm.memfd_noexec=2`) refuse a memfd without it. Kernels before 6.3 don't know
the flag and return EINVAL.

**Write access.** There are two files.

- *The master's*: the header, an entry for each row (pid, slot and generation of its worker), and the totals of each slot. The
  master maps it and then seals it with F_SEAL_FUTURE_WRITE (Linux 5.1). From then on the kernel refuses any other writable
  mapping, and write(2), to root as well. Only the master can change it.
- *Pages*: one for the keeper, one for the monitor, one for each row. The master can write all of them. Any other process maps the
  whole file read-only, through a descriptor that was opened for reading, and its own page writable, through another descriptor,
  which it closes at once. A mapping can't be made writable afterwards (`mappings`), and the mode of the file (0600, owned by the
  master's user) keeps other users from opening it through /proc.

The zygote maps nothing. It receives the descriptors with the order for a worker, and closes them after the fork.

**Scope of the protection.**

- A bug in a worker, a wild pointer of a C extension included, can damage the row of this worker and no other. The same holds for
  code that gets into a worker that serves. A reader copes with any content of a row (`cells`).
- If `user` is set, a worker can't harm the master through the scoreboard.
- A process can signal another process of the same user, and, if `kernel.yama.ptrace_scope` permits, trace it and write to its
  memory. So workers, keeper and monitor are protected from each other's accidents, but not from an attacker in one of them.
  Without `user` this applies to the master as well.
- Code that the zygote has imported runs in each worker before the worker has closed the writable descriptor, in an at-fork
  handler for example. It could write to other rows, but it runs in all workers of its generation anyway.
- A child that the app forks inherits the writable mapping of its worker's page.

With `cluster = false` one process writes everything.

A page for each row costs 4 KiB for each running worker. A file for each row was rejected: each process would need a descriptor
for each other row, and for each row that comes later, to see the counters of its siblings.

**Why no lock.** Each cell is 8 bytes wide and aligned to 8, and CPython moves an item of a "q" or "d" view by a `memcpy` of
constant size, which compilers turn into one load or store. On x86-64 and on arm64 those are atomic when aligned. So a reader sees
the old value or the new one, never half of each (a test lets two processes try). There is no guarantee about *two* cells: a
reader may see the new `requests` with the old `accepted`.

Invariant: a cell has one writer at a time, named by `CellField.writer`. The page of a row is the master's from `claim` until the
master orders the worker, the worker's until that has been reaped, and the master's again for `release`. `x += 1` is a load and a
store: it is right only because of this invariant.

The counts of a row are kept after its worker's end: `ledger` adds them to the totals of its slot before the row is given back.

Times are `time.monotonic()`, which is one clock for all processes of a machine, unless a field says otherwise.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, overload

from cluster2.errors import ClusterError

from .cells import (
    CELL_BYTES,
    CELLS_PER_ROW,
    ENTRY_CELLS,
    ROWS,
    SLOTS,
    CellField,
    Cells,
    Header,
    Integer,
    Real,
    Row,
    SeparateInteger,
    SeparateReal,
    SlotTotals,
)
from .mappings import PAGE_BYTES, map_shared

__all__ = [
    "CELLS_PER_ROW",
    "CELL_BYTES",
    "KEEPER_PAGE",
    "MAGIC",
    "MONITOR_PAGE",
    "ROWS",
    "SCOREBOARD_BYTES",
    "SLOTS",
    "Cells",
    "Header",
    "Integer",
    "Real",
    "Row",
    "Scoreboard",
    "SlotTotals",
    "page_of",
]  # fmt: skip

_ENTRIES: Final = CELLS_PER_ROW
_PASTS: Final = _ENTRIES + ROWS * ENTRY_CELLS
SCOREBOARD_BYTES: Final = CELL_BYTES * (_PASTS + SLOTS * CELLS_PER_ROW)
"""Bytes of the master's file: the header, an entry for each row, the past of each slot."""

KEEPER_PAGE: Final = 0
MONITOR_PAGE: Final = 1
_FIRST_ROW_PAGE: Final = 2
PAGES_BYTES: Final = PAGE_BYTES * (_FIRST_ROW_PAGE + ROWS)
"""Bytes of the file of pages; only those that were used take memory."""
_PAGE_CELLS: Final = PAGE_BYTES // CELL_BYTES

# The last byte is the version of the layout: it changes whenever a cell gets another meaning or place.
MAGIC: Final = int.from_bytes(b"cluster\x05", "big")

_MFD_NOEXEC_SEAL: Final = 0x0008
_F_SEAL_FUTURE_WRITE: Final = 0x0010  # the module `fcntl` has it since Python 3.13
_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def page_of(row: int) -> int:
    """Return the number of the page in which a row lies."""
    return _FIRST_ROW_PAGE + row


class _Views(NamedTuple):
    """A piece of memory, as integers and as doubles."""

    integers: memoryview[int]
    reals: memoryview[float]

    @classmethod
    def from_memory(cls, memory: memoryview[int]) -> _Views:
        return cls(memory.cast("q"), memory.cast("d"))

    def part(self, first: int, cells: int) -> tuple[memoryview[int], memoryview[float]]:
        return self.integers[first : first + cells], self.reals[first : first + cells]


class Scoreboard:
    """The header, 1024 rows and the totals of 1024 slots, mapped into this process.

    A mapping survives a fork. Over an exec the descriptors are passed on and `attach`ed again. `close` it, or leave it to the end
    of the process. After `close` its rows raise ValueError.

    Attributes:
        descriptors: for another process to `attach` it, in the process that created it: the master's file, the pages to
            read, the pages to write.
    """

    def __init__(
        self,
        memory: memoryview[int],
        pages: memoryview[int],
        own: tuple[int, memoryview[int]] | None,
        free: list[int] | None,
    ) -> None:
        """Use `create` or `attach`."""
        self.descriptors: tuple[int, ...] = ()
        # A heap: low rows are used first, so that readers have little to read. None: this process isn't the master.
        self._free = free
        self._views = _Views.from_memory(memory)
        self._pages = _Views.from_memory(pages)
        self._own = None if own is None else (own[0], _Views.from_memory(own[1]))
        self._rows: dict[int, Row] = {}
        self._pasts: dict[int, SlotTotals] = {}
        helpers = {"keeper": Cells(*self._page(KEEPER_PAGE)), "monitor": Cells(*self._page(MONITOR_PAGE))}
        self.header = Header(*self._views.part(0, CELLS_PER_ROW), helpers)  # type: ignore[arg-type]

    @classmethod
    def create(cls) -> Scoreboard:
        """Return a new one, all cells zero but the magic number. Its descriptors are close-on-exec.

        Raises:
            OSError: the kernel has no memory or no descriptor left, or is older than 5.1.
        """
        descriptors: list[int] = []
        try:
            descriptors += (_memfd("cluster2-scoreboard", SCOREBOARD_BYTES), _memfd("cluster2-pages", PAGES_BYTES))
            # Before the seal: F_SEAL_FUTURE_WRITE refuses later writable mappings and leaves this one as it is.
            memory = map_shared(descriptors[0], SCOREBOARD_BYTES, writable=True)
            pages = map_shared(descriptors[1], PAGES_BYTES, writable=True)
            fcntl.fcntl(descriptors[0], fcntl.F_ADD_SEALS, _SIZE_SEALS | _F_SEAL_FUTURE_WRITE)
            fcntl.fcntl(descriptors[1], fcntl.F_ADD_SEALS, _SIZE_SEALS)
            # Another open file, so that its reader can't write; a duplicate would have the mode of the first.
            descriptors.insert(1, os.open(f"/proc/self/fd/{descriptors[1]}", os.O_RDONLY | os.O_CLOEXEC))
        except BaseException:
            _close(descriptors)
            raise
        board = cls(memory, pages, None, list(range(ROWS)))
        board.descriptors = tuple(descriptors)
        board.header.magic = MAGIC
        return board

    @classmethod
    def attach(cls, descriptors: Sequence[int], page: int | None = None) -> Scoreboard:
        """Map the scoreboard behind `descriptors`, which were inherited or received; they are closed then.

        Args:
            page: which page this process may write; None: none, and then the last descriptor may be missing.

        Raises:
            ClusterError: it is something else, or of another version of cluster2; the descriptors stay open.
        """
        try:
            for fd, size in zip(descriptors, (SCOREBOARD_BYTES, PAGES_BYTES, PAGES_BYTES), strict=False):
                if (found := os.fstat(fd).st_size) != size:
                    raise ClusterError(f"descriptor {fd} is no scoreboard: it has {found} bytes, not {size}")
            memory = map_shared(descriptors[0], SCOREBOARD_BYTES, writable=False)
            pages = map_shared(descriptors[1], PAGES_BYTES, writable=False)
            own = None
            if page is not None:
                own = page, map_shared(descriptors[2], PAGE_BYTES, page * PAGE_BYTES, writable=True)
        except OSError as error:
            raise ClusterError(f"descriptors {list(descriptors)} can't be mapped as a scoreboard: {error}") from error
        board = cls(memory, pages, own, None)
        if (magic := board.header.magic) != MAGIC:
            raise ClusterError(
                f"descriptor {descriptors[0]} is no scoreboard of this version: magic {magic:#x}, not {MAGIC:#x}"
            )
        _close(descriptors)
        return board

    def claim(self) -> int:
        """Return the lowest free row, zeroed. Master only.

        Raises:
            ClusterError: all rows are taken.
        """
        if self._free is None:
            raise ClusterError("only the process that created the scoreboard can claim a row")
        if not self._free:
            raise ClusterError(f"the scoreboard is full: {ROWS} workers are alive; scale down")
        # Zeroed again although `release` did it: the page may be written by its last worker's forks, which inherit the mapping.
        index = heapq.heappop(self._free)
        self._zero(index)
        # It never falls, so a reader that has read it once misses no row below it.
        self.header.high_water = max(self.header.high_water, index + 1)
        return index

    def release(self, row: int) -> None:
        """Give a row back, zeroed. Master only, and only after its worker was reaped: until then the worker may write.

        Raises:
            ClusterError: the row wasn't claimed.
        """
        if self._free is None or not 0 <= row < ROWS or row in self._free:
            raise ClusterError(f"row {row} of the scoreboard isn't claimed by this process")
        self._zero(row)
        heapq.heappush(self._free, row)

    def row(self, index: int) -> Row:
        """Return the cells of one row, the same object each time.

        Raises:
            IndexError: no such row.
        """
        row = self._rows.get(index)
        if row is None:
            if not 0 <= index < ROWS:
                raise IndexError(f"the scoreboard has no row {index}")
            entry = Cells(*self._views.part(_ENTRIES + index * ENTRY_CELLS, ENTRY_CELLS))
            row = self._rows[index] = Row(*self._page(page_of(index)), {"master": entry})
        return row

    def past(self, slot: int) -> SlotTotals:
        """Return what the ended lives of a slot have counted, the same object each time.

        Raises:
            IndexError: no such slot.
        """
        past = self._pasts.get(slot)
        if past is None:
            if not 0 <= slot < SLOTS:
                raise IndexError(f"the scoreboard has no slot {slot}")
            past = self._pasts[slot] = SlotTotals(*self._views.part(_PASTS + slot * CELLS_PER_ROW, CELLS_PER_ROW))
        return past

    @overload
    def column(self, field: Integer) -> list[int]: ...
    @overload
    def column(self, field: Real) -> list[float]: ...
    @overload
    def column(self, field: str) -> list[Any]: ...
    def column(self, field: Integer | Real | str) -> list[Any]:
        """Return one field of all rows up to the high-water mark, in the order of the rows: item i is row i's.

        Values are within the field's bounds. A free row is all zeros; `column("pid")` shows which rows are in use.

        Args:
            field: `Row.connections`, or its name "connections".
        Raises:
            KeyError: no field has that name.
        """
        if isinstance(field, str):
            field = Row.FIELDS[field]
        checked: CellField[Any] = field
        if isinstance(field, (SeparateInteger, SeparateReal)):
            views, first, step = self._views, _ENTRIES, ENTRY_CELLS
        else:
            views, first, step = self._pages, _FIRST_ROW_PAGE * _PAGE_CELLS, _PAGE_CELLS
        first += field.index
        view: memoryview[Any] = views.integers if field.kind == "q" else views.reals
        found: list[Any] = view[first : first + self.header.high_water * step : step].tolist()
        values: list[Any] = checked.sane_all(found)
        return values

    def close(self) -> None:
        """Release all views, and close the descriptors; a second call does nothing."""
        for cells in (self.header, *self._rows.values(), *self._pasts.values()):
            cells.release()
        for views in (self._views, self._pages, *(() if self._own is None else (self._own[1],))):
            views.integers.release()
            views.reals.release()
        _close(self.descriptors)
        self.descriptors = ()

    def _page(self, page: int) -> tuple[memoryview[int], memoryview[float]]:
        """Return the cells of a page: for the process that it belongs to, those that it can write."""
        if self._own is not None and self._own[0] == page:
            return self._own[1].part(0, CELLS_PER_ROW)
        return self._pages.part(page * _PAGE_CELLS, CELLS_PER_ROW)

    def _zero(self, index: int) -> None:
        row = self.row(index)
        # The pid first, so that no reader takes a row that is half zeroed for one in use.
        row.pid = 0
        for cells in (*row.others.values(), row):
            for cell in range(len(cells.integers)):
                cells.integers[cell] = 0


def _close(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _memfd(name: str, size: int) -> int:
    """Return a new file of that size, whose seals can be set."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create(name, flags)
    try:
        os.fchmod(fd, 0o600)  # a memfd begins with mode 0777
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd
