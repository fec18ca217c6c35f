"""A keeper for tests, as a thread or as a process, with all that the master and the workers hold of it."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster2.linux import processes
from cluster2.linux.handover import HandedConnection, QueueReader, QueueWriter, queue
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.keeper.keeper_loop import Keeper
from tests.system.harness import wait_until

ROOM = str(Path(__file__).parents[2] / "src/cluster2/processes/keeper")


class Kept:
    """A keeper with all that the master and the workers hold of it."""

    pid = 0

    def __init__(self, sites: int, timeout: float) -> None:
        self.control, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.rest = queue()
        self.ready = [queue() for _ in range(sites)]
        self.board = Scoreboard.create()
        self.outlet = QueueWriter(self.rest[0])
        self.inlets = [QueueReader(out) for _, out in self.ready]
        self.timeout = timeout
        self._left = ExitStack()

    def start(self, limit: int = 10_000) -> None:
        raise NotImplementedError

    def gone(self) -> bool:
        raise NotImplementedError

    def wait(self) -> None:
        wait_until(self.gone, "the keeper has left")

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return a client, and the server's end of its connection."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = self._left.enter_context(socket.create_connection(listener.getsockname()))
            server, _ = listener.accept()
        client.settimeout(20)
        return client, self._left.enter_context(server)

    def put(self, app_index: int = 0, idle_s: float = 0.0) -> socket.socket:
        """Return a client whose connection was sent to the keeper."""
        client, server = self.connect()
        assert self.outlet.send(server.fileno(), app_index, socket.AF_INET, idle_s)
        server.close()
        return client

    def rests(self, count: int) -> None:
        """Wait until so many rest."""
        wait_until(lambda: self.board.header.resting == count, lambda: f"{count} rest, not {self.board.header.resting}")

    def take(self, app_index: int = 0) -> tuple[HandedConnection, socket.socket]:
        """Return the next one from a ready queue."""
        assert select.select([self.inlets[app_index]], [], [], 20)[0], "something is ready"
        parcel = self.inlets[app_index].take()
        assert parcel is not None
        return parcel, self._left.enter_context(socket.socket(fileno=parcel.descriptor))

    def close(self) -> None:
        """Close everything, in any case."""
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
        ready = [QueueWriter(into) for into, _ in self.ready]
        inlet = QueueReader(self.rest[1])
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
    who: tuple[str, str, str] = ("", "", "")

    def start(self, limit: int = 10_000) -> None:
        ends = [
            self.theirs.fileno(),
            self.rest[1].fileno(),
            *self.board.descriptors,
            *(into.fileno() for into, _ in self.ready),
        ]
        argv = [*self.argv, str(len(self.ready)), str(self.timeout), *self.who]
        self.pid = processes.execute(argv, fds={3 + n: fd for n, fd in enumerate(ends)}, environ=os.environ)
        self.theirs.close()
        self._pidfd = processes.open_pidfd(self.pid)
        self._left.callback(os.close, self._pidfd)
        self.status: processes.ExitStatus | None = None
        wait_until(lambda: self.board.header.keeper_beat, "it has started")

    def gone(self) -> bool:
        self.status = self.status or processes.exit_of(self._pidfd)
        return self.status is not None

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Make = Callable[..., Kept]


def maker() -> Callable[[pytest.FixtureRequest], Iterator[Make]]:
    """Start keepers of the kind that is the fixture's parameter."""

    def make(request: pytest.FixtureRequest) -> Iterator[Make]:
        with ExitStack() as stack:

            def start(sites: int = 1, timeout: float = 60.0, limit: int = 10_000) -> Kept:
                kept: Kept = request.param(sites, timeout)
                kept.start(limit)
                stack.callback(kept.close)
                return kept

            yield start

    return make
