"""HAProxy and nginx before two clusters: traffic moves as it should, and no request fails."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.system import balancers
from tests.system.balancers import Balancer
from tests.system.clients import Load
from tests.system.conftest import Serve
from tests.system.harness import Running, free_port, sample, wait_until

needs = {name: shutil.which(name, path=balancers.PATH) is not None for name in ("haproxy", "nginx")}


class Pair:
    """Two clusters, each with its ports, and who stands before them."""

    def __init__(self, run: Serve, lame_duck: str) -> None:
        self._run, self._lame_duck = run, lame_duck
        self.ports, self.agents, self.monitors = ([free_port() for _ in range(2)] for _ in range(3))
        self.clusters = [self.started(number) for number in range(2)]

    def started(self, number: int) -> Running:
        """Start one of them, on the same ports each time."""
        options = {
            "--monitor-port": self.monitors[number],
            "--ecv-agent-port": self.agents[number],
            "--lame-duck": self._lame_duck,
            "--timeout": "90s",
        }
        words = [str(word) for pair in options.items() for word in pair]
        return self._run(sample("plain"), *words, bind=[f"127.0.0.1:{self.ports[number]}"]).ready()


def pids(cluster: Running) -> set[int]:
    return {row["pid"] for row in cluster.workers()}


def served_by(loads: Iterable[Load], *clusters: Running) -> None:
    """Wait until all these clusters answer each load, and no other."""
    wanted = [pids(cluster) for cluster in clusters]

    def so(load: Load) -> bool:
        load.counts.workers.clear()
        seen = load.counts.answered
        wait_until(lambda: load.counts.answered > seen + 40, "the load goes on")
        found = set(load.counts.workers)
        return all(each & found for each in wanted) and found <= set[int]().union(*wanted)

    for load in loads:
        wait_until(lambda load=load: so(load), lambda: f"answers come from {wanted} only")  # type: ignore[misc]


Before = Callable[[Path, Pair], Balancer]
BALANCERS: dict[str, Before] = {
    "haproxy httpchk": lambda directory, pair: balancers.haproxy(directory, pair.ports, pair.agents, "httpchk"),
    "haproxy agent": lambda directory, pair: balancers.haproxy(directory, pair.ports, pair.agents, "agent"),
    "nginx": lambda directory, pair: balancers.nginx(directory, pair.ports),
}


@pytest.fixture(params=["haproxy agent", "nginx", pytest.param("haproxy httpchk", marks=pytest.mark.soak)])
def site(request: pytest.FixtureRequest, run: Serve, tmp_path: Path) -> Iterator[tuple[Pair, Balancer]]:
    """A balancer before two clusters."""
    name: str = request.param
    if not needs[name.split()[0]]:
        pytest.skip(f"{name.split()[0]} isn't installed")
    # nginx keeps an answer for a second, and takes that long again to hear of the next.
    pair = Pair(run, "3s" if name == "nginx" else "1500ms")
    directory = tmp_path / "balancer"
    directory.mkdir()
    balancer = BALANCERS[name](directory, pair)
    yield pair, balancer
    balancer.close()


@pytest.mark.slow
def test_traffic_moves(site: tuple[Pair, Balancer]) -> None:
    """`disable` moves all traffic to the other one, `enable` brings it back; so do a shutdown and a new start; none fails."""
    pair, balancer = site
    one, two = pair.clusters
    with (
        Load(balancer.address, clients=4, pause=0.005) as kept,
        Load(balancer.address, clients=4, pause=0.005, keep_alive=False) as new,
    ):
        loads = (kept, new)
        served_by(loads, one, two)
        one.ask("disable")
        served_by(loads, two)
        one.ask("enable")
        served_by(loads, one, two)
        two.signal(signal.SIGTERM)
        assert two.wait() == 0
        served_by(loads, one)
        two = pair.started(1)
        served_by(loads, one, two)
    for load in loads:
        assert not load.counts.failed, load.counts
        assert not load.counts.refused, load.counts
