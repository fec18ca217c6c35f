"""The worker's side of delegated calls: those that wait for a result of the master.

From the channel's own loop a call is a future in a table and bytes in a buffer, nothing more. From another loop, and from
threads, the future is one that wakes them. One timer watches the earliest deadline, for any number of calls.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

import msgspec

from ....errors import ChannelFull, ClusterError, DelegateError, DelegateTimeout
from ....protocol import codec, messages
from .master_channel import MasterChannel

MAX_OPEN_CALLS = 4096
"""Calls under way; further calls wait for their turn."""
MASTER_GONE = "the master is gone: there is no handler"
WORKER_LEAVING = "this worker leaves: it waits for no result any more"
_CHANNEL_POLL_INTERVAL_S = 0.002
"""Seconds between two checks of a thread whether the channel takes more."""

Fields = Iterable[str] | Mapping[str, Any]


def delegate_message(
    name: str,
    message: object,
    timeout: float | None,
    matches: Fields | None,
    notification: str | None,
    targets: Iterable[int] | None,
) -> messages.Delegate:
    """Return the message of a call, without its number. Raises ClusterError if it can't be encoded."""
    if timeout is not None and not timeout > 0:
        raise ClusterError(f"delegate({name!r}): timeout = {timeout!r}: expected seconds above 0, or None")
    return messages.Delegate(
        name,
        codec.sendable(message, f"the message of delegate({name!r})"),
        0,
        name,
        messages.NO_PAYLOAD if matches is None else _criteria(name, message, matches),
        timeout,
        notification,
        None if targets is None else list(targets),
    )


def _criteria(name: str, message: object, matches: Fields) -> msgspec.Raw:
    if not isinstance(matches, Mapping):
        fields = [matches] if isinstance(matches, str) else list(matches)
        if not isinstance(message, Mapping) or not all(field in message for field in fields):
            raise ClusterError(f"delegate({name!r}): matches = {fields!r}: the message has no such fields")
        matches = {field: message[field] for field in fields}
    return codec.sendable(dict(matches), f"matches of delegate({name!r})")


def _unwrap_result(name: str, message: messages.CallResult) -> Any:
    """Return the result in a message. Raises DelegateError if it is a failure."""
    failure = message.failure
    if failure is None:
        return codec.value(message.value)
    text = f"{name!r} failed in the master: {failure.type}: {failure.message}"
    raise DelegateError(text, type=failure.type, traceback=failure.traceback)


