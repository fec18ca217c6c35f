"""Run handlers for calls that workers delegate to the master, and send the results back (`core.single_flight` decides).

A handler runs as a task if it is async, else in a thread, so the loop never waits for one. Its result or exception goes to all
workers that made an equal call. A worker that has left in the meantime (it died, it gave up, its timeout is over) gets none. A
result for which no worker waits is dropped and counted. When no worker waits any more, an async handler is cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Callable
from math import inf
from typing import Any

import msgspec

from ....core.single_flight import Flight, SingleFlight
from ....errors import ConfigError, raised_in
from ....protocol import codec, messages
from .handler_threads import HandlerThreads
from .worker_link import WorkerLink

logger = logging.getLogger("cluster2.app")

DEFAULT_CONCURRENCY = 64
"""Calls of one kind that run at a time, unless the handler is registered with another limit."""
_DEADLINE_POLL_INTERVAL_S = 0.25
"""Seconds between two checks of deadlines. The worker keeps its own to the millisecond, and reports that it gave up."""
_MAX_UNREAD_ANSWER_BYTES = 16 << 20
"""Bytes that may wait for a worker before results for it are dropped."""
_HANDLER_CANCEL_GRACE_S = 1.0
"""Seconds in which handlers that are cancelled at the end may finish."""
_MAX_TRACEBACK_CHARS = 1 << 16

Handler = Callable[..., Any]
_Asker = tuple[WorkerLink, int]


class DelegateRequest(msgspec.Struct, frozen=True):
    """The second argument of a handler, if it takes one: everything about the call but its message.

    Attributes:
        delegate: the name of the handler.
        pid, slot: of the worker that called first.
        expects: true if a worker waits for the result.
        timeout: seconds that it waits, or None.
        notification: the event by which later changes shall be announced, or None.
        targets: pids of the workers that shall get that event, or None for all.
    """

    delegate: str
    pid: int
    slot: int
    expects: bool
    timeout: float | None
    notification: str | None
    targets: list[int] | None
    _emit: Callable[[str, object, list[int] | None], None]

    def notify(self, value: object) -> None:
        """Emit the event of `notification`, now or later. Do nothing if the call asks for none."""
        if self.notification is not None:
            self._emit(self.notification, value, self.targets)


class DelegateHandler:
    """A handler, and the calls for it that wait or run."""

    def __init__(self, name: str, handler: Handler, limit: int, single: bool) -> None:
        self.name = name
        self.handler = handler
        self.single = single
        called = handler if inspect.isroutine(handler) else getattr(handler, "__call__", handler)  # noqa: B004
        self.is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called)
        self.wants_request = _takes_two(handler)
        self.flights: SingleFlight[_Asker] = SingleFlight(limit)


class Delegation:
    """The handlers by name, and the calls under way.

    Attributes:
        late: number of results for which no worker waited any more.
        handled: number of calls that were begun.
    """

    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit = emit
        self._handlers: dict[str, DelegateHandler] = {}
        self._threads = HandlerThreads()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.late = 0
        self.handled = 0

    def handle(self, name: str, handler: Handler, *, limit: int = DEFAULT_CONCURRENCY, single: bool = True) -> None:
        """Register a handler under a name. Raises ConfigError if the name has one."""
        if name in self._handlers:
            raise ConfigError(f"delegate({name!r}): that kind of work has a handler already")
        if limit < 1:
            raise ConfigError(f"delegate({name!r}): limit = {limit}: expected a whole number from 1")
        self._handlers[name] = DelegateHandler(name, handler, limit, single)

    def start(self) -> None:
        """Start on the running loop, which is the master's."""
        self._loop, self._closed, self._threads = asyncio.get_running_loop(), False, HandlerThreads()

    def unfinished(self) -> int:
        """Return the number of calls that wait or run."""
        return sum(len(kind.flights) for kind in self._handlers.values())

    async def close(self) -> None:
        """Cancel all handlers that run. One that hangs in a thread is abandoned."""
        self._closed = True
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_HANDLER_CANCEL_GRACE_S)
        self._threads.close()

    # Messages of workers

    def on_request(self, link: WorkerLink, message: messages.Delegate) -> None:
        """Begin a delegated call, or join an equal one that is under way."""
        number = message.number if message.expect is not None else 0
        kind = self._handlers.get(message.delegate)
        if kind is None:
            self._no_handler(link, number, message.delegate)
            return
        if number in link.open_calls:
            raise codec.ProtocolError(f"it used the call number {number} twice")
        if not number:
            link.fire_and_forget += 1
            link.pending_bytes += len(message.origin)
            kind.flights.join_or_begin((link, message), None, None, inf)
        else:
            key = None
            if kind.single:
                key = bytes(message.matches or message.origin)
            deadline = inf
            if message.timeout is not None:
                assert self._loop is not None
                deadline = self._loop.time() + message.timeout
                if self._deadline_timer is None:
                    self._deadline_timer = self._loop.call_later(_DEADLINE_POLL_INTERVAL_S, self._expire_flights)
            flight = kind.flights.join_or_begin((link, message), key, (link, number), deadline)
            link.pending_bytes += len(message.origin)
            link.open_calls[number] = (kind, flight, len(message.origin))
            if flight.begun:
                return
        self._begin(kind)

    def on_give_up(self, link: WorkerLink, number: int) -> None:
        """Drop a call that its worker doesn't wait for any more."""
        found = link.open_calls.pop(number, None)
        if found is not None:
            kind, flight, weight = found
            link.pending_bytes -= weight
            if kind.flights.leave(flight, (link, number)):
                self._cancel(flight)
            link.release()

    def on_disconnect(self, link: WorkerLink) -> None:
        """Drop all calls of a worker that has gone."""
        for number in list(link.open_calls):
            self.on_give_up(link, number)

    # Handlers

    def _begin(self, kind: DelegateHandler) -> None:
        assert self._loop is not None
        while not self._closed and (flight := kind.flights.next_flight()) is not None:
            self.handled += 1
            task = self._loop.create_task(self._run_flight(kind, flight))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_flight(self, kind: DelegateHandler, flight: Flight[_Asker]) -> None:
        link, message = flight.request
        value = messages.NO_PAYLOAD
        failure: messages.Failure | None = None
        try:
            if flight.over:  # all callers have left before its first step
                raise asyncio.CancelledError
            flight.runner = asyncio.current_task()
            given = [codec.value(message.origin)]
            if kind.wants_request:
                given.append(self._request(link, message))
            if kind.is_async:
                result = await kind.handler(*given)
            else:
                result = await self._in_thread(kind.handler, given, flight)
            value = codec.payload(result)
        except asyncio.CancelledError:
            failure = messages.Failure("CancelledError", "the master cancelled the handler")
        except BaseException as error:  # also SystemExit: it would end the master, and the caller would get no response
            failure = _failure(error)
            if flight.lone:
                logger.error(
                    "a delegated call for which no worker waits failed: %r", kind.name, exc_info=raised_in(error)
                )
        lone = flight.lone
        askers = kind.flights.finish(flight)
        if lone:
            link.fire_and_forget -= 1
            link.pending_bytes -= len(message.origin)
            link.release()
        elif not askers:
            self.late += 1
        for asker, number in askers:
            self._answer(asker, number, value, failure)
        self._begin(kind)

    async def _in_thread(self, handler: Handler, given: list[Any], flight: Flight[_Asker]) -> Any:
        """Run a handler in a thread. It can't be cancelled: it goes on without callers, and counts as under way until it ends."""
        future = self._threads.run(lambda: handler(*given))
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError:
                if future.done() or not flight.over or self._closed:
                    raise
        result = future.result()
        return await result if inspect.isawaitable(result) else result

    def _request(self, link: WorkerLink, message: messages.Delegate) -> DelegateRequest:
        return DelegateRequest(
            message.delegate, link.pid, link.slot, message.expect is not None, message.timeout,
            message.notification, message.targets, self._emit,
        )  # fmt: skip

    def _answer(self, link: WorkerLink, number: int, value: msgspec.Raw, failure: messages.Failure | None) -> None:
        found = link.open_calls.pop(number, None)
        if found is None:
            return
        link.pending_bytes -= found[2]
        try:
            link.send_if_room(messages.CallResult(number, value, failure), _MAX_UNREAD_ANSWER_BYTES)
        except ValueError as error:
            link.send(messages.CallResult(number, failure=messages.Failure("ValueError", f"the result is {error}")))
        link.release()

    def _no_handler(self, link: WorkerLink, number: int, name: str) -> None:
        if number:
            text = f"the master has no handler for {name!r}: register one by cluster.on_delegate({name!r})"
            link.send_if_room(
                messages.CallResult(number, failure=messages.Failure("LookupError", text)), _MAX_UNREAD_ANSWER_BYTES
            )
        else:
            logger.warning("worker %d delegates %r, which has no handler: the call is dropped", link.pid, name)

    def _cancel(self, flight: Flight[_Asker]) -> None:
        if flight.runner is not None:
            flight.runner.cancel()

    def _expire_flights(self) -> None:
        assert self._loop is not None
        self._deadline_timer = None
        now, some = self._loop.time(), False
        for kind in self._handlers.values():
            for _flight, (link, number) in list(kind.flights.expired(now)):
                self.on_give_up(link, number)
            some = some or len(kind.flights) > 0
        if some:
            self._deadline_timer = self._loop.call_later(_DEADLINE_POLL_INTERVAL_S, self._expire_flights)


def _failure(error: BaseException) -> messages.Failure:
    trace = codec.clip("".join(traceback.format_exception(*raised_in(error))), _MAX_TRACEBACK_CHARS, end=True)
    try:
        text = str(error)
    except Exception as another:  # its __str__ raises
        text = f"(its text can't be had: {type(another).__name__})"
    return messages.Failure(type(error).__name__, codec.clip(text, _MAX_TRACEBACK_CHARS), trace)


def _takes_two(handler: Handler) -> bool:
    """Return True if a handler has two positional parameters without a default."""
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):
        return False
    needed = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return len([each for each in needed if each.default is each.empty]) > 1
