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

from ..data.facts import Facts

MAX_AGENT_CONNECTIONS = 64
"""Connections of all agents; each of HAProxy's processes has one, for as long as an answer takes."""


class AgentConnections:
    """Makes a protocol for each connection. Beyond `MAX_AGENT_CONNECTIONS` the oldest one ends, so that the next is heard."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.connections: dict[AgentCheck, asyncio.Transport] = {}

    def protocol(self) -> AgentCheck:
        """Return it."""
        return AgentCheck(self)

    def on_connect(self, agent: AgentCheck, transport: asyncio.Transport) -> None:
        """Count a connection."""
        if len(self.connections) >= MAX_AGENT_CONNECTIONS:
            oldest = next(iter(self.connections))
            self.connections.pop(oldest).abort()
        self.connections[agent] = transport

    def on_disconnect(self, agent: AgentCheck) -> None:
        """Count it no more."""
        self.connections.pop(agent, None)


class AgentCheck(asyncio.Protocol):
    """Says it, and ends. What HAProxy may send first (`agent-send`) is dropped, but read: else the end would be a reset."""

    def __init__(self, agents: AgentConnections) -> None:
        self._agents = agents

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Nothing has to be asked."""
        self._agents.on_connect(self, transport)
        transport.write(line(self._agents.facts))
        with contextlib.suppress(OSError):  # it has been reset meanwhile
            transport.write_eof()
        asyncio.get_running_loop().call_later(AGENT_TIMEOUT_S, transport.abort)

    def eof_received(self) -> None:
        """HAProxy has closed: so do we."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._agents.on_disconnect(self)


AGENT_TIMEOUT_S = 2.0
"""Seconds until a connection ends that the other side doesn't close."""


def line(facts: Facts) -> bytes:
    """What the cluster is, in a word that HAProxy knows."""
    if facts.leaving:
        return b"maint\n"
    if not facts.traffic:
        return b"drain\n"
    if not facts.ready or facts.not_alive():
        return b"down\n"
    return b"up ready %d%%\n" % ready_percent(facts.ready, facts.wanted)


def ready_percent(ready: int, wanted: int) -> int:
    """Percent of the wanted workers that are ready; 100 at most, though there are more while some are replaced."""
    return min(100, math.ceil(100 * ready / max(1, wanted)))
