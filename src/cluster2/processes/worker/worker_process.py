"""A worker's life from the fork to the exit, read from top to bottom.

Start the engines, watch the listeners, say that it is ready, serve. When told to leave, drain (`drain`), stop the engines, leave.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import uvloop

from ...core.lifecycle import WorkerState
from ...engines.base import (
    AppContext,
    Capability,
    Engine,
    Interface,
    is_protocol_engine,
    is_self_accepting,
    owns_accept,
)
from ...errors import AppError, ClusterError, one_line, trace
from ...linux import app_forks, established_connections, parent_death_timer, processes, signals, stacks
from ...linux.handover import QueueReader, QueueWriter, batch_size
from ...linux.scoreboard import Row
from ...protocol import codec, messages
from .connections.acceptor import Acceptor
from .connections.connection_budget import ConnectionBudget
from .connections.handoff import HandoffPolicy
from .connections.listening_source import ListeningSource, ReadyQueue
from .drain import WorkerDrain
from .exit import finish_threads
from .health.app_check import AppHealthCheck
from .health.endpoint import CheckedApp, Ecv, Traffic
from .heartbeat import HeartbeatLoop
from .info import WorkerInfo
from .instrumentation import wrap
from .messaging import api
from .messaging.channel_client import ChannelClient
from .messaging.master_channel import MasterChannel
from .messaging.pending_calls import MASTER_GONE, WORKER_LEAVING
from .output import WorkerOutput
from .sampling.accept_mode import AcceptModeSelector
from .sampling.latency import LatencyWindow
from .sampling.steps import StepSampler
from .sampling.whereabouts import StackDescriber
from .spec import AppBinding, WorkerSpec
from .standalone import StandaloneSignals
from .tls import server_context

logger = logging.getLogger("cluster2.worker")

APP_TASKS_GRACE_S = 1.0
"""Seconds for tasks that the app has left, to clean up."""
_MAX_REPORT_BYTES = codec.MAX_MESSAGE_BYTES // 4
"""Bytes of an error's message, and of its detail, that are told to the master."""
_ORPHAN_GRACE_S = 5.0
"""Seconds beyond `drain_timeout` that an orphaned worker may take before the kernel ends it."""


def serve(birth: WorkerSpec, ended: Callable[[int], Awaitable[None]] | None = None) -> int:
    """Be the worker until it has drained. Returns the exit code.

    Args:
        ended: awaited on the worker's loop with that code, last of all that the app can notice.
    """
    gc.enable()  # the zygote switched it off to keep its heap in one piece
    _withhold(birth)
    if birth.channel is not None:
        _arrange_signals(birth)
    with app_forks.withholding_new_polls():
        loop = uvloop.new_event_loop()
    worker = Worker(birth)
    try:
        code = loop.run_until_complete(worker.run())
        if ended is not None:
            loop.run_until_complete(ended(code))
        loop.run_until_complete(_cancel_rest())
    finally:
        worker.restore_process()
    if birth.channel is not None:  # else the interpreter's own end is near
        finish_threads(worker.leave_by)
    return code


def _withhold(birth: WorkerSpec) -> None:
    """Keep what makes this process a worker from processes that the app forks."""
    listeners = [listener for _, listener in birth.sockets]
    app_forks.withhold(*listeners, *birth.ready_queues, *filter(None, (birth.idle_queue, birth.channel)))
    for listener in listeners:
        app_forks.withhold_for_good(partial(established_connections.descriptors, listener))
    app_forks.in_child(api.unbind_channel)


