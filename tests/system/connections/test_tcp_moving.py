"""Raw TCP connections whose app marks its boundaries outlive workers, without a lost line or a closed connection."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.system.conftest import Serve
from tests.system.harness import Running, example, wait_until

APP = Path(__file__).parents[1] / "apps" / "line_app.py"
KINDS = ["handler", "Lines"]
PATIENCE = 60.0


class Line:
    """A client that keeps one connection."""

    def __init__(self, running: Running) -> None:
        self.socket = socket.create_connection(running.address, PATIENCE)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def ask(self, line: str) -> str:
        self.socket.sendall(line.encode() + b"\n")
        answer = self._file.readline()
        assert answer.endswith(b"\n"), f"closed after {answer!r}"
        return answer.decode().rstrip("\n")

    def worker(self, line: str = "hello") -> int:
        """Send a line, check the answer, and return the pid of the worker that sent it."""
        pid, _, rest = self.ask(line).partition(" ")
        assert rest == line
        return int(pid)


def moved(running: Running) -> int:
    return sum(row["moved_in"] for row in running.status()["workers"])


def test_the_example(run: Serve) -> None:
    """One connection lives through a reload, a recycle, kills of workers that don't have it, and scaling."""
    running = run(example("lines.py:handler"), "--handoff-idle-after", "100ms", "--restart-limit", "1000").ready()
    with Line(running) as line:
        assert line.ask("set colour blue") == "ok"
        pids = {int(line.ask("pid"))}
        running.ask("reload")
        pids.add(int(line.ask("pid")))
        for row in running.workers():
            os.kill(row["pid"], signal.SIGTERM)
        wait_until(
            lambda: not {row["pid"] for row in running.workers()} & pids and len(running.workers()) == 2, "rolled"
        )
        pids.add(int(line.ask("pid")))
        wait_until(lambda: running.status()["keeper"]["resting"] == 1, "it rests")
        for row in running.workers():
            os.kill(row["pid"], signal.SIGKILL)
        assert int(line.ask("pid")) not in pids
        assert line.ask("get colour") == "blue"
        assert line.ask("nonsense") == "?"
    assert running.shutdown() == 0


def test_the_example_of_a_protocol(run: Serve) -> None:
    """The connection of a protocol lives through a reload, with half a line on the way."""
    running = run(example("lines_protocol.py:Lines"), "--drain-idle", "10ms", workers=1).ready(1)
    with Line(running) as line, Line(running) as half:
        assert line.ask("hello") == "HELLO"
        half.socket.sendall(b"hal")
        running.signal(signal.SIGHUP)
        wait_until(lambda: running.workers() and running.workers()[0]["generation"] == 2, "the new one serves")
        assert line.ask("again") == "AGAIN"
        assert half.ask("f") == "HALF"
        assert half.ask("more") == "MORE"
    assert running.shutdown() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_retiring(run: Serve, kind: str) -> None:
    """A connection in the middle of a line, or of its answer, stays until the line is answered, and moves then."""
    running = run(f"{APP}:{kind}", "--drain-idle", "10ms", workers=1).ready(1)
    with Line(running) as idle, Line(running) as half:
        first = idle.worker()
        half.worker()
        half.socket.sendall(b"hal")
        assert idle.worker() == first
        os.kill(first, signal.SIGTERM)
        running.draining()
        wait_until(lambda: idle.worker() != first, "another worker has it")
        half.socket.sendall(b"f a line\n")
        assert half._file.readline() == b"%d half a line\n" % first
        wait_until(lambda: not running.workers("draining"), "the old one has gone")
        assert half.worker() != first
    assert running.shutdown() == 0


def test_an_answer_under_way(run: Serve) -> None:
    """A handler that is busy when its worker retires finishes its line. Another worker serves the next one."""
    running = run(f"{APP}:handler", "--drain-idle", "10ms", workers=1).ready(1)
    with Line(running) as line:
        first = line.worker()
        line.socket.sendall(b"held a\n")
        with Line(running) as other:
            other.worker()  # on one loop: the line before has arrived by now, or will be read before the worker's check
        os.kill(first, signal.SIGTERM)
        running.draining()
        running.release()
        assert line._file.readline() == b"%d held a\n" % first
        wait_until(lambda: line.worker() != first, "another worker has it")
    assert running.shutdown() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown(run: Serve, kind: str) -> None:
    """At the end of the cluster an idle connection is closed, and one with half a line may finish it."""
    running = run(f"{APP}:{kind}", "--handoff-idle-after", "50ms", "--drain-idle", "300ms", workers=1).ready(1)
    with Line(running) as resting, Line(running) as half:
        resting.worker()
        half.worker()
        half.socket.sendall(b"hal")
        wait_until(lambda: running.status()["keeper"]["resting"] == 1, "one rests")
        running.signal(signal.SIGTERM)
        half.socket.sendall(b"f\n")
        assert half._file.readline().endswith(b" half\n")
        assert half._file.read() == resting._file.read() == b""
    assert running.wait() == 0


