"""What workers cost the master in descriptors, and whether RLIMIT_NOFILE allows so many workers.

Without this check a cluster that asks for more than the limit allows would find out in the middle: some of its workers could not
be made, and would be tried again for ever. What is needed is reckoned from what is open now, so that nothing has to be known here
of the other parts of the master.
"""

from __future__ import annotations

from dataclasses import dataclass

WORKER_DESCRIPTORS = 3
"""Of each worker in the master: its channel, its pidfd, the file for its stacks."""
RESERVED_DESCRIPTORS = 10
"""For what is open for a while: another zygote, the other end of a new worker's channel, control connections, files."""


@dataclass(frozen=True)
class DescriptorCost:
    """What more workers cost.

    Attributes:
        worker: descriptors of each.
        at_once: descriptors of each while all are being made, beyond those.
    """

    worker: int = WORKER_DESCRIPTORS
    at_once: int = 0


def needed(opened: int, have: int, want: int, cost: DescriptorCost) -> int:
    """Return how many descriptors the master needs for `want` workers if `opened` are open while there are `have`."""
    more = max(0, want - have)
    return opened + more * (cost.worker + cost.at_once) + RESERVED_DESCRIPTORS


def refusal(slots: int, surge: int, have: int, cost: DescriptorCost, *, opened: int, limit: int) -> str | None:
    """Return why so many workers can't be afforded, in one line with the way out; None: they can.

    Args:
        slots: workers that are wanted.
        surge: how many more there may be while some are replaced.
        have: workers that there are.
        opened: descriptors that are open now.
        limit: how many may be.
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
