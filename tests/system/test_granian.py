"""granian under cluster2: every interface is served, and nothing is dropped whatever is done to the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.counting import Mix
from tests.system.harness import wait_until

APP = Path(__file__).with_name("rolling_app.py")
GRANIAN = ("--engine", "granian")
QUICK = ("--drain-idle", "500ms")
KINDS = {"rsgi": ("rsgi",), "asgi": ("app", *GRANIAN), "wsgi": ("make_flask", "--factory", *GRANIAN)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_rolling_drops_nothing(run: Serve, kind: str) -> None:
    """Through a reload, recycles and scaling each request is answered; connections that end say so in a response."""
    attr, *options = KINDS[kind]
    running = run(f"{APP}:{attr}", *options, *QUICK).ready()
    with Mix(running.address) as mix:
        wait_until(lambda: mix.seen.answered > 50, lambda: f"the load runs: {mix.seen}")
        for verb, params in [("reload", {}), ("recycle", {}), ("scale", {"workers": 6}), ("scale", {"workers": 2})]:
            running.ask(verb, **params)
            before = mix.seen.answered
            wait_until(lambda before=before: mix.seen.answered > before + 10, "the load goes on")  # type: ignore[misc]
    print(mix.seen)
    assert not mix.seen.failed, mix.seen
    assert not mix.seen.refused, mix.seen
    assert mix.seen.said > 0
    assert len(mix.seen.workers) >= 8, "new workers answered"
    assert running.shutdown() == 0
