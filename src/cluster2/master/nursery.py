"""Where the workers of one generation come from: a zygote, or, where forking is unsafe, an executed process for each.

Both are the same program given the same orders (`child`): a zygote is told to prepare and then to fork; an executed worker
is told to prepare and then to become the worker itself. So there is one way in which an app is loaded and a worker starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from .. import codec, wire
from ..errors import AppError
from ..kernel import processes
from ..kernel.descriptors import Packets
from .facts import Fact, FromZygote

CHANNEL_FD = 3
"""The descriptor that an executed child finds its channel at."""
BUFFER = 1 << 18
"""Of the channel, in bytes: a traceback must fit."""


@dataclass(slots=True, eq=False)
class Child:
    """A process of ours that loads the app: a zygote, or a worker before it has become one."""

    pid: int
    pidfd: int
    channel: Packets
    pending: list[tuple[wire.Fork, list[int]]] = field(default_factory=list)


class Nursery:
    """Loads one generation and makes its workers.

    Attributes:
        ready: workers can be ordered.
    """

    def __init__(
        self, prepare: wire.Prepare, argv: Sequence[str], put: Callable[[Fact], None], patience: float = 60.0
    ) -> None:
        """Nothing is started yet.

        Args:
            prepare: what to load.
            argv: the program that is the child: absolute path and arguments.
            put: takes the facts about it.
            patience: seconds that loading may take.
        """
        self._patience = patience
        self._limit: asyncio.TimerHandle | None = None
        self._prepare = prepare
        self._argv = argv
        self._put = put
        self._loop = asyncio.get_running_loop()
        self._zygote: Child | None = None
        self._alone: dict[int, Child] = {}
        self._leaving: list[Child] = []
        self._forks = True
        self.ready = False

    def load(self) -> None:
        """Start the zygote. A fact says whether it is prepared."""
        zygote = self._zygote = self._execute()
        self._limit = self._loop.call_later(self._patience, self._too_slow)
        self._watch(zygote, lambda message: self._from_zygote(zygote, message))

    def each_executed(self) -> None:
        """From now on make no forks: each worker is executed and loads the app for itself."""
        self._forks, self.ready = False, True
        if self._zygote is not None:
            self._end(self._zygote)
            self._zygote = None

    def spawn(self, order: wire.Fork, descriptors: Sequence[int]) -> None:
        """Make a worker. A fact tells its pid, or that there is none. The descriptors remain the caller's.

        Raises:
            OSError: the zygote has died, or its queue is full.
        """
        if self._forks:
            assert self._zygote is not None
            self._zygote.channel.send(codec.pack_order(order), descriptors)
            return
        child = self._alone[order.incarnation] = self._execute()
        copies = [os.dup(descriptor) for descriptor in descriptors]
        child.pending.append((msgspec.structs.replace(order, become=True), copies))
        self._watch(child, lambda message: self._from_alone(order.incarnation, message))
        self._say(wire.Forked(order.incarnation, child.pid))

    def pids(self) -> set[int]:
        """Processes that this object reaps by itself."""
        return {child.pid for child in (*self._leaving, *([self._zygote] if self._zygote else []))}

    def close(self) -> None:
        """Let the zygote go: the end of its channel tells it."""
        self.ready = False
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if self._zygote is not None:
            self._end(self._zygote)
            self._zygote = None
        for child in self._alone.values():
            self._dismiss(child)
            os.close(child.pidfd)
        self._alone.clear()

    async def gone(self, patience: float) -> None:
        """Wait for what was let go; what hangs (in the app's import, say) is killed after `patience` seconds."""
        deadline = time.monotonic() + patience
        while self._leaving:
            if time.monotonic() > deadline:
                for child in self._leaving:
                    processes.send_signal(child.pidfd, signal.SIGKILL)
            self._reap()
            await asyncio.sleep(0.005)

    def _say(self, message: wire.Orders | None) -> None:
        self._put(FromZygote(self._prepare.generation, message))

    def _too_slow(self) -> None:
        assert self._zygote is not None
        processes.send_signal(self._zygote.pidfd, signal.SIGKILL)
        self._end(self._zygote)
        self._zygote = None
        message = f"the app wasn't imported within boot_timeout ({self._patience:g} s)"
        self._say(wire.PrepareFailed(message, "", AppError.exit_code))

    def _from_zygote(self, zygote: Child, message: wire.Orders | None) -> None:
        if zygote is not self._zygote:
            return
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if isinstance(message, wire.Prepared):
            self.ready = True
        if message is None:
            self._end(zygote)
            self._zygote, self.ready = None, False
        self._say(message)

    def _from_alone(self, incarnation: int, message: wire.Orders | None) -> None:
        child = self._alone.pop(incarnation, None)
        if child is None:
            return
        if isinstance(message, wire.Prepared):
            for order, descriptors in child.pending:
                with contextlib.suppress(OSError):  # it died meanwhile: its exit tells
                    child.channel.send(codec.pack_order(order), descriptors)
        self._dismiss(child)
        os.close(child.pidfd)
        if isinstance(message, wire.PrepareFailed):
            self._say(message)

    def _execute(self) -> Child:
        ours, theirs = Packets.pair(buffer=BUFFER)
        try:
            environ = {**os.environ, wire.CHANNEL: str(CHANNEL_FD)}
            pid = processes.execute(self._argv, fds={CHANNEL_FD: theirs.fileno()}, environ=environ)
        finally:
            theirs.close()
        with contextlib.suppress(OSError):  # dead already: the end of the channel tells
            ours.send(codec.pack_order(self._prepare))
        ours.set_blocking(False)
        return Child(pid, processes.open_pidfd(pid), ours)

    def _watch(self, child: Child, receive: Callable[[wire.Orders | None], None]) -> None:
        def readable() -> None:
            try:
                packet, descriptors = child.channel.receive()
                message = codec.unpack_order(packet) if packet else None
            except BlockingIOError:
                return
            except (OSError, codec.Garbled):  # what speaks like that is as good as gone
                message, descriptors = None, []
            for descriptor in descriptors:
                os.close(descriptor)
            receive(message)

        self._loop.add_reader(child.channel.fileno(), readable)

    def _end(self, zygote: Child) -> None:
        """Close a zygote's channel; it is reaped when it has left."""
        self._dismiss(zygote)
        self._leaving.append(zygote)
        self._loop.add_reader(zygote.pidfd, self._reap)

    def _dismiss(self, child: Child) -> None:
        """Close a channel, and what was to travel over it."""
        self._loop.remove_reader(child.channel.fileno())
        child.channel.close()
        for _, descriptors in child.pending:
            for descriptor in descriptors:
                os.close(descriptor)
        child.pending.clear()

    def _reap(self) -> None:
        for child in list(self._leaving):
            try:
                left = processes.exit_of(child.pidfd) is not None
            except ChildProcessError:
                left = True
            if left:
                self._leaving.remove(child)
                self._loop.remove_reader(child.pidfd)
                os.close(child.pidfd)


def default_argv() -> list[str]:
    """The child for apps that are named by text."""
    return [sys.executable, "-m", "cluster2.child"]


def script_argv() -> list[str]:
    """The child in script mode: this very script, executed again."""
    return [sys.executable, *sys.orig_argv[1:]]
