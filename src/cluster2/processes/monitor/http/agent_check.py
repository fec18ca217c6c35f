"""HAProxy's agent-check: a line of text for each connection (HAProxy's configuration manual, `agent-check`).

- `up ready 75%`: the cluster serves. The weight is the share of the wanted workers that are ready. `up` alone would leave a
  server that was drained or in maintenance as it is, and `ready` ends both.
- `drain`: traffic is disabled. HAProxy sends no new sessions, but sessions that stick to this server go on.
- `maint`: the cluster shuts down. Sessions that stick to it must move, too.
- `down`: the cluster should serve and can't.

HAProxy keeps the last state that it got. It takes a failed agent check (the port is closed, or slow) for no news. So its ordinary
health check has to find out whether the server exists at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import math

from ..data.cluster_view import ClusterView

MAX_AGENT_CONNECTIONS = 64
"""Connections of all agents. Each HAProxy process has one while it waits for a line."""
_AGENT_TIMEOUT_S = 2.0
"""Seconds until a connection is aborted that the client doesn't close."""


class AgentConnections:
    """Makes a protocol for each connection. Beyond `MAX_AGENT_CONNECTIONS` it aborts the oldest, to serve the new one."""

    def __init__(self, view: ClusterView) -> None:
        self.view = view
        self.connections: dict[_AgentCheck, asyncio.Transport] = {}

    def protocol(self) -> _AgentCheck:
        """Return the protocol for a new connection."""
        return _AgentCheck(self)

    def on_connect(self, agent: _AgentCheck, transport: asyncio.Transport) -> None:
        """Count a connection."""
        if len(self.connections) >= MAX_AGENT_CONNECTIONS:
            oldest = next(iter(self.connections))
            self.connections.pop(oldest).abort()
        self.connections[agent] = transport

    def on_disconnect(self, agent: _AgentCheck) -> None:
        """Forget a connection."""
        self.connections.pop(agent, None)


class _AgentCheck(asyncio.Protocol):
    """Writes the line, and closes.

    Data that HAProxy sends first (`agent-send`) is read and dropped. With unread data, close(2) would send a reset, and HAProxy
    might lose the line.
    """

    def __init__(self, agents: AgentConnections) -> None:
        self._agents = agents

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Write the line at once: the client needn't send anything."""
        self._agents.on_connect(self, transport)
        transport.write(line(self._agents.view))
        with contextlib.suppress(OSError):  # the client has reset the connection
            transport.write_eof()
        asyncio.get_running_loop().call_later(_AGENT_TIMEOUT_S, transport.abort)

    def eof_received(self) -> None:
        """Let the transport close: HAProxy has closed its end, and None as the result means that we do, too."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._agents.on_disconnect(self)


def line(view: ClusterView) -> bytes:
    """Return the line that describes the cluster in HAProxy's words."""
    if view.leaving:
        return b"maint\n"
    if not view.traffic:
        return b"drain\n"
    if not view.ready or view.not_alive():
        return b"down\n"
    return b"up ready %d%%\n" % ready_percent(view.ready, view.wanted)


def ready_percent(ready: int, wanted: int) -> int:
    """Return the percentage of the wanted workers that are ready: 100 at most, although a reload has more for a while."""
    return min(100, math.ceil(100 * ready / max(1, wanted)))
