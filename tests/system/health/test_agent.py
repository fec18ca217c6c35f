"""The agent-check's port: a line for whoever connects, from start to end."""

from __future__ import annotations

import signal
import socket

import pytest

from tests.system.conftest import Serve
from tests.system.harness import free_port, sample, wait_until


def said(port: int) -> bytes:
    """All that comes on a connection; what is sent first, as `agent-send` has it, does no harm."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection, connection.makefile("rb") as lines:
        connection.sendall(b"state?\n")
        return lines.read()


@pytest.mark.parametrize("alone", [False, True], ids=["cluster", "alone"])
def test_from_start_to_end(run: Serve, alone: bool) -> None:
    """It tells of disable, of enable and of a lame duck, with a master and without one."""
    port = free_port()
    options = ["--monitor-port", str(free_port()), "--ecv-agent-port", str(port), "--lame-duck", "1h"]
    running = run(sample("plain"), *options, *(["--no-cluster"] if alone else []))
    if not alone:
        running.ready()

    def answer() -> bytes:
        try:
            return said(port)
        except ConnectionRefusedError:
            return b""

    wait_until(lambda: answer() == b"up ready 100%\n", "all are ready")
    if not alone:
        running.ask("disable")
        assert said(port) == b"drain\n"
        running.ask("enable")
        assert said(port) == b"up ready 100%\n"
    running.signal(signal.SIGTERM)
    wait_until(lambda: answer() == b"maint\n", "it leaves")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
