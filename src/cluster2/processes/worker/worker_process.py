"""A worker from the fork to the exit, in the order of its phases.

The worker starts the engines, watches the listeners, reports that it is ready, and serves. When it is asked to leave it drains
(`drain`), stops the engines, runs the app's hooks, and exits.
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

_APP_TASKS_GRACE_S = 1.0
"""Seconds that tasks which the app has left running have to clean up."""
_MAX_REPORT_BYTES = codec.MAX_MESSAGE_BYTES // 4
"""Bytes of an error's message, and of its detail, that are sent to the master."""
_ORPHAN_GRACE_S = 5.0
"""Seconds beyond `drain_timeout` that an orphaned worker may take before the kernel ends it."""


def serve(spec: WorkerSpec, ended: Callable[[int], Awaitable[None]] | None = None) -> int:
    """Run the worker until it has drained. Return the exit code.

    Args:
        ended: awaited on the worker's loop with the exit code, after all that the app can notice.
    """
    gc.enable()  # the zygote switched it off to keep its heap in one piece
    _withhold(spec)
    if spec.channel is not None:
        _arrange_signals(spec)
    with app_forks.withholding_new_polls():
        loop = uvloop.new_event_loop()
    worker = Worker(spec)
    try:
        code = loop.run_until_complete(worker.run())
        if ended is not None:
            loop.run_until_complete(ended(code))
        loop.run_until_complete(_cancel_app_tasks())
    finally:
        worker.restore_process()
    if spec.channel is not None:  # without a master the interpreter ends normally, and waits for threads itself
        finish_threads(worker.leave_by)
    return code


def _withhold(spec: WorkerSpec) -> None:
    """Keep the worker's descriptors from processes that the app forks."""
    listeners = [listener for _, listener in spec.sockets]
    app_forks.withhold(*listeners, *spec.ready_queues, *filter(None, (spec.idle_queue, spec.channel)))
    for listener in listeners:
        app_forks.withhold_for_good(partial(established_connections.descriptors, listener))
    app_forks.in_child(api.unbind_channel)


