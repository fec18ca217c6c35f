"""The line to the master: what its control socket speaks (`client` has the protocol), without a thread for each question.

Nothing is kept open but the connection on which events are heard. That is made again when it breaks: the master leaves those
behind who are too slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from ...errors import ClusterError, NoAnswer
from ...runtime import control_client
from .data.event_buffer import MAX_EVENT_BYTES as LONGEST_EVENT

logger = logging.getLogger("cluster2.monitor")

ANSWER_TIMEOUT_S = 5.0
"""Seconds for the master to answer a question."""
RECONNECT_BACKOFF_S, RECONNECT_MAX_BACKOFF_S = 0.2, 5.0
"""Seconds until it is listened to again, doubled each time that it fails."""
MAX_LINE_BYTES = 1 << 24
"""Bytes of one line; the longest are what components tell of themselves."""
SUBSCRIPTION = {"heartbeats": False, "emitted": 20, "longest": LONGEST_EVENT}
"""Of the events: the facts are fresher than heartbeats; an app may emit thousands a second, which nobody could read."""

Tell = Callable[[dict[str, Any]], None]


class MasterLine:
    """Asks the master.

    Args:
        connect: makes a connection to it, at once; raises OSError.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect

    async def query(self, verb: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """A question: the answer comes soon.

        Raises:
            NoAnswer: it isn't there, didn't answer, or not in time.
            ClusterError: the master's own error.
        """
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self.order(verb, params, lambda progress: None)
        except TimeoutError:
            raise NoAnswer(f"the master didn't finish {verb!r} within {ANSWER_TIMEOUT_S:g} s") from None

    async def order(self, verb: str, params: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """An order: the answer comes when it is carried out, however long that takes; `tell` hears how far it is.

        Raises:
            As `query`; but it has no limit of time.
        """
        async with contextlib.aclosing(self._said(verb, params)) as said:
            async for kind, content in said:
                if kind == "result":
                    return content
                tell(content)
        raise NoAnswer(f"the master left without an answer to {verb!r}")

    async def follow(self, heard: Tell) -> None:
        """Hear all events, for ever. Cancel it."""
        pause = RECONNECT_BACKOFF_S
        while True:
            try:
                async with contextlib.aclosing(self._said("events", SUBSCRIPTION)) as said:
                    async for _, told in said:
                        pause = RECONNECT_BACKOFF_S
                        heard(told)
            except ClusterError as error:
                logger.debug("events can't be heard: %s", error.message)
            await asyncio.sleep(pause)
            pause = min(2 * pause, RECONNECT_MAX_BACKOFF_S)

    async def _said(self, verb: str, params: Mapping[str, Any]) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """What the master says, until the connection ends."""
        try:
            reader, writer = await asyncio.open_unix_connection(sock=self._connect(), limit=MAX_LINE_BYTES)
        except OSError as error:
            raise NoAnswer(f"can't talk to the master: {error.strerror}") from None
        try:
            writer.write(control_client.request(verb, params))
            while (line := await reader.readline()).endswith(b"\n"):  # else it left in the middle of it
                yield control_client._decode_line(line, "the other end")
        except (ConnectionError, ValueError) as error:  # ValueError: a line that is too long
            raise NoAnswer(f"the master can't be understood: {error}") from None
        finally:
            writer.close()
