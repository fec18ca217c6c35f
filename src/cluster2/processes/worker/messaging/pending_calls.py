"""The worker's side of delegated work: what it has asked the master, and who waits for the answer.

From the channel's own loop a question is a future in a table and bytes in a buffer, nothing more. From another loop, and from
threads, it is the same with a future that wakes them. One timer watches the earliest deadline, whatever the number of questions.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import threading
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
"""Questions under way; who asks more waits for its turn."""
MASTER_GONE = "the master is gone: nobody is there to do it"
WORKER_LEAVING = "this worker leaves: it waits for no answer any more"
ROOM_POLL_INTERVAL_S = 0.002
"""Seconds between two looks of a thread for room in the channel."""

Fields = Iterable[str] | Mapping[str, Any]


def delegate_message(
    name: str,
    message: object,
    timeout: float | None,
    matches: Fields | None,
    notification: str | None,
    targets: Iterable[int] | None,
) -> messages.Delegate:
    """The message, without its number. Raises ClusterError if it can't travel."""
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


def unwrap_result(name: str, answer: messages.CallResult) -> Any:
    """What an answer says. Raises DelegateError if it is a failure."""
    failure = answer.failure
    if failure is None:
        return codec.value(answer.value)
    text = f"{name!r} failed in the master: {failure.type}: {failure.message}"
    raise DelegateError(text, type=failure.type, traceback=failure.traceback)


class PendingCalls:
    """What was asked over a channel and isn't answered yet.

    Attributes:
        late: answers that came when nobody waited any more.
    """

    def __init__(self, channel: MasterChannel) -> None:
        self._channel = channel
        self._loop = channel.loop
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[Any, float]] = {}
        self._turns: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = inf
        self._over: str | None = None
        self.late = 0

    async def call(self, asked: messages.Delegate) -> Any:
        """The answer to a question; from any loop.

        Raises:
            DelegateError: the work failed; DelegateTimeout: no answer came in time.
            ClusterError: the question is too long.
        """
        if asyncio.get_running_loop() is not self._loop:
            return await self._ask_from_elsewhere(asked)
        deadline = inf if asked.timeout is None else self._loop.time() + asked.timeout
        if self._turns or len(self._open) >= MAX_OPEN_CALLS or self._channel.full:
            asked = await self._turn(asked, deadline)
        number = next(self._numbers)
        future: asyncio.Future[messages.CallResult] = self._loop.create_future()
        self._open[number] = (future, deadline)
        if deadline < self._look_at:
            self._watch(deadline)
        try:
            self._send(asked, number)
            return unwrap_result(asked.delegate, await future)
        except (asyncio.CancelledError, DelegateTimeout):
            self._channel.send(messages.GiveUp(number))
            raise
        finally:
            self._open.pop(number, None)
            if self._turns:
                self._next_turn()

    def call_sync(self, asked: messages.Delegate) -> Any:
        """The same in a thread, which waits. Raises ClusterError at once where that would block an event loop."""
        refuse_on_a_loop(asked.delegate)
        deadline = None if asked.timeout is None else time.monotonic() + asked.timeout
        while self._channel.full and self._over is None:
            if deadline is not None and time.monotonic() > deadline:
                raise _too_late(asked)
            time.sleep(ROOM_POLL_INTERVAL_S)
        number, future = self._ask_for_thread(asked)
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            return unwrap_result(asked.delegate, future.result(left))
        except concurrent.futures.TimeoutError as error:
            if isinstance(error, DelegateError):
                raise
            self._channel.send(messages.GiveUp(number))
            raise _too_late(asked) from None
        finally:
            self._open.pop(number, None)

    def send(self, asked: messages.Delegate) -> None:
        """Delegate something that nobody waits for. Raises ChannelFull."""
        refuse_if_full(self._channel)
        self._channel.send(msgspec.structs.replace(asked, expect=None, timeout=None))

    def on_answer(self, answer: messages.CallResult) -> None:
        """The master answers. On the loop."""
        entry = self._open.pop(answer.number, None)
        try:
            if entry is None or entry[0].done():
                self.late += 1
            else:
                entry[0].set_result(answer)
        except concurrent.futures.InvalidStateError:  # another thread has given it up at this very moment
            self.late += 1
        if self._turns:
            self._next_turn()

    def close(self, reason: str) -> None:
        """Nothing will be answered any more. The first reason is the one that all are told."""
        if self._over is None:
            self._over = reason
        for future, _ in list(self._open.values()):
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # given up at this very moment
                if not future.done():
                    future.set_exception(_nobody(self._over))
        while self._turns:
            self._next_turn()

    def _send(self, asked: messages.Delegate, number: int) -> None:
        if self._over is not None:
            raise _nobody(self._over)
        message = messages.Delegate(
            asked.delegate, asked.origin, number, asked.expect, asked.matches, asked.timeout,
            asked.notification, asked.targets,
        )  # fmt: skip
        try:
            self._channel.send(message)
        except ValueError as error:
            raise ClusterError(f"delegate({asked.delegate!r}): {error}") from None

    def _ask_for_thread(self, asked: messages.Delegate) -> tuple[int, concurrent.futures.Future[messages.CallResult]]:
        number = next(self._numbers)
        future: concurrent.futures.Future[messages.CallResult] = concurrent.futures.Future()
        self._open[number] = (future, inf)
        try:
            self._send(asked, number)
        except BaseException:
            del self._open[number]
            raise
        return number, future

    async def _ask_from_elsewhere(self, asked: messages.Delegate) -> Any:
        number, future = self._ask_for_thread(asked)
        try:
            async with asyncio.timeout(asked.timeout):
                answer = await asyncio.wrap_future(future)
        except TimeoutError:
            self._channel.send(messages.GiveUp(number))
            raise _too_late(asked) from None
        except asyncio.CancelledError:
            self._channel.send(messages.GiveUp(number))
            raise
        finally:
            self._open.pop(number, None)
        return unwrap_result(asked.delegate, answer)

    async def _turn(self, asked: messages.Delegate, deadline: float) -> messages.Delegate:
        """Wait for the turn of a question; the master is told what time is left."""
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
        """Let as many go on as there is room for."""
        room = 0 if self._channel.full else MAX_OPEN_CALLS - len(self._open)
        while self._turns and (room > 0 or self._over is not None):
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= 1

    def _watch(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._look_at = deadline
        self._timer = self._loop.call_at(deadline, self._expire_calls)

    def _expire_calls(self) -> None:
        """End what is overdue; look again when the next one may be."""
        now = self._loop.time()
        self._timer, self._look_at = None, inf
        earliest = inf
        for future, deadline in list(self._open.values()):  # threads ask meanwhile
            if deadline <= now:
                if not future.done():
                    future.set_exception(DelegateTimeout("no answer came in time"))
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
    """Raise ChannelFull if the master doesn't take what was said."""
    if channel.full:
        raise ChannelFull("the master takes less than this worker says: give the loop a turn, or say less")


def _too_late(asked: messages.Delegate) -> DelegateTimeout:
    return DelegateTimeout(f"{asked.delegate!r} wasn't answered within {asked.timeout:g} s")


def _nobody(reason: str) -> DelegateError:
    return DelegateError(reason, type="ConnectionError")


def on_loop(channel: MasterChannel) -> bool:
    """Whether this is the channel's own thread."""
    return threading.get_ident() == channel.thread