async def _cancel_rest() -> None:
    """Give tasks that the app left running a chance to clean up."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest, timeout=APP_TASKS_GRACE_S)


class Worker:
    """One worker. `run` tells its life; the parts do the work.

    Attributes:
        leave_by: the end of `drain_timeout`, on the monotonic clock; 0: the drain hasn't begun.
    """

    def __init__(self, birth: WorkerSpec) -> None:
        """Nothing happens yet."""
        order = birth.order
        self._birth = birth
        self._settings = birth.settings
        self._life = WorkerInfo(os.getpid(), order.slot, order.generation)
        self._row = birth.board.row(order.row)
        self.leave_by = 0.0
        self._told = asyncio.Event()
        self._drain = WorkerDrain(birth.settings, keeper_gone=not order.keeper)
        self._say = birth.on_message
        self._traffic = Traffic(birth.board.header, lambda message: self._say(message), alone=birth.channel is None)
        self._office: ChannelClient | None = None
        self._alone = StandaloneSignals(birth.settings, birth.on_message, birth.terminal)
        self._paper = birth.output or WorkerOutput(birth.settings, "", order.slot)

    async def run(self) -> int:
        """Serve until told to drain; returns the exit code."""
        self._fill_row()
        channel = await self._open_channel()
        api.bind_worker(self._life, self._office)
        self._say(messages.Started(self._life.pid, messages.PROTOCOL_VERSION))
        if self._office is not None:
            self._office.open()
        code = await self._live()
        if channel is not None:
            await channel.close()
        if self._office is not None:
            self._office.pending_calls.close(WORKER_LEAVING)  # threads may still wait
        if self._birth.loopback is not None:
            await self._birth.loopback.close()
        return code

    def restore_process(self) -> None:
        """Take back what was arranged with the process."""
        self._alone.close()

    async def _live(self) -> int:
        try:
            if not await self._start_unless_told():
                return 0
            await self._open()
        except ClusterError as error:
            message, detail = (
                codec.clip(error.message, _MAX_REPORT_BYTES),
                codec.clip(error.detail, _MAX_REPORT_BYTES, end=True),
            )
            self._say(messages.BootFailed(message, detail, error.exit_code))
            return error.exit_code
        self._row.state = WorkerState.READY
        self._say(messages.Ready())
        await self._wait_told()
        if self._birth.channel is None and self._settings.lame_duck:
            await self._serve_on(self._settings.lame_duck)
        return await self._end()

    async def _wait_told(self, seconds: float | None = None) -> None:
        """Wait until the worker is told to leave, for so many seconds at most.

        An app that cancels all tasks of the loop doesn't end its worker by that.
        """
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        while not self._told.is_set():
            try:
                async with asyncio.timeout_at(deadline):
                    await self._told.wait()
            except TimeoutError:
                return
            except asyncio.CancelledError:
                logger.exception("the app cancelled the worker's own task; the worker goes on")

    async def _serve_on(self, seconds: float) -> None:
        """Without a master: be a lame duck (`master.departure`), until the time is over or somebody asks again."""
        self._birth.board.header.leaving = 1
        self._told.clear()
        await self._wait_told(seconds)

    async def _start_unless_told(self) -> bool:
        """Start, but don't wait for an app that hangs in its startup when told to leave. Returns whether it has started.

        Nothing is taken yet: a connection that came in the middle of a start that is given up would be lost.
        """
        starting = asyncio.ensure_future(self._start())
        told = asyncio.ensure_future(self._told.wait())
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not starting.done():
            starting.cancel()
            return False
        if starting.cancelled():
            raise AppError("the app has cancelled the task that starts it")
        starting.result()
        return True

    async def _open_channel(self) -> MasterChannel | None:
        """Get ready to be told to drain: by the master, or by signals where there is none. TERM always works."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminated, signal.SIGTERM)
        if self._birth.channel is not None:
            channel = await MasterChannel.open(self._birth.channel, self._receive, self._orphaned)
            self._say = channel.send
        else:
            self._alone.arrange(loop, self._terminated)
            if self._birth.loopback is None:
                return None
            channel = await MasterChannel.open(await self._birth.loopback.open(), self._receive, lambda: None)
            channel.send(messages.Started(self._life.pid, messages.PROTOCOL_VERSION))
        self._office = ChannelClient(channel, api.emitter, api.components)
        return channel

    async def _start(self) -> None:
        try:
            await api.hooks.run_start()
        except (Exception, SystemExit) as error:
            raise AppError(f"a hook of worker.on_start raised {one_line(error)}", detail=trace(error)) from error
        self._measured = LatencyWindow(self._row)
        self._watch = StepSampler(self._long_step, 2 * self._settings.handoff_slow_above, self._measured.add)
        self._engines = [self._engine(site) for site in self._birth.bindings]
        for engine in self._engines:
            await engine.start()

    async def _open(self) -> None:
        """Take connections from now on. Nothing of the app's is waited for, so nothing ends this in the middle."""
        outlet = (
            None
            if self._birth.idle_queue is None
            else QueueWriter(self._birth.idle_queue, batch_size(processes.file_limit()))
        )
        self._moves = HandoffPolicy(outlet, self._engines, self._birth.board.header)
        doors, backlog = self._doors(), self._settings.backlog
        self._acceptor = Acceptor(doors, self._ready_queues(), self._woken, self._settings.timeout, backlog)
        self._pulse = HeartbeatLoop(
            self._birth.board,
            self._row,
            self._engines,
            self._acceptor,
            self._moves,
            AcceptModeSelector(self._settings.handoff_slow_above if outlet else 0.0),
            self._watch,
            self._measured,
            self._settings.handoff_idle_after,
            self._settings.request_timeout,
            self._paper,
            ConnectionBudget(len(doors), backlog),
        )
        await self._acceptor.start(self._pulse.begin())
        for spec, listener in self._birth.sockets:
            if is_self_accepting(engine := self._engines[spec.site]):
                engine.listen(listener)
        self._pulse.start()
        stacks.add(StackDescriber(self._engines, asyncio.get_running_loop()).describe)

    def _engine(self, site: AppBinding) -> Engine:
        def around(call: Callable[..., Any], interface: Interface) -> Callable[..., Any]:
            asked = self._settings.ecv_path and interface is not Interface.TCP
            ecv = self._ecv(site, call) if asked else None
            return wrap(call, interface, self._watch, self._woken, ecv)

        gauge = self._row.integers[Row.begun.index : Row.ended.index + 1] if owns_accept(site.engine) else None
        tls = server_context(self._settings)
        call, interface, access = site.app.call, site.app.interface, self._paper.access
        return site.engine(AppContext(call, interface, self._settings, tls, around, cast(Any, gauge), access))

    def _ecv(self, site: AppBinding, call: Callable[..., Any]) -> Ecv:
        check = None
        if self._settings.ecv_monitor is not None:
            threaded = site.app.interface is Interface.WSGI
            check = AppHealthCheck(self._birth.validator, cancellable=not threaded, told=self._checked)
        served = CheckedApp(call, site.engine.peer, check)
        prefixes = Capability.ROOT_PATH in site.engine.capabilities[site.app.interface]
        root = self._settings.root_path if prefixes else ""
        return Ecv(self._settings, self._birth.board.header.started, self._traffic, served, root)

    def _checked(self, reason: str | None) -> None:
        """The app's own check has another outcome than last time."""
        if reason is None:
            logger.info("the ECV check passes again")
        else:
            self._say(
                messages.Note(
                    codec.clip(f"the ECV check of {self._settings.ecv_monitor} fails: {reason}", _MAX_REPORT_BYTES)
                )
            )

    def _doors(self) -> list[ListeningSource]:
        tls = server_context(self._settings)
        return [
            # A Unix socket's peer is on this machine: TLS would only be in its way.
            ListeningSource(listener, engine, tls if listener.family != socket.AF_UNIX else None, spec.owned)
            for spec, listener in self._birth.sockets
            if is_protocol_engine(engine := self._engines[spec.site])
        ]

    def _ready_queues(self) -> list[ReadyQueue]:
        return [
            ReadyQueue(QueueReader(sock), engine)
            for site, sock in enumerate(self._birth.ready_queues)
            if is_protocol_engine(engine := self._engines[site])
        ]

    def _woken(self) -> None:
        if self._pulse.slow:
            self._pulse.wake()

    def _long_step(self, step: float, now: float) -> None:
        self._pulse.long_step(step, now)

    async def _leave(self) -> bool:
        """Drain. Returns whether everything has ended by itself."""
        self._row.draining, self._row.state = 1, WorkerState.DRAINING
        self._pulse.drain()
        if self._birth.shut_listeners is not None:
            try:
                self._drain.listeners_open = not self._birth.shut_listeners()
            except Exception:
                logger.exception("the doors could not be shut; newcomers are served until the worker is idle")
                self._drain.listeners_open = True
        return await self._drain.run(self._engines, self._acceptor, self._moves)

    async def _end(self) -> int:
        """Drain, stop the app, run its hooks. Returns the exit code: 1 if one of that failed, which was logged and told."""
        self.leave_by = deadline = time.monotonic() + self._settings.drain_timeout
        self._life.draining = True
        hooks = asyncio.ensure_future(api.hooks.run_drain())
        failed = await run_steps(
            ("the drain", self._drained),
            ("worker.on_drain", lambda: finish_drain_hooks(hooks, deadline - time.monotonic())),
            ("closing the acceptor", self._stop_taking),
            *((f"stopping engine {engine.name}", engine.stop) for engine in reversed(self._engines)),
            ("worker.on_stop", api.hooks.run_stop),
            ("the last heartbeat", self._last_beat),
        )
        if failed:
            self._say(messages.EndFailed(codec.clip("; ".join(failed), _MAX_REPORT_BYTES)))
        return 1 if failed else 0

    async def _drained(self) -> None:
        finished: bool | None = None
        while finished is None:
            try:
                finished = await self._leave()
            except asyncio.CancelledError:
                logger.exception("the app cancelled the worker's own task; the drain goes on")
        if not finished:
            self._say(messages.Cut(await self._drain.abort(self._engines)))

    async def _stop_taking(self) -> None:
        self._acceptor.stop()

    async def _last_beat(self) -> None:
        self._pulse.publish()
        self._pulse.stop()
        self._paper.tick()

    def _fill_row(self) -> None:
        self._row.state = WorkerState.BOOTING

    def _receive(self, message: messages.Talk | messages.Unknown) -> None:
        if self._office is not None and self._office.receive(message):
            return
        match message:
            case messages.Drain():
                self._drain.listeners_open = self._drain.listeners_open or message.open_doors
                self._drain_soon(message.last)
            case messages.KeeperGone():
                self._drain.deserted = True
            case messages.Reopen():
                self._paper.reopen_if_moved()
            case messages.TrafficSet():
                self._traffic.confirmed()
            case _:
                logger.warning("the master said what only a worker says: %r", message)

    def _terminated(self, number: signal.Signals) -> None:
        """TERM: leave. With a master around, a successor is made and connections move; without one, nobody comes after us."""
        self._say(messages.Leaving(number.name))
        self._drain_soon(self._birth.channel is None)

    def _drain_soon(self, last: bool) -> None:
        self._drain.last = self._drain.last or last
        self._told.set()

    def _orphaned(self) -> None:
        logger.warning("the master is gone; worker %d drains and leaves", self._life.pid)
        self._drain.deserted = True
        self._drain.listeners_open = True  # the master has shut no door, or its end has opened them again
        self._traffic.orphaned()
        if self._office is not None:
            self._office.pending_calls.close(MASTER_GONE)
        self._drain_soon(True)


