"""The scoreboard, with real mappings and real processes."""

from __future__ import annotations

import fcntl
import math
import os
import struct
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.core.histogram import BUCKET_BOUNDS_S
from cluster2.errors import ClusterError
from cluster2.linux.cells import MAX_COUNT, UNKNOWN_VALUE, Cells
from cluster2.linux.mappings import PAGE_BYTES, map_shared
from cluster2.linux.scoreboard import (
    CELL_BYTES,
    CELLS_PER_ROW,
    KEEPER_PAGE,
    MAGIC,
    MONITOR_PAGE,
    PAGES_BYTES,
    ROWS,
    SCOREBOARD_BYTES,
    SLOTS,
    Header,
    Integer,
    Row,
    Scoreboard,
    SlotTotals,
    page_of,
)
from tests.linux.children import leaving, wait


def test_the_declaration_is_a_table() -> None:
    """Every field has a cell of its own, a kind, a writer and a meaning."""
    for cells in (Header, Row):
        indices = [field.index for field in cells.FIELDS.values()]
        assert len(set(indices)) == len(indices)
        assert all(0 <= index < CELLS_PER_ROW for index in indices)
        for name, field in cells.FIELDS.items():
            assert field.name == name
            assert field.kind == ("q" if isinstance(field, Integer) else "d")
            assert field.writer in ("master", "worker", "keeper", "monitor")
            assert field.meaning
    used = {field.index for field in (*Row.FIELDS.values(), *SlotTotals.FIELDS.values())}
    tally = range(*Row.latencies.cells.indices(CELLS_PER_ROW))
    assert len(tally) == len(BUCKET_BOUNDS_S) + 1
    assert len(used) == len(Row.FIELDS) + len(SlotTotals.FIELDS)
    assert not used & set(tally)


def test_a_new_one_is_empty(board: Scoreboard) -> None:
    """All is zero but the magic number, and the descriptor is not for programs that we execute."""
    cells = board.header.as_dict()
    assert cells.pop("magic") == MAGIC
    assert not any(cells.values())
    assert board.column("pid") == []
    assert [os.fstat(fd).st_size for fd in board.descriptors] == [SCOREBOARD_BYTES, PAGES_BYTES, PAGES_BYTES]
    assert not any(map(os.get_inheritable, board.descriptors))


def test_fields_keep_their_values_and_types(board: Scoreboard) -> None:
    """Integers and doubles come back as written, the extremes too; a neighbour doesn't change."""
    row = board.row(board.claim())
    values = {
        name: min(number, field.high) if field.kind == "q" else number + 0.5
        for number, (name, field) in enumerate(Row.FIELDS.items())
    }
    for name, value in values.items():
        setattr(row, name, value)
    assert row.as_dict() == values
    row.requests = 2**63 - 1
    row.connections = -(2**63)
    row.heartbeat = math.inf
    assert (row.integers[Row.requests.index], row.integers[Row.connections.index]) == (2**63 - 1, -(2**63))
    assert row.reals[Row.heartbeat.index] == math.inf
    row.requests = 1
    row.requests += 1
    assert row.requests == 2
    assert not any(board.row(1).as_dict().values())


def test_the_wrong_type_is_refused(board: Scoreboard) -> None:
    """An integer cell takes no float, and no number that needs more than 64 bits."""
    row = board.row(0)
    with pytest.raises(TypeError):
        row.requests = 1.5  # type: ignore[assignment]
    with pytest.raises(ValueError):
        row.requests = 2**63


def test_rows_are_claimed_from_below_and_zeroed(board: Scoreboard) -> None:
    """A released row is free again and empty, the lowest goes first, and the high-water mark stays."""
    assert [board.claim() for _ in range(3)] == [0, 1, 2]
    board.row(1).requests = 7
    board.release(1)
    assert not any(board.row(1).as_dict().values())
    assert board.header.high_water == 3
    assert board.claim() == 1
    assert board.claim() == 3
    assert board.header.high_water == 4


def test_rows_run_out(board: Scoreboard) -> None:
    """The row after the last is refused; one that comes back can be had."""
    for _ in range(ROWS):
        board.claim()
    with pytest.raises(ClusterError, match="full: 1024 workers"):
        board.claim()
    board.release(500)
    assert board.claim() == 500


def test_a_row_is_released_once(board: Scoreboard) -> None:
    """A row that wasn't claimed can't be released, nor one that doesn't exist."""
    for row in (0, -1, ROWS):
        with pytest.raises(ClusterError, match="isn't claimed"):
            board.release(row)


