"""Connections move between workers and the keeper, and clients never notice."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.system.apps.moving_app import expected
from tests.system.conftest import Serve
from tests.system.harness import Running, wait_until
from tests.system.moving import Habits, drive

MOVING = f"{(Path(__file__).parents[1] / 'apps' / 'moving_app.py')}:app"
PARKING = (
    "--handoff-slow-above",
    "0.6ms",
    "--handoff-idle-after",
    "100ms",
    "--drain-idle",
    "10s",
    "--restart-limit",
    "100000",
)
"""Workers park as soon as the app sleeps for a millisecond."""
Disturb = Callable[[], None]
Way = Callable[[str], tuple[Running, Disturb]]


class Wire:
    """A connection of which every byte is accounted for."""

    def __init__(self, to: Running | tuple[str, int], context: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection(to.address if isinstance(to, Running) else to, 30)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def head(self) -> dict[str, str]:
        """The head of an answer; its first line is "status"."""
        line = self._file.readline()
        assert line, "the connection was closed"
        found = {"status": line.decode().split()[1]}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            found[name.lower()] = value.strip()
        return found

    def body(self, head: dict[str, str]) -> bytes:
        if "content-length" in head:
            return self._file.read(int(head["content-length"]))
        body = b""
        while size := int(self._file.readline(), 16):
            body += self._file.read(size)
            self._file.readline()
        self._file.readline()
        return body

    def answer(self, nonce: str, sent: bytes = b"", size: int = 1) -> dict[str, str]:
        """The next answer must be this one. Returns its head."""
        head = self.head()
        found = self.body(head)
        assert (head["status"], head.get("x-nonce")) == ("200", nonce), (head, found[:200])
        assert found == expected(nonce, sent, size)
        return head

    def ask(self, nonce: str) -> dict[str, str]:
        """One plain request, and its answer's head."""
        self.socket.sendall(get(nonce))
        return self.answer(nonce)

    def quiet(self) -> bool:
        """Whether nothing more has come, not even the end."""
        return not self._file.peek() if self.socket in select.select([self.socket], [], [], 0)[0] else True


def get(nonce: str, *, kind: str = "echo", size: int = 1, block: float = 2, headers: str = "") -> bytes:
    return f"GET /{kind}/{nonce}/{size}/{block} HTTP/1.1\r\nHost: t\r\n{headers}\r\n".encode()


def post(nonce: str, body: bytes, *, kind: str = "echo", headers: str = "") -> tuple[bytes, bytes]:
    """Head and body."""
    length = f"Content-Length: {len(body)}\r\n"
    return f"POST /{kind}/{nonce}/1/2 HTTP/1.1\r\nHost: t\r\n{length}{headers}\r\n".encode(), body


def pids(running: Running, state: str = "ready") -> set[int]:
    return {row["pid"] for row in running.workers(state)}


def retire(running: Running, workers: int = 2) -> None:
    """Tell all workers to leave, and wait until as many others serve."""
    before = pids(running)
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    wait_until(
        lambda: len(now := pids(running)) == workers and not now & before, lambda: f"others serve:\n{running.stderr}"
    )


def park(running: Running, workers: int = 2) -> None:
    """Ask for blocking requests until all workers park."""
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(running)) for _ in range(8)]

        def parking() -> bool:
            for wire in wires:
                wire.socket.sendall(get("p"))
            for wire in wires:
                wire.answer("p")
            return [row["mode"] for row in running.workers()] == ["handoff"] * workers

        wait_until(parking, "all workers park")


@pytest.fixture(params=["parking", "retiring"])
def way(run: Serve, request: pytest.FixtureRequest) -> Way:
    """A cluster whose connections move: after each answer, or when the disturbance tells all workers to leave."""

    def way(target: str = MOVING) -> tuple[Running, Disturb]:
        if request.param == "retiring":
            running = run(
                target, "--handoff-idle-after", "0", "--drain-idle", "10s", "--restart-limit", "100000"
            ).ready()
            return running, lambda: retire(running)
        running = run(target, *PARKING).ready()
        park(running)
        return running, lambda: None

    return way


def test_many_moves(run: Serve) -> None:
    """Requests in odd pieces on connections that move after each answer, workers leaving all the time: all answers right."""
    running = run(MOVING, *PARKING, workers=3).ready(3)
    tally, roller = asyncio.run(
        drive(running, seed=7, clients=16, moves=2500, seconds=60, workers=3, habits=Habits(), roll_every=1.0)
    )
    print(f"{roller.moves} moves, {roller.rolled} workers left; {tally}")
    assert not tally.wrong, tally.wrong[:5]
    assert not tally.lost, tally.lost[:5]
    assert not tally.refused
    assert (tally.said_close, tally.closed) == (0, 0)
    assert tally.answers == tally.requests
    assert roller.moves >= 2500
    assert not tally.slow, tally.slow
    assert tally.moved_from_one_to_another > 100


