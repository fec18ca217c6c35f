"""The promise itself, for each way to serve, each kind of request, with kept-alive connections and with one a request.

While the cluster reloads twice, recycles six workers and scales from two to six and back, each request is answered; where
connections can move, none is closed. `make soak` reloads five times and recycles twenty workers. Each kind has an account of
its own, so that what fails is told apart.
"""

from __future__ import annotations

import ssl

import pytest

from tests.system.clients import wrk_while
from tests.system.conftest import Serve
from tests.system.counting import Matrix
from tests.system.harness import Running, wait_until
from tests.system.rolling import PATIENT, QUICK, WAYS, loaded_in_every_way, meanwhile, nothing_dropped


def roll(running: Running, matrix: Matrix, *, reloads: int, recycles: int, scales: tuple[int, ...]) -> None:
    """Do it all; during each of these parts each kind of request is answered."""

    def reload() -> None:
        for _ in range(reloads):
            running.ask("reload")

    def recycle() -> None:
        for number in range(recycles):
            running.ask("recycle", worker=number % 2)

    meanwhile(matrix, reload)
    meanwhile(matrix, recycle)
    for workers in scales:
        meanwhile(matrix, lambda workers=workers: running.ask("scale", workers=workers))  # type: ignore[misc]


def account(matrix: Matrix) -> None:
    """Show what each kind of request saw, and see that nothing failed."""
    for (kind, closing), seen in matrix.cells.items():
        print(f"{kind}, {'a connection each' if closing else 'kept alive'}:", end=" ")
        nothing_dropped(seen)


@pytest.mark.slow
@pytest.mark.parametrize(("reloads", "recycles"), [(2, 6), pytest.param(5, 20, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", WAYS)
def test_nothing_is_dropped(run: Serve, name: str, reloads: int, recycles: int) -> None:
    """Through reloads, recycles and scaling nothing fails; where connections can move, the server closes none."""
    way = WAYS[name]
    running = run(way.target, *way.all_options).ready()
    with loaded_in_every_way(running) as matrix:
        roll(running, matrix, reloads=reloads, recycles=recycles, scales=(6, 2))
    account(matrix)
    if way.moves:
        for (_, closing), seen in matrix.cells.items():
            assert seen.closed == 0, f"{matrix}"
            assert closing or seen.opened == matrix.each, f"{matrix}"
    status = running.status()
    assert (status["generation"], len(status["workers"])) == (1 + reloads, 2)
    assert len(matrix.workers) >= recycles, "new workers answered"
    assert running.shutdown() == 0


@pytest.mark.slow
def test_with_tls(run: Serve, certified: tuple[tuple[str, ...], ssl.SSLContext]) -> None:
    """With TLS, where connections can't move, each is ended politely: with an answer, and no request is lost."""
    options, trusting = certified
    running = run(WAYS["asgi"].target, *options, *PATIENT).ready()
    with loaded_in_every_way(running, trusting) as matrix:
        roll(running, matrix, reloads=1, recycles=4, scales=(3, 2))
    account(matrix)
    assert sum(seen.said for seen in matrix.cells.values()) > 0
    assert running.shutdown() == 0


@pytest.mark.slow
@pytest.mark.parametrize("headers", [(), ("-H", "Connection: close")], ids=["keep-alive", "connection-per-request"])
def test_at_saturation(run: Serve, headers: tuple[str, ...]) -> None:
    """A client that isn't ours, as fast as it can, notices nothing of a reload and of recycles either."""
    running = run(WAYS["asgi"].target, *QUICK).ready()

    def roll() -> None:
        wait_until(lambda: sum(row["requests"] for row in running.workers()) > 1000, "the load runs")
        running.ask("reload")
        running.ask("recycle")
        wait_until(lambda: sum(row["requests"] for row in running.workers()) > 1000, "the load goes on")

    seen = wrk_while(roll, running.url("/small/1"), *headers)
    assert seen["complaints"] == []
    assert seen["requests"] > 2000
    assert running.shutdown() == 0
