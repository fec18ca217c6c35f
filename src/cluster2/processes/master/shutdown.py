"""End the cluster: gracefully (as a lame duck first, if it is to be one), at once, or because it could not start.

*The lame duck.* A load balancer that polls health checks learns only at its next check that a cluster leaves. Until then it sends
new connections, which would be refused once the listeners are shut. So the health checks fail first, and everything else goes on:
workers that die are replaced, and a reload that is under way is carried through. Kubernetes needs this as well: it withdraws a
pod's endpoints while it delivers TERM, not before.

*A listener that stays open.* `linux.listeners.shut` may fail: a sandbox forbids it, or descriptors have run out. Then clients
still arrive, and the workers serve them until they leave (`worker.drain`).
"""

from __future__ import annotations

import asyncio
import time

from ... import events
from ...core import lifecycle
from ...errors import ClusterError
from .generations.generations import GenerationTable
from .generations.reloader import Reloader
from .helpers.keeper import KeeperProcess
from .state.cluster_state import ClusterState, MasterPhase
from .state.inbox import LameDuckExpired
from .workers.steering import Steering
from .workers.supervisor import WorkerSupervisor


class Shutdown:
    """The end of a cluster.

    Attributes:
        failure: the error for which it could not start, or None.
        faults: what went wrong while it drained, a line each.
        workers: number of workers when the drain began.
    """

    def __init__(
        self,
        state: ClusterState,
        *,
        supervisor: WorkerSupervisor,
        generations: GenerationTable,
        reloader: Reloader,
        steering: Steering,
        keeper: KeeperProcess | None,
    ) -> None:
        self._state = state
        self._supervisor = supervisor
        self._generations = generations
        self._reloader = reloader
        self._steering = steering
        self._keeper = keeper
        self._drain_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.failure: ClusterError | None = None
        self.faults: list[str] = []
        self.workers = 0

    def shut_down(self) -> None:
        """End gracefully, as a lame duck first if `lame_duck` is set. A second call cuts the lame duck short."""
        state = self._state
        seconds = state.settings.lame_duck
        if state.phase is MasterPhase.SERVING and seconds:
            state.phase = MasterPhase.LAME_DUCK
            state.header.leaving = 1
            self._drain_at = time.monotonic() + seconds
            self._timer = asyncio.get_running_loop().call_later(seconds, state.post, LameDuckExpired())
            state.emit(events.ShuttingDown(time=time.time(), graceful=True, lame_duck=seconds))
        elif state.phase is MasterPhase.LAME_DUCK:
            self._drain()
        elif not state.ending:
            state.emit(events.ShuttingDown(time=time.time(), graceful=True))
            self._drain()

    def lame_duck_left(self) -> float:
        """Return the seconds for which a lame duck still serves."""
        return max(0.0, self._drain_at - time.monotonic())

    def on_lame_duck_expired(self) -> None:
        """Begin the drain, unless a second shutdown has begun it already."""
        if self._state.phase is MasterPhase.LAME_DUCK:
            self._drain()

    def stop(self) -> None:
        """End at once."""
        if self._state.phase is not MasterPhase.STOPPING:
            self._state.emit(events.ShuttingDown(time=time.time(), graceful=False))
            self.kill_all()

    def fail(self, error: ClusterError) -> None:
        """End a cluster that can't start, with this error. The first error counts."""
        self.failure = self.failure or error
        self.kill_all()

    def kill_all(self) -> None:
        """Kill all workers and the keeper."""
        self._state.phase = MasterPhase.STOPPING
        self._reloader.cancel("the cluster stops")
        if self._keeper is not None:
            self._keeper.stop()
        self._generations.close()
        for handle in list(self._state.registry):
            self._supervisor.kill(handle, "stop")

    def close(self) -> None:
        """Cancel the timer of the lame duck."""
        if self._timer is not None:
            self._timer.cancel()

    def _drain(self) -> None:
        """Shut the listeners, and have each worker finish the requests that it has."""
        state = self._state
        state.phase = MasterPhase.DRAINING
        state.header.leaving = 1
        self._reloader.cancel("the cluster shuts down")
        open_doors = self._steering.shut_doors(state.warn)
        for listener in open_doors:
            listener.close()  # the workers have copies; the last one to close its copy closes the port
        actions = self._supervisor.actions
        actions.open_doors = bool(open_doors)
        actions.last_drain = True
        self.workers = len(state.registry)
        for handle in list(state.registry):
            if handle.pid is None:  # it has nothing to finish, and its fork may hang
                self._supervisor.kill(handle, "shutdown")
            else:
                self._supervisor.ask_to_leave(handle, lifecycle.WorkerEvent.DRAIN, "shutdown")
        if self._keeper is not None:
            self._keeper.drain(state.settings.drain_idle)
