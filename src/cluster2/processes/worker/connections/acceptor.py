"""Who takes a connection: this worker, when its loop has nothing better to do.

All workers watch the same listening sockets and the same ready queues (`kernel.handover`). A worker that is busy computing
doesn't come round to its loop, so it takes nothing, and a sibling that is idle does: the queues are work-conserving. How
greedily a worker takes is its mode (`pace`):

*Eager.* The loop's own server accepts, on a duplicate of the listening socket: libuv takes all that is pending, in C. An
acceptor in Python costs 1.35–1.45 × as much CPU for a connection per request. Only the ready queues are read by us.

*Held and parking.* The native servers are closed, and accept queues and ready queues are read in turn, one connection at a
time. The next is taken only when that one's request head has arrived and its handler has had its first step (a `call_soon`
behind it), or after 2 ms. A connection is read as soon as it is taken, before its transport exists: what comes from a ready
queue has bytes waiting, and a new one usually has. (This gave 1–2 ms at the 99th percentile: fewer turns of the loop until the
handler's first step.)

All that can be taken from stands behind a *gate* (`gate`): open while eager, else opened for one connection at a time.

An engine that runs apps in threads may have no *room*. Then, in these two modes, nothing is taken for it until it has again:
what it took would wait behind the requests that hold its threads, and a sibling may have a thread that is free. The engine
invites (`Engine.on_room`); where its own connections keep it full, it invites now and then all the same, so that newcomers
don't starve.

A worker never refuses the ready queue for another reason: one that did, on counts that were stale, stalled its clients for a
tick (p99 80 ms in a trial). It takes, and balances afterwards.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, cast

from ....engines.base import ProtocolEngine
from ..sampling.accept_mode import AcceptMode
from .listening_source import ListeningSource, ReadyQueue
from .one_shot_transport import OneShotTransport
from .poll_switch import PollSwitch

logger = logging.getLogger("cluster2.worker")

MAX_HEAD_WAIT_S = 0.002
"""Seconds that a connection just taken may keep the next one waiting for its head."""
CONNECTIONS_PER_TURN = 16
"""Connections taken from a ready queue at a time while eager."""
FIRST_READ_BYTES = 16384
"""Bytes read from a connection before its transport exists."""
_TLS_CLOSE_TIMEOUT_S = 1.0
"""Seconds that a client may take to answer the end of a TLS connection; some never do."""
DESCRIPTOR_RETRY_S = 0.1
"""Seconds to wait when descriptors have run out: to try on would spin."""


class Acceptor:
    """Takes connections from all doors and ready queues of a worker."""

    def __init__(
        self,
        doors: Sequence[ListeningSource],
        ready_queues: Sequence[ReadyQueue],
        woken: Callable[[], None],
        handshake: float = 0.0,
        backlog: int = 2048,
    ) -> None:
        """Watch nothing yet.

        Args:
            woken: called with each connection that comes: the worker isn't at rest.
            handshake: seconds that a TLS handshake may take; 0: as many as the loop allows (60).
            backlog: the length of the accept queues, which a server of the loop's own sets anew.
        """
        self._backlog = backlog
        self._room: int | None = None
        self._full = False
        self._handshake = handshake or None
        self._doors = doors
        self._open_doors = list(doors)
        for door in doors:
            # Python takes a socket made of a descriptor for a blocking one, and dup() would make it so: the flag is of the
            # open file, which all processes share, and a sibling that loses a race would hang in accept(2).
            door.listener.setblocking(False)
        self._ways = ready_queues
        self._ready_queues = list(ready_queues)
        self._woken = woken
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._mode = AcceptMode.BATCH
        self._sources: list[ListeningSource | ReadyQueue] = [*doors, *ready_queues]
        self._turn = 0
        self._pending: object = None
        self._due = False
        self._pending_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._joining: set[asyncio.Task[object]] = set()
        self._native_open: set[asyncio.Task[None]] = set()
        self._listening = True
        self._paused = False
        self._shut: list[ListeningSource | ReadyQueue] = []
        self._gate = PollSwitch()

    @property
    def accepted(self) -> int:
        """Connections taken from doors."""
        return sum(door.taken for door in self._doors)

    @property
    def returned(self) -> int:
        """Connections taken from ready queues."""
        return sum(way.taken for way in self._ways)

    @property
    def lost(self) -> int:
        """Connections that were in ready queues, and couldn't be taken because no descriptor was left."""
        return sum(way.reader.truncated for way in self._ways)

    async def start(self, mode: AcceptMode = AcceptMode.BATCH) -> None:
        """Begin to take connections."""
        for door in self._doors:
            self._gate.add(door.listener, watched=False)
        for way in self._ready_queues:
            self._gate.add(way.reader, watched=True)
        self._gate.start(self._readable)
        for engine in {id(source.engine): source.engine for source in self._sources}.values():
            engine.on_capacity(lambda engine=engine: self._invited(engine))  # type: ignore[misc]
        if mode is AcceptMode.BATCH:
            await self._open_native()
        else:
            self.hold_back(mode)

    def set_capacity(self, room: int) -> None:
        """Take so many more connections, until this is called again; none if that is 0 or less.

        What the loop's own server accepts isn't bounded by it: with little room the mode must be another one.
        """
        self._room = room
        if self._full and room > 0:
            self._full = False
            if not self._paused:
                self._resume_accepting()

    async def set_mode(self, mode: AcceptMode) -> None:
        """Take connections in this mode from now on."""
        if mode is not AcceptMode.BATCH:
            self.hold_back(mode)
        elif self._mode is not AcceptMode.BATCH and self._listening:
            self._mode = mode
            self._pending = None
            self._open_again()
            for door in self._doors:
                self._gate.watch(door.listener, False)
            self._gate.open()
            await self._open_native_again()

    def hold_back(self, mode: AcceptMode) -> None:
        """Take one at a time. Takes effect at once, in the middle of a burst as well; one that has stopped stays so."""
        if not self._listening:
            return
        was_eager = self._mode is AcceptMode.BATCH
        self._mode = mode
        if was_eager:
            self._close_native()
            for door in self._doors:
                self._gate.watch(door.listener, True)
            self._arm()

    def stop(self) -> None:
        """Take nothing more, from neither kind of queue. Connections just taken still join (see `joining`)."""
        self.stop_listening()
        self._gate.stop()

    def stop_listening(self) -> None:
        """Take nothing more from doors."""
        self._listening = False
        self._mode = AcceptMode.BATCH
        self._close_native()
        self._open_again()
        for door in self._open_doors:
            self._gate.watch(door.listener, False)
        self._gate.open()

    def serve_queue(self, *, everything: bool = False) -> None:
        """Take all that waits in the accept queues, since nobody will after us.

        Called again and again while draining: handshakes that were under way may end at any time.

        Args:
            everything: once, also from sockets that somebody else goes on with.
        """
        for door in self._open_doors if everything else [door for door in self._open_doors if door.owned]:
            while (taken := self._from(door)) is not None:
                self._join(taken, door)

    def close_listeners(self) -> None:
        """Close our copies of the listeners, behind `serve_queue`. Newcomers are refused once all processes have done so."""
        for door in self._open_doors:
            self._gate.remove(door.listener)
            door.listener.close()
        self._open_doors = []

    def empty_ready_queues(self) -> None:
        """Take all that waits in the ready queues: nothing comes after it."""
        for way in self._ready_queues:
            while (taken := self._from(way)) is not None:
                self._join(taken, way)

    def joining(self) -> bool:
        """Whether a connection was taken that its engine doesn't know yet (a TLS handshake, for one)."""
        return bool(self._joining)

    def open(self) -> bool:
        """Whether a connection that the loop's own server has accepted is open, or was taken that its engine doesn't know yet.

        Beside an engine without connections this tells of those that are on their way to it: accepted in this very turn, or in
        the middle of a TLS handshake. To be asked after `stop` or `stop_listening` only.
        """
        return bool(self._joining or self._native_open)

    async def _open_native(self) -> None:
        """Let the loop's own server accept."""
        for door in self._doors:
            if door.native is None:
                await self._open_native_at(door)
        await asyncio.sleep(0)
        if self._mode is not AcceptMode.BATCH or not self._listening:
            self._close_native()  # the mode has changed meanwhile

    async def _open_native_at(self, door: ListeningSource) -> None:
        twin = door.listener.dup()
        try:
            native = await self._loop.create_server(
                self._native(door), sock=twin, backlog=self._backlog, **self._secured(door.tls)
            )
        except BaseException:
            twin.close()
            raise
        if door.native is not None:  # the mode went forth and back meanwhile: another attempt was faster
            native.close()
            return
        door.native = native
        # Ends when the server is closed and the last of its connections as well, if it has begun by then.
        waiting = self._loop.create_task(native.wait_closed())
        self._native_open.add(waiting)
        waiting.add_done_callback(self._native_open.discard)

    async def _open_native_again(self) -> None:
        """Let the loop's own server accept, as soon as there are descriptors for that."""
        while self._mode is AcceptMode.BATCH and self._listening:
            try:
                await self._open_native()
            except OSError as error:
                logger.warning("no connection can be accepted for %.1f s: %s", DESCRIPTOR_RETRY_S, error)
                await asyncio.sleep(DESCRIPTOR_RETRY_S)
            else:
                return

    def _close_native(self) -> None:
        for door in self._doors:
            if door.native is not None:
                door.native.close()
                door.native = None

    def _native(self, door: ListeningSource) -> Callable[[], asyncio.BaseProtocol]:
        make = door.engine.protocol
        woken = self._woken

        def protocol() -> asyncio.BaseProtocol:
            door.taken += 1
            woken()
            return make()

        return protocol

    def _readable(self) -> None:
        """The gate is open."""
        if self._mode is AcceptMode.BATCH:
            for way in list(self._ready_queues):
                self._take_returned(way)
        elif self._gate.take_ready():
            self._take()

    def _take_returned(self, way: ReadyQueue) -> None:
        for _ in range(CONNECTIONS_PER_TURN):
            if self._has_no_room():
                return
            taken = self._from(way)
            if taken is None:
                if way.reader.ended:
                    self._gate.remove(way.reader)
                    self._ready_queues.remove(way)
                    self._sources.remove(way)
                return
            self._join(taken, way)

    def _take(self, invited: ProtocolEngine | None = None) -> None:
        """Take one connection from the next source that has one, and room for it; open the gate if none has.

        Args:
            invited: takes one in any case.
        """
        try:
            self._take_next(invited)
        except Exception as error:  # the gate would stay shut, and this worker without connections for good
            logger.error("a connection could not be taken", exc_info=error)
            self._pause(error)

    def _take_next(self, invited: ProtocolEngine | None) -> None:
        self._due = False
        if self._mode is AcceptMode.BATCH or self._has_no_room():
            return
        sources, full = self._sources, 0
        for _ in sources:
            self._turn = (self._turn + 1) % len(sources)
            source = sources[self._turn]
            if source.engine is not invited and not source.engine.has_capacity():
                full += 1
                continue
            if (taken := self._from(source)) is not None:
                if not self._join(taken, source):
                    self._take_soon()
                return
        self._pending = None
        if not full:
            self._arm()
        elif full < len(sources):
            self._shut_full()
            self._arm()
        # Else nothing is wanted: the gate stays shut until somebody has room.

    def _has_no_room(self) -> bool:
        """Return whether no connection may be taken; then the gate is shut until `set_capacity` has room again."""
        if self._room is None or self._room > 0:
            return False
        self._full = True
        self._pending = None
        self._gate.shut()
        return True

    def _take_soon(self) -> None:
        """When what is under way has had its turn."""
        self._due = True
        self._loop.call_soon(self._take)

    def _shut_full(self) -> None:
        """Don't be woken by sources that we wouldn't take from."""
        self._shut = [source for source in self._sources if not source.engine.has_capacity()]
        for source in self._shut:
            self._gate.watch(source.watched, False)

    def _open_again(self) -> None:
        for source in self._shut:
            self._gate.watch(source.watched, True)
        self._shut = []

    def _invited(self, engine: ProtocolEngine) -> None:
        """An engine has room again, or lets one in."""
        if self._mode is not AcceptMode.BATCH:
            self._open_again()
            if self._pending is None and not self._due and not self._paused and not self._full:
                # We may be called in the context of a request, and a connection keeps the context in which it is taken.
                self._context.copy().run(self._take, engine)

    def _arm(self) -> None:
        if self._listening and not self._paused and not self._full:
            self._gate.open_once()

    def _hold_back(self, connection: object) -> None:
        """Take the next one when this one's request has begun, or after a moment."""
        self._pending = connection
        self._pending_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(MAX_HEAD_WAIT_S, self._waited)

    def _waited(self) -> None:
        self._timer = None
        if self._pending is None:
            return
        age = self._loop.time() - self._pending_since
        if age >= 0.9 * MAX_HEAD_WAIT_S:
            self._pending = None
            self._take()
        else:
            self._timer = self._loop.call_later(MAX_HEAD_WAIT_S - age, self._waited)

    def _served(self, connection: object) -> None:
        """A connection's request has begun, or never will."""
        if self._pending is connection:
            self._pending = None
            self._take_soon()

    def _from(self, source: ListeningSource | ReadyQueue) -> socket.socket | None:
        """The next connection that waits there."""
        try:
            taken = source.take()
        except OSError as error:
            self._pause(error)
            return None
        if taken is not None and self._room is not None:
            self._room -= 1
        return taken

    def _join(self, connection: socket.socket, source: ListeningSource | ReadyQueue) -> bool:
        """Give a connection its protocol; false if the client has gone."""
        self._woken()
        engine, tls = source.engine, source.tls
        first: bytes | None = None
        if tls is None and engine.reads_first:
            try:
                first = connection.recv(FIRST_READ_BYTES, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:  # reset; or no socket at all, which only a foreign hand can have put there
                connection.close()
                return False
            if first == b"":
                connection.close()
                return False
        try:
            protocol = engine.accepted_protocol(first, self._served)
        except Exception:  # the app's factory of protocols
            logger.exception("the app made no protocol for a connection, which is closed")
            connection.close()
            return False
        if self._mode is not AcceptMode.BATCH:
            self._hold_back(protocol)
        if first is not None and self._mode is AcceptMode.HANDOFF:
            direct = OneShotTransport(self._loop, connection, cast(asyncio.Protocol, protocol))
            try:
                direct.begin()
            except Exception:
                logger.exception("a protocol failed on what its connection brought; the connection is closed")
                direct.abort()
                self._served(protocol)
            return True
        task = self._loop.create_task(self._connect(protocol, connection, tls))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)
        return True

    async def _connect(
        self, protocol: asyncio.BaseProtocol, connection: socket.socket, tls: ssl.SSLContext | None
    ) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection, **self._secured(tls))
        except (OSError, ValueError) as error:  # the client has left, or failed the handshake; or it is no connection
            logger.debug("a connection was given up: %s", error)
            connection.close()
            self._served(protocol)

    def _pause(self, error: Exception) -> None:
        self._gate.shut()
        if self._paused:
            return
        logger.warning("no connection can be taken for %.1f s: %s", DESCRIPTOR_RETRY_S, error)
        self._paused = True
        self._loop.call_later(DESCRIPTOR_RETRY_S, self._resume)

    def _resume(self) -> None:
        self._paused = False
        if not self._full:
            self._resume_accepting()

    def _resume_accepting(self) -> None:
        if self._mode is AcceptMode.BATCH:
            self._gate.open()
        elif self._pending is None and not self._due:
            self._take()

    def _secured(self, tls: ssl.SSLContext | None) -> dict[str, Any]:
        """What the loop needs to know about TLS."""
        if tls is None:
            return {}
        return {"ssl": tls, "ssl_handshake_timeout": self._handshake, "ssl_shutdown_timeout": _TLS_CLOSE_TIMEOUT_S}
