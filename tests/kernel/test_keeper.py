"""The keeper on the real kernel: as a thread of this process, and as the process that the master executes."""

from __future__ import annotations

import array
import contextlib
import math
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster2.keeper.main import RESERVE, Keeper
from cluster2.kernel import processes
from cluster2.kernel.handover import RECORD, Inlet, Outlet, Parcel, queue
from cluster2.kernel.scoreboard import Scoreboard
from cluster2.lifecycle import State
from tests.system.harness import wait_until

ROOM = str(Path(__file__).parents[2] / "src/cluster2/keeper")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="takes a capability away, which only root has")


class Kept:
    """A keeper with all that the master and the workers hold of it."""

    pid = 0

    def __init__(self, sites: int, timeout: float) -> None:
        self.control, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.rest = queue()
        self.ready = [queue() for _ in range(sites)]
        self.board = Scoreboard.create()
        self.outlet = Outlet(self.rest[0])
        self.inlets = [Inlet(out) for _, out in self.ready]
        self.timeout = timeout
        self._left = ExitStack()

    def start(self, limit: int = 10_000) -> None:
        raise NotImplementedError

    def gone(self) -> bool:
        raise NotImplementedError

    def wait(self) -> None:
        wait_until(self.gone, "the keeper has left")

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """A client, and the server's end of its connection."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = self._left.enter_context(socket.create_connection(listener.getsockname()))
            server, _ = listener.accept()
        client.settimeout(20)
        return client, self._left.enter_context(server)

    def put(self, site: int = 0, age: float = 0.0) -> socket.socket:
        """A client whose connection was sent to the keeper."""
        client, server = self.connect()
        assert self.outlet.send(server.fileno(), site, socket.AF_INET, age)
        server.close()
        return client

    def rests(self, count: int) -> None:
        """Wait until so many rest."""
        wait_until(lambda: self.board.header.resting == count, lambda: f"{count} rest, not {self.board.header.resting}")

    def take(self, site: int = 0) -> tuple[Parcel, socket.socket]:
        """The next one from a ready queue."""
        assert select.select([self.inlets[site]], [], [], 20)[0], "something is ready"
        parcel = self.inlets[site].take()
        assert parcel is not None
        return parcel, self._left.enter_context(socket.socket(fileno=parcel.descriptor))

    def close(self) -> None:
        """Whatever happened, nothing is left."""
        self.control.close()
        self.wait()
        self._left.close()
        for into, out in (self.rest, *self.ready):
            into.close()
            out.close()
        self.board.close()


class InThread(Kept):
    """The keeper in a thread: its code is covered, and its limit can be chosen."""

    def start(self, limit: int = 10_000) -> None:
        ready = [Outlet(into) for into, _ in self.ready]
        inlet = Inlet(self.rest[1])
        self.keeper = Keeper(self.theirs.fileno(), inlet, ready, self.board, self.timeout, limit)
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.keeper.run()
        except BaseException as error:
            self.errors.append(error)

    def gone(self) -> bool:
        return not self.thread.is_alive()

    def close(self) -> None:
        self.control.close()
        self.wait()
        for descriptor in [*self.keeper._resting, *(each.descriptor for late in self.keeper._late for each in late)]:
            os.close(descriptor)  # a process's end would
        self.keeper._epoll.close()
        self.theirs.close()
        super().close()
        assert not self.errors, self.errors


class InProcess(Kept):
    """The keeper as it is executed: `python -I -S`."""

    argv: tuple[str, ...] = (sys.executable, "-I", "-S", ROOM)

    def start(self, limit: int = 10_000) -> None:
        ends = [self.theirs.fileno(), self.rest[1].fileno(), self.board.fd, *(into.fileno() for into, _ in self.ready)]
        argv = [*self.argv, str(len(self.ready)), str(self.timeout)]
        self.pid = processes.execute(argv, fds={3 + n: fd for n, fd in enumerate(ends)}, environ=os.environ)
        self.theirs.close()
        self._pidfd = processes.open_pidfd(self.pid)
        self._left.callback(os.close, self._pidfd)
        self.status: processes.ExitStatus | None = None
        wait_until(lambda: self.board.header.keeper_pid == self.pid, "it has started")

    def gone(self) -> bool:
        self.status = self.status or processes.exit_of(self._pidfd)
        return self.status is not None

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Make = Callable[..., Kept]


def maker(*kinds: type[Kept]) -> Callable[[pytest.FixtureRequest], Iterator[Make]]:
    def make(request: pytest.FixtureRequest) -> Iterator[Make]:
        with ExitStack() as stack:

            def start(sites: int = 1, timeout: float = 60.0, limit: int = 10_000) -> Kept:
                kept: Kept = request.param(sites, timeout)
                kept.start(limit)
                stack.callback(kept.close)
                return kept

            yield start

    return make


keep = pytest.fixture(params=[InThread, InProcess], ids=["thread", "process"], name="keep")(maker())
keep_in_thread = pytest.fixture(params=[InThread], ids=["thread"], name="keep_in_thread")(maker())
keep_in_process = pytest.fixture(params=[InProcess], ids=["process"], name="keep_in_process")(maker())


# At rest, and awake


def test_what_wakes_is_ready(keep: Make) -> None:
    """A connection rests until its client says something; then it is in the ready queue, and not a byte was read."""
    kept = keep()
    client = kept.put(age=3.0)
    kept.rests(1)
    assert kept.inlets[0].take() is None
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    parcel, server = kept.take()
    assert (parcel.site, parcel.family, parcel.age) == (0, socket.AF_INET, 0.0)
    assert server.recv(100) == b"GET / HTTP/1.1\r\n\r\n"
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"
    kept.rests(0)


def test_what_came_on_the_way(keep: Make) -> None:
    """Bytes that arrived before the keeper had the connection wake it at once."""
    kept = keep()
    client, server = kept.connect()
    client.sendall(b"early")
    assert kept.outlet.send(server.fileno(), 0, socket.AF_INET, 0.0)
    server.close()
    _, taken = kept.take()
    assert taken.recv(100) == b"early"


def test_each_app_has_its_queue(keep: Make) -> None:
    """A connection comes back to the app that it belongs to."""
    kept = keep(sites=3)
    clients = [kept.put(site) for site in (2, 0, 1)]
    kept.rests(3)
    for client, site in zip(clients, (2, 0, 1), strict=True):
        client.sendall(b"%d" % site)
    for site in range(3):
        parcel, server = kept.take(site)
        assert parcel.site == site
        assert server.recv(9) == b"%d" % site


def test_there_and_back_again(keep: Make) -> None:
    """A connection may go and come back as often as it likes; nothing stays behind."""
    kept = keep()
    client = kept.put()
    for turn in range(200):
        client.sendall(b"%03d" % turn)
        parcel, server = kept.take()
        assert server.recv(9) == b"%03d" % turn
        server.sendall(b"%03d" % turn)
        assert client.recv(9) == b"%03d" % turn
        assert kept.outlet.send(parcel.descriptor, 0, parcel.family, 0.0)
        server.close()
    kept.rests(1)


def test_thousands(keep: Make) -> None:
    """Two thousand rest, sent 128 a message; all wake, each once."""
    kept = keep()
    pairs = [socket.socketpair() for _ in range(2000)]
    with contextlib.ExitStack() as stack:
        for ours, theirs in pairs:
            stack.enter_context(ours)
            stack.enter_context(theirs)
        parcels = [Parcel(theirs.fileno(), 0, socket.AF_UNIX, 0.0) for _, theirs in pairs]
        while parcels:
            parcels = parcels[kept.outlet.send_all(parcels) :]
        kept.rests(2000)
        for number, (ours, _) in enumerate(pairs):
            ours.sendall(b"%d" % number)
        seen = []
        for _ in pairs:
            with kept.take()[1] as taken:
                seen.append(int(taken.recv(9)))
        assert sorted(seen) == list(range(2000))
        kept.rests(0)


# Clients that leave, and time that passes


def test_a_client_that_closes(keep: Make) -> None:
    """A client that closes wakes its connection; whoever takes it reads the end. It rests no more."""
    kept = keep()
    kept.put().close()
    _, server = kept.take()
    assert server.recv(9) == b""
    kept.rests(0)


def test_a_client_that_says_something_and_half_closes(keep: Make) -> None:
    """A request before a half-close is delivered, and can be answered."""
    kept = keep()
    client = kept.put()
    kept.rests(1)
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    _, server = kept.take()
    assert server.recv(9) == b"last"
    server.sendall(b"answer")
    assert client.recv(9) == b"answer"


def test_a_client_that_resets(keep: Make) -> None:
    """A connection that was reset is closed there: nobody can use it."""
    kept = keep()
    client = kept.put()
    kept.rests(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    kept.rests(0)
    assert kept.inlets[0].take() is None


@pytest.mark.slow
def test_the_time_limit_holds_there(keep: Make) -> None:
    """A connection is closed when it was idle for `timeout` in all: the time before it came counts."""
    kept = keep(timeout=20.0)
    began = time.monotonic()
    old, young = kept.put(age=19.0), kept.put(age=0.0)
    assert old.recv(1) == b""
    assert 1.0 <= time.monotonic() - began < 3.0
    kept.rests(1)
    assert kept.board.header.keeper_expired == 1
    young.sendall(b"still there")
    assert kept.take()[1].recv(99) == b"still there"


def test_overdue_on_arrival(keep: Make) -> None:
    """One that is overdue when it comes is closed soon; what already woke isn't."""
    kept = keep(timeout=5.0)
    assert kept.put(age=1000.0).recv(1) == b""
    kept.rests(0)


