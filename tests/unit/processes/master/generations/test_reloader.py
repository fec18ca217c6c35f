"""Changes of generation, counted."""

from __future__ import annotations

from cluster2.core.lifecycle import WorkerState
from cluster2.core.planning import WorkerView
from cluster2.core.rollout import Stage
from cluster2.errors import ConfigError
from cluster2.processes.master.generations.reloader import Reloader
from tests.unit.clusters import a_state


def test_each_end_is_counted_once() -> None:
    """An abandoned change counts as failed, whatever was raised; one that all workers came through counts as done."""
    counted: list[bool] = []
    told: list[str] = []
    bad: list[Exception] = [ConfigError("no good"), RuntimeError("not foreseen")]

    def begin(generation: int) -> list[str]:
        if bad:
            raise bad.pop()
        return []

    state = a_state(lambda event: told.append(event.name))
    reloader = Reloader(state, begin, lambda generation: None, lambda generation: None, counted.append)
    reloader.request()
    assert told == [], "the first generation isn't there yet"
    reloader.open()
    reloader.request()
    assert counted == [False, False]
    reloader.request()
    reloader.on_loaded()
    rolling = state.rollout
    assert rolling is not None
    rolling.ready(rolling.new, 0.0)
    reloader.advance(1000.0, [WorkerView(2, 0, rolling.new, WorkerState.READY, None)], 1)
    assert rolling.stage is not Stage.PROVING
    assert (state.rollout, counted) == (None, [False, False, True])
    assert told == [*2 * ["reloading", "reload-failed"], "reloading", "reloaded"]