async def finish_drain_hooks(hooks: asyncio.Future[bool], seconds: float) -> None:
    """Wait for the hooks of `worker.on_drain`, which run beside the drain, and cancel them when the time is over.

    One that raises or hangs is logged. It is no failure of the worker's end: the drain was complete without it.
    """
    await asyncio.wait({hooks}, timeout=max(0.0, seconds))
    if not hooks.done():
        logger.warning("a hook of worker.on_drain hasn't ended within drain_timeout; it is cancelled")
        hooks.cancel()
        await asyncio.wait({hooks}, timeout=APP_TASKS_GRACE_S)


async def run_steps(*steps: tuple[str, Callable[[], Awaitable[str | None]]]) -> list[str]:
    """Take each step, whatever the one before it raised; log what one raises, with its name.

    SystemExit of a hook, or the cancellation of all tasks of the loop by one, ends that step and no other.

    Returns:
        What failed: a line for each step that raised, or that returned what went wrong.
    """
    failed = []
    for name, step in steps:
        try:
            wrong = await step()
        except ClusterError as error:
            wrong = error.message
            logger.error("%s failed: %s", name, wrong)
        except BaseException as error:
            wrong = f"{name} failed: {one_line(error)}"
            logger.exception("%s failed; the worker goes on leaving", name)
        if wrong:
            failed.append(wrong)
    return failed


