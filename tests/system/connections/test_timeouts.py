"""Clients that stall, as an operator sees them: closed or answered 408, counted and reported; other clients don't notice."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.system.clients import Connection
from tests.system.conftest import Serve
from tests.system.harness import Running, sample, wait_until


def timed_out(running: Running) -> int:
    return sum(row["timed_out"] for row in running.workers())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "wsgi"])
def test_who_stalls(run: Serve, name: str) -> None:
    """Each kind of stalling client is ended within the time, counted and reported; one whose request is under way is not."""
    running = run(sample(name), "--timeout", "1s", "--no-keeper").ready()
    with ExitStack() as stack:
        silent, used, slow, working = (stack.enter_context(Connection(running.address)) for _ in range(4))
        working.send("/held/a")
        running.held("a")
        assert used.get().body == b"hello"
        slow.socket.sendall(b"GET / HTTP/1.1\r\nHost: te")
        assert slow.receive().status == 408
        assert slow.closed()
        assert silent.closed()
        assert used.closed()
        wait_until(lambda: timed_out(running) == 3, lambda: f"three are counted: {running.workers()}")
        wait_until(lambda: "connections cut off (timeout): 1" in running.stderr, "it is told")
        running.release()
        assert working.receive().body == b"released"
    assert running.shutdown() == 0


def test_a_stream_that_is_silent(run: Serve) -> None:
    """A raw TCP connection on which nothing is said is closed."""
    running = run(sample("tcp"), "--timeout", "1s").ready()
    with Connection(running.address) as connection:
        connection.socket.sendall(b"hello\n")
        assert connection.socket.recv(100).endswith(b" hello\n")
        assert connection.closed()
    wait_until(lambda: timed_out(running) == 1, "it is counted")
    assert running.shutdown() == 0


@pytest.mark.parametrize("engine", ["http", "granian"])
def test_a_handshake_that_never_ends(run: Serve, tmp_path: Path, engine: str) -> None:
    """A client that connects to a TLS port and says nothing, or half a handshake, is closed."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    options = ["--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem", "--timeout", "1s", "--engine", engine]
    running = run(sample("plain"), *options, directory=tmp_path).ready()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    with Connection(running.address) as silent, Connection(running.address) as half:
        half.socket.sendall(outgoing.read()[:40])
        assert silent.closed()
        while not half.closed():
            pass  # an alert may come first
    assert running.shutdown() == 0
