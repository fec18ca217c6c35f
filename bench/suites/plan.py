"""The extent of a suite and its servers, and functions for all suites."""

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
    """The request of the command line.

    Attributes:
        servers: the servers to measure; a suite takes those that it can use.
        quick: short runs, as a check, with rough figures.
        passes: the number of rounds of an interleaved run; None: the suite's own default.
        workers: the number of workers of each server.
    """

    servers: Sequence[str] = tuple(COMMANDS)
    quick: bool = False
    passes: int | None = None
    workers: int = 4

    def pick(self, *names: str) -> list[str]:
        """Return those of these servers that are requested, in this order."""
        return [name for name in names if name in self.servers]

    def times(self, full: int, quick: int = 1) -> int:
        """Return the number of passes."""
        return self.passes or (quick if self.quick else full)

    def size(self, full: float, quick: float) -> float:
        """Return a duration or a number: the full one or the quick one."""
        return quick if self.quick else full


Suite = Callable[[Plan], Iterator[Figure]]


def say(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def each(names: Sequence[str], measure: Callable[[str], T]) -> dict[str, T | None]:
    """Return the result of each server. None, with the reason on standard error, for one that can't be measured."""
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
    """Return one value of each server's result."""
    return {name: None if what is None else value(what) for name, what in found.items()}


def medians(values: Mapping[str, Sequence[float | None]]) -> dict[str, float | None]:
    """Return the median of the passes by server."""
    return {name: middle(passes) for name, passes in values.items()}


def rate(utilisation: float, hold: float, slow: float, capacity: int) -> float:
    """Return the requests a second that use this share of the capacity.

    Args:
        utilisation: 0 to 1.
        hold: seconds for which a slow request holds its worker (or its core).
        slow: the share of slow requests.
        capacity: the number of workers, or of cores if slow requests compute.
    """
    return utilisation * capacity / (slow * hold)


def compared(name: str, unit: str, found: Comparison, bound: float, *, at_least: bool) -> Figure:
    """Return a comparison as a row. Its mark compares the median of the ratios of pairs (uvicorn's is 1) with the bound."""
    marks: list[Mark] = []
    if "uvicorn" in found.ratios:
        marks.append(against(bound, found.ratios, "uvicorn", at_least=at_least))
    if found.errors.get(US):
        marks.append(at_most(0, found.errors[US], "errors"))
    details = {"ratios": found.ratios, "rounds": found.rounds, "errors": found.errors}
    return Figure(name, unit, found.medians, marks, details)
