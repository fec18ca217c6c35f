"""The number of connections in accept queues, at real sockets."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster2.linux import accept_queues


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_waiting(tmp_path: Path, family: socket.AddressFamily) -> None:
    """Each connection that wasn't accepted counts, at all sockets together; one that was doesn't."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket(family)) for _ in range(2)]
        for number, listener in enumerate(listeners):
            hosts = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
            listener.bind((hosts[family], 0) if family in hosts else str(tmp_path / f"{number}"))
            listener.listen(8)
        for number in range(5):
            client = stack.enter_context(socket.socket(family))
            client.connect(listeners[number % 2].getsockname())
        assert [accept_queues.length_of(each) for each in listeners] == [3, 2]
        assert accept_queues.waiting(listeners) == 5
        stack.enter_context(listeners[0].accept()[0])
        assert accept_queues.waiting(listeners) == 4


def test_what_is_not_known() -> None:
    """The length for a socket that is closed isn't known, nor the sum of all of them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = socket.socket()
        gone.close()
        assert accept_queues.waiting([listener]) == 0
        assert accept_queues.waiting([listener, gone]) is None