class PendingCalls:
    """The calls over a channel that wait for a result."""

    def __init__(self, channel: MasterChannel) -> None:
        self._channel = channel
        self._loop = channel.loop
        self._numbers = itertools.count(1)  # next() is one step under the GIL: threads use it without a lock
        self._open: dict[int, tuple[Any, float]] = {}
        self._turns: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._watched_deadline = inf
        self._closed: str | None = None

    async def call(self, asked: messages.Delegate) -> Any:
        """Make a call and return its result. Callable from any loop.

        Raises:
            DelegateError: the handler failed, or there is none.
            DelegateTimeout: no result came in time.
            ClusterError: the message is too long.
        """
        if asyncio.get_running_loop() is not self._loop:
            return await self._call_from_other_loop(asked)
        deadline = inf if asked.timeout is None else self._loop.time() + asked.timeout
        if self._turns or len(self._open) >= MAX_OPEN_CALLS or self._channel.full:
            asked = await self._wait_for_turn(asked, deadline)  # in order, also when others wait already
        number = next(self._numbers)
        future: asyncio.Future[messages.CallResult] = self._loop.create_future()
        self._open[number] = (future, deadline)
        if deadline < self._watched_deadline:
            self._watch(deadline)
        try:
            self._send(asked, number)
            return _unwrap_result(asked.delegate, await future)
        except (asyncio.CancelledError, DelegateTimeout):
            # The master cancels the handler if no other caller waits for the same call.
            self._channel.send(messages.GiveUp(number))
            raise
        finally:
            self._open.pop(number, None)
            if self._turns:
                self._next_turn()

    def call_sync(self, asked: messages.Delegate) -> Any:
        """Make a call from a thread, which waits, and return its result. Raises ClusterError where that would block a loop."""
        refuse_on_a_loop(asked.delegate)
        deadline = None if asked.timeout is None else time.monotonic() + asked.timeout
        while self._channel.full and self._closed is None:
            if deadline is not None and time.monotonic() > deadline:
                raise _too_late(asked)
            time.sleep(_CHANNEL_POLL_INTERVAL_S)
        number, future = self._open_call_for_thread(asked)
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            return _unwrap_result(asked.delegate, future.result(left))
        except concurrent.futures.TimeoutError as error:
            if isinstance(error, DelegateError):  # a failure that the future had, which is a TimeoutError as well
                raise
            self._channel.send(messages.GiveUp(number))
            raise _too_late(asked) from None
        finally:
            self._open.pop(number, None)

    def send(self, asked: messages.Delegate) -> None:
        """Make a call without a result. Raises ChannelFull."""
        refuse_if_full(self._channel)
        self._channel.send(msgspec.structs.replace(asked, expect=None, timeout=None))

    def on_result(self, message: messages.CallResult) -> None:
        """Complete a call with its result. Called on the channel's loop."""
        entry = self._open.pop(message.number, None)
        # The caller may have given up: a future that is done, or one that another thread cancels at this very moment.
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            if entry is not None and not entry[0].done():
                entry[0].set_result(message)
        if self._turns:
            self._next_turn()

    def close(self, reason: str) -> None:
        """Fail all calls, now and later. If this is called again the first reason stays."""
        if self._closed is None:
            self._closed = reason
        for future, _ in list(self._open.values()):
            # As in `on_result`.
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                if not future.done():
                    future.set_exception(_closed_error(self._closed))
        while self._turns:
            self._next_turn()

    def _send(self, asked: messages.Delegate, number: int) -> None:
        if self._closed is not None:
            raise _closed_error(self._closed)
        message = messages.Delegate(
            asked.delegate, asked.origin, number, asked.expect, asked.matches, asked.timeout,
            asked.notification, asked.targets,
        )  # fmt: skip
        try:
            self._channel.send(message)
        except ValueError as error:
            raise ClusterError(f"delegate({asked.delegate!r}): {error}") from None

    def _open_call_for_thread(
        self, asked: messages.Delegate
    ) -> tuple[int, concurrent.futures.Future[messages.CallResult]]:
        number = next(self._numbers)
        future: concurrent.futures.Future[messages.CallResult] = concurrent.futures.Future()
        self._open[number] = (future, inf)  # no deadline for the timer: the caller watches it
        try:
            self._send(asked, number)
        except BaseException:
            del self._open[number]
            raise
        return number, future

    async def _call_from_other_loop(self, asked: messages.Delegate) -> Any:
        number, future = self._open_call_for_thread(asked)
        try:
            async with asyncio.timeout(asked.timeout):
                message = await asyncio.wrap_future(future)
        except TimeoutError:
            self._channel.send(messages.GiveUp(number))
            raise _too_late(asked) from None
        except asyncio.CancelledError:
            self._channel.send(messages.GiveUp(number))
            raise
        finally:
            self._open.pop(number, None)
        return _unwrap_result(asked.delegate, message)

    async def _wait_for_turn(self, asked: messages.Delegate, deadline: float) -> messages.Delegate:
        """Wait for the turn of a call. Return its message with the time that is left."""
        turn = self._loop.create_future()
        self._turns.append(turn)
        self._channel.on_writable = self._next_turn
        try:
            async with asyncio.timeout_at(None if deadline == inf else deadline):
                await turn
        except TimeoutError:
            raise _too_late(asked) from None
        finally:
            if turn in self._turns:
                self._turns.remove(turn)
        if deadline == inf:
            return asked
        return msgspec.structs.replace(asked, timeout=max(deadline - self._loop.time(), 0.001))

    def _next_turn(self) -> None:
        """Let as many waiting calls go on as the limit allows; all of them when the channel is closed."""
        free = 0 if self._channel.full else MAX_OPEN_CALLS - len(self._open)
        while self._turns and (free > 0 or self._closed is not None):
            turn = self._turns.popleft()
            if not turn.done():  # else its caller has given up
                turn.set_result(None)
                free -= 1

    def _watch(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._watched_deadline = deadline
        self._timer = self._loop.call_at(deadline, self._expire_calls)

    def _expire_calls(self) -> None:
        """Fail the calls that are overdue, and watch the next deadline."""
        now = self._loop.time()
        self._timer, self._watched_deadline = None, inf
        earliest = inf
        for future, deadline in list(self._open.values()):  # a copy, since threads add calls meanwhile
            if deadline <= now:
                if not future.done():
                    future.set_exception(DelegateTimeout("no result came in time"))
            elif deadline < earliest:
                earliest = deadline
        if earliest < inf:
            self._watch(earliest)


def refuse_on_a_loop(name: str) -> None:
    """Raise ClusterError if this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ClusterError(
        f"delegate_sync({name!r}) was called in a thread that runs an event loop, which would stand still: "
        "use `await worker.delegate(…)` there, or call it in a thread"
    )


def refuse_if_full(channel: MasterChannel) -> None:
    """Raise ChannelFull if the master reads less than this worker sends."""
    if channel.full:
        raise ChannelFull("the master reads less than this worker sends: give the loop a turn, or send less")


def _too_late(asked: messages.Delegate) -> DelegateTimeout:
    return DelegateTimeout(f"{asked.delegate!r} had no result within {asked.timeout:g} s")


def _closed_error(reason: str) -> DelegateError:
    return DelegateError(reason, type="ConnectionError")