def test_sharing(run: Serve) -> None:
    """Connections that all went to one worker are shared when another one has none."""
    running = run(f"{APP}:handler", "--handoff-idle-after", "0", "--handoff-slow-above", "0", workers=1).ready(1)
    lines = [Line(running) for _ in range(24)]
    try:
        for line in lines:
            line.worker()
        running.ask("scale", workers=2)
        running.ready(2)

        def balanced() -> bool:
            by_worker = [line.worker() for line in lines]
            return 8 <= by_worker.count(by_worker[0]) <= 16

        wait_until(balanced, lambda: f"balance: {[row['connections'] for row in running.workers()]}")
    finally:
        for line in lines:
            line.__exit__()
    assert running.shutdown() == 0


def test_parking(run: Serve) -> None:
    """Handlers that hold the loop are noticed by their steps on connections that are long open. Then connections park."""
    running = run(f"{APP}:handler", "--handoff-idle-after", "0", "--handoff-slow-above", "2ms").ready()
    lines = [Line(running) for _ in range(4)]
    try:

        def parked() -> bool:
            for line in lines:
                line.worker("sleep 5")
            return sum(row["parked"] for row in running.workers()) > 8

        wait_until(parked, lambda: str(running.workers()))
        assert {row["mode"] for row in running.workers()} == {"handoff"}
    finally:
        for line in lines:
            line.__exit__()
    assert running.shutdown() == 0


def test_idle_for_too_long(run: Serve) -> None:
    """`timeout` counts through the keeper as well."""
    running = run(f"{APP}:handler", "--handoff-idle-after", "100ms", "--timeout", "1500ms", workers=1).ready(1)
    with Line(running) as line:
        line.worker()
        began = time.monotonic()
        assert line._file.read() == b""
        assert time.monotonic() - began > 1
    wait_until(lambda: running.status()["keeper"]["expired"] == 1, "the keeper has closed it")
    assert running.shutdown() == 0


class Talker:
    """A client that sends lines in odd pieces, several at a time, and compares each byte of the answers."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.lines = 0
        self.workers: list[int] = []

    async def talk(self, address: tuple[str, int], over: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection(*address)
        try:
            while not over.is_set():
                lines = [line for _ in range(self.rng.randint(1, 4)) for line in self._line()]
                sending = asyncio.ensure_future(self._send(writer, b"".join(lines)))
                for line in lines:
                    answer = await asyncio.wait_for(reader.readline(), PATIENCE)
                    pid, _, rest = answer.partition(b" ")
                    assert rest == line, (answer, line)
                    self.workers.append(int(pid))
                    self.lines += 1
                await sending
                await asyncio.sleep(self.rng.choice([0, 0.001, 0.01, 0.15]) * self.rng.random())
        finally:
            writer.transport.abort()

    def _line(self) -> Iterator[bytes]:
        word = self.rng.choice([b"", b"wait 3 ", b"sleep 1 "])
        yield (
            word
            + b"%d.%d." % (self.seed, self.rng.getrandbits(60))
            + b"x" * self.rng.choice([0, 5, 3000, 30000])
            + b"\n"
        )

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        cuts = sorted(self.rng.randrange(len(data) + 1) for _ in range(self.rng.randint(0, 5)))
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            writer.write(data[begin:end])
            await writer.drain()
            await asyncio.sleep(self.rng.random() * 0.004)


@pytest.mark.slow
@pytest.mark.parametrize("park", ["0.6ms", "0"])
@pytest.mark.parametrize("kind", KINDS)
def test_moving_at_random(run: Serve, kind: str, park: str) -> None:
    """While workers retire one after the other, each line is answered in order on one connection."""
    running = run(
        f"{APP}:{kind}",
        "--handoff-slow-above",
        park,
        "--handoff-idle-after",
        "50ms",
        "--drain-idle",
        "10s",
        "--restart-limit",
        "100000",
    ).ready()
    talkers = [Talker(seed) for seed in range(8)]

    def enough() -> bool:
        return all(each.lines > 5 and len(set(each.workers)) > 1 for each in talkers)

    async def roll(talking: asyncio.Future[Any]) -> None:
        for number in itertools.count():
            if number >= 5 and enough():
                break
            before = {row["pid"] for row in running.workers()}
            os.kill(min(before), signal.SIGTERM)

            def rolled(before: set[int] = before) -> bool:
                now = {row["pid"] for row in running.workers()}
                return len(now) == 2 and min(before) not in now

            await asyncio.to_thread(wait_until, rolled, "another one serves")
            if talking.done():
                break

    async def everything() -> None:
        over = asyncio.Event()
        talking = asyncio.gather(*(each.talk(running.address, over) for each in talkers))
        try:
            await roll(talking)
        finally:
            over.set()  # otherwise they would go on: wait_for may miss its cancellation
            try:
                await asyncio.wait_for(talking, PATIENCE)
            except (OSError, AssertionError) as error:
                raise AssertionError(f"{error!r}:\n{running.stderr}") from error

    asyncio.run(everything())
    assert running.shutdown() == 0
    assert "drain_timeout (" not in running.stderr