def _arrange_signals(birth: WorkerSpec) -> None:
    """Ignore what concerns the master alone, and have this process end if the master is gone and the loop is stuck.

    A terminal's ^C, or a HUP to the group, is the master's business: it tells its workers itself.

    The parent-death signal is SIGCONT: no other but SIGKILL reaches a process that is stopped, and after SIGKILL nothing
    could be drained. Continued, the worker finds that its channel has ended.
    """
    signals.settle("worker")
    limit = birth.settings.drain_timeout + _ORPHAN_GRACE_S
    ending = parent_death_timer.arm(birth.lifeline, limit) if birth.lifeline >= 0 else None

    def continued(*_: object) -> None:
        if os.getppid() == birth.order.master:
            return  # a shell's `fg`, or an operator's `kill -CONT`
        # Behind the end of the channel, for a loop that is stuck. The main thread runs Python, so the exact timer replaces the
        # alarm. It leaves SIGALRM and ITIMER_REAL to the app, whose requests may use them during the drain.
        try:
            parent_death_timer.kill_after(limit)
        except OSError as error:
            logger.warning("the end of this worker isn't bounded exactly: %s", error)
            return  # the alarm, if it was armed, goes on
        if ending is not None:
            parent_death_timer.disarm(ending)

    signal.signal(signal.SIGCONT, continued)
    processes.set_parent_death_signal(signal.SIGCONT)
    continued()
