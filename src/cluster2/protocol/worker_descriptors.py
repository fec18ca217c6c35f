"""The descriptors that travel with the order to make a worker (`messages.Fork`), in the one order that all sides use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .messages import Fork

_SCOREBOARD_DESCRIPTORS = 3


@dataclass(frozen=True, slots=True)
class WorkerDescriptors:
    """The descriptors of a new worker.

    Attributes:
        channel: the worker's end of its channel to the master.
        stacks_file: the file that it writes its stacks to when asked.
        lifeline: a pipe by which the kernel ends it after the master's end.
        scoreboard: the three memory files of the scoreboard.
        sockets: a listening socket for each of `Fork.sockets`.
        queues: the entry of the rest queue, then the exit of each app's ready queue. Empty without a keeper.
    """

    channel: int
    stacks_file: int
    lifeline: int
    scoreboard: Sequence[int]
    sockets: Sequence[int]
    queues: Sequence[int] = ()

    def to_list(self) -> list[int]:
        """Return all descriptors in the order in which they travel."""
        return [self.channel, self.stacks_file, self.lifeline, *self.scoreboard, *self.sockets, *self.queues]

    @classmethod
    def from_list(cls, descriptors: Sequence[int], order: Fork) -> WorkerDescriptors:
        """Name the descriptors that came with an order.

        Raises:
            ValueError: there are too few.
        """
        channel, stacks_file, lifeline, *others = descriptors
        sockets_at = _SCOREBOARD_DESCRIPTORS
        queues_at = sockets_at + len(order.sockets)
        if len(others) < queues_at:
            raise ValueError(f"an order for a worker came with {len(descriptors)} descriptors, which are too few")
        return cls(
            channel,
            stacks_file,
            lifeline,
            others[:sockets_at],
            others[sockets_at:queues_at],
            others[queues_at:],
        )