def test_rows_have_bounds(board: Scoreboard) -> None:
    """There is no row, or past, before the first or after the last; each of the last lies where it should, and in the memory."""
    for index in (-1, ROWS):
        with pytest.raises(IndexError):
            board.row(index)
    for slot in (-1, SLOTS):
        with pytest.raises(IndexError):
            board.past(slot)
    board.row(ROWS - 1).draining = 1
    board.row(ROWS - 1).pid = 3
    board.past(SLOTS - 1).draining = 2
    ours, pages, _ = board.descriptors
    last = SCOREBOARD_BYTES - (CELLS_PER_ROW - Row.draining.index) * CELL_BYTES
    assert os.pread(ours, CELL_BYTES, last) == (2).to_bytes(8, sys.byteorder)
    entry = SCOREBOARD_BYTES - SLOTS * CELLS_PER_ROW * CELL_BYTES - 8 * CELL_BYTES
    assert os.pread(ours, CELL_BYTES, entry) == (3).to_bytes(8, sys.byteorder)
    page = PAGES_BYTES - PAGE_BYTES
    assert os.pread(pages, CELL_BYTES, page + Row.draining.index * CELL_BYTES) == (1).to_bytes(8, sys.byteorder)


def test_a_column_stops_at_the_high_water_mark(board: Scoreboard) -> None:
    """A column has one item for each row ever used, free ones included as zeros, by name or by field."""
    for connections in (5, 6, 7):
        row = board.row(board.claim())
        row.connections, row.longest_step = connections, connections / 10
    board.release(1)
    assert board.column("connections") == board.column(Row.connections) == [5, 0, 7]
    assert board.column(Row.longest_step) == [0.5, 0.0, 0.7]
    with pytest.raises(KeyError):
        board.column("speed")


def test_its_size_is_sealed(board: Scoreboard) -> None:
    """No process can shrink or grow it, so that no reader ends by SIGBUS, or lift the seal."""
    ours, _, writable = board.descriptors
    for fd, its in ((ours, SCOREBOARD_BYTES), (writable, PAGES_BYTES)):
        for size in (0, its - 1, its + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_only_the_master_can_write_its_file(board: Scoreboard) -> None:
    """No later mapping of it is writable, and no descriptor, for root either; nor are the pages through the reader's."""
    ours, pages, _ = board.descriptors
    again = os.open(f"/proc/self/fd/{ours}", os.O_RDWR)
    for fd, size in ((ours, SCOREBOARD_BYTES), (again, SCOREBOARD_BYTES), (pages, PAGES_BYTES)):
        with pytest.raises(PermissionError):
            map_shared(fd, size, writable=True)
    for fd in (ours, again):
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
    os.close(again)
    assert not any(os.fstat(fd).st_mode & 0o077 for fd in board.descriptors), "other users can open it"
    board.header.wanted = 7
    assert board.header.wanted == 7


def attached(board: Scoreboard, page: int | None = None) -> Scoreboard:
    return Scoreboard.attach([os.dup(fd) for fd in board.descriptors], page)


@pytest.mark.parametrize("page", [None, KEEPER_PAGE, MONITOR_PAGE, page_of(1)])
def test_each_writes_its_own_page(board: Scoreboard, page: int | None) -> None:
    """A process can write its own page only, and all others see that. It keeps no descriptor."""
    rows = [board.row(board.claim()) for _ in range(3)]
    before = set(os.listdir("/proc/self/fd"))
    other = attached(board, page)
    assert set(os.listdir("/proc/self/fd")) == before
    cells: list[tuple[int, Cells, Cells, str]] = [
        (page_of(index), other.row(index), row, "requests") for index, row in enumerate(rows)
    ]
    cells += [(KEEPER_PAGE, other.header, board.header, "resting")]
    cells += [(MONITOR_PAGE, other.header, board.header, "memory_at_start")]
    cells += [(-1, other.header, board.header, name) for name in ("traffic", "leaving", "burials", "keeper_pid")]
    cells += [(-1, other.row(1), rows[1], name) for name in ("pid", "slot", "generation")]
    cells += [(-1, other.past(0), board.past(0), "lives")]
    for at, theirs, ours, name in cells:
        if at == page:
            setattr(theirs, name, 9)
        else:
            with pytest.raises(TypeError, match="read-only"):
                setattr(theirs, name, 9)
        assert getattr(ours, name) == (9 if at == page else 0)
    other.close()


PATTERNS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1.0, 5e-324]).map(
        lambda real: struct.unpack("q", struct.pack("d", real))[0]
    ),
)
"""Any 64 bits that a process may have written."""


@given(st.lists(PATTERNS, min_size=CELLS_PER_ROW, max_size=CELLS_PER_ROW))
def test_whatever_is_written_what_is_read_has_bounds(patterns: list[int]) -> None:
    """A reader gets sane values of rows, and of the keeper's and the monitor's cells: alone, as a whole, and as a column."""
    board = Scoreboard.create()
    row = board.row(board.claim())
    for cells in (row, *board.header.others.values()):
        for cell, pattern in enumerate(patterns):
            cells.integers[cell] = pattern
    for cells in (row, board.header):
        for name, value in cells.as_dict().items():
            field = type(cells).FIELDS[name]
            assert field.low <= value <= field.high or value == UNKNOWN_VALUE
            assert type(value) is (int if field.kind == "q" else float)
            assert getattr(cells, name) == value
    for name, field in Row.FIELDS.items():
        assert board.column(name) == [getattr(row, name)]
        if field.writer == "worker":
            raw = row.integers[field.index] if field.kind == "q" else row.reals[field.index]
            assert getattr(row, name) == raw or not field.low <= raw <= field.high
    assert all(0 <= count <= MAX_COUNT for count in row.measured())
    board.close()


