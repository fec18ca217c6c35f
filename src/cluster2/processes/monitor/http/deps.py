"""`/deps`: the installed distributions, as a tree.

The monitor runs in the same interpreter, with the same environment, as the process that loads the app. So the distributions that
`importlib.metadata` finds here are those that the app can import.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

logger = logging.getLogger("cluster2.monitor")
_MAX_AGE_S = 5.0
"""Seconds for which the list is kept. Making it reads a file for each distribution."""
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True, slots=True)
class _Distribution:
    """An installed distribution.

    Attributes:
        requires: normalized names of the distributions that it needs, without those of extras.
    """

    name: str
    version: str
    requires: tuple[str, ...]


def routes(root: str) -> list[BaseRoute]:
    """Return the route below `root`. It responds with JSON to a client that accepts it, otherwise with text."""
    cache = _DependencyCache()

    async def deps(request: Request) -> Response:
        found = await cache.distributions()
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"distributions": len(found), "tree": tree(found)})
        return PlainTextResponse("".join(f"{line}\n" for line in text(found)))

    return [Route(root + "/deps", deps, methods=["GET"])]


class _DependencyCache:
    """The installed distributions, searched once for all requests within `_MAX_AGE_S` seconds."""

    def __init__(self) -> None:
        """Begin without a list."""
        self._lock = asyncio.Lock()
        self._distributions: dict[str, _Distribution] = {}
        self._valid_until = 0.0

    async def distributions(self) -> dict[str, _Distribution]:
        """Return the distributions by normalized name."""
        async with self._lock:  # requests that come during a search wait for its result
            if time.monotonic() >= self._valid_until:
                self._distributions = await run_in_threadpool(installed)
                self._valid_until = time.monotonic() + _MAX_AGE_S
            return self._distributions


def _normalized(name: str) -> str:
    """Return the name by which distributions are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(path: list[str] | None = None) -> dict[str, _Distribution]:
    """Return all distributions by normalized name. Two may have the same name: the one counts that an import would find.

    Args:
        path: searched instead of `sys.path`.
    """
    found: dict[str, _Distribution] = {}
    for each in metadata.distributions() if path is None else metadata.distributions(path=path):
        try:
            fields, requires = each.metadata, each.requires or ()
        except (OSError, UnicodeError) as error:
            logger.info("metadata that can't be read is left out: %s", error)
            continue
        name = _first(fields, "Name")  # an interrupted installation leaves a directory without one
        if name and _normalized(name) not in found:
            found[_normalized(name)] = _Distribution(name, _first(fields, "Version") or "?", tuple(_needed(requires)))
    return found


def _first(fields: metadata.PackageMetadata, field: str) -> str:
    return str((fields.get_all(field) or [""])[0])


def _needed(requirements: Iterable[str]) -> Iterator[str]:
    """Yield the names of requirements (PEP 508), without those that are for an extra only."""
    seen = set()
    for requirement in requirements:
        match = _NAME.match(requirement)  # without packaging, which is not a dependency
        _, _, marker = requirement.partition(";")
        if match and not re.search(r"\bextra\b", marker) and (name := _normalized(match[1])) not in seen:
            seen.add(name)
            yield name


def tree(found: dict[str, _Distribution]) -> list[dict[str, Any]]:
    """Return the distributions that no other needs, each with its requirements below it.

    A requirement that isn't installed is left out: it may be for another system. A distribution's requirements are listed once;
    at its other places it has no `requires`. Distributions that are in a cycle come last.
    """
    listed: set[str] = set()

    def node(name: str) -> dict[str, Any]:
        each = found[name]
        plain: dict[str, Any] = {"name": each.name, "version": each.version}
        if name not in listed:
            listed.add(name)
            plain["requires"] = [node(needed) for needed in sorted(each.requires) if needed in found]
        return plain

    needed = {name for each in found.values() for name in each.requires}
    roots = [node(name) for name in sorted(found) if name not in needed]
    return roots + [node(name) for name in sorted(found) if name not in listed]


def text(found: dict[str, _Distribution]) -> Iterator[str]:
    """Yield the tree as indented lines."""

    def lines(nodes: list[dict[str, Any]], depth: int) -> Iterator[str]:
        for each in nodes:
            needs = any(needed in found for needed in found[_normalized(each["name"])].requires)
            above = "  (needs: see above)" if needs and "requires" not in each else ""
            yield f"{'  ' * depth}{each['name']} {each['version']}{above}"
            yield from lines(each.get("requires", []), depth + 1)

    return lines(tree(found), 0)
