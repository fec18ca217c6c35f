"""Accepts connections in a worker, whenever its loop has nothing better to do.

All workers watch the same listening sockets and the same ready queues (`linux.handover`). A worker that is busy computing doesn't
come back to its loop, so it takes no connection, and an idle sibling does: the queues are work-conserving. How many connections a
worker takes at a time is its mode (`sampling.accept_mode`):

*Batch.* The loop's own server accepts, on a duplicate of the listening socket: libuv accepts all that is pending, in C. An
acceptor in Python costs 1.35–1.45 × as much CPU for a connection per request. This module only reads the ready queues.

*One by one* and *hand-off.* The native servers are closed, and the acceptor reads accept queues and ready queues in turn, one
connection at a time. It takes the next when the request head of that one has arrived and its handler has had its first step (a
`call_soon` behind it), or after 2 ms. It reads from a connection at once, before its transport exists: a connection from a ready
queue has bytes waiting, and a new one usually has. (This saved 1–2 ms at the 99th percentile: fewer turns of the loop until the
handler's first step.)

*Polling.* All sources are behind a switch (`poll_switch`). In mode batch it is open; in the other modes it is opened for one
connection at a time.

*Capacity of engines.* An engine that runs apps in threads may have no free thread. In the last two modes the acceptor then takes
no connection for that engine: it would wait behind the requests that hold the threads, and a sibling may have a free thread. The
engine calls back when it has capacity again (`Engine.on_capacity`). An engine whose own connections keep it full calls back now
and then all the same, so that new connections don't starve.

*Balance.* A worker never refuses the ready queue for another reason. A trial refused by the numbers of connections, and these
were stale: clients waited for a tick (p99 80 ms). The worker takes connections, and balances afterwards.
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
"""Seconds for which a connection without a request head delays the next one."""
_CONNECTIONS_PER_TURN = 16
"""Connections taken from a ready queue at a time, in mode batch."""
_FIRST_READ_BYTES = 16384
"""Bytes read from a connection before its transport exists."""
_TLS_CLOSE_TIMEOUT_S = 1.0
"""Seconds that a client may take to confirm the end of a TLS connection. Some never do."""
_DESCRIPTOR_RETRY_S = 0.1
"""Seconds to wait when descriptors have run out: an immediate retry would spin."""


class Acceptor:
    """Takes connections from all listeners and ready queues of a worker."""

    def __init__(
        self,
        sources: Sequence[ListeningSource],
        ready_queues: Sequence[ReadyQueue],
        on_activity: Callable[[], None],
        handshake_timeout: float = 0.0,
        backlog: int = 2048,
    ) -> None:
        """Prepare; `start` watches the sources.

        Args:
            sources: the listeners.
            on_activity: called with each connection that comes, to wake the heartbeat loop.
            handshake_timeout: seconds that a TLS handshake may take; 0: the loop's default (60).
            backlog: the length of the accept queues, which a server of the loop's own sets anew.
        """
        self._backlog = backlog
        self._capacity: int | None = None
        self._exhausted = False
        self._handshake_timeout = handshake_timeout or None
        self._listening_sources = sources
        self._open_listeners = list(sources)
        for source in sources:
            # Python assumes that a socket made of a descriptor blocks, and dup() would make it block. The flag belongs to the
            # open file description, which all processes share: a sibling that loses a race would hang in accept(2).
            source.listener.setblocking(False)
        self._all_ready_queues = ready_queues
        self._ready_queues = list(ready_queues)
        self._on_activity = on_activity
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._mode = AcceptMode.BATCH
        self._sources: list[ListeningSource | ReadyQueue] = [*sources, *ready_queues]
        self._turn = 0
        self._pending: object = None
        self._take_scheduled = False
        self._pending_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._joining: set[asyncio.Task[object]] = set()  # the loop has only weak references to tasks
        self._native_waiting: set[asyncio.Task[None]] = set()
        self._listening = True
        self._paused = False
        self._ignored_sources: list[ListeningSource | ReadyQueue] = []
        self._switch = PollSwitch()

    @property
    def accepted(self) -> int:
        """The number of connections taken from listeners."""
        return sum(source.taken for source in self._listening_sources)

    @property
    def returned(self) -> int:
        """The number of connections taken from ready queues."""
        return sum(queue.taken for queue in self._all_ready_queues)

    @property
    def lost(self) -> int:
        """The number of connections in ready queues that were lost, since no descriptor was left for them."""
        return sum(queue.reader.truncated for queue in self._all_ready_queues)

    async def start(self, mode: AcceptMode = AcceptMode.BATCH) -> None:
        """Begin to take connections in a mode."""
        for source in self._listening_sources:
            self._switch.add(source.listener, watched=False)
        for queue in self._ready_queues:
            self._switch.add(queue.reader, watched=True)
        self._switch.start(self._readable)
        # Once for each engine, which may have several sources.
        for engine in {id(source.engine): source.engine for source in self._sources}.values():
            engine.on_capacity(lambda engine=engine: self._on_capacity(engine))  # type: ignore[misc]
        if mode is AcceptMode.BATCH:
            await self._open_native()
        else:
            self.hold_back(mode)

    def set_capacity(self, capacity: int) -> None:
        """Take so many more connections, until this is called again; none if that is 0 or less.

        It doesn't bound the loop's own server: when capacity is scarce the mode must not be batch.
        """
        self._capacity = capacity
        if self._exhausted and capacity > 0:
            self._exhausted = False
            if not self._paused:
                self._resume_accepting()

    async def set_mode(self, mode: AcceptMode) -> None:
        """Take connections in this mode from now on."""
        if mode is not AcceptMode.BATCH:
            self.hold_back(mode)
        elif self._mode is not AcceptMode.BATCH and self._listening:
            self._mode = mode
            self._pending = None
            self._watch_ignored_sources()
            for source in self._listening_sources:
                self._switch.watch(source.listener, False)
            self._switch.open()
            await self._open_native_again()

    def hold_back(self, mode: AcceptMode) -> None:
        """Take one connection at a time from now on, also in the middle of a burst. This has no effect after `stop_listening`."""
        if not self._listening:
            return
        was_batch = self._mode is AcceptMode.BATCH
        self._mode = mode
        if was_batch:
            self._close_native()  # only the duplicates of the listeners: accepted connections go on
            for source in self._listening_sources:
                self._switch.watch(source.listener, True)
            self._open_switch_once()

    def stop(self) -> None:
        """Take no more connections from listeners and ready queues. Those just taken still reach their engine (see `joining`)."""
        self.stop_listening()
        self._switch.stop()

    def stop_listening(self) -> None:
        """Take no more connections from listeners."""
        self._listening = False
        self._mode = AcceptMode.BATCH  # ready queues are still read, without waiting for the request of each connection
        self._close_native()
        self._watch_ignored_sources()
        for source in self._open_listeners:
            self._switch.watch(source.listener, False)
        self._switch.open()

    def serve_queue(self, *, everything: bool = False) -> None:
        """Take all connections that wait in the accept queues, since no process will after this one.

        Call it repeatedly while draining: handshakes that were under way may end at any time.

        Args:
            everything: once, also from listeners that another program goes on with.
        """
        for source in (
            self._open_listeners if everything else [source for source in self._open_listeners if source.owned]
        ):
            while (taken := self._take_from(source)) is not None:
                self._join(taken, source)

    def close_listeners(self) -> None:
        """Close this process's copies of the listeners, after `serve_queue`. When all processes have, new clients are refused."""
        for source in self._open_listeners:
            self._switch.remove(source.listener)
            source.listener.close()
        self._open_listeners = []

    def empty_ready_queues(self) -> None:
        """Take all connections that wait in the ready queues, when the keeper sends no more."""
        for queue in self._ready_queues:
            while (taken := self._take_from(queue)) is not None:
                self._join(taken, queue)

    def joining(self) -> bool:
        """Return whether a connection was taken that hasn't reached its engine (it may be in a TLS handshake)."""
        return bool(self._joining)

    def open(self) -> bool:
        """Return whether a connection of the loop's own server is open, or one was taken that hasn't reached its engine.

        For an engine without connections this shows those that are on their way to it: accepted in this very turn, or in a TLS
        handshake. Call it after `stop` or `stop_listening` only.
        """
        return bool(self._joining or self._native_waiting)

    async def _open_native(self) -> None:
        """Let the loop's own server accept."""
        for source in self._listening_sources:
            if source.native is None:
                await self._open_native_at(source)
        await asyncio.sleep(0)
        if self._mode is not AcceptMode.BATCH or not self._listening:
            self._close_native()  # the mode has changed meanwhile

    async def _open_native_at(self, source: ListeningSource) -> None:
        twin = source.listener.dup()
        try:
            native = await self._loop.create_server(
                self._native_factory(source), sock=twin, backlog=self._backlog, **self._tls_arguments(source.tls)
            )
        except BaseException:
            twin.close()
            raise
        if source.native is not None:  # the mode has changed twice meanwhile: another attempt was faster
            native.close()
            return
        source.native = native
        # This task ends when the server and the last of its connections are closed, if it has begun by then.
        waiting = self._loop.create_task(native.wait_closed())
        self._native_waiting.add(waiting)
        waiting.add_done_callback(self._native_waiting.discard)

    async def _open_native_again(self) -> None:
        """Let the loop's own server accept, as soon as there are descriptors for it."""
        while self._mode is AcceptMode.BATCH and self._listening:
            try:
                await self._open_native()
            except OSError as error:
                logger.warning("no connection can be accepted for %.1f s: %s", _DESCRIPTOR_RETRY_S, error)
                await asyncio.sleep(_DESCRIPTOR_RETRY_S)
            else:
                return

    def _close_native(self) -> None:
        for source in self._listening_sources:
            if source.native is not None:
                source.native.close()
                source.native = None

    def _native_factory(self, source: ListeningSource) -> Callable[[], asyncio.BaseProtocol]:
        make = source.engine.protocol
        on_activity = self._on_activity

        def protocol() -> asyncio.BaseProtocol:
            source.taken += 1
            on_activity()
            return make()

        return protocol

    def _readable(self) -> None:
        """Take what is there. Called when a source is readable and the switch is open."""
        if self._mode is AcceptMode.BATCH:
            for queue in list(self._ready_queues):
                self._take_returned(queue)
        elif self._switch.take_ready():
            self._take()

    def _take_returned(self, queue: ReadyQueue) -> None:
        for _ in range(_CONNECTIONS_PER_TURN):
            if self._is_out_of_capacity():
                return
            taken = self._take_from(queue)
            if taken is None:
                if queue.reader.ended:
                    self._switch.remove(queue.reader)
                    self._ready_queues.remove(queue)
                    self._sources.remove(queue)
                return
            self._join(taken, queue)

    def _take(self, granted: ProtocolEngine | None = None) -> None:
        """Take one connection from the next source that has one, and whose engine has capacity. Open the switch if none has.

        Args:
            granted: an engine that takes one in any case.
        """
        try:
            self._take_next(granted)
        except Exception as error:  # else the switch would stay shut, and the worker would get no connection any more
            logger.error("a connection could not be taken", exc_info=error)
            self._pause_accepting(error)

    def _take_next(self, granted: ProtocolEngine | None) -> None:
        self._take_scheduled = False
        if self._mode is AcceptMode.BATCH or self._is_out_of_capacity():
            return
        sources, full = self._sources, 0
        for _ in sources:
            self._turn = (self._turn + 1) % len(sources)  # in turn, so that no source starves
            source = sources[self._turn]
            if source.engine is not granted and not source.engine.has_capacity():
                full += 1
                continue
            if (taken := self._take_from(source)) is not None:
                if not self._join(taken, source):
                    # The client has left: no request will begin and call `_on_served`.
                    self._take_soon()
                return
        self._pending = None
        if not full:
            self._open_switch_once()
        elif full < len(sources):
            self._ignore_full_sources()
            self._open_switch_once()
        # Else all engines are full: the switch stays shut until one has capacity.

    def _is_out_of_capacity(self) -> bool:
        """Return whether no connection may be taken. If so, shut the switch until `set_capacity` grants some."""
        if self._capacity is None or self._capacity > 0:
            return False
        self._exhausted = True
        self._pending = None
        self._switch.shut()
        return True

    def _take_soon(self) -> None:
        """Take the next connection after the callbacks that the loop has queued."""
        self._take_scheduled = True
        self._loop.call_soon(self._take)

    def _ignore_full_sources(self) -> None:
        """Stop watching the sources whose engines are full."""
        self._ignored_sources = [source for source in self._sources if not source.engine.has_capacity()]
        for source in self._ignored_sources:
            self._switch.watch(source.watched, False)

    def _watch_ignored_sources(self) -> None:
        for source in self._ignored_sources:
            self._switch.watch(source.watched, True)
        self._ignored_sources = []

    def _on_capacity(self, engine: ProtocolEngine) -> None:
        """Take a connection for an engine that has capacity again, or grants one more."""
        if self._mode is not AcceptMode.BATCH:
            self._watch_ignored_sources()
            if self._pending is None and not self._take_scheduled and not self._paused and not self._exhausted:
                # The engine may call this in the context of a request, and a connection keeps the context in which it is taken.
                self._context.copy().run(self._take, engine)

    def _open_switch_once(self) -> None:
        if self._listening and not self._paused and not self._exhausted:
            self._switch.open_once()

    def _hold_back_for(self, connection: object) -> None:
        """Take the next connection when this one's request has begun, or after `MAX_HEAD_WAIT_S`."""
        self._pending = connection
        self._pending_since = self._loop.time()
        # The timer isn't cancelled when a request begins: one timer serves many connections, and checks which one is pending.
        if self._timer is None:
            self._timer = self._loop.call_later(MAX_HEAD_WAIT_S, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        self._timer = None
        if self._pending is None:
            return
        age = self._loop.time() - self._pending_since
        if age >= 0.9 * MAX_HEAD_WAIT_S:  # a timer may fire a little early
            self._pending = None
            self._take()
        else:
            self._timer = self._loop.call_later(MAX_HEAD_WAIT_S - age, self._on_head_timeout)

    def _on_served(self, connection: object) -> None:
        """Take the next connection: the request of the last one has begun, or never will."""
        if self._pending is connection:
            self._pending = None
            self._take_soon()

    def _take_from(self, source: ListeningSource | ReadyQueue) -> socket.socket | None:
        """Return the next connection that waits at a source; None: there is none, or it can't be taken now."""
        try:
            taken = source.take()
        except OSError as error:
            self._pause_accepting(error)
            return None
        if taken is not None and self._capacity is not None:
            self._capacity -= 1
        return taken

    def _join(self, connection: socket.socket, source: ListeningSource | ReadyQueue) -> bool:
        """Give a connection its protocol. Return False if the client has left."""
        self._on_activity()
        engine, tls = source.engine, source.tls
        first: bytes | None = None
        if tls is None and engine.reads_first:
            try:
                first = connection.recv(_FIRST_READ_BYTES, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:  # reset, or no socket at all: only a foreign process can have put that there
                connection.close()
                return False
            if first == b"":  # the client has closed it already
                connection.close()
                return False
        try:
            protocol = engine.accepted_protocol(first, self._on_served)
        except Exception:  # raised by the app's factory of protocols
            logger.exception("the app made no protocol for a connection, which is closed")
            connection.close()
            return False
        if self._mode is not AcceptMode.BATCH:
            self._hold_back_for(protocol)
        if first is not None and self._mode is AcceptMode.HANDOFF:
            # It has brought a request, and will leave after the response: a transport of the loop's costs more than it saves.
            transport = OneShotTransport(self._loop, connection, cast(asyncio.Protocol, protocol))
            try:
                transport.begin()
            except Exception:
                logger.exception("a protocol failed on what its connection brought; the connection is closed")
                transport.abort()
                self._on_served(protocol)
            return True
        task = self._loop.create_task(self._connect(protocol, connection, tls))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)
        return True

    async def _connect(
        self, protocol: asyncio.BaseProtocol, connection: socket.socket, tls: ssl.SSLContext | None
    ) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection, **self._tls_arguments(tls))
        except (OSError, ValueError) as error:  # the client has left or failed the handshake, or it is no connection
            logger.debug("a connection was given up: %s", error)
            connection.close()
            self._on_served(protocol)

    def _pause_accepting(self, error: Exception) -> None:
        self._switch.shut()
        if self._paused:
            return
        logger.warning("no connection can be taken for %.1f s: %s", _DESCRIPTOR_RETRY_S, error)
        self._paused = True
        self._loop.call_later(_DESCRIPTOR_RETRY_S, self._resume)

    def _resume(self) -> None:
        self._paused = False
        if not self._exhausted:
            self._resume_accepting()

    def _resume_accepting(self) -> None:
        if self._mode is AcceptMode.BATCH:
            self._switch.open()
        elif self._pending is None and not self._take_scheduled:
            self._take()

    def _tls_arguments(self, tls: ssl.SSLContext | None) -> dict[str, Any]:
        """Return the loop's arguments for TLS."""
        if tls is None:
            return {}
        return {
            "ssl": tls,
            "ssl_handshake_timeout": self._handshake_timeout,
            "ssl_shutdown_timeout": _TLS_CLOSE_TIMEOUT_S,
        }
