"""Rolling and killing for minutes, with more of everything."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from tests.system.conftest import Serve, certified, run, start  # noqa: F401 - fixtures
from tests.system.harness import wait_until
from tests.system.reload.test_never_drop import killing
from tests.system.reload.test_rolls import account
from tests.system.reload.test_rolls import roll as roll_all
from tests.system.rolling import APP, GRANIAN, MOVING, QUICK, loaded, loaded_in_every_way, nothing_dropped, roll

ROUNDS = int(os.environ.get("ROUNDS", "10"))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("keeper", ["keeper", "no-keeper"])
@pytest.mark.parametrize("name", MOVING)
def test_rolling(run: Serve, name: str, keeper: str) -> None:  # noqa: F811
    """Rounds of 5 reloads, 20 recycles, scale 2→6→2: nothing fails; with the keeper nothing is closed either."""
    way = MOVING[name]
    running = run(way.target, *way.options, *QUICK, f"--{keeper}").ready()
    with loaded(running, clients=48, closing=16) as mix:
        for _ in range(ROUNDS):
            roll(running, mix, reloads=5, recycles=20, scales=(6, 2))
    nothing_dropped(mix.seen)
    assert keeper == "no-keeper" or mix.seen.closed == 0
    assert running.status()["generation"] == 1 + 5 * ROUNDS
    assert running.shutdown() == 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", GRANIAN)
def test_every_kind_on_granian(run: Serve, name: str) -> None:  # noqa: F811
    """Each kind of request, kept alive and not, through 5 reloads, 20 recycles, scale 2→6→2: nothing fails."""
    way = GRANIAN[name]
    running = run(way.target, *way.options).ready()
    with loaded_in_every_way(running) as matrix:
        roll_all(running, matrix, reloads=5, recycles=20, scales=(6, 2))
    account(matrix)
    assert len(matrix.workers) >= 20, "new workers answered"
    assert running.status()["generation"] == 6
    assert running.shutdown() == 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_rolling_with_tls(run: Serve, certified: tuple[tuple[str, ...], ssl.SSLContext]) -> None:  # noqa: F811
    """The same with TLS: nothing fails."""
    options, trusting = certified
    running = run(f"{APP}:app", *options, *QUICK).ready()
    with loaded(running, tls=trusting, clients=24, closing=8) as mix:
        for _ in range(max(1, ROUNDS // 3)):
            roll(running, mix, reloads=5, recycles=20, scales=(6, 2))
    nothing_dropped(mix.seen)
    assert running.shutdown() == 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_kill_after_kill(run: Serve, tmp_path: Path, seed: int) -> None:  # noqa: F811
    """A minute of `kill -9` every 200 ms: what fails is what the killed workers held."""
    (tmp_path / "note").touch()
    running = run(f"{APP}:app", "--restart-limit", "100000", *QUICK, workers=4, directory=tmp_path).ready(4)
    killer, seen = killing(running, seconds=6.0 * ROUNDS, every=0.2, seed=seed)
    assert len(killer.killed) >= 6 * ROUNDS
    assert seen.answered > 100 * ROUNDS
    assert running.shutdown() == 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_shutdown_again_and_again(run: Serve) -> None:  # noqa: F811
    """Shutdowns in the middle of a load over kept-alive connections: each request that was sent is answered."""
    for number in range(5 * ROUNDS):
        running = run(f"{APP}:app", "--handoff-idle-after", "20ms", "--drain-idle", "2s").ready()
        with loaded(running, clients=16, closing=0, think=0.1, seed=number) as mix:
            running.ask("shutdown")
            wait_until(lambda: running.process.poll() is not None, "it has left")  # noqa: B023
        assert not mix.seen.failed, mix.seen
