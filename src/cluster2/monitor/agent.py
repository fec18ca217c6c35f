"""HAProxy's agent-check: a line of text for each connection (HAProxy's configuration manual, `agent-check`).

- `up ready 75%`: it serves, with the weight that it has workers for. `up` alone would leave a server drained, or in maintenance,
  that once was; `ready` ends both.
- `drain`: traffic is disabled. HAProxy sends nothing new, but lets sessions that stick to this server go on.
- `maint`: the cluster leaves; those, too, must go elsewhere.
- `down`: it wants to serve and can't.

HAProxy goes on to ask whatever it was told, and takes no answer (the port is closed, or slow) for no news. So whether a
server is there at all is for its ordinary check to find out.
"""

from __future__ import annotations

import asyncio
import contextlib
import math

from .facts import Facts


class Agent(asyncio.Protocol):
    """Says it, and ends. What HAProxy may send first (`agent-send`) is dropped, but read: else the end would be a reset."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Nothing has to be asked."""
        transport.write(line(self._facts))
        with contextlib.suppress(OSError):  # it has been reset meanwhile
            transport.write_eof()
        asyncio.get_running_loop().call_later(PATIENCE, transport.abort)

    def eof_received(self) -> None:
        """HAProxy has closed: so do we."""


PATIENCE = 2.0
"""Seconds until a connection ends that the other side doesn't close."""


def line(facts: Facts) -> bytes:
    """What the cluster is, in a word that HAProxy knows."""
    if facts.leaving:
        return b"maint\n"
    if not facts.traffic:
        return b"drain\n"
    if not facts.ready or facts.not_alive():
        return b"down\n"
    return b"up ready %d%%\n" % share(facts.ready, facts.wanted)


def share(ready: int, wanted: int) -> int:
    """Percent of the wanted workers that are ready; 100 at most, though there are more while some are replaced."""
    return min(100, math.ceil(100 * ready / max(1, wanted)))