def test_without_a_time_limit(keep_in_thread: Make) -> None:
    """With `timeout = 0` connections may rest for ever."""
    kept = keep_in_thread(timeout=0.0)
    client = kept.put(age=1e9)
    kept.rests(1)
    assert kept.keeper._resting.next_deadline() is None  # type: ignore[attr-defined]
    client.sendall(b"x")
    kept.take()


@pytest.mark.parametrize("age", [math.nan, math.inf, -math.inf, -5.0])
def test_an_age_that_is_none(keep: Make, age: float) -> None:
    """A foreign age can't break it: it counts as none, or as the longest."""
    kept = keep(timeout=30.0)
    kept.put(age=age)
    other = kept.put()
    other.sendall(b"x")
    kept.take()


# Full queues


def test_a_full_ready_queue(keep: Make) -> None:
    """When nobody takes, what wakes waits in order; when somebody does, all are delivered, in that order, each once."""
    kept = keep()
    kept.ready[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    clients = [kept.put() for _ in range(60)]
    kept.rests(60)
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
    wait_until(lambda: 0 < kept.board.header.resting < 60, "the queue is full")
    seen = [int(kept.take()[1].recv(9)) for _ in clients]
    assert sorted(seen) == list(range(60))
    kept.rests(0)
    late = kept.put()
    late.sendall(b"after")
    assert kept.take()[1].recv(9) == b"after"


def test_the_order_of_waking(keep_in_thread: Make) -> None:
    """Those that can't be handed back are handed back in the order in which they woke."""
    kept = keep_in_thread()
    kept.ready[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    keeper: Keeper = kept.keeper  # type: ignore[attr-defined]
    for number in range(40):
        client = kept.put()
        wait_until(lambda: len(keeper._resting), "it rests")
        client.sendall(b"%02d" % number)
        wait_until(lambda: not len(keeper._resting), "it has woken")
    assert [int(kept.take()[1].recv(9)) for _ in range(40)] == list(range(40))


def test_no_descriptors_left(keep_in_thread: Make) -> None:
    """Before it runs out of descriptors it stops taking in; what came waits in the queue, and is taken when there is room."""
    kept = keep_in_thread(limit=RESERVE + 4)
    clients = [kept.put() for _ in range(10)]
    kept.rests(4)
    for client in clients:  # those in the queue have to wait until others have left
        client.sendall(b"x")
    for _ in clients:
        assert kept.take()[1].recv(9) == b"x"
    kept.rests(0)
    assert kept.board.header.keeper_lost == 0


def test_late_ones_take_room_as_well(keep_in_thread: Make) -> None:
    """Connections that it can't hand back count: with a full ready queue it takes in no more than it has room for."""
    kept = keep_in_thread(limit=RESERVE + 4)
    kept.ready[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    clients = [kept.put() for _ in range(40)]
    for client in clients:
        client.sendall(b"x")
    kept.rests(4)
    keeper: Keeper = kept.keeper  # type: ignore[attr-defined]
    assert len(keeper._resting) + len(keeper._late[0]) == 4
    for _ in clients:
        assert kept.take()[1].recv(9) == b"x"
    kept.rests(0)


LAUNCH = f"""
    import ctypes, os, resource, sys
    libc = ctypes.CDLL(None)
    for capability in (21, 24):  # SYS_ADMIN and SYS_RESOURCE, which let a process have more in flight
        assert libc.prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
    resource.setrlimit(resource.RLIMIT_NOFILE, ({RESERVE + 40}, {RESERVE + 40}))
    os.execv(sys.executable, [sys.executable, "-I", "-S", {ROOM!r}, *sys.argv[1:]])
"""


class Bounded(InProcess):
    """A keeper with room for 40 connections, which may have no more than 200 in flight."""

    argv = (sys.executable, "-c", textwrap.dedent(LAUNCH))


@ROOT_ONLY
def test_too_many_in_flight() -> None:
    """ETOOMANYREFS: what can't be handed back waits, without a busy loop; all are delivered when there is room."""
    kept = Bounded(1, 60.0)
    kept.start()
    try:
        clients: list[socket.socket] = []
        with contextlib.suppress(AssertionError):
            while len(clients) < RESERVE + 400:
                clients.append(kept.put())
                clients[-1].sendall(b"x")
                wait_until(lambda: kept.board.header.resting == 0, "it is handed back", timeout=0.3)
        assert len(clients) < RESERVE + 300, "the bound was met"
        clients += [kept.put() for _ in range(10)]
        for client in clients[-10:]:
            client.sendall(b"x")
        wait_until(lambda: kept.board.header.resting > 10, "they wait")
        used = kept.cpu()
        until = time.monotonic() + 0.5
        wait_until(lambda: time.monotonic() > until, "half a second passes")
        assert kept.cpu() - used < 0.2
        for _ in clients:
            assert kept.take()[1].recv(9) == b"x"
        kept.rests(0)
        assert kept.board.header.keeper_lost == 0
    finally:
        kept.close()


# Foreign things


def raw(kept: Kept, data: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    kept.rest[0].sendmsg([data], rights)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 0),
        (b"", 1),
        (b"garbage", 0),
        (b"garbage", 3),
        (RECORD.pack(0, 2, 0.0), 0),
        (RECORD.pack(0, 2, 0.0), 250),
        (RECORD.pack(200, 2, 0.0), 1),
        (RECORD.pack(0, 2, 0.0) * 2, 1),
        (b"x" * 50_000, 2),
    ],
)
def test_garbage_in_the_queue(keep: Make, data: bytes, count: int) -> None:
    """What is no whole record with its descriptor, or of an app that doesn't exist, is closed; it goes on."""
    kept = keep()
    client, server = kept.connect()
    raw(kept, data, [server.fileno()] * count)
    server.close()
    good = kept.put()
    good.sendall(b"good")
    assert kept.take()[1].recv(9) == b"good"
    kept.rests(0)
    assert client.recv(1) == b"", "its descriptor is closed"


def foreign(kind: str, stack: ExitStack) -> int:
    """A descriptor that is no connection."""
    match kind:
        case "file":
            return stack.enter_context(tempfile.TemporaryFile()).fileno()
        case "directory":
            number = os.open("/", os.O_RDONLY)
        case "path":
            number = os.open("/", os.O_PATH)
        case "pipe without a writer":
            number, writer = os.pipe()
            os.close(writer)
        case "socket without a connection":
            return stack.enter_context(socket.socket()).fileno()
        case "socket that is shut down":
            ours, theirs = socket.socketpair()
            theirs.close()
            return stack.enter_context(ours).fileno()
        case _:
            return stack.enter_context(socket.create_server(("127.0.0.1", 0))).fileno()
    stack.callback(os.close, number)
    return number


CLOSED = [
    "file",
    "directory",
    "path",
    "pipe without a writer",
    "socket without a connection",
    "socket that is shut down",
]


@pytest.mark.parametrize("kind", CLOSED)
def test_what_can_not_rest(keep_in_process: Make, kind: str) -> None:
    """What can't be watched, or is over, is closed at once; nothing leaks, and it goes on."""
    kept = keep_in_process()
    assert isinstance(kept, InProcess)
    good = kept.put()
    kept.rests(1)
    before = kept.descriptors()
    with ExitStack() as stack:
        assert kept.outlet.send(foreign(kind, stack), 0, socket.AF_INET, 0.0)
    good.sendall(b"good")
    assert kept.take()[1].recv(9) == b"good"
    wait_until(lambda: kept.descriptors() == before - 1, "it is closed")
    kept.rests(0)


def test_what_is_no_connection_but_can_wake(keep: Make) -> None:
    """A pipe or a listening socket rests until something happens, and is handed on like a connection."""
    kept = keep()
    reader, writer = os.pipe()
    assert kept.outlet.send(reader, 0, socket.AF_INET, 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert kept.outlet.send(listener.fileno(), 0, socket.AF_INET, 0.0)
        kept.rests(2)
        os.write(writer, b"x")
        parcel = wait_until(kept.inlets[0].take, "the pipe wakes")
        assert parcel is not None
        os.close(parcel.descriptor)
        with socket.create_connection(listener.getsockname()):
            parcel = wait_until(kept.inlets[0].take, "the listener wakes")
            assert parcel is not None
            os.close(parcel.descriptor)
    os.close(reader)
    os.close(writer)
    kept.rests(0)


# The end


def test_drained_and_empty(keep: Make) -> None:
    """Told to drain, it leaves when nothing rests any more; until then what wakes is handed back."""
    kept = keep()
    client = kept.put()
    kept.rests(1)
    kept.control.send(b"drain 60")
    client.sendall(b"last")
    assert kept.take()[1].recv(9) == b"last"
    kept.wait()


def test_drained_but_silent(keep: Make) -> None:
    """What is silent for as long as it was told to wait is closed with it."""
    kept = keep()
    client = kept.put()
    kept.rests(1)
    began = time.monotonic()
    kept.control.send(b"drain 0.3")
    kept.wait()
    assert time.monotonic() - began >= 0.3
    if isinstance(kept, InProcess):
        assert client.recv(1) == b""
        assert kept.status is not None
        assert kept.status.code == 0


def test_it_waits_for_workers_that_have_not_heard(keep: Make) -> None:
    """While a worker serves it may still send something: an empty keeper waits for that."""
    kept = keep()
    row = kept.board.row(kept.board.claim())
    row.state = State.READY
    kept.control.send(b"drain 60")
    client = kept.put()
    kept.rests(1)
    assert not kept.gone()
    client.sendall(b"last")
    assert kept.take()[1].recv(9) == b"last"
    assert not kept.gone()
    row.state = State.DRAINING
    kept.wait()


def test_drained_with_a_full_queue(keep: Make) -> None:
    """It doesn't leave with connections that it couldn't hand back yet."""
    kept = keep()
    kept.ready[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    clients = [kept.put() for _ in range(20)]
    for client in clients:
        client.sendall(b"x")
    wait_until(lambda: kept.board.header.resting > 0, "some wait")
    kept.control.send(b"drain 60")
    for _ in clients:
        assert kept.take()[1].recv(9) == b"x"
    kept.wait()


def test_the_master_is_gone(keep_in_process: Make) -> None:
    """When the control channel ends it leaves at once, and what rested is closed."""
    kept = keep_in_process()
    assert isinstance(kept, InProcess)
    client = kept.put()
    kept.rests(1)
    kept.control.close()
    assert client.recv(1) == b""
    kept.wait()
    assert kept.status is not None
    assert kept.status.code == 0


def test_only_the_master_ends_it(keep_in_process: Make) -> None:
    """TERM, INT, HUP and QUIT, which a terminal or a supervisor sends to a whole group, don't end it."""
    kept = keep_in_process()
    client = kept.put()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(kept.pid, number)
    client.sendall(b"x")
    assert kept.take()[1].recv(9) == b"x"


def test_killed(keep_in_process: Make) -> None:
    """Killed, it loses what it had; what waits in the queues lives on, and the next keeper takes it."""
    kept = keep_in_process()
    resting, woken = kept.put(), kept.put()
    kept.rests(2)
    woken.sendall(b"woken")
    kept.rests(1)
    os.kill(kept.pid, signal.SIGSTOP)
    waiting = kept.put()
    os.kill(kept.pid, signal.SIGKILL)
    kept.wait()
    assert resting.recv(1) == b""
    assert kept.take()[1].recv(9) == b"woken"
    kept.control.close()
    kept.control, kept.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept.start()
    waiting.sendall(b"waiting")
    assert kept.take()[1].recv(9) == b"waiting"


def test_stopped(keep_in_process: Make) -> None:
    """While it is stopped its sign of life grows old, and the queue to it fills until it takes no more; then all goes on."""
    kept = keep_in_process()
    kept.rest[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    os.kill(kept.pid, signal.SIGSTOP)
    wait_until(lambda: "T" in Path(f"/proc/{kept.pid}/stat").read_text().rpartition(")")[2].split()[0], "it is stopped")
    beat = kept.board.header.keeper_beat
    client, server = kept.connect()
    sent = 0
    while kept.outlet.send(server.fileno(), 0, socket.AF_INET, 0.0):
        sent += 1
        assert sent < 1000
    server.sendall(b"still ours")
    assert client.recv(99) == b"still ours"
    os.kill(kept.pid, signal.SIGCONT)
    kept.rests(sent)
    assert kept.board.header.keeper_beat > beat


def test_it_needs_the_standard_library_only(keep_in_process: Make) -> None:
    """It runs without site-packages, and is small."""
    kept = keep_in_process()
    maps = Path(f"/proc/{kept.pid}/maps").read_text()
    assert "site-packages" not in maps
    assert processes.memory(kept.pid) < 20 * 2**20


def test_a_keeper_with_nothing_to_do(keep_in_process: Make) -> None:
    """With connections at rest and nothing that wakes, it uses no CPU time that could be measured."""
    kept = keep_in_process()
    assert isinstance(kept, InProcess)
    for _ in range(50):
        kept.put()
    kept.rests(50)
    used, until = kept.cpu(), time.monotonic() + 0.5
    wait_until(lambda: time.monotonic() > until, "half a second passes")
    assert kept.cpu() - used <= 0.02


def test_what_the_kernel_says_of_a_half_close() -> None:
    """The kernel watches a connection that is half closed, reset or readable with the events that the keeper asks for."""
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as epoll:
        epoll.register(ours, select.EPOLLIN | select.EPOLLRDHUP)
        assert epoll.poll(0) == []
        theirs.shutdown(socket.SHUT_WR)
        assert epoll.poll(0) == [(ours.fileno(), select.EPOLLIN | select.EPOLLRDHUP)]
