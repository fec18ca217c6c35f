"""Format a master's status for people: some lines about the cluster, then a table of the workers.

Two statuses in turn give rates per second, which have columns of their own (`top`). `status` asks once, to be quick, so it shows
no rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.wording import counted

_LEFT_ALIGNED_COLUMNS = ("STATE", "MODE")
"""The columns with words. The others have numbers, which are right-aligned."""


class Rates:
    """The rates per second of the workers, from two statuses.

    Args:
        before: the earlier status.
        now: the later status.
        passed: seconds between them.
    """

    def __init__(self, before: Mapping[str, Any], now: Mapping[str, Any], passed: float) -> None:
        earlier = {each["pid"]: each for each in before["workers"]}
        self._now = {each["pid"]: each for each in now["workers"]}
        self._earlier = earlier
        self._passed = max(passed, 1e-3)

    def rate_of(self, pid: int, name: str) -> float | None:
        """Return the rate of a worker's counter; None: not known, since the worker is new or can't count."""
        now, before = self._now.get(pid, {}).get(name), self._earlier.get(pid, {}).get(name)
        return None if now is None or before is None else max(0.0, (now - before) / self._passed)

    def total(self, name: str) -> float:
        """Return the sum of all workers' rates."""
        return sum(rate for pid in self._now if (rate := self.rate_of(pid, name)) is not None)


def weighed(found: dict[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return a status that has no memory figures with those of an earlier status."""
    known = {each["pid"]: each.get("memory") for each in before["workers"]}
    workers = [each | {"memory": known.get(each["pid"])} for each in found["workers"]]
    whole = {
        name: {**found[name], "memory": before[name].get("memory")}
        for name in ("master", "keeper", "monitor")
        if found.get(name) and before.get(name)
    }
    return found | whole | {"workers": workers}


def describe(found: Mapping[str, Any], rates: Rates | None = None) -> list[str]:
    """Return the lines."""
    master, workers = found["master"], found["workers"]
    ready = sum(worker["state"] == "ready" for worker in workers)
    served = "" if rates is None else f", {rates.total('requests'):.0f} requests/s"
    lines = [
        f"master {master['pid']}  {master['state']}, up {span(master['uptime'])}, cluster2 {master['version']}",
        f"generation {found['generation']}  {ready} of {found['wanted']} workers ready, traffic {found['traffic']}{served}",
        "listening  " + ", ".join(found["addresses"]) + _under_way(found),
    ]
    if keeper := found.get("keeper"):
        lines.append(
            f"keeper {keeper['pid']}  {counted(keeper['resting'], 'connection')} at rest, {memory(keeper['memory'])}"
        )
    if monitor := found.get("monitor"):
        lines.append(f"monitor {monitor['pid'] or 'starts'}  http://{monitor['address']}, {memory(monitor['memory'])}")
    lines += [
        f"slot {each['slot']}  backs off, next worker in {each['seconds']:.1f} s" for each in found.get("backoffs", ())
    ]
    return [*lines, "", *_aligned([_row(worker, rates) for worker in workers])] if workers else lines


def _under_way(found: Mapping[str, Any]) -> str:
    requests = sum(worker["in_flight"] or 0 for worker in found["workers"])
    waiting = found.get("waiting")  # a master of an older version doesn't report it
    return f"; {counted(requests, 'request')} under way" + (
        f", {counted(waiting, 'connection')} waiting to be accepted" if waiting is not None else ""
    )


def _row(worker: Mapping[str, Any], rates: Rates | None) -> dict[str, str]:
    row = {
        "PID": _cell(worker["pid"]),
        "SLOT": _cell(worker["slot"]),
        "GEN": _cell(worker["generation"]),
        "STATE": _cell(worker["state"]),
        "MODE": _cell(worker.get("mode")),
        "UP": span(worker["uptime"]),
        "REQUESTS": _cell(worker["requests"]),
        "ERRORS": _cell(worker.get("errors")),
        "OPEN": _cell(worker["connections"]),
        "BUSY": _cell(worker["in_flight"]),
        "MEMORY": memory(worker["memory"]),
    }
    if rates is not None:
        requests, cpu = rates.rate_of(worker["pid"], "requests"), rates.rate_of(worker["pid"], "cpu")
        row["REQ/S"] = "-" if requests is None else f"{requests:.0f}"
        row["CPU"] = "-" if cpu is None else f"{100 * cpu:.0f}%"
    return row


def _aligned(rows: list[dict[str, str]]) -> list[str]:
    """Return the lines of a table. The first line has the names of the columns."""
    names = list(rows[0])
    table = [dict(zip(names, names, strict=True)), *rows]
    widths = {name: max(len(row[name]) for row in table) for name in names}
    return ["  ".join(_pad(row[name], name, widths[name]) for name in names).rstrip() for row in table]


def _pad(cell: str, name: str, width: int) -> str:
    return cell.ljust(width) if name in _LEFT_ALIGNED_COLUMNS else cell.rjust(width)


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def span(seconds: float | None) -> str:
    """Return a time in its two largest units: `3d4h`, `2m05s`, `7s`."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for size, unit, below, below_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{below_unit}"
    return f"{whole}s"


def memory(size: float | None) -> str:
    """Return bytes in MiB."""
    return "-" if size is None else f"{size / 2**20:.0f} MiB"
