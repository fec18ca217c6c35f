"""Short sequences of faults under load: those that once ended a cluster, and random ones. `chaos` has the steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.apps.rolling_site import ENV, arguments, prepare
from tests.system.chaos import STEPS, Chaos
from tests.system.harness import Running

SCRIPTS = {
    "old code gone": ["reload_without_old_code", "kill_worker", "reload_good"],
    "no descriptors": ["no_descriptors", "scale", "recycle", "no_descriptors", "reload_good"],
    "broken reloads": ["reload_bad_option", "reload_broken_code", "reload_dying_code", "kill_zygote", "reload_good"],
    "directory removed": ["remove_pids", "scale", "reload_good", "remove_pids", "kill_worker"],
    "signals": ["user_signal", "hang_up", "stop_worker", "terminate_worker", "garbage", "traffic"],
}


@pytest.fixture
def chaos(start: Callable[..., Running], tmp_path: Path) -> Callable[..., Chaos]:
    prepare(tmp_path)

    def chaos(seed: int = 0, *options: str) -> Chaos:
        return Chaos(start(arguments(*options), directory=tmp_path, env=ENV).ready(), seed)

    return chaos


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_known_sequences(chaos: Callable[..., Chaos], name: str) -> None:
    """After each step the cluster has what it should have, and only killed processes have cost requests."""
    chaos().play(SCRIPTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 20))])
def test_random_sequences(chaos: Callable[..., Chaos], seed: int) -> None:
    """The same for random sequences; the seed and the steps so far are in the message of a failure."""
    driver = chaos(seed)
    driver.play(driver.script(6))


def test_every_step_is_known() -> None:
    """A script names only steps that exist."""
    assert {name for script in SCRIPTS.values() for name in script} <= set(STEPS)
