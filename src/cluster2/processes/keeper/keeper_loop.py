"""The keeper's loop: take idle connections, watch them, and hand back those that become readable.

One epoll watches the idle queue, the connections and the control channel. `linux.handover` describes the states of a connection
and what happens if a step fails. This module is the third of them.

A full ready queue is tried again every few milliseconds, since no event announces free space. If too many descriptors are in
flight (`ETOOMANYREFS`), a queue reports as writable all the time, and with edge-triggered events each failed attempt makes an
edge.

The keeper has little that can fail: no app, no HTTP, no parsing, no library beyond the standard one. It wakes when something
happens, when the time of a connection is over, and every few seconds to publish its heartbeat.

A descriptor must leave the epoll before it is closed: its file lives on in the message that carries it, and so would its
registration.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections import deque

from ...core.lifecycle import WorkerState
from ...linux.handover import CONNECTIONS_PER_MESSAGE, HandedConnection, QueueReader, QueueWriter, batch_size
from ...linux.log_files import ReopeningFile
from ...linux.privileges import drop_privileges
from ...linux.processes import raise_file_limit
from ...linux.scoreboard import KEEPER_PAGE, Scoreboard
from ...linux.signals import settle
from ...runtime.step_guard import StepGuard
from .resting import NO_DEADLINE, IdleConnections

_HEARTBEAT_INTERVAL_S = 2.0
"""Seconds between two heartbeats."""
RESERVED_DESCRIPTORS = CONNECTIONS_PER_MESSAGE + 32
"""Descriptors that are kept free for a message from the idle queue and for the keeper's own, unless the limit is low."""
MESSAGES_PER_TURN = 16
"""Messages taken from the idle queue before connections have their turn again."""
_END_POLL_INTERVAL_S = 0.01
"""Seconds between two checks whether all workers have left the ready state."""
_RETURN_RETRY_S = 0.005
"""Seconds between two attempts to hand back connections: workers take some milliseconds to empty a full queue."""
_READY_STATE = int(WorkerState.READY)
_WATCH = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLHUP | select.EPOLLERR


