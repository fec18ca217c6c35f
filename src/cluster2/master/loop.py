"""The master: one loop over one queue of facts.

What is *wanted* (how many workers, of which generation) is kept apart from what is *seen* (the roster). A fact changes one of
the two; then the loop converges: it asks `policy.plan` what is missing and does it. Nothing else starts or ends a worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from .. import events, lifecycle, policy, wire
from ..errors import AppError, ClusterError, UsageError, by_exit_code
from ..health import Trouble
from ..kernel import processes, stacks
from ..kernel.listeners import Listener
from ..kernel.pidfiles import PidsDirectory
from ..kernel.processes import ExitStatus
from ..kernel.scoreboard import Scoreboard
from ..lifecycle import LIVE, State
from ..settings import Settings
from .actions import Actions, reason_of
from .checkup import Checkup
from .control import Control
from .facts import Command, Exited, Fact, FromWorker, FromZygote, Garbage, KeeperGone, Overdue, Signal, Silent, Tick
from .handle import Handle
from .keeping import Keeping
from .nursery import Nursery
from .reload import Reloader
from .roster import Roster
from .status import status
from .talk import TalkToWorker

logger = logging.getLogger("cluster2.master")

CONTROL_BACKLOG = 64
TICK = 1.0
"""Seconds between two looks at what may be due although nothing has happened."""
ZYGOTE_PATIENCE = 2.0
"""Seconds that a zygote may take to leave at the end; it may be in the middle of the app's import."""
RELOAD_PAUSE = 1.0
"""Seconds between two attempts to start a zygote that died or can't load what was loaded before."""


MOST_WORKERS = 512
"""The scoreboard has a row for each, and for their successors."""
SIGNALS = {
    signal.SIGTERM: "shutdown",
    signal.SIGINT: "shutdown",
    signal.SIGQUIT: "stop",
    signal.SIGHUP: "reload",
    signal.SIGTTIN: "one worker more",
    signal.SIGTTOU: "one worker less",
}
"""What each signal asks for. A second INT stops."""


class Phase(Enum):
    """Where the cluster is."""

    BOOTING = "booting"  # not all workers have been ready yet: what fails now ends it
    SERVING = "serving"
    DRAINING = "draining"  # a graceful shutdown
    STOPPING = "stopping"  # at once


@dataclass(slots=True)
class Estate:
    """What the master owns, made before it starts and closed after it has ended.

    Attributes:
        sources: of options that were set on purpose.
        reread: reads both again, for a reload; raises ClusterError if something is wrong.
        listeners: each with the index of the app that it belongs to.
        argv: the program that loads the app (`nursery`).
    """

    settings: Settings
    sources: Mapping[str, str]
    reread: Callable[[], tuple[Settings, Mapping[str, str]]]
    listeners: Sequence[tuple[int, Listener]]
    board: Scoreboard
    pids: PidsDirectory
    argv: Sequence[str]


@dataclass(slots=True)
class Request:
    """A command that is answered when something has come true."""

    command: Command
    done: Callable[[], bool]
    result: dict[str, Any]


