"""How a cluster ends: gracefully, perhaps as a lame duck first; at once; or because it couldn't start.

*The lame duck.* A load balancer that polls finds out only at its next checks that a cluster leaves. Until then it sends new
connections, which would be refused once the listeners are closed. So health checks fail first, and everything else goes on:
workers that die are replaced, a reload that is under way is carried through. It is what Kubernetes needs as well: a pod's
endpoints are withdrawn while TERM is being delivered, not before it.

*A door that stays open.* `Listener.shut_door` may fail: a sandbox forbids it, or descriptors have run out. Then newcomers still
arrive, and the workers serve them until they leave (`worker.drain`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ... import events
from ...core import lifecycle
from ...errors import ClusterError
from .inbox import LameDuckExpired
from .resources import MasterPhase

if TYPE_CHECKING:
    from .master import Master


class Shutdown:
    """The end of a master's cluster.

    Attributes:
        failure: why it couldn't start, if that is why it ends.
        faults: what went wrong while it drained, a line each.
        workers: how many there were when the drain began.
    """

    def __init__(self, master: Master) -> None:
        """Nobody wants to leave."""
        self._master = master
        self._drain_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.failure: ClusterError | None = None
        self.faults: list[str] = []
        self.workers = 0

    def shut_down(self) -> None:
        """Gracefully, as a lame duck first if it is to be one; who asks again cuts that short."""
        master = self._master
        seconds = master.settings.lame_duck
        if master.phase is MasterPhase.SERVING and seconds:
            master.phase = MasterPhase.LEAVING
            master.estate.board.header.leaving = 1
            self._drain_at = time.monotonic() + seconds
            self._timer = asyncio.get_running_loop().call_later(seconds, master.post, LameDuckExpired())
            master.emit(events.ShuttingDown(time=time.time(), graceful=True, lame_duck=seconds))
        elif master.phase is MasterPhase.LEAVING:
            self._drain()
        elif not master.ending():
            master.emit(events.ShuttingDown(time=time.time(), graceful=True))
            self._drain()

    def lame_duck_left(self) -> float:
        """Seconds that a lame duck still serves on."""
        return max(0.0, self._drain_at - time.monotonic())

    def lame_duck_over(self) -> None:
        """Its time is over, unless somebody has cut it short."""
        if self._master.phase is MasterPhase.LEAVING:
            self._drain()

    def stop(self) -> None:
        """At once."""
        if self._master.phase is not MasterPhase.STOPPING:
            self._master.emit(events.ShuttingDown(time=time.time(), graceful=False))
            self.kill_all()

    def fail(self, error: ClusterError) -> None:
        """The cluster can't start: end it, with this error."""
        self.failure = self.failure or error
        self.kill_all()

    def kill_all(self) -> None:
        """Wait for nothing."""
        master = self._master
        master.phase = MasterPhase.STOPPING
        master.reloader.cancel("the cluster stops")
        if master.keeping is not None:
            master.keeping.stop()
        master.generations.close()
        for handle in list(master.roster):
            master.lives.kill(handle, "stop")

    def close(self) -> None:
        """All have left."""
        if self._timer is not None:
            self._timer.cancel()

    def _drain(self) -> None:
        """No new connections, then each worker ends what it has."""
        master = self._master
        master.phase = MasterPhase.DRAINING
        master.estate.board.header.leaving = 1
        master.reloader.cancel("the cluster shuts down")
        open_doors = master.steering.shut_doors(master.warn)
        for listener in open_doors:
            listener.close()  # the workers have copies; the last one to close its copy closes the port
        master.lives.actions.open_doors = bool(open_doors)
        master.lives.actions.last_drain = True
        self.workers = len(master.roster)
        for handle in list(master.roster):
            if handle.pid is None:  # it has nothing to finish, and its fork may hang
                master.lives.kill(handle, "shutdown")
            else:
                master.lives.ask_to_leave(handle, lifecycle.WorkerEvent.DRAIN, "shutdown")
        if master.keeping is not None:
            master.keeping.drain(master.settings.drain_idle)
