"""Where the workers of one generation come from: a zygote, or, where forking is unsafe, an executed process for each.

Both are the same program given the same orders (`child`): a zygote is told to prepare and then to fork; an executed worker
is told to prepare and then to become the worker itself. So there is one way in which an app is loaded and a worker starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from .. import codec, wire
from ..errors import AppError, ClusterError
from .child import Child
from .facts import Fact, FromZygote

BUFFER = 1 << 18
"""Of the channel, in bytes: a traceback must fit."""


@dataclass(slots=True, eq=False)
class Alone:
    """An executed process that is to become a worker, with the order for it, which waits until it has loaded the app."""

    child: Child
    order: wire.Fork
    descriptors: list[int]


class Nursery:
    """Loads one generation and makes its workers.

    Attributes:
        ready: workers can be ordered.
    """

    def __init__(
        self,
        prepare: wire.Prepare,
        argv: Sequence[str],
        put: Callable[[Fact], None],
        patience: float = 60.0,
        files: Sequence[int] = (),
    ) -> None:
        """Nothing is started yet.

        Args:
            prepare: what to load.
            argv: the program that is the child: absolute path and arguments.
            put: takes the facts about it.
            patience: seconds that loading may take.
            files: descriptors that travel with each order to prepare; they remain the caller's.
        """
        self._patience = patience
        self._limit: asyncio.TimerHandle | None = None
        self._prepare = prepare
        self._files = files
        self._argv = argv
        self._put = put
        self._loop = asyncio.get_running_loop()
        self._zygote: Child | None = None
        self._alone: dict[int, Alone] = {}
        self._leaving: list[Child] = []
        self._forks = True
        self.ready = False

    def load(self) -> None:
        """Start the zygote. A fact says whether it is prepared."""
        try:
            zygote = self._zygote = self._execute()
        except OSError as error:
            self._say(wire.PrepareFailed(f"no process can be made: {error.strerror}", "", ClusterError.exit_code))
            return
        self._limit = self._loop.call_later(self._patience, self._too_slow)
        self._hear(zygote, lambda message: self._from_zygote(zygote, message))

    def each_executed(self) -> None:
        """From now on make no forks: each worker is executed and loads the app for itself."""
        self._forks, self.ready = False, True
        self._let_zygote_go()

    @property
    def forks(self) -> bool:
        """Whether workers are forked from the zygote, not executed one by one."""
        return self._forks

    def spawn(self, order: wire.Fork, descriptors: Sequence[int]) -> None:
        """Make a worker. A fact tells its pid, or that there is none. The descriptors remain the caller's.

        Raises:
            OSError: the zygote has died, or its queue is full; no process can be made.
        """
        if self._forks:
            assert self._zygote is not None
            self._zygote.channel.send(codec.pack_order(order), descriptors)
            return
        with contextlib.ExitStack() as unsent:
            copies = []
            for descriptor in descriptors:
                copies.append(os.dup(descriptor))
                unsent.callback(os.close, copies[-1])
            child = self._execute(reap=False)
            unsent.pop_all()
        self._alone[order.incarnation] = Alone(child, msgspec.structs.replace(order, become=True), copies)
        self._hear(child, lambda message: self._from_alone(order.incarnation, message))
        self._say(wire.Forked(order.incarnation, child.pid))

    def reopen_logs(self) -> None:
        """The zygote is to open its log again; one that doesn't listen does so before its next fork."""
        if self._zygote is not None and self.ready:
            with contextlib.suppress(OSError):
                self._zygote.channel.send(codec.pack_order(wire.Reopen()))

    def pids(self) -> set[int]:
        """Processes that this object reaps by itself."""
        zygote = [] if self._zygote is None else [self._zygote]
        return {child.pid for child in (*self._leaving, *zygote) if not child.left.done()}

    def close(self) -> None:
        """Let the zygote go: the end of its channel tells it."""
        self.ready = False
        self._let_zygote_go()
        for alone in self._alone.values():
            self._dismiss(alone)
        self._alone.clear()

    async def gone(self, patience: float) -> None:
        """Wait for what was let go; what hangs (in the app's import, say) is killed after `patience` seconds."""
        await asyncio.gather(*(child.gone(patience) for child in self._leaving))

    def _say(self, message: wire.Orders | None) -> None:
        self._put(FromZygote(self._prepare.generation, message))

    def _too_slow(self) -> None:
        assert self._zygote is not None
        self._zygote.kill()
        self._let_zygote_go()
        message = f"the app wasn't imported within boot_timeout ({self._patience:g} s)"
        self._say(wire.PrepareFailed(message, "", AppError.exit_code))

    def _from_zygote(self, zygote: Child, message: wire.Orders | None) -> None:
        if zygote is not self._zygote:
            return
        self._in_time()
        if isinstance(message, wire.Prepared):
            self.ready = True
        if message is None:
            self.ready = False
            self._let_zygote_go()
        self._say(message)

    def _from_alone(self, incarnation: int, message: wire.Orders | None) -> None:
        alone = self._alone.pop(incarnation, None)
        if alone is None:
            return
        if isinstance(message, wire.Prepared):
            with contextlib.suppress(OSError):  # it died meanwhile: its exit tells
                alone.child.channel.send(codec.pack_order(alone.order), alone.descriptors)
        self._dismiss(alone)
        if isinstance(message, wire.PrepareFailed):
            self._say(message)

    def _execute(self, *, reap: bool = True) -> Child:
        return Child(self._argv, codec.pack_order(self._prepare), self._files, buffer=BUFFER, reap=reap)

    def _hear(self, child: Child, receive: Callable[[wire.Orders | None], None]) -> None:
        """What a child says, as messages; None: its channel has ended, or might as well have."""

        def said(packet: bytes, descriptors: list[int]) -> None:
            for descriptor in descriptors:
                os.close(descriptor)
            try:
                message = codec.unpack_order(packet) if packet else None
            except codec.Garbled:
                message = None
            receive(message)

        child.hear(said)

    def _in_time(self) -> None:
        """The zygote has come to something: no more time-out."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _let_zygote_go(self) -> None:
        """Close its channel; it is reaped when it has left."""
        self._in_time()
        if self._zygote is not None:
            self._zygote.let_go()
            self._leaving = [child for child in self._leaving if not child.left.done()] + [self._zygote]
            self._zygote = None

    def _dismiss(self, alone: Alone) -> None:
        """Close the channel, and what was to travel over it."""
        alone.child.let_go()
        for descriptor in alone.descriptors:
            os.close(descriptor)


def default_argv() -> list[str]:
    """Return the command line of the child for apps that are named by text.

    -P: the import path gets the directory that `chdir` names, and not the one that the master was started in.
    """
    return [sys.executable, "-P", "-m", "cluster2.child"]


def script_argv(directory: str) -> list[str]:
    """Return the command line of the child in script mode: this very script, executed again.

    Args:
        directory: the working directory, by the name that a new generation finds its release with. `posix_spawn` can't change
            directories, so where the kernel has another name for it (there is a symbolic link) a shell does.
    """
    script = [sys.executable, *sys.orig_argv[1:]]
    return script if directory == os.getcwd() else ["/bin/sh", "-c", 'cd "$0" && exec "$@"', directory, *script]
