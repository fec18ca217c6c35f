"""Make the workers of one generation: forks of a zygote, or, where forking is unsafe, an executed process for each.

Both are the same program with the same orders (`child_main`). A zygote gets the order to prepare, and then orders to fork. An
executed worker gets the order to prepare, and then the order to become the worker itself. So there is one way in which an app is
loaded and a worker starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .... import events
from ....errors import AppError, ClusterError
from ....linux.forking import FORK_TIMEOUT_S
from ....protocol import codec, messages
from ....protocol.worker_descriptors import WorkerDescriptors
from ..helpers.child import KILL_TIMEOUT_S, ChildProcess
from ..state.inbox import InboxMessage, ZygoteMessage

_CHANNEL_BUFFER_BYTES = 1 << 18
"""Bytes of the channel's buffer: a traceback must fit."""
_ANSWER_TIMEOUT_S = FORK_TIMEOUT_S + 5.0
"""Seconds that a zygote may take for one order. Before that it gives up a fork that hangs."""
_EXIT_GRACE_S = 1.0
"""Seconds from the end of a zygote's channel to its exit. Then it is killed."""
_ZYGOTE_EXIT_GRACE_S = 5.0
"""Seconds in which a zygote that isn't needed any more may exit: it may be importing, or running exit handlers."""


@dataclass(slots=True, eq=False)
class _ExecutedWorker:
    """An executed process that will become a worker. Its order waits here until it has loaded the app."""

    child: ChildProcess
    order: messages.Fork
    descriptors: list[int]