HALF = 40_000 * b"a"
CHUNKED = b"POST /echo/a/1/2 HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
_HEAD, _BODY = post("a", 2 * HALF)
_UNREAD, _ = post("a", 2 * HALF, kind="unread")

PIECES: dict[str, tuple[list[bytes | None], list[tuple[str, bytes, int]]]] = {
    "between two requests": ([None, get("a")], [("a", b"", 1)]),
    "one byte of a head": ([b"G", None, get("a")[1:]], [("a", b"", 1)]),
    "half a head": ([get("a")[:25], None, get("a")[25:]], [("a", b"", 1)]),
    "all but the last byte": ([get("a")[:-1], None, get("a")[-1:]], [("a", b"", 1)]),
    "a stray CRLF": ([b"\r\n", None, get("a")], [("a", b"", 1)]),
    "half a stray CRLF": ([b"\r", None, b"\n\r\n" + get("a")], [("a", b"", 1)]),
    "a pipeline": ([get("a") + get("b") + get("c"), None], [("a", b"", 1), ("b", b"", 1), ("c", b"", 1)]),
    "a pipeline that is cut": (
        [get("a") + get("b")[:20], None, get("b")[20:] + get("c")[:1], get("c")[1:]],
        [("a", b"", 1), ("b", b"", 1), ("c", b"", 1)],
    ),
    "a pipeline of uploads": (
        [_HEAD + HALF, None, HALF + get("b") + _HEAD, 2 * HALF],
        [("a", _BODY, 1), ("b", b"", 1), ("a", _BODY, 1)],
    ),
    "half an upload": ([_HEAD, HALF, None, HALF], [("a", _BODY, 1)]),
    "half an upload in chunks": (
        [CHUNKED + b"5\r\nhel", None, b"lo\r\n", b"0\r\n\r\n"],
        [("a", b"hello", 1)],
    ),
    "an upload that isn't read": ([_UNREAD + HALF, HALF, None], [("a", b"", 1)]),
    "half of an upload that isn't read": ([_UNREAD + HALF, None, HALF], [("a", b"", 1)]),
    "an upgrade that nobody knows": (
        [get("a", headers="Connection: upgrade\r\nUpgrade: steam\r\n"), None],
        [("a", b"", 1)],
    ),
    "a large answer": ([get("a", size=3_000_000), None], [("a", b"", 3_000_000)]),
    "a streamed answer": ([get("a", kind="stream", size=500_000), None], [("a", b"", 500_000)]),
}


@pytest.mark.slow
def test_disturbed(way: Way) -> None:
    """Whatever a connection is in the middle of: each request is answered once, rightly, and the connection goes on."""
    running, disturb = way(MOVING)
    for name, (pieces, answers) in PIECES.items():
        try:
            with Wire(running) as wire:
                wire.ask("first")
                for piece in pieces:
                    if piece is None:
                        disturb()
                    else:
                        wire.socket.sendall(piece)
                for nonce, sent, size in answers:
                    assert "connection" not in wire.answer(nonce, sent, size)
                for turn in range(3):
                    assert "connection" not in wire.ask(f"last-{turn}")
                assert wire.quiet()
        except Exception as error:
            error.add_note(f"disturbed: {name}")
            raise


def test_expect_continue(way: Way) -> None:
    """`100 Continue` is said once, whatever happens before the body comes; then the answer."""
    running, disturb = way(MOVING)
    with Wire(running) as wire:
        wire.ask("first")
        head, body = post("a", HALF, headers="Expect: 100-continue\r\n")
        wire.socket.sendall(head)
        assert wire.head() == {"status": "100"}
        disturb()
        wire.socket.sendall(body)
        wire.answer("a", body)
        wire.ask("last")
        assert wire.quiet()


def test_a_large_answer_that_is_read_late(way: Way) -> None:
    """A connection doesn't move before its answer is written: a client that reads late gets all of it."""
    running, disturb = way(MOVING)
    with Wire(running) as wire:
        wire.socket.sendall(get("a", size=20_000_000))
        head = wire.head()
        disturb()
        assert wire.body(head) == expected("a", b"", 20_000_000)
        wire.ask("last")
        assert wire.quiet()


def test_an_idle_one_moves_at_once(run: Serve) -> None:
    """When workers leave, idle connections go to others, unnoticed; the old ones are gone before the client asks again."""
    running = run(MOVING, "--handoff-idle-after", "0").ready()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(running)) for _ in range(40)]
        served = {int(wire.ask("a")["x-worker"]) for wire in wires}
        retire(running)
        wait_until(lambda: not pids(running, "draining"), "those told to leave have left")
        assert not served & {int(wire.ask("b")["x-worker"]) for wire in wires}
        assert all(wire.quiet() for wire in wires)


def test_a_connection_goes_from_worker_to_worker(run: Serve) -> None:
    """While handlers block, one connection is served by whoever is free, and is never closed."""
    running = run(MOVING, *PARKING).ready()
    park(running)
    with Wire(running) as wire, Wire(running) as busy:
        seen: set[int] = set()

        def both() -> bool:
            busy.socket.sendall(get("b", block=3))
            seen.add(int(wire.ask("a")["x-worker"]))
            busy.answer("b")
            return len(seen) == 2

        wait_until(both, "both workers have served it")
        assert wire.quiet()
    wait_until(lambda: sum(row["parked"] for row in running.workers()) > 0, "the next tick has said so")


