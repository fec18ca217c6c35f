"""The descriptors that workers cost the master, and the check of them against RLIMIT_NOFILE.

Without this check a cluster that asks for more than the limit allows would find out in the middle: some of its workers could not
be made, and would be tried again for ever. The need is computed from the descriptors that are open now, so nothing has to be
known here about the other parts of the master.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from ...linux import processes
from .helpers.keeper import KeeperProcess
from .resources import MasterResources
from .state.worker_registry import WorkerRegistry

_WORKER_DESCRIPTORS = 3
"""For each worker: its channel, its pidfd, the file for its stacks."""
RESERVED_DESCRIPTORS = 10
"""For what is open for a while: another zygote, the other end of a new worker's channel, control connections, files."""


@dataclass(frozen=True)
class DescriptorCost:
    """The cost of more workers.

    Attributes:
        worker: descriptors of each.
        at_once: descriptors of each while all are being made, beyond those.
    """

    worker: int = _WORKER_DESCRIPTORS
    at_once: int = 0


class DescriptorBudget:
    """Checks a number of workers against the limit of descriptors of this process."""

    def __init__(self, resources: MasterResources, registry: WorkerRegistry, keeper: KeeperProcess | None) -> None:
        self._resources = resources
        self._registry = registry
        self._keeper = keeper

    def refusal(self, slots: int, surge: int, steered: Container[int], places: int, *, executed: bool) -> str | None:
        """Return why the limit of descriptors doesn't allow so many workers, or None.

        Args:
            steered: the apps whose engine takes connections itself: each worker has a socket of its own for each address.
            places: how many such sockets are opened for a worker.
            executed: each worker is executed: then the master keeps its descriptors until it has loaded the app.
        """
        listeners = self._resources.listeners
        queues = [] if self._keeper is None else self._keeper.descriptors()
        forwarded = self._resources.log_directory is not None and self._resources.log_directory.keeps_files_open
        cost = DescriptorCost(
            worker=_WORKER_DESCRIPTORS + forwarded + places * sum(app_index in steered for app_index, _ in listeners),
            # channel, and the four that are the same for all: lifeline and scoreboard
            at_once=1 + 4 + len(listeners) + len(queues) if executed else 0,
        )
        opened, limit = processes.open_descriptors(), processes.file_limit()
        return refusal(slots, surge, len(self._registry), cost, opened=opened, limit=limit)


def needed(opened: int, have: int, want: int, cost: DescriptorCost) -> int:
    """Return how many descriptors the master needs for `want` workers if `opened` are open while there are `have`."""
    more = max(0, want - have)
    return opened + more * (cost.worker + cost.at_once) + RESERVED_DESCRIPTORS


def refusal(slots: int, surge: int, have: int, cost: DescriptorCost, *, opened: int, limit: int) -> str | None:
    """Return why so many workers exceed the limit, in one line with the way out; None: they don't.

    Args:
        slots: workers that are wanted.
        surge: how many more there may be while some are replaced.
        have: workers that exist.
        opened: descriptors that are open now.
        limit: the highest number of open descriptors.
    """
    need = needed(opened, have, slots + surge, cost)
    if need <= limit or slots + surge <= have:
        return None
    each = cost.worker + cost.at_once
    most = max(0, have + (limit - opened - RESERVED_DESCRIPTORS) // each - surge)
    fewer = f", or ask for at most {most}" if most else ""
    return (
        f"{slots} workers (and {surge} more while some are replaced) need {need} descriptors in the master, and RLIMIT_NOFILE is "
        f"{limit}: raise it (ulimit -Hn, LimitNOFILE= in a systemd unit){fewer}"
    )