class Master:
    """Keeps the workers serving."""

    def __init__(
        self,
        estate: Estate,
        *,
        emit: Callable[[events.Event], None],
        on_ready: Callable[[], None],
        owns_process: bool,
    ) -> None:
        """Make it inside a running event loop.

        Args:
            emit: takes the events.
            on_ready: called once, when all workers serve.
            owns_process: whether signals and stray children are ours; false inside somebody else's program.
        """
        self._estate = estate
        self._emit = emit
        self._on_ready = on_ready
        self._owns_process = owns_process
        self._facts: asyncio.Queue[Fact] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        settings = estate.settings
        self._options: dict[int, tuple[Settings, Mapping[str, str]]] = {1: (settings, estate.sources)}
        self._roster = Roster()
        self._nurseries: dict[int, Nursery] = {}
        self._closed: list[Nursery] = []
        self._reloader = Reloader(self._load, self._want, self._drop, emit)
        self._requests: list[Request] = []
        self._checkup = Checkup(estate.board, settings)
        self._captures: set[asyncio.Task[Any]] = set()
        self._actions = Actions(settings, estate.board, estate.pids, self._roster, self.put, emit)
        self._restarts = policy.Restarts(settings.restart_limit, settings.restart_window)
        self._wanted = policy.Wanted(settings.workers, 1, settings.max_surge)
        self._control = Control(self.put)
        self._keeping = self._make_keeping()
        self._phase = Phase.BOOTING
        self._failure: ClusterError | None = None
        self._load_again_at: float | None = None
        self._looked_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    def put(self, fact: Fact) -> None:
        """Something happened."""
        self._facts.put_nowait(fact)

    async def run(self) -> int:
        """Serve until told to end. Returns the exit code.

        Raises:
            ClusterError: the first workers could not be made ready.
        """
        await self._control.open(self._estate.pids.bind_control(CONTROL_BACKLOG))
        self._estate.board.header.generation = self._wanted.generation
        self._estate.board.header.started = time.time()
        self._estate.board.header.traffic = 1
        if self._owns_process:
            self._catch_signals()
        if self._keeping is not None:
            self._keeping.start()
        self._load(self._wanted.generation)
        self._tick()
        while not self._finished():
            fact = await self._facts.get()
            self._handle(fact)
            await self._converge()
            self._answer_requests()
        return await self._leave()

    def _finished(self) -> bool:
        """Whether we are leaving, and everybody else has left."""
        if self._phase in (Phase.BOOTING, Phase.SERVING) or len(self._roster):
            return False
        return self._keeping is None or not self._keeping.alive()

    # Facts

    def _handle(self, fact: Fact) -> None:
        match fact:
            case FromZygote():
                self._from_zygote(fact.generation, fact.message)
            case FromWorker():
                self._from_worker(fact.worker, fact.message)
            case Garbage():
                logger.warning("%s sent garbage and is replaced: %s", fact.worker, fact.text)
                self._end(fact.worker, lifecycle.Event.KILL, "crash")
            case Silent():
                self._silent(fact.worker)
            case Exited():
                self._exited(fact.worker)
            case Overdue():
                self._overdue(fact.worker)
            case KeeperGone():
                self._keeper_gone(fact)
            case Signal():
                self._signalled(fact.number)
            case Command():
                self._command(fact)
            case Tick():
                self._look_around()

    def _from_zygote(self, generation: int, message: wire.Orders | None) -> None:
        match message:
            case wire.Prepared():
                self._prepared(generation, message)
            case wire.PrepareFailed():
                error = by_exit_code(message.exit_code, message.message, detail=message.detail)
                self._not_prepared(generation, error)
            case wire.Forked():
                self._forked(message.incarnation, message.pid)
            case wire.ForkFailed():
                self._warn(f"a worker can't be forked: {message.message}")
                if (handle := self._roster.find(message.incarnation)) is not None:
                    self._buried(handle, None)
            case None:
                self._not_prepared(generation, AppError("the process that imports the app died; its log says why"))
                for handle in list(self._roster):
                    if handle.generation == generation and handle.pid is None and handle.talk is None:
                        self._buried(handle, None)
            case _:
                logger.warning("a zygote said what only a master says: %r", message)

    def _prepared(self, generation: int, message: wire.Prepared) -> None:
        self._load_again_at = None
        if message.threads:
            names = ", ".join(message.threads[:4])
            self._warn(
                f"importing the app started threads ({names}): forking it is unsafe, so each worker imports it for itself; "
                "start threads in worker.on_start, or set preload = false to silence this"
            )
        if message.threads or not self._settings.preload:
            self._nurseries[generation].each_executed()
        if self._reloader.proves(generation):
            self._reloader.prepared()

    def _not_prepared(self, generation: int, error: ClusterError) -> None:
        if self._phase is Phase.BOOTING:
            self._fail(error)
        elif self._reloader.proves(generation):
            self._reloader.abandon(error)
        elif self._phase is Phase.SERVING and generation == self._wanted.generation and self._load_again_at is None:
            self._warn(f"no new worker can be made now: {error.message}; trying again")
            if error.detail:
                logger.error("%s", error.detail)
            self._load_again_at = time.monotonic() + RELOAD_PAUSE

    def _forked(self, incarnation: int, pid: int) -> None:
        handle = self._roster.find(incarnation)
        if handle is None or handle.pid is not None:
            return  # told twice, by the zygote and by the worker itself
        handle.pid = pid
        self._actions.apply(handle, lifecycle.Event.FORKED)

    def _from_worker(self, handle: Handle, message: wire.Talk) -> None:
        match message:
            case wire.Born():
                self._forked(handle.incarnation, message.pid)
            case wire.Ready():
                self._actions.apply(handle, lifecycle.Event.READY)
                if self._reloader.rolling is not None:
                    self._reloader.rolling.ready(handle.generation, time.monotonic())
                if self._phase is Phase.BOOTING and self._roster.ready() == self._wanted.slots:
                    self._phase = Phase.SERVING
                    self._on_ready()
            case wire.BootFailed():
                error = by_exit_code(message.exit_code, message.message, detail=message.detail)
                if self._phase is Phase.BOOTING:
                    self._fail(error)
                elif self._reloader.proves(handle.generation):
                    self._reloader.abandon(error)
                else:
                    self._warn(f"{handle} can't serve: {error.message}")
            case wire.Note():
                self._warn(f"{handle}: {message.text}")
            case _:
                logger.warning("%s said what only a master says: %r", handle, message)

    def _silent(self, handle: Handle) -> None:
        handle.talk = None
        # With a pid its exit will tell. Without one the zygote's word is awaited, if there is one to give it.
        nursery = self._nurseries.get(handle.generation)
        if handle.pid is None and (nursery is None or not nursery.ready) and handle.state is not State.DEAD:
            self._buried(handle, None)

    def _exited(self, handle: Handle) -> None:
        if handle.pidfd is None or handle.state is State.DEAD:
            return
        status = processes.exit_of(handle.pidfd)
        if status is not None:
            self._buried(handle, status)

    def _buried(self, handle: Handle, status: ExitStatus | None) -> None:
        meant = handle.reason is not None and handle.reason != "crash"
        self._actions.apply(handle, lifecycle.Event.EXITED, status)
        self._checkup.forget(handle)
        if meant or self._phase in (Phase.DRAINING, Phase.STOPPING):
            return
        if self._reloader.proves(handle.generation):
            how = status or "it could not be made"
            self._reloader.abandon(AppError(f"a worker of the new generation died ({how}); its log says why"))
            return
        now = time.monotonic()
        was_degraded = self._restarts.degraded
        self._restarts.crashed(handle.slot, handle.uptime(now), now)
        if self._restarts.degraded and not was_degraded:
            self._degraded(handle, status, now)

    def _degraded(self, handle: Handle, status: ExitStatus | None, now: float) -> None:
        if self._phase is Phase.BOOTING:
            self._fail(
                AppError(
                    f"workers die before they are ready ({reason_of(handle, status)}: {status}); their log says why"
                )
            )
            return
        crashes = self._restarts.crashes(now)
        logger.error("degraded: %d workers crashed within %.0f s; restarts back off", crashes, self._restarts.window)
        self._emit(
            events.Degraded(time=time.time(), crashes=crashes, ready=self._roster.ready(), wanted=self._wanted.slots)
        )

    def _overdue(self, handle: Handle) -> None:
        settings = self._estate.settings
        match handle.state:
            case State.READY:
                self._restarts.settled(handle.slot)
            case State.SPAWNING | State.BOOTING:
                text = f"{handle} wasn't ready within boot_timeout ({settings.boot_timeout:g} s)"
                if self._phase is Phase.BOOTING:
                    self._fail(AppError(text))
                    return
                if self._reloader.proves(handle.generation):
                    self._reloader.abandon(AppError(text))
                self._warn(f"{text}; it is killed")
                self._end(handle, lifecycle.Event.KILL, "crash")
            case State.DRAINING:
                self._warn(f"{handle} hasn't left within drain_timeout ({settings.drain_timeout:g} s); it is killed")
                self._end(handle, lifecycle.Event.KILL, handle.reason)
            case _:
                pass

    def _make_keeping(self) -> Keeping | None:
        settings = self._estate.settings
        sites = 1 + max(site for site, _ in self._estate.listeners)
        return Keeping(self._estate.board, sites, settings.timeout, self.put) if settings.keeper else None

    def _keeper_gone(self, fact: KeeperGone) -> None:
        """Start another one; at the end of the cluster tell the workers that nothing comes back any more."""
        assert self._keeping is not None
        if self._phase in (Phase.BOOTING, Phase.SERVING):
            self._warn(
                f"the keeper is gone ({fact.status}): {fact.lost} connections at rest are lost; another is started"
            )
            self._estate.board.header.keeper_restarts += 1
            self._keeping.start()
        for handle in self._roster if self._phase is Phase.DRAINING else ():
            if handle.talk is not None:
                handle.talk.write(wire.pack(wire.Deserted()))

    # Commands and signals

    def _command(self, command: Command) -> None:
        match command.verb:
            case "status":
                command.answer(self._status(memory=bool(command.params.get("memory", True))))
            case "reload":
                self._reload(command)
            case "recycle":
                self._recycle(command)
            case "stacks":
                self._tell_stacks(command)
            case "scale":
                self._scale(command)
            case "shutdown":
                self.shut_down()
                command.answer(self._farewell())
            case "stop":
                self._stop()
                command.answer(self._farewell())
            case _:
                command.answer(UsageError(f"the master knows no command {command.verb!r}"))

    def _farewell(self) -> dict[str, Any]:
        """Which process ends when the connection has; none where the master lives in somebody else's program."""
        return {"leaves": os.getpid() if self._owns_process else None}

    def _status(self, *, memory: bool) -> dict[str, Any]:
        return status(
            self._estate.board,
            self._roster,
            state="degraded" if self._restarts.degraded else self._phase.value,
            wanted=self._wanted.slots,
            addresses=[str(listener.address) for _, listener in self._estate.listeners],
            memory=memory,
        )

    def _catch_signals(self) -> None:
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self.put, Signal(number))

    def _signalled(self, number: int) -> None:
        action = SIGNALS[signal.Signals(number)]
        if number == signal.SIGINT and self._phase is Phase.DRAINING:
            action = "stop"
        self._emit(events.Signalled(time=time.time(), signal=signal.Signals(number).name, action=action))
        match action:
            case "stop":
                self._stop()
            case "shutdown":
                self.shut_down()
            case "reload":
                if self._phase is Phase.SERVING:
                    self._reloader.ask(None)
            case _:
                self._resize(self._wanted.slots + (1 if action == "one worker more" else -1))

    def _reload(self, command: Command) -> None:
        if self._phase is Phase.SERVING:
            self._reloader.ask(command)
        else:
            command.answer(ClusterError(f"the cluster is {self._phase.value}: nothing can be reloaded now"))

    def _recycle(self, command: Command) -> None:
        """Replace one worker, named by pid or slot, or all in turn."""
        which = command.params.get("worker")
        named = [each for each in self._roster if which in (None, each.pid, each.slot) and each.state in LIVE]
        if not named:
            command.answer(UsageError(f"no worker has the pid or slot {which}"))
            return
        now = time.monotonic()
        for handle in named:
            handle.replace = handle.replace or now
            handle.reason = "recycle"
        waiting = {handle.incarnation for handle in named}
        self._requests.append(
            Request(command, lambda: not any(map(self._roster.find, waiting)), {"replaced": len(waiting)})
        )

    def _scale(self, command: Command) -> None:
        slots = command.params.get("workers")
        if not isinstance(slots, int) or not 1 <= slots <= MOST_WORKERS:
            command.answer(UsageError(f"workers = {slots!r}: expected a whole number from 1 to {MOST_WORKERS}"))
            return
        self._resize(slots)

        def done() -> bool:
            return self._wanted.slots != slots or (self._roster.ready() == slots == len(self._roster))

        self._requests.append(Request(command, done, {"workers": slots}))

    def _resize(self, slots: int) -> None:
        if self._phase is Phase.SERVING and slots >= 1:
            self._wanted = replace(self._wanted, slots=slots)

    def _answer_requests(self) -> None:
        """Answer those whose wish has come true."""
        for request in list(self._requests):
            if request.done():
                self._requests.remove(request)
                request.command.answer(request.result)

    def shut_down(self) -> None:
        """Gracefully: no new connections, then each worker ends what it has."""
        if self._phase in (Phase.DRAINING, Phase.STOPPING):
            return
        self._phase = Phase.DRAINING
        self._reloader.cancel("the cluster shuts down")
        self._emit(events.ShuttingDown(time=time.time(), graceful=True))
        for _, listener in self._estate.listeners:
            listener.shut_door()
        self._actions.last_drain = True
        for handle in self._roster:
            self._end(handle, lifecycle.Event.DRAIN, "shutdown")
        if self._keeping is not None:
            self._keeping.drain(self._estate.settings.drain_idle)

    def _stop(self) -> None:
        """At once."""
        if self._phase is Phase.STOPPING:
            return
        self._emit(events.ShuttingDown(time=time.time(), graceful=False))
        self._kill_all()

    def _fail(self, error: ClusterError) -> None:
        """The cluster can't start: end it, with this error."""
        self._failure = self._failure or error
        self._kill_all()

    def _kill_all(self) -> None:
        self._phase = Phase.STOPPING
        self._reloader.cancel("the cluster stops")
        if self._keeping is not None:
            self._keeping.kill()
        for handle in self._roster:
            self._end(handle, lifecycle.Event.KILL, "stop")

    def _end(self, handle: Handle, event: lifecycle.Event, reason: events.Reason | None) -> None:
        handle.reason = reason
        self._actions.apply(handle, event)

    # Convergence

    async def _converge(self) -> None:
        """Do what is missing between what is seen and what is wanted."""
        if self._phase in (Phase.DRAINING, Phase.STOPPING):
            return
        now = time.monotonic()
        self._reloader.look(now, self._roster.seen())
        nursery = self._nurseries.get(self._wanted.generation)
        if nursery is None or not nursery.ready:
            return
        barred = self._restarts.barred(now)
        decisions = policy.plan(self._wanted, self._roster.seen(), barred=barred, retire=self._reloader.may_retire())
        for decision in decisions:
            match decision:
                case policy.Spawn():
                    await self._spawn(decision.slot)
                case policy.Retire():
                    handle = self._roster.find(decision.incarnation)
                    if handle is not None:
                        how = lifecycle.Event.DRAIN if handle.drain_first else lifecycle.Event.KILL
                        self._end(handle, how, handle.reason or self._why_retired(handle))
        times = [when for when in (self._restarts.next_time(now), self._reloader.wake_at()) if when is not None]
        self._wake_at(min(times, default=None))

    def _why_retired(self, handle: Handle) -> events.Reason:
        if handle.slot >= self._wanted.slots:
            return "scale"
        return "recycle" if handle.replace is not None else "reload"

    async def _spawn(self, slot: int) -> None:
        handle = Handle(
            incarnation=self._roster.next_incarnation(),
            slot=slot,
            generation=self._wanted.generation,
            row=self._estate.board.claim(),
            born=time.monotonic(),
            stacks_file=stacks.create(),
        )
        self._roster.add(handle)
        self._actions.limit(handle)
        ours, theirs = socket.socketpair()
        with theirs:
            handle.talk, _ = await self._loop.create_unix_connection(lambda: TalkToWorker(handle, self.put), sock=ours)
            sockets = [wire.Socket(site, str(listener.address)) for site, listener in self._estate.listeners]
            order = wire.Order(
                incarnation=handle.incarnation,
                slot=slot,
                generation=handle.generation,
                row=handle.row,
                master=os.getpid(),
                sockets=sockets,
                keeper=self._keeping is not None,
            )
            ways = self._keeping.descriptors() if self._keeping is not None else []
            listening = [listener.sock.fileno() for _, listener in self._estate.listeners]
            nursery = self._nurseries[handle.generation]
            try:
                nursery.spawn(order, [theirs.fileno(), self._estate.board.fd, handle.stacks_file, *listening, *ways])
            except OSError as error:  # the zygote has died, which the next fact tells; or its queue is full
                self._warn(f"no worker can be made: {error.strerror}")
                self._buried(handle, None)

    def _load(self, generation: int) -> None:
        """Start to load the app as it is now. Raises ClusterError if the options, read again, are bad."""
        self._load_again_at = None
        if generation not in self._options:
            self._options[generation] = self._estate.reread()
        settings, sources = self._options[generation]
        prepare = wire.Prepare(generation, settings.to_wire(), dict(sources))
        if generation in self._nurseries:
            self._drop(generation)  # its zygote has died
        nursery = self._nurseries[generation] = Nursery(prepare, self._estate.argv, self.put)
        nursery.load()

    def _want(self, generation: int) -> None:
        """All workers are to be of that generation, and as many as its options say, if those say something new."""
        before, after = self._settings.workers, self._options[generation][0].workers
        slots = after if after != before else self._wanted.slots
        surge = self._options[generation][0].max_surge
        self._wanted = policy.Wanted(slots, generation, surge)
        self._checkup = Checkup(self._estate.board, self._settings)
        self._estate.board.header.generation = generation

    def _drop(self, generation: int) -> None:
        """No worker of that generation is made any more."""
        nursery = self._nurseries.pop(generation, None)
        if generation != self._wanted.generation:
            self._options.pop(generation, None)
        if nursery is not None:
            nursery.close()
            self._closed = [each for each in self._closed if each.pids()] + [nursery]

    @property
    def _settings(self) -> Settings:
        """The options of the generation that is wanted."""
        return self._options[self._wanted.generation][0]

    def _tick(self) -> None:
        self.put(Tick())
        self._loop.call_later(TICK, self._tick)

    def _wake_at(self, when: float | None) -> None:
        """A slot that backs off is looked at again in time, not only at the next tick."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if when is not None:
            self._alarm = self._loop.call_later(max(0.0, when - time.monotonic()), self.put, Tick())

    def _look_around(self) -> None:
        now = time.monotonic()
        # Who was suspended or starved saw nothing for a while: that the others gave no sign then proves nothing.
        if now - self._looked_at < 2 * TICK:
            self._check_health(now)
        self._looked_at = now
        if self._owns_process:
            processes.reap_strays(self._known())
        if self._load_again_at is not None and now >= self._load_again_at and self._phase is Phase.SERVING:
            self._load(self._wanted.generation)
        if self._restarts.recovered(now):
            self._emit(events.Recovered(time=time.time(), ready=self._roster.ready()))

    def _check_health(self, now: float) -> None:
        if self._keeping is not None and self._keeping.is_stuck(now):
            self._warn("the keeper gives no sign of life; it is killed")
            self._keeping.kill()
        if self._phase is not Phase.SERVING:
            return
        for handle in self._roster:
            if handle.state is not State.READY or handle.reason == "hang":
                continue
            if (trouble := self._checkup.trouble(handle, now)) is not None:
                self._stuck(handle, trouble, now)
            elif handle.replace is None and (why := self._checkup.passed(handle, now)) is not None:
                logger.info("%s is recycled (%s)", handle, why)
                handle.replace, handle.reason = now, "recycle"

    def _stuck(self, handle: Handle, trouble: Trouble, now: float) -> None:
        """Replace it: first its stacks, which tell why, then a successor, then it goes."""
        handle.reason, handle.replace = "hang", now
        handle.drain_first = trouble is Trouble.REQUEST
        self._warn(f"{handle} is replaced: {trouble.value}")
        task = self._loop.create_task(self._capture(handle))
        self._captures.add(task)
        task.add_done_callback(self._captures.discard)

    async def _capture(self, handle: Handle) -> str:
        assert handle.pidfd is not None
        assert handle.pid is not None
        handle.stacks = await stacks.capture(handle.stacks_file, handle.pidfd, handle.pid)
        logger.warning("stacks of %s:\n%s", handle, handle.stacks)
        return handle.stacks

    def _tell_stacks(self, command: Command) -> None:
        """The stacks of one worker, or of all."""
        which = command.params.get("worker")
        named = [each for each in self._roster if which in (None, each.pid, each.slot) and each.pidfd is not None]

        async def tell() -> None:
            found = []
            for handle in named:
                if handle.pidfd is not None and handle.pid is not None:
                    text = await stacks.capture(handle.stacks_file, handle.pidfd, handle.pid)
                    found.append({"pid": handle.pid, "slot": handle.slot, "stacks": text})
            command.answer({"workers": found})

        if not named:
            command.answer(UsageError(f"no worker has the pid or slot {which}"))
            return
        task = self._loop.create_task(tell())
        self._captures.add(task)
        task.add_done_callback(self._captures.discard)

    def _known(self) -> set[int]:
        keeper = self._keeping.pids() if self._keeping is not None else set()
        zygotes = {pid for nursery in (*self._nurseries.values(), *self._closed) for pid in nursery.pids()}
        return {handle.pid for handle in self._roster if handle.pid is not None} | zygotes | keeper

    # The end

    async def _leave(self) -> int:
        if self._alarm is not None:
            self._alarm.cancel()
        if self._keeping is not None:
            self._keeping.close()
        for generation in list(self._nurseries):
            self._drop(generation)
        for nursery in self._closed:
            await nursery.gone(0.0 if self._phase is Phase.STOPPING else ZYGOTE_PATIENCE)
        for request in self._requests:
            request.command.answer(ClusterError("the cluster has ended before that was done"))
        if self._failure is not None:
            raise self._failure
        return 0

    async def close(self) -> None:
        """End the control connections: whoever waits for our end learns of it."""
        await self._control.close()

    def _warn(self, text: str) -> None:
        logger.warning("%s", text)
        self._emit(events.Warned(time=time.time(), text=text))