def test_new_ones_are_parked_before_they_ask(run: Serve) -> None:
    """Connections that were opened and say nothing rest as well, and are answered when they do."""
    running = run(MOVING, *PARKING).ready()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(running)) for _ in range(20)]
        wait_until(lambda: running.status()["keeper"]["resting"] == 20, "all rest")
        for wire in wires:
            wire.ask("a")
        wait_until(lambda: running.status()["keeper"]["resting"] == 20, "all rest again")


# What can't move


def test_websockets(way: Way) -> None:
    """A websocket stays where it is: it works on while workers park; while its worker retires, until it is told so (1012)."""
    running, disturb = way(MOVING)
    with connect(running.url("/ws", "ws")) as client:
        client.send("one")
        before = client.recv()
        disturb()
        client.send("two")
        after = client.recv()
        assert str(before).split()[0] == str(after).split()[0], "one worker has it"
        assert str(after).split()[1] == "two"


def test_a_websocket_of_a_worker_that_leaves(run: Serve) -> None:
    """When the grace is over its websockets are closed with "service restart"; plain connections have moved long ago."""
    running = run(MOVING, "--drain-idle", "100ms").ready()
    with connect(running.url("/ws", "ws")) as client, Wire(running) as wire:
        wire.ask("a")
        retire(running)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        wire.ask("b")


@pytest.fixture
def tls(tmp_path: Path) -> tuple[tuple[str, ...], Path, ssl.SSLContext]:
    """Options, directory, and a client's context."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return ("--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem"), tmp_path, context


def test_tls_while_workers_park(run: Serve, tls: Any) -> None:
    """A TLS connection can't move: it stays with its worker, and is answered there, while handlers block."""
    options, directory, context = tls
    bind = ["127.0.0.1:0", "unix:plain.sock"]  # without plain ones nobody would park
    running = run(MOVING, *PARKING, *options, bind=bind, directory=directory, workers=1).ready(1)
    with Wire(running, context) as wire:
        wait_until(lambda: wire.ask("a") and running.workers()[0]["mode"] == "handoff", "the worker parks")
        assert "connection" not in wire.ask("b")
        assert running.workers()[0]["moved_out"] == 0


def test_tls_of_a_worker_that_leaves(run: Serve, tls: Any) -> None:
    """A TLS connection of a worker that retires is answered once more, with `connection: close`; then the worker leaves."""
    options, directory, context = tls
    running = run(MOVING, *options, "--drain-idle", "30s", directory=directory, workers=1).ready(1)
    with Wire(running, context) as wire:
        served = wire.ask("a")["x-worker"]
        retire(running, workers=1)
        head = wire.ask("b")
        assert (head["connection"], head["x-worker"]) == ("close", served)
    # It waits for the client to end the TLS session as well, as TLS wants it.
    wait_until(lambda: int(served) not in pids(running, "draining"), "it has left")


# Workers that die, and the end


def test_all_workers_killed(run: Serve) -> None:
    """Connections that rest outlive a `kill -9` of all workers: each is answered by the next ones."""
    running = run(MOVING, "--handoff-idle-after", "100ms").ready()
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(running)) for _ in range(50)]
        for wire in wires:
            wire.ask("a")
        wait_until(lambda: running.status()["keeper"]["resting"] == 50, "all rest")
        before = pids(running)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        for wire in wires:
            assert int(wire.ask("b")["x-worker"]) not in before
        assert all(wire.quiet() for wire in wires)


def test_shutdown_answers_those_that_rest(run: Serve) -> None:
    """A request that arrives on a resting connection during a shutdown is answered, with `connection: close`."""
    running = run(MOVING, "--handoff-idle-after", "100ms", "--drain-idle", "20s").ready()
    with Wire(running) as wire, Wire(running) as silent:
        wire.ask("a")
        wait_until(lambda: running.status()["keeper"]["resting"] == 2, "both rest")
        running.signal(signal.SIGTERM)
        running.draining(2)
        assert wire.ask("b")["connection"] == "close"
        assert wire.socket.recv(1) == b""
        silent.socket.sendall(get("c"))
        assert silent.answer("c")["connection"] == "close"
    assert running.wait() == 0


def test_shutdown_closes_those_that_are_silent(run: Serve) -> None:
    """What rests and is silent for `drain_idle` seconds is closed, and nothing is left."""
    running = run(MOVING, "--handoff-idle-after", "100ms", "--drain-idle", "300ms").ready()
    with Wire(running) as wire:
        wire.ask("a")
        wait_until(lambda: running.status()["keeper"]["resting"] == 1, "it rests")
        running.signal(signal.SIGTERM)
        assert wire.socket.recv(1) == b""
    assert running.wait() == 0
