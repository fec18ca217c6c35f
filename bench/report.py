"""Figures, the marks that they are compared with, and the tables and files of both."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
US = "cluster2"

Values = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Mark:
    """A bound that a value is compared with.

    Attributes:
        text: the bound in readable form: `≤ 0.95 × uvicorn`.
        value: the value in the bound's own unit (often a ratio); None: not measured.
    """

    text: str
    value: float | None
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Return whether the value meets the bound. None: not measured."""
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.text}: not measured"
        return f"{self.text}: {_number(self.value)}, {'met' if self.met else '**missed**'}"


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of a table: one measure of several servers.

    Attributes:
        values: by server; None: not available or failed.
        details: other results of the measurement, for the file of results.
    """

    name: str
    unit: str
    values: Values
    marks: Sequence[Mark] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def at_most(bound: float, value: float | None, unit: str = "") -> Mark:
    """Return an absolute upper bound."""
    return Mark(f"≤ {bound:g}{' ' + unit if unit else ''}", value, bound)


def ratio(values: Values, other: str) -> float | None:
    """Return cluster2's value divided by another server's. None: one of them wasn't measured."""
    ours, theirs = values.get(US), values.get(other)
    return None if ours is None or not theirs else ours / theirs


def against(bound: float, values: Values, other: str, *, at_least: bool = False) -> Mark:
    """Return a bound on the ratio of cluster2's value to another server's."""
    return Mark(f"{'≥' if at_least else '≤'} {bound:g} × {other}", ratio(values, other), bound, at_least)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table. cluster2 is the first column of values."""
    names = sorted({name for figure in figures for name in figure.values}, key=lambda name: (name != US, name))
    lines = [["", *names, "mark"], ["---"] * (len(names) + 2)]
    for figure in figures:
        cells = [_number(figure.values.get(name)) for name in names]
        lines.append([f"{figure.name}, {figure.unit}", *cells, "; ".join(map(str, figure.marks))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, Any]:
    """Return the properties of the machine and the versions that the figures depend on."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }


def save(suite: str, figures: Iterable[Figure]) -> Path:
    """Write figures, marks and details to `results/SUITE.json`. Return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{suite}.json"
    rows = [
        {**asdict(figure), "marks": [{**asdict(mark), "met": mark.met} for mark in figure.marks]} for figure in figures
    ]
    path.write_text(json.dumps({"suite": suite, "machine": machine(), "figures": rows}, indent=1) + "\n")
    return path


def load(path: Path) -> list[Figure]:
    """Read figures that `save` wrote."""
    rows = json.loads(path.read_text())["figures"]
    for row in rows:
        row["marks"] = [Mark(**{name: mark[name] for name in Mark.__slots__}) for mark in row["marks"]]
    return [Figure(**row) for row in rows]