async def _cancel_app_tasks() -> None:
    """Cancel the tasks that the app left running, and let them clean up."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_APP_TASKS_GRACE_S)


class Worker:
    """One worker. `run` calls the phases in order.

    Attributes:
        leave_by: the end of `drain_timeout`, on the monotonic clock; 0: the drain hasn't begun.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        """Create the parts that exist before the loop runs."""
        order = spec.order
        self._spec = spec
        self._settings = spec.settings
        self._info = WorkerInfo(os.getpid(), order.slot, order.generation)
        self._row = spec.board.row(order.row)
        self.leave_by = 0.0
        self._leave_requested = asyncio.Event()
        self._drain = WorkerDrain(spec.settings, keeper_gone=not order.keeper)
        self._send = spec.on_message
        # A lambda, since `_open_channel` replaces `_send`.
        self._traffic = Traffic(spec.board.header, lambda message: self._send(message), alone=spec.channel is None)
        self._client: ChannelClient | None = None
        self._signals = StandaloneSignals(spec.settings, spec.on_message, spec.terminal)
        self._output = spec.output or WorkerOutput(spec.settings, "", order.slot)

    async def run(self) -> int:
        """Serve until the worker is asked to leave. Return the exit code."""
        self._row.state = WorkerState.BOOTING
        channel = await self._open_channel()
        api.bind_worker(self._info, self._client)
        self._send(messages.Started(self._info.pid, messages.PROTOCOL_VERSION))
        if self._client is not None:
            self._client.open()
        code = await self._run_phases()
        if channel is not None:
            await channel.close()  # after all messages: the end of the channel means that the worker has left
        if self._client is not None:
            self._client.pending_calls.close(WORKER_LEAVING)  # threads may still wait for results
        if self._spec.loopback is not None:
            await self._spec.loopback.close()
        return code

    def restore_process(self) -> None:
        """Restore the signal handlers of the process."""
        self._signals.close()

    async def _run_phases(self) -> int:
        """Start, serve and end. Return the exit code."""
        try:
            if not await self._start_unless_leaving():
                return 0
            await self._open()
        except ClusterError as error:
            message, detail = (
                codec.clip(error.message, _MAX_REPORT_BYTES),
                codec.clip(error.detail, _MAX_REPORT_BYTES, end=True),
            )
            self._send(messages.BootFailed(message, detail, error.exit_code))
            return error.exit_code
        self._row.state = WorkerState.READY
        self._send(messages.Ready())
        await self._wait_for_leave()
        if self._spec.channel is None and self._settings.lame_duck:
            await self._serve_on(self._settings.lame_duck)
        return await self._end()

    async def _wait_for_leave(self, seconds: float | None = None) -> None:
        """Wait until the worker is asked to leave, for so many seconds at most.

        An app that cancels all tasks of the loop doesn't end its worker: this task goes on.
        """
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        while not self._leave_requested.is_set():
            try:
                async with asyncio.timeout_at(deadline):
                    await self._leave_requested.wait()
            except TimeoutError:
                return
            except asyncio.CancelledError:
                logger.exception("the app cancelled the worker's own task; the worker goes on")

    async def _serve_on(self, seconds: float) -> None:
        """Without a master: serve on as a lame duck (`master.shutdown`), until the time is over or a second signal comes."""
        self._spec.board.header.leaving = 1
        self._leave_requested.clear()
        await self._wait_for_leave(seconds)

    async def _start_unless_leaving(self) -> bool:
        """Start the app, or give up when the worker is asked to leave meanwhile. Return whether the app has started.

        The worker accepts no connection yet: one that came in the middle of a start that is given up would be lost.
        """
        starting = asyncio.ensure_future(self._start())
        leave_request = asyncio.ensure_future(self._leave_requested.wait())
        await asyncio.wait({starting, leave_request}, return_when=asyncio.FIRST_COMPLETED)
        leave_request.cancel()
        if not starting.done():
            starting.cancel()
            return False
        if starting.cancelled():  # by the app, e.g. by a startup that cancels all tasks of the loop
            raise AppError("the app has cancelled the task that starts it")
        starting.result()
        return True

    async def _open_channel(self) -> MasterChannel | None:
        """Open the channel to the master. Where there is no master, handle signals instead. TERM works in both cases."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminated, signal.SIGTERM)
        if self._spec.channel is not None:
            channel = await MasterChannel.open(self._spec.channel, self._receive, self._orphaned)
            self._send = channel.send
        else:
            self._signals.arrange(loop, self._terminated)
            if self._spec.loopback is None:
                return None
            channel = await MasterChannel.open(await self._spec.loopback.open(), self._receive, lambda: None)
            # `_send` stays `spec.on_message` here. The other end of this channel needs to know the worker as well.
            channel.send(messages.Started(self._info.pid, messages.PROTOCOL_VERSION))
        self._client = ChannelClient(channel, api.emitter, api.components)
        return channel

    async def _start(self) -> None:
        try:
            await api.hooks.run_start()
        except (Exception, SystemExit) as error:
            raise AppError(f"a hook of worker.on_start raised {one_line(error)}", detail=trace(error)) from error
        self._latency = LatencyWindow(self._row)
        # Before the engines: they wrap their apps with it.
        self._step_sampler = StepSampler(self._long_step, 2 * self._settings.handoff_slow_above, self._latency.add)
        self._engines = [self._engine(binding) for binding in self._spec.bindings]
        for engine in self._engines:
            await engine.start()

    async def _open(self) -> None:
        """Accept connections from now on. This waits for nothing of the app's, so it is never left half done."""
        idle_queue = self._spec.idle_queue
        writer = None if idle_queue is None else QueueWriter(idle_queue, batch_size(processes.file_limit()))
        self._handoff = HandoffPolicy(writer, self._engines, self._spec.board.header)
        sources, backlog = self._listening_sources(), self._settings.backlog
        self._acceptor = Acceptor(sources, self._ready_queues(), self._on_activity, self._settings.timeout, backlog)
        self._heartbeat = HeartbeatLoop(
            self._spec.board,
            self._row,
            self._engines,
            self._acceptor,
            self._handoff,
            AcceptModeSelector(self._settings.handoff_slow_above if writer else 0.0),
            self._step_sampler,
            self._latency,
            self._settings.handoff_idle_after,
            self._settings.request_timeout,
            self._output,
            ConnectionBudget(len(sources), backlog),
        )
        await self._acceptor.start(self._heartbeat.begin())
        for sock, listener in self._spec.sockets:
            if is_self_accepting(engine := self._engines[sock.app_index]):
                engine.listen(listener)
        self._heartbeat.start()
        stacks.add(StackDescriber(self._engines, asyncio.get_running_loop()).describe)

    def _engine(self, binding: AppBinding) -> Engine:
        """Return the engine of an app, which calls the app through the worker's layer."""

        def instrument(call: Callable[..., Any], interface: Interface) -> Callable[..., Any]:
            checked = self._settings.ecv_path and interface is not Interface.TCP
            ecv = self._ecv(binding, call) if checked else None
            return wrap(call, interface, self._step_sampler, self._on_activity, ecv)

        # The two cells of the row by which the master steers connections to an engine that accepts by itself.
        gauge = self._row.integers[Row.begun.index : Row.ended.index + 1] if owns_accept(binding.engine) else None
        tls = server_context(self._settings)
        call, interface, access = binding.app.call, binding.app.interface, self._output.access
        return binding.engine(AppContext(call, interface, self._settings, tls, instrument, cast(Any, gauge), access))

    def _ecv(self, binding: AppBinding, call: Callable[..., Any]) -> Ecv:
        """Return the health check of an app on its own port."""
        check = None
        if self._settings.ecv_monitor is not None:
            threaded = binding.app.interface is Interface.WSGI
            check = AppHealthCheck(self._spec.validator, cancellable=not threaded, on_change=self._on_check_result)
        app = CheckedApp(call, binding.engine.peer, check)
        prefixes = Capability.ROOT_PATH in binding.engine.capabilities[binding.app.interface]
        root = self._settings.root_path if prefixes else ""
        return Ecv(self._settings, self._spec.board.header.started, self._traffic, app, root)

    def _on_check_result(self, reason: str | None) -> None:
        """Report that the app's own check has another result than before."""
        if reason is None:
            logger.info("the ECV check passes again")
            return
        text = f"the ECV check of {self._settings.ecv_monitor} fails: {reason}"
        self._send(messages.Note(codec.clip(text, _MAX_REPORT_BYTES)))

    def _listening_sources(self) -> list[ListeningSource]:
        tls = server_context(self._settings)
        return [
            # No TLS on a Unix socket: its client is on this machine.
            ListeningSource(listener, engine, tls if listener.family != socket.AF_UNIX else None, sock.owned)
            for sock, listener in self._spec.sockets
            if is_protocol_engine(engine := self._engines[sock.app_index])
        ]

    def _ready_queues(self) -> list[ReadyQueue]:
        return [
            ReadyQueue(QueueReader(sock), engine)
            for app, sock in enumerate(self._spec.ready_queues)
            if is_protocol_engine(engine := self._engines[app])
        ]

    def _on_activity(self) -> None:
        """Wake the heartbeat loop from its slow ticks. Called with each connection and request."""
        if self._heartbeat.slow:
            self._heartbeat.wake()

    def _long_step(self, step: float, now: float) -> None:
        self._heartbeat.long_step(step, now)

    async def _leave(self) -> bool:
        """Drain. Return whether everything has ended by itself."""
        self._row.draining, self._row.state = 1, WorkerState.DRAINING
        self._heartbeat.drain()
        if self._spec.shut_listeners is not None:
            try:
                self._drain.listeners_open = not self._spec.shut_listeners()
            except Exception:
                logger.exception("the listeners could not be shut; new connections are served until the worker is idle")
                self._drain.listeners_open = True
        return await self._drain.run(self._engines, self._acceptor, self._handoff)

    async def _end(self) -> int:
        """Drain, stop the app, run its hooks. Return the exit code: 1 if a step failed, which the master is sent."""
        self.leave_by = deadline = time.monotonic() + self._settings.drain_timeout
        self._info.draining = True  # wakes long streams, which end while the worker drains
        hooks = asyncio.ensure_future(api.hooks.run_drain())  # beside the drain
        failed = await run_steps(
            ("the drain", self._drain_or_abort),
            ("worker.on_drain", lambda: finish_drain_hooks(hooks, deadline - time.monotonic())),
            ("closing the acceptor", self._stop_accepting),
            *((f"stopping engine {engine.name}", engine.stop) for engine in reversed(self._engines)),
            ("worker.on_stop", api.hooks.run_stop),
            ("the last heartbeat", self._last_heartbeat),
        )
        if failed:
            self._send(messages.EndFailed(codec.clip("; ".join(failed), _MAX_REPORT_BYTES)))
        return 1 if failed else 0

    async def _drain_or_abort(self) -> None:
        """Drain, and reset what hasn't ended within `drain_timeout`."""
        finished: bool | None = None
        while finished is None:
            try:
                finished = await self._leave()
            except asyncio.CancelledError:
                logger.exception("the app cancelled the worker's own task; the drain goes on")
        if not finished:
            self._send(messages.Cut(await self._drain.abort(self._engines)))

    async def _stop_accepting(self) -> None:
        self._acceptor.stop()

    async def _last_heartbeat(self) -> None:
        self._heartbeat.publish()
        self._heartbeat.stop()
        self._output.tick()

    def _receive(self, message: messages.ChannelMessage | messages.Unknown) -> None:
        if self._client is not None and self._client.receive(message):
            return
        match message:
            case messages.Drain():
                self._drain.listeners_open = self._drain.listeners_open or message.open_doors
                self._request_leave(message.last)
            case messages.KeeperGone():
                self._drain.keeper_gone = True
            case messages.Reopen():
                self._output.reopen_if_moved()
            case messages.TrafficSet():
                self._traffic.confirmed()
            case _:
                logger.warning("the master sent a message that only a worker sends: %r", message)

    def _terminated(self, number: signal.Signals) -> None:
        """Leave on TERM. A master makes a successor, and connections move to it; without a master this is the last drain."""
        self._send(messages.SelfDraining(number.name))
        self._request_leave(self._spec.channel is None)

    def _request_leave(self, last: bool) -> None:
        self._drain.last = self._drain.last or last
        self._leave_requested.set()

    def _orphaned(self) -> None:
        """Drain and leave, since the master is gone."""
        logger.warning("the master is gone; worker %d drains and leaves", self._info.pid)
        self._drain.keeper_gone = True
        self._drain.listeners_open = True  # the master has shut no listener, or its end has opened them again
        self._traffic.orphaned()
        if self._client is not None:
            self._client.pending_calls.close(MASTER_GONE)
        self._request_leave(True)


