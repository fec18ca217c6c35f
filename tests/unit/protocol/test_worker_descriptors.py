"""The descriptors of a new worker."""

from __future__ import annotations

import pytest

from cluster2.protocol.messages import Fork, Socket
from cluster2.protocol.worker_descriptors import WorkerDescriptors

ORDER = Fork(1, 0, 1, 0, 1, [Socket(0, "127.0.0.1:1", True), Socket(1, "127.0.0.1:2", True)])


@pytest.mark.parametrize("queues", [[], [9, 10, 11]])
def test_there_and_back(queues: list[int]) -> None:
    """The receiver finds each descriptor by its name, with a keeper and without."""
    sent = WorkerDescriptors(1, 2, 3, [4, 5, 6], [7, 8], queues)
    assert WorkerDescriptors.from_list(sent.to_list(), ORDER) == sent


@pytest.mark.parametrize("count", range(8))
def test_too_few(count: int) -> None:
    """A list that can't be complete is refused."""
    with pytest.raises(ValueError, match=r"."):
        WorkerDescriptors.from_list(range(count), ORDER)