class WorkerFactory:
    """Loads one generation and makes its workers.

    Attributes:
        ready: workers can be ordered from the zygote.
    """

    def __init__(
        self,
        prepare: messages.Prepare,
        argv: Sequence[str],
        post: Callable[[InboxMessage], None],
        boot_timeout_s: float = 60.0,
        files: Sequence[int] = (),
        *,
        scripted: bool = False,
        emit: Callable[[events.Event], None] = lambda event: None,
    ) -> None:
        """Make a factory. It starts no process yet.

        Args:
            prepare: the order that says what to load.
            argv: the program of the child: absolute path and arguments.
            post: takes the messages about it.
            boot_timeout_s: seconds that loading may take.
            files: descriptors that travel with each order to prepare. They remain the caller's.
            scripted: the program is a script, which reads its options itself.
            emit: takes the events about zygotes.
        """
        self._boot_timeout_s = boot_timeout_s
        self._limit: asyncio.TimerHandle | None = None
        self._prepare = prepare
        self._files = files
        self._argv = argv
        self._scripted = scripted
        self._post = post
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._zygote: ChildProcess | None = None
        self._executed: dict[int, _ExecutedWorker] = {}
        self._closing_zygotes: list[ChildProcess] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered: set[int] = set()
        self._answer_limit: asyncio.TimerHandle | None = None
        self._stacks = ""
        self._forks = True
        self.ready = False

    def load(self) -> None:
        """Start the zygote. A `ZygoteMessage` reports when it is prepared, or why not."""
        try:
            zygote = self._zygote = self._execute()
            self._listen(zygote, lambda message: self._from_zygote(zygote, message))
        except OSError as error:
            self._let_zygote_go(at_once=True)
            self._send(messages.PrepareFailed(f"no process can be made: {error.strerror}", "", ClusterError.exit_code))
            return
        self._limit = self._loop.call_later(self._boot_timeout_s, self._too_slow)

    def fix_options(self, prepare: messages.Prepare, files: Sequence[int]) -> None:
        """Load with these options from now on, also if the script chooses others when it is executed again."""
        self._prepare, self._files = prepare, files

    def each_executed(self) -> None:
        """Make no forks from now on: execute each worker, which loads the app for itself."""
        self._forks, self.ready = False, True
        self._let_zygote_go()

    @property
    def forks(self) -> bool:
        """True if workers are forked from the zygote, and not executed one by one."""
        return self._forks

    def spawn(self, order: messages.Fork, descriptors: WorkerDescriptors) -> None:
        """Make a worker. A `ZygoteMessage` reports its pid, or that there is none. The descriptors remain the caller's.

        Raises:
            OSError: the zygote has ended, or its queue is full, or no process can be made.
        """
        if self._forks:
            assert self._zygote is not None
            self._zygote.channel.send(codec.pack_order(order), descriptors.to_list())
            self._unanswered.add(order.incarnation)
            if self._answer_limit is None:
                self._limit_answer()
            return
        with contextlib.ExitStack() as unsent:
            copies: list[int] = []
            for descriptor in descriptors.to_list():
                copies.append(os.dup(descriptor))
                unsent.callback(os.close, copies[-1])
            stacks_file = WorkerDescriptors.from_list(copies, order).stacks_file
            child = self._execute(reap=False, stacks_file=stacks_file)
            self._listen(child, lambda message: self._from_executed(order.incarnation, message))
            unsent.pop_all()
        self._executed[order.incarnation] = _ExecutedWorker(child, msgspec.structs.replace(order, become=True), copies)
        self._send(messages.WorkerForked(order.incarnation, child.pid))

    def reopen_logs(self) -> None:
        """Have the zygote open its log again. If it doesn't read the order, it does so before its next fork."""
        if self._zygote is not None and self.ready:
            with contextlib.suppress(OSError):
                self._zygote.channel.send(codec.pack_order(messages.Reopen()))

    def pids(self) -> set[int]:
        """Return the pids of the processes that this object reaps."""
        zygote = [] if self._zygote is None else [self._zygote]
        return {child.pid for child in (*self._closing_zygotes, *zygote) if not child.left.done()}

    def close(self) -> None:
        """Let the zygote exit, which it does when its channel closes."""
        self.ready = False
        self._let_zygote_go()
        for executed in self._executed.values():
            self._dismiss(executed)
        self._executed.clear()

    async def wait_closed(self, patience: float) -> None:
        """Wait for the processes that were let go. One that hangs (in the app's import) is killed after `patience` seconds."""
        await asyncio.gather(*(child.wait_closed(patience) for child in self._closing_zygotes))

    def _send(self, message: messages.Orders | None) -> None:
        self._post(ZygoteMessage(self._prepare.generation, message))

    def _too_slow(self) -> None:
        zygote = self._zygote
        assert zygote is not None

        async def give_up() -> None:
            stacks = await zygote.stacks()
            if zygote is not self._zygote or self._limit is None:
                return  # meanwhile it was prepared, has failed, or has ended
            self._let_zygote_go(at_once=True)
            message = f"the app wasn't imported within boot_timeout ({self._boot_timeout_s:g} s)"
            self._send(messages.PrepareFailed(message, stacks, AppError.exit_code))

        self._start(give_up())

    def _limit_answer(self) -> None:
        """Bound the time until the zygote responds to the oldest order."""
        if self._answer_limit is not None:
            self._answer_limit.cancel()
            self._answer_limit = None
        if self._unanswered:
            # A worker must be ready within boot_timeout. This limit ends earlier, so that the report names the fork and not the
            # boot.
            timeout_s = min(_ANSWER_TIMEOUT_S, self._boot_timeout_s * 0.75)
            self._answer_limit = self._loop.call_later(timeout_s, self._on_unresponsive)

    def _on_unresponsive(self) -> None:
        zygote = self._zygote
        if zygote is None:
            return

        async def kill() -> None:
            stacks = await zygote.stacks()
            if zygote is self._zygote and self._unanswered:
                self._stacks = stacks
                zygote.kill()  # its channel closes then, which `_zygote_ends` handles

        self._start(kill())

    def _from_zygote(self, zygote: ChildProcess, message: messages.Orders | None) -> None:
        if zygote is not self._zygote:
            return
        if isinstance(message, messages.WorkerForked | messages.ForkFailed):
            self._unanswered.discard(message.incarnation)
            self._limit_answer()
        if message is None:
            self._zygote_ends(zygote)
            return
        self._cancel_timeout()
        if isinstance(message, messages.Prepared):
            self.ready = True
            self._loaded(zygote.pid, zygote.left)
        self._send(message)

    def _loaded(self, pid: int, left: asyncio.Future[str]) -> None:
        generation = self._prepare.generation
        self._emit(events.Loaded(time=time.time(), pid=pid, generation=generation))
        left.add_done_callback(lambda _: self._emit(events.Unloaded(time=time.time(), pid=pid, generation=generation)))

    def _zygote_ends(self, zygote: ChildProcess) -> None:
        """Post the exit of a zygote whose channel has closed, or that has violated the protocol, and how it ended."""
        doing = "while it forked a worker" if self._unanswered else "" if self.ready else "while it imported the app"
        self.ready = False
        self._let_zygote_go(_EXIT_GRACE_S)

        async def post_exit() -> None:
            await asyncio.wait({zygote.left}, timeout=_EXIT_GRACE_S + KILL_TIMEOUT_S)
            how = zygote.left.result() if zygote.left.done() else "it doesn't end"
            stacks, self._stacks = self._stacks, ""
            self._post(ZygoteMessage(self._prepare.generation, None, " ".join(filter(None, (how, doing))), stacks))

        self._start(post_exit())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _from_executed(self, incarnation: int, message: messages.Orders | None) -> None:
        executed = self._executed.pop(incarnation, None)
        if executed is None:
            return
        if isinstance(message, messages.Prepared):
            with contextlib.suppress(OSError):  # it has ended; its exit is handled elsewhere
                executed.child.channel.send(codec.pack_order(executed.order), executed.descriptors)
        self._dismiss(executed)
        if isinstance(message, messages.PrepareFailed):
            self._send(message)

    def _execute(self, *, reap: bool = True, stacks_file: int | None = None) -> ChildProcess:
        order = codec.pack_order(self._prepare)
        return ChildProcess(
            self._argv,
            order,
            self._files,
            buffer=_CHANNEL_BUFFER_BYTES,
            reap=reap,
            stacks_file=stacks_file,
            secrets=self._scripted,
        )

    def _listen(self, child: ChildProcess, receive: Callable[[messages.Orders | None], None]) -> None:
        """Decode the messages of a child; None: its channel has closed, or it has violated the protocol."""

        def on_packet(packet: bytes, descriptors: list[int]) -> None:
            for descriptor in descriptors:
                os.close(descriptor)
            try:
                message = codec.unpack_order(packet) if packet else None
            except codec.ProtocolError:
                message = None
            receive(message)

        child.on_message(on_packet)

    def _cancel_timeout(self) -> None:
        """Cancel the time-out of a zygote that is prepared, or has failed."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _let_zygote_go(self, grace_s: float = _ZYGOTE_EXIT_GRACE_S, *, at_once: bool = False) -> None:
        """Close the channel of the zygote, and kill it if it doesn't exit in time. It is reaped in any case."""
        self._cancel_timeout()
        self._unanswered.clear()
        self._limit_answer()
        if self._zygote is not None:
            zygote, self._zygote = self._zygote, None
            zygote.close_channel()
            if at_once:
                zygote.kill()
            killer = self._loop.call_later(grace_s, zygote.kill)
            zygote.left.add_done_callback(lambda _: killer.cancel())
            self._closing_zygotes = [child for child in self._closing_zygotes if not child.left.done()] + [zygote]

    def _dismiss(self, executed: _ExecutedWorker) -> None:
        """Close the channel, and the descriptors that would have travelled over it."""
        executed.child.close_channel()
        for descriptor in executed.descriptors:
            os.close(descriptor)


def default_argv() -> list[str]:
    """Return the command line of the child for apps that are named by text.

    -P: the import path gets the directory that `chdir` names, and not the one that the master was started in.
    """
    return [sys.executable, "-P", "-m", "cluster2.processes.child_main"]


def script_argv(directory: str) -> list[str]:
    """Return the command line of the child in script mode: this very script, executed again.

    Args:
        directory: the working directory, by the name that a new generation finds its release with. `posix_spawn` can't change
            directories, so where the kernel has another name for it (there is a symbolic link) a shell does.
    """
    script = [sys.executable, *sys.orig_argv[1:]]
    return script if directory == os.getcwd() else ["/bin/sh", "-c", 'cd "$0" && exec "$@"', directory, *script]