class Keeper:
    """The idle connections, and the queues in and out."""

    def __init__(
        self,
        control: int,
        rest: QueueReader,
        ready: list[QueueWriter],
        board: Scoreboard,
        timeout: float,
        limit: int,
        output: ReopeningFile | None = None,
    ) -> None:
        """Watch nothing yet but the channel and the idle queue.

        Args:
            control: descriptor of the channel to the master.
            rest: the idle queue.
            ready: the ready queue of each app.
            timeout: seconds that a connection may be idle; 0: for ever.
            limit: how many descriptors this process may have.
            output: the file that its output goes to; None: it stays where it is.
        """
        self._control = control
        self._rest = rest
        self._ready = ready
        self._board = board
        self._header = board.header
        self._timeout = timeout
        self._capacity = limit - reserve(limit)
        self._output = output
        self._resting = IdleConnections()
        self._late: list[deque[HandedConnection]] = [deque() for _ in ready]
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN)
        self._epoll.register(rest.fileno(), select.EPOLLIN)
        self._full = False
        self._leave_at: float | None = None
        self._guard = StepGuard(_report)
        self._moved = 0
        self._since = time.monotonic()

    def run(self) -> None:
        """Keep connections until the master is gone, or until the last one has left after a `drain`."""
        self._housekeep(time.monotonic())
        while not self._finished():
            for descriptor, events in self._epoll.poll(self._seconds_until_due()):
                if descriptor == self._control and not self._carry_out_order():
                    return
                with self._guard("a connection at rest"):
                    if descriptor == self._rest.fileno():
                        self._take_in()
                    elif descriptor in self._resting:
                        self._woken(descriptor, events)
            with self._guard("the keeper's housekeeping"):
                self._housekeep(time.monotonic())

    def _finished(self) -> bool:
        if self._leave_at is None:
            return False
        if time.monotonic() >= self._leave_at:
            return True
        if _READY_STATE in self._states():
            return False  # a worker that hasn't got its order yet may still send connections
        self._take_in()
        # The queue was read after the states: no worker is ready any more, so no further message comes.
        return not self._resting and not any(self._late)

    def _states(self) -> list[int]:
        return self._board.column("state")

    def _seconds_until_due(self) -> float:
        """Return the seconds until something is due."""
        now = time.monotonic()
        due = [_RETURN_RETRY_S if any(self._late) else _HEARTBEAT_INTERVAL_S]
        if (deadline := self._resting.next_deadline()) is not None:
            due.append(deadline - now)
        if self._leave_at is not None:
            due += [self._leave_at - now, _END_POLL_INTERVAL_S]
        return max(0.0, min(due))

    def _take_in(self) -> None:
        """Take connections from the idle queue."""
        if self._rest.ended:
            return
        now = time.monotonic()
        for _ in range(MESSAGES_PER_TURN):
            full = self._held() >= self._capacity
            if full and any(self._late):
                # Full, and the workers take no more either. Further messages stay in the queue until that is full as well: then
                # the workers keep their connections.
                self._full = True
                self._epoll.modify(self._rest.fileno(), 0)
                return
            parcels = self._rest.take_all()
            if not parcels:
                break
            for connection in parcels:
                if full:
                    self._pass_on(connection)
                else:
                    self._keep(connection, now)
        ended: bool = self._rest.ended  # take_all() may have found the end
        if ended:
            self._full = False
            self._epoll.unregister(self._rest.fileno())

    def _held(self) -> int:
        """Return how many connections the keeper holds."""
        return len(self._resting) + sum(map(len, self._late))

    def _keep(self, connection: HandedConnection, now: float) -> None:
        # 0.0 is the first argument because an idle time from a foreign sender may be a NaN, and no number is greater than a NaN.
        idle_s = min(self._timeout, max(0.0, connection.idle_s))
        deadline = now + self._timeout - idle_s if self._timeout else float(NO_DEADLINE)
        try:
            if connection.app_index >= len(self._ready):
                raise OSError("no such app")
            self._epoll.register(connection.descriptor, _WATCH)
        # A file, or something else that can't be watched: no worker sends one.
        except OSError:
            os.close(connection.descriptor)
            return
        self._resting.add(connection.descriptor, (connection.app_index, connection.family), deadline)

    def _pass_on(self, connection: HandedConnection) -> None:
        """Give a connection for which there is no descriptor to a worker: in the queue a request would not be noticed."""
        if connection.app_index >= len(self._ready):
            os.close(connection.descriptor)
            return
        self._moved += 1
        self._give_back(connection)

    def _give_back(self, connection: HandedConnection) -> None:
        """Put a connection into the ready queue of its app, behind those that wait for space there."""
        # While others wait, this connection waits behind them: the order of waking is kept.
        late = self._late[connection.app_index]
        if not late and self._ready[connection.app_index].send(*connection):
            os.close(connection.descriptor)
        else:
            late.append(connection)

    def _woken(self, descriptor: int, events: int) -> None:
        """Hand back a connection that has become readable, or close one that is over."""
        self._epoll.unregister(descriptor)
        app_index, family = self._resting.remove(descriptor)
        # A reset or a connection closed on both sides has no request for a worker. A client that has closed its sending side only
        # sets EPOLLIN too, and a worker reads the end.
        if events & _GONE or not events & select.EPOLLIN:
            os.close(descriptor)
            return
        self._moved += 1
        self._give_back(HandedConnection(descriptor, app_index, family, 0.0))

    def _catch_up(self) -> None:
        """Hand back the connections that wait, as far as the ready queues have space by now."""
        for late, ready in zip(self._late, self._ready, strict=True):
            while late and ready.send(*late[0]):
                os.close(late.popleft().descriptor)

    def _carry_out_order(self) -> bool:
        """Carry out an order of the master: `drain SECONDS`, or `timeout SECONDS` for connections that come from now on.

        Returns:
            False: the master is gone.
        """
        # A SEQPACKET channel: one read returns one order, and b"" is the end.
        order = os.read(self._control, 64).split()
        if not order:
            return False
        if order[0] == b"timeout":
            self._timeout = float(order[1])
        if order[0] == b"drain":
            self._leave_at = time.monotonic() + float(order[1])
        return True

    def _housekeep(self, now: float) -> None:
        """Close connections that were idle for too long, and publish counts and heartbeat."""
        deadline = self._resting.next_deadline()
        if deadline is not None and now >= deadline:
            for descriptor in self._resting.expired(now):
                self._epoll.unregister(descriptor)
                self._resting.remove(descriptor)
                os.close(descriptor)
                self._header.keeper_expired += 1
        self._catch_up()
        if self._full and self._held() < self._capacity:
            self._full = False
            self._epoll.modify(self._rest.fileno(), select.EPOLLIN)
        header = self._header
        # The master kills a keeper whose heartbeat is too old.
        header.keeper_beat = now
        header.resting = self._held()
        header.keeper_lost = self._rest.truncated
        if now - self._since >= 1.0:
            if self._output is not None:
                with contextlib.suppress(OSError):  # the file that is open stays in use
                    self._output.reopen_if_moved()
            header.keeper_rate = self._moved / (now - self._since)
            self._moved, self._since = 0, now


def _report(text: str, detail: str) -> None:
    with contextlib.suppress(OSError):  # the disk is full
        sys.stderr.write(f"keeper: {text}\n{detail}")


def reserve(limit: int) -> int:
    """Return how many descriptors stay free for one message and for the keeper's own files."""
    return batch_size(limit) + min(RESERVED_DESCRIPTORS - CONNECTIONS_PER_MESSAGE, limit // 4)


def main(arguments: list[str]) -> None:
    """Run as a process: descriptors 3 control, 4 idle queue, 5 to 7 scoreboard, from 8 on the ready queues.

    Args:
        arguments: how many apps there are, the idle timeout in seconds, the user and the group to change to ("": no change),
            the file that its output goes to ("": where it goes now).
    """
    import socket

    settle("keeper")  # the master ends this process by closing the channel
    apps, timeout, (user, group, log) = int(arguments[0]), float(arguments[1]), arguments[2:5]
    drop_privileges(user or None, group or None)
    rest = QueueReader(socket.socket(fileno=4))
    ready = [QueueWriter(socket.socket(fileno=8 + app_index)) for app_index in range(apps)]
    board = Scoreboard.attach((5, 6, 7), KEEPER_PAGE)
    output = ReopeningFile(log, 1, 2) if log else None
    Keeper(3, rest, ready, board, timeout, raise_file_limit(), output).run()


if __name__ == "__main__":
    main(sys.argv[1:])