def test_a_column_overlooks_nothing(board: Scoreboard) -> None:
    """One bad value among good ones is found at each place, a NaN too, which neither `min` nor `max` reliably finds."""
    rows = [board.row(board.claim()) for _ in range(3)]
    for row in rows:
        row.heartbeat, row.connections = 5.0, 5
    for row in rows:
        for bad in (math.nan, math.inf, -math.inf):
            row.heartbeat = bad
            assert sorted(board.column(Row.heartbeat)) == sorted([5.0, 5.0, row.heartbeat])
        row.heartbeat, row.connections = 5.0, -(2**63)
        assert sorted(board.column(Row.connections)) == [UNKNOWN_VALUE, 5, 5]
        row.connections = 5


def test_only_the_creator_claims(board: Scoreboard) -> None:
    """A process that attaches reads the same cells, but hands out no rows."""
    board.row(board.claim()).requests = 3
    other = attached(board)
    assert other.column("requests") == [3]
    with pytest.raises(ClusterError, match="only the process that created"):
        other.claim()
    with pytest.raises(ClusterError):
        other.release(0)
    other.close()


def test_what_is_no_scoreboard_is_refused(board: Scoreboard) -> None:
    """A pipe, memory of another size, another layout: each has its error, and the descriptors stay the caller's."""
    pages = board.descriptors[1]
    reader, writer = os.pipe()
    small = os.memfd_create("small")
    other = os.memfd_create("other")
    os.ftruncate(other, SCOREBOARD_BYTES)
    for fd, reason in ((reader, "0 bytes"), (small, "0 bytes"), (other, "magic 0x0")):
        with pytest.raises(ClusterError, match=reason):
            Scoreboard.attach((fd, pages))
        os.fstat(fd)
    with pytest.raises(ClusterError, match="0 bytes"):
        Scoreboard.attach((board.descriptors[0], small))
    for fd in (reader, writer, small, other):
        os.close(fd)
    with pytest.raises(ClusterError, match="Bad file descriptor"):
        Scoreboard.attach((other, pages))
    os.fstat(pages)


def test_after_close_nothing_can_be_read() -> None:
    """A closed scoreboard raises instead of reading freed memory. Closing twice is harmless; no descriptor leaks."""
    before = len(os.listdir("/proc/self/fd"))
    board = Scoreboard.create()
    row = board.row(board.claim())
    board.close()
    board.close()
    for cells, name in ((row, "pid"), (board.header, "traffic")):
        with pytest.raises(ValueError):
            getattr(cells, name)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fork_shares_it(board: Scoreboard) -> None:
    """A value that a forked child writes is read by its parent, and the other way round."""
    row = board.row(board.claim())
    row.slot = 3
    pid = os.fork()
    if pid == 0:
        with leaving():
            row.requests = row.slot + 39
    assert wait(pid) == 0
    assert row.requests == 42


def test_it_survives_an_exec(board: Scoreboard) -> None:
    """A program that was executed attaches to the descriptors that it was given."""
    row = board.row(board.claim())
    row.slot = 3
    program = (
        "from cluster2.linux.scoreboard import Scoreboard, page_of\n"
        "board = Scoreboard.attach((20, 21, 22), page_of(0))\n"
        "row = board.row(0)\n"
        "row.requests = row.slot + 39\n"
    )
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", program],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, 20 + number) for number, fd in enumerate(board.descriptors)],
    )
    assert wait(pid) == 0
    assert row.requests == 42


def test_no_value_is_ever_torn(board: Scoreboard) -> None:
    """While another process writes two values by turns, a reader sees one of them, whole, and never a mixture."""
    row = board.row(board.claim())
    integers = 0x0102030405060708, -0x0102030405060708
    reals = 1.0 / 3, 4.0e9 / 7
    row.requests, row.heartbeat = integers[0], reals[0]
    deadline = time.monotonic() + 30  # the writer's, should the reader die
    pid = os.fork()
    if pid == 0:
        with leaving():
            while not row.draining and time.monotonic() < deadline:
                for integer, real in zip(integers, reals, strict=True):
                    row.requests, row.heartbeat = integer, real
                    row.accepted += 1
    seen_integers: set[int] = set()
    seen_reals: set[float] = set()
    reads = 0
    while (reads < 50_000 or len(seen_integers) < 2) and time.monotonic() < deadline:
        seen_integers.add(row.integers[Row.requests.index])
        seen_reals.update(board.column(Row.heartbeat))
        reads += 1
    row.draining = 1
    assert wait(pid) == 0
    assert row.accepted > 0
    assert seen_integers == set(integers)
    assert seen_reals == set(reals)
