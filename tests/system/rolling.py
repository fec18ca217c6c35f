"""What tests of rolling share: the ways to serve, the loads, and everything that is done to a cluster meanwhile."""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.counting import Matrix, Mix, Seen
from tests.system.harness import Running, wait_until

APP = Path(__file__).parent / "apps" / "rolling_app.py"
QUICK = ("--handoff-idle-after", "200ms", "--drain-idle", "500ms")
PATIENT = ("--drain-idle", "10s")
"""Where connections can't move: a client that a busy machine keeps from asking isn't taken for an idle one."""


@dataclass(frozen=True)
class Way:
    """A way to serve the app. One that is added to `WAYS` is held to all that the others are held to.

    Attributes:
        attr: of the app in `rolling_app`.
        moves: its connections outlive their workers, so none is ever closed.
    """

    attr: str
    options: tuple[str, ...] = ()
    moves: bool = True

    @property
    def all_options(self) -> tuple[str, ...]:
        """Those of the way, and those with which it rolls without much waiting."""
        return (*self.options, *(QUICK if self.moves else PATIENT))

    @property
    def target(self) -> str:
        """What to run."""
        return f"{APP}:{self.attr}"


WAYS = {
    "asgi": Way("app"),
    "flask": Way("make_flask", ("--factory",)),
}
GRANIAN = {
    "rsgi": Way("rsgi", moves=False),
    "asgi": Way("app", ("--engine", "granian"), moves=False),
    "wsgi": Way("make_flask", ("--factory", "--engine", "granian"), moves=False),
}
"""Its workers go on accepting for all of `drain_idle`: too long for each test run."""
MOVING = {name: way for name, way in WAYS.items() if way.moves}


@contextmanager
def loaded(running: Running, **how: object) -> Iterator[Mix]:
    """Load it; the block begins when the load runs."""
    with Mix(running.address, **how) as mix:  # type: ignore[arg-type]
        wait_until(lambda: mix.seen.answered > 50, lambda: f"the load runs: {mix.seen}")
        yield mix


@contextmanager
def loaded_in_every_way(running: Running, tls: ssl.SSLContext | None = None) -> Iterator[Matrix]:
    """The same with an account for each kind of request, kept alive and not."""
    with Matrix(running.address, tls=tls) as matrix:
        yield matrix


def go_on(mix: Mix) -> None:
    """Wait until the load has gone on for a moment."""
    before = mix.seen.answered
    wait_until(lambda: mix.seen.answered > before + 10, lambda: f"the load goes on: {mix.seen}")


def roll(running: Running, mix: Mix, *, reloads: int, recycles: int, scales: tuple[int, ...]) -> None:
    """Do it all, one after the other, in a mixed order; the load goes on in between."""
    todo: list[tuple[str, dict[str, int]]] = [("reload", {})] * reloads
    todo += [("recycle", {"worker": number % 2}) for number in range(recycles)]
    random.Random(reloads + recycles).shuffle(todo)
    todo[len(todo) // 2 : len(todo) // 2] = [("scale", {"workers": number}) for number in scales]
    for verb, params in todo:
        running.ask(verb, **params)
        go_on(mix)


def meanwhile(matrix: Matrix, do: Callable[[], None]) -> None:
    """Do something to the cluster while each kind of request is answered, at least once since it began."""
    before = {cell: seen.answered for cell, seen in matrix.cells.items()}
    do()
    wait_until(
        lambda: all(seen.answered > before[cell] for cell, seen in matrix.cells.items()),
        lambda: f"all kinds are answered: {matrix}",
    )


def nothing_dropped(seen: Seen) -> None:
    """No request failed, no connection was refused."""
    print(seen)
    assert not seen.failed, seen
    assert not seen.refused, seen
