"""A worker's life from the fork to the exit, read from top to bottom.

Start the engines, watch the listeners, say that it is ready; then serve, with a tick that writes heartbeats; when told to
drain (or when the master is gone), take nothing new, let each connection end politely, stop the engines, leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import uvloop

from .. import wire
from ..apps import App
from ..engines.base import Engine, Site
from ..errors import AppError, ClusterError
from ..kernel import processes
from ..kernel.scoreboard import Row, Scoreboard
from ..lifecycle import State
from ..settings import Settings
from . import api
from .acceptor import Acceptor
from .life import Life
from .talk import TalkChannel
from .tls import context
from .wrapper import wrap

logger = logging.getLogger("cluster2.worker")

TICK = 0.1
"""Seconds between two looks at the engines while there is work."""
REST = 1.0
"""The same at rest."""
DRAIN_TICK = 0.02
LAST_WORDS = 1.0
"""Seconds for tasks that are cancelled at the end."""
ORPHAN_GRACE = 5.0
"""Seconds beyond `drain_timeout` that an orphaned worker may take before the kernel ends it."""


@dataclass(frozen=True, slots=True)
class Staffed:
    """An app of this cluster with the engine that serves it."""

    app: App
    engine: type[Engine]


@dataclass(slots=True)
class Birth:
    """What a worker is born with.

    Attributes:
        sockets: listening sockets with the index of the app that each belongs to.
        talk: its end of the channel to the master; None: there is no master (`cluster = false`).
        heard: takes what it would tell a master, where there is none.
    """

    order: wire.Order
    settings: Settings
    sites: Sequence[Staffed]
    board: Scoreboard
    talk: socket.socket | None
    sockets: Sequence[tuple[int, socket.socket]]
    heard: Callable[[wire.Talk], None] = lambda message: None


def serve(birth: Birth) -> int:
    """Be the worker until it has drained. Returns the exit code."""
    gc.enable()  # the zygote switched it off to keep its heap in one piece
    if birth.talk is not None:
        _arrange_signals(birth)
    loop = uvloop.new_event_loop()
    code = loop.run_until_complete(Worker(birth).run())
    loop.run_until_complete(_cancel_rest())
    return code


async def _cancel_rest() -> None:
    """Give tasks that the app left running a chance to clean up.

    Threads of the executor aren't waited for: a stuck one would keep the worker for ever.
    """
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest, timeout=LAST_WORDS)


@dataclass(slots=True)
class Worker:
    """One worker."""

    birth: Birth
    life: Life = field(init=False)
    row: Row = field(init=False)
    engines: list[Engine] = field(default_factory=list)
    acceptors: list[Acceptor] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    say: Callable[[wire.Talk], None] = field(init=False)
    last: bool = False

    def __post_init__(self) -> None:
        order = self.birth.order
        self.life = Life(os.getpid(), order.slot, order.generation)
        self.row = self.birth.board.row(order.row)

    async def run(self) -> int:
        """Serve until told to drain; returns the exit code."""
        self._fill_row()
        api.begin(self.life)
        channel = await self._open_channel()
        self.say(wire.Born(self.life.pid))
        try:
            await self._start()
        except ClusterError as error:
            self.say(wire.BootFailed(error.message, error.detail[-wire.LIMIT // 2 :], error.exit_code))
            if channel is not None:
                await channel.close()
            return error.exit_code
        self.row.state = State.READY
        self.say(wire.Ready())
        await self._beat_until_told()
        if not await self._drain():
            self.say(wire.Note(f"drain_timeout is over: {self._leftover()} cut"))
        await self._stop()
        if channel is not None:
            await channel.close()
        return 0

    async def _open_channel(self) -> TalkChannel | None:
        """Get ready to be told to drain: by the master, or by signals where there is none. TERM always works."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._drain_soon, self.birth.talk is None)
        if self.birth.talk is None:
            loop.add_signal_handler(signal.SIGINT, self._drain_soon, True)
            self.say = self.birth.heard
            return None
        channel = await TalkChannel.open(self.birth.talk, self._receive, self._orphaned)
        self.say = channel.send
        return channel

    async def _start(self) -> None:
        settings = self.birth.settings
        tls = context(settings)
        try:
            await api.hooks.run_start()
        except Exception as error:
            raise AppError(f"a hook of worker.on_start raised {type(error).__name__}: {error}") from error
        for site in self.birth.sites:
            call = wrap(site.app.call, site.app.interface, self.life)
            engine = site.engine(Site(call, site.app.interface, settings, tls))
            await engine.start()
            self.engines.append(engine)
        for index, listener in self.birth.sockets:
            # A Unix socket's peer is on this machine: TLS would only be in its way.
            over = tls if listener.family != socket.AF_UNIX else None
            self.acceptors.append(Acceptor(listener, self.engines[index].protocol, over))
        for acceptor in self.acceptors:
            acceptor.start()

    async def _beat_until_told(self) -> None:
        """Write heartbeats and counts. It runs on the loop, so that a blocked loop looks late."""
        seen = -1
        while not self.told.is_set():
            accepted = self._publish()
            busy = accepted != seen or self.row.in_flight > 0
            seen = accepted
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.told.wait(), TICK if busy else REST)

    def _publish(self) -> int:
        """Bring the row up to date. Returns a number that changes while there is work."""
        row = self.row
        row.heartbeat = time.monotonic() + 2 * REST
        requests, connections, in_flight = 0, 0, 0
        for engine in self.engines:
            engine.tick()
            census = engine.census()
            requests = -1 if census.requests is None or requests < 0 else requests + census.requests
            connections = -1 if census.connections is None or connections < 0 else connections + census.connections
            in_flight += census.in_flight
        row.requests, row.connections, row.in_flight = requests, connections, in_flight
        row.accepted = sum(acceptor.accepted for acceptor in self.acceptors)
        return row.accepted + requests

    async def _drain(self) -> bool:
        """Let everything under way end. Returns whether it did within `drain_timeout`."""
        settings = self.birth.settings
        self.life.draining = True
        self.row.draining, self.row.state = 1, State.DRAINING
        deadline = time.monotonic() + settings.drain_timeout
        for acceptor in self.acceptors:
            if self.last:
                acceptor.serve_queue()
            acceptor.stop()
        await self._settle(deadline)
        for engine in self.engines:
            engine.drain()
        while not self._idle():
            if time.monotonic() >= deadline:
                return False
            for engine in self.engines:
                engine.sweep(settings.drain_idle)
            self._publish()
            await asyncio.sleep(DRAIN_TICK)
        return True

    async def _settle(self, deadline: float) -> None:
        """Wait for connections just taken to reach their engines."""
        while any(acceptor.joining() for acceptor in self.acceptors) and time.monotonic() < deadline:
            await asyncio.sleep(0.001)

    def _idle(self) -> bool:
        return all(engine.idle() for engine in self.engines)

    def _leftover(self) -> str:
        censuses = [engine.census() for engine in self.engines]
        requests = sum(census.in_flight for census in censuses)
        connections = sum(census.connections or 0 for census in censuses)
        return f"{connections} connections with {requests} requests under way are"

    async def _stop(self) -> None:
        for engine in reversed(self.engines):
            await engine.stop()
        await api.hooks.run_stop()
        self._publish()

    def _fill_row(self) -> None:
        row, order = self.row, self.birth.order
        row.pid, row.slot, row.generation = self.life.pid, order.slot, order.generation
        row.started = time.monotonic()
        row.state = State.BOOTING

    def _receive(self, message: wire.Talk) -> None:
        if isinstance(message, wire.Drain):
            self._drain_soon(message.last)

    def _drain_soon(self, last: bool) -> None:
        self.last = self.last or last
        self.told.set()

    def _orphaned(self) -> None:
        logger.warning("the master is gone; worker %d drains and leaves", self.life.pid)
        self._drain_soon(True)


def _arrange_signals(birth: Birth) -> None:
    """A terminal's ^C, or a HUP to the group, is the master's business: it tells its workers itself."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    limit = birth.settings.drain_timeout + ORPHAN_GRACE

    def master_died(*_: object) -> None:
        # Behind the end of the channel, for a loop that is stuck: SIGALRM's default action needs no Python to end us.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit)

    signal.signal(signal.SIGUSR2, master_died)
    processes.set_parent_death_signal(signal.SIGUSR2)
    if os.getppid() != birth.order.master:
        signal.raise_signal(signal.SIGUSR2)
