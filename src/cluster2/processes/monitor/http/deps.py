"""`/deps`: what is installed beside the app, as a tree.

This process is executed by the same interpreter, with the same environment, as the one that loads the app: so what
`importlib.metadata` finds here is what the app can import.
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
DEPENDENCIES_MAX_AGE_S = 5.0
"""Seconds."""
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


@dataclass(frozen=True, slots=True)
class Distribution:
    """One that is installed.

    Attributes:
        requires: normalized names of what it needs, extras left out.
    """

    name: str
    version: str
    requires: tuple[str, ...]


def routes(root: str) -> list[BaseRoute]:
    """The route of the dependencies, below `root`: JSON for who accepts that, else text."""
    shelf = DependencyCache()

    async def deps(request: Request) -> Response:
        found = await shelf.distributions()
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"distributions": len(found), "tree": tree(found)})
        return PlainTextResponse("".join(f"{line}\n" for line in text(found)))

    return [Route(root + "/deps", deps, methods=["GET"])]


class DependencyCache:
    """What is installed: a file for each, looked for once for all who ask within `DEPENDENCIES_MAX_AGE_S` seconds."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self._turn = asyncio.Lock()
        self._found: dict[str, Distribution] = {}
        self._until = 0.0

    async def distributions(self) -> dict[str, Distribution]:
        """It, by normalized name."""
        async with self._turn:
            if time.monotonic() >= self._until:
                self._found = await run_in_threadpool(installed)
                self._until = time.monotonic() + DEPENDENCIES_MAX_AGE_S
            return self._found


def normalized(name: str) -> str:
    """The name by which distributions are the same (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(path: list[str] | None = None) -> dict[str, Distribution]:
    """All distributions by normalized name; where there are two of a name, the one that an import would find.

    Args:
        path: where to look instead of `sys.path`.
    """
    found: dict[str, Distribution] = {}
    for each in metadata.distributions() if path is None else metadata.distributions(path=path):
        try:
            told, requires = each.metadata, each.requires or ()
        except (OSError, UnicodeError) as error:
            logger.info("metadata that can't be read is left out: %s", error)
            continue
        name = _first(told, "Name")  # an interrupted installation leaves a directory without any
        if name and normalized(name) not in found:
            found[normalized(name)] = Distribution(name, _first(told, "Version") or "?", tuple(_needed(requires)))
    return found


def _first(told: metadata.PackageMetadata, field: str) -> str:
    return str((told.get_all(field) or [""])[0])


def _needed(requirements: Iterable[str]) -> Iterator[str]:
    """The names of requirements (PEP 508) that aren't for an extra only."""
    seen = set()
    for requirement in requirements:
        match = _NAME.match(requirement)
        _, _, marker = requirement.partition(";")
        if match and not re.search(r"\bextra\b", marker) and (name := normalized(match[1])) not in seen:
            seen.add(name)
            yield name


def tree(found: dict[str, Distribution]) -> list[dict[str, Any]]:
    """The distributions that nobody else needs, with what they need below them; each one's own needs are told once.

    What isn't installed is left out: it may be for another system. A distribution whose needs were told before has no
    `requires`. Those that only need each other come last.
    """
    told: set[str] = set()

    def node(name: str) -> dict[str, Any]:
        each = found[name]
        plain: dict[str, Any] = {"name": each.name, "version": each.version}
        if name not in told:
            told.add(name)
            plain["requires"] = [node(needed) for needed in sorted(each.requires) if needed in found]
        return plain

    needed = {name for each in found.values() for name in each.requires}
    roots = [node(name) for name in sorted(found) if name not in needed]
    return roots + [node(name) for name in sorted(found) if name not in told]


def text(found: dict[str, Distribution]) -> Iterator[str]:
    """The same in lines."""

    def lines(nodes: list[dict[str, Any]], depth: int) -> Iterator[str]:
        for each in nodes:
            needs = any(needed in found for needed in found[normalized(each["name"])].requires)
            above = "  (needs: see above)" if needs and "requires" not in each else ""
            yield f"{'  ' * depth}{each['name']} {each['version']}{above}"
            yield from lines(each.get("requires", []), depth + 1)

    return lines(tree(found), 0)
