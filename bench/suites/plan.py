"""How much a suite measures, and with whom; and what all suites have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.catalogue import COMMANDS
from bench.errors import BenchError, NotAvailable
from bench.report import US, Figure, Mark, against, at_most
from bench.rounds import Comparison
from bench.stats import middle

T = TypeVar("T")
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for.

    Attributes:
        servers: which to measure; a suite takes those that it can use.
        quick: short runs, to see that all works: the figures are rough.
        passes: how often an interleaved run goes around; None: as the suite thinks right.
        workers: of each server.
    """

    servers: Sequence[str] = tuple(COMMANDS)
    quick: bool = False
    passes: int | None = None
    workers: int = 4

    def pick(self, *names: str) -> list[str]:
        """Those of these servers that are wanted, in this order."""
        return [name for name in names if name in self.servers]

    def times(self, full: int, quick: int = 1) -> int:
        """How many passes."""
        return self.passes or (quick if self.quick else full)

    def size(self, full: float, quick: float) -> float:
        """A length or a number: the full one or the quick one."""
        return quick if self.quick else full


Suite = Callable[[Plan], Iterator[Figure]]


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def each(names: Sequence[str], measure: Callable[[str], T]) -> dict[str, T | None]:
    """What each server gave; None, with the reason on standard error, for one that can't be measured."""
    found: dict[str, T | None] = {}
    for name in names:
        found[name] = None
        try:
            found[name] = measure(name)
        except NotAvailable as why:
            say(f"{name}: not available: {why}")
        except BenchError as why:
            say(f"{name}: failed: {why}")
        else:
            say(f"{name}: {found[name]}")
    return found


def values_of(found: Mapping[str, T | None], value: Callable[[T], float | None]) -> dict[str, float | None]:
    """One value of what each server gave."""
    return {name: None if what is None else value(what) for name, what in found.items()}


def medians(values: Mapping[str, Sequence[float | None]]) -> dict[str, float | None]:
    """By server, the median of its passes."""
    return {name: middle(passes) for name, passes in values.items()}


def rate(utilisation: float, hold: float, slow: float, capacity: int) -> float:
    """Requests a second that keep so much of the capacity busy.

    Args:
        utilisation: 0 to 1.
        hold: seconds for which a slow request holds its worker (or its core).
        slow: their share.
        capacity: workers; where they compute, the cores.
    """
    return utilisation * capacity / (slow * hold)


def compared(name: str, unit: str, found: Comparison, bound: float, *, at_least: bool) -> Figure:
    """A comparison as a row; the mark holds the median of the ratios of pairs, uvicorn's being 1, against the bound."""
    marks: list[Mark] = []
    if "uvicorn" in found.ratios:
        marks.append(against(bound, found.ratios, "uvicorn", at_least=at_least))
    if found.errors.get(US):
        marks.append(at_most(0, found.errors[US], "errors"))
    details = {"ratios": found.ratios, "rounds": found.rounds, "errors": found.errors}
    return Figure(name, unit, found.medians, marks, details)
