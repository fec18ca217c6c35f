"""An asyncio client of the master's control protocol (`runtime.control_client` describes it).

Each query or command has a connection of its own. Only the one on which events come stays open. It is made again when it breaks:
the master closes the connection of a subscriber that is too slow.
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
from .data.event_buffer import MAX_EVENT_BYTES

logger = logging.getLogger("cluster2.monitor")

QUERY_TIMEOUT_S = 5.0
"""Seconds that the master has for the result of a query."""
RECONNECT_BACKOFF_S, _RECONNECT_MAX_BACKOFF_S = 0.2, 5.0
"""Seconds until the connection for events is made again. They are doubled after each failure, up to the maximum."""
MAX_LINE_BYTES = 1 << 24
"""Bytes of one line. The longest lines are the status of components."""
_SUBSCRIPTION = {"heartbeats": False, "emitted": 20, "longest": MAX_EVENT_BYTES}
"""The events to send. Reports are fresher than heartbeats; an app may emit thousands a second, more than can be read."""

OnProgress = Callable[[dict[str, Any]], None]


class AsyncControlClient:
    """Sends queries and commands to the master.

    Args:
        connect: returns a connection to the master without waiting; raises OSError.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect

    async def query(self, verb: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of a verb that the master carries out at once.

        Raises:
            NoAnswer: the master isn't there, or sent no result in time.
            ClusterError: the master's own error.
        """
        try:
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                return await self.command(verb, params, lambda progress: None)
        except TimeoutError:
            raise NoAnswer(f"the master didn't finish {verb!r} within {QUERY_TIMEOUT_S:g} s") from None

    async def command(self, verb: str, params: Mapping[str, Any], on_progress: OnProgress) -> dict[str, Any]:
        """Return the result of a verb when the master has carried it out. There is no timeout.

        Args:
            on_progress: called with each report of progress.

        Raises:
            NoAnswer: the master isn't there, or left without a result.
            ClusterError: the master's own error.
        """
        async with contextlib.aclosing(self._messages(verb, params)) as messages:
            async for kind, content in messages:
                if kind == "result":
                    return content
                on_progress(content)
        raise NoAnswer(f"the master left without an answer to {verb!r}")

    async def follow_events(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Call a function with each event of the cluster, until the task is cancelled."""
        pause = RECONNECT_BACKOFF_S
        while True:
            try:
                async with contextlib.aclosing(self._messages("events", _SUBSCRIPTION)) as messages:
                    async for _, content in messages:
                        pause = RECONNECT_BACKOFF_S
                        on_event(content)
            except ClusterError as error:
                logger.debug("no events can be received: %s", error.message)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RECONNECT_MAX_BACKOFF_S)

    async def _messages(self, verb: str, params: Mapping[str, Any]) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Yield the master's messages until the connection ends."""
        try:
            reader, writer = await asyncio.open_unix_connection(sock=self._connect(), limit=MAX_LINE_BYTES)
        except OSError as error:
            raise NoAnswer(f"can't connect to the master: {error.strerror}") from None
        try:
            writer.write(control_client.request(verb, params))
            # A line without its end was cut off: the master left while it wrote it.
            while (line := await reader.readline()).endswith(b"\n"):
                yield control_client.decode_line(line, "the other end")
        except (ConnectionError, ValueError) as error:  # ValueError: a line that is too long
            raise NoAnswer(f"the master can't be understood: {error}") from None
        finally:
            writer.close()