async def finish_drain_hooks(hooks: asyncio.Future[bool], seconds: float) -> None:
    """Wait for the hooks of `worker.on_drain`, which run beside the drain, and cancel them when the time is over.

    A hook that raises or hangs is logged. The worker's end doesn't fail by it: the drain was complete without the hook.
    """
    await asyncio.wait({hooks}, timeout=max(0.0, seconds))
    if not hooks.done():
        logger.warning("a hook of worker.on_drain hasn't ended within drain_timeout; it is cancelled")
        hooks.cancel()
        await asyncio.wait({hooks}, timeout=_APP_TASKS_GRACE_S)


async def run_steps(*steps: tuple[str, Callable[[], Awaitable[str | None]]]) -> list[str]:
    """Run each step, whatever the step before it raised. Log what a step raises, with its name.

    If a hook raises SystemExit, or cancels all tasks of the loop, that ends its step and no other.

    Returns:
        A line for each step that raised, or that returned an error.
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


def _arrange_signals(spec: WorkerSpec) -> None:
    """Ignore the signals that are for the master, and bound the end of this process if the master is gone and the loop is stuck.

    A terminal's ^C, or a HUP to the process group, reaches the workers as well. The master handles it and messages its workers.

    The parent-death signal is SIGCONT: no other but SIGKILL reaches a process that is stopped, and after SIGKILL the worker
    couldn't drain. Once it is continued, the worker finds that its channel has ended.
    """
    signals.settle("worker")
    limit = spec.settings.drain_timeout + _ORPHAN_GRACE_S
    ending = parent_death_timer.arm(spec.lifeline, limit) if spec.lifeline >= 0 else None

    def continued(*_: object) -> None:
        if os.getppid() == spec.order.master:
            return  # a shell's `fg`, or an operator's `kill -CONT`
        # This backs up the end of the channel, for a loop that is stuck. The main thread runs Python, so the exact timer replaces
        # the alarm. It leaves SIGALRM and ITIMER_REAL to the app, whose requests may use them during the drain.
        try:
            parent_death_timer.kill_after(limit)
        except OSError as error:
            logger.warning("the end of this worker isn't bounded exactly: %s", error)
            return  # the alarm, if it was armed, goes on
        if ending is not None:
            parent_death_timer.disarm(ending)

    signal.signal(signal.SIGCONT, continued)
    processes.set_parent_death_signal(signal.SIGCONT)
    continued()  # the master may have died before the signal was set
