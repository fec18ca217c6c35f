"""`/deps`: distributions as a tree."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from cluster2.processes.monitor.http.deps import installed, routes, text, tree


def environment(directory: Path, **needs: list[str]) -> list[str]:
    """Return a directory in which distributions are installed, each with its requirements."""
    for name, requires in needs.items():
        info = directory / f"{name}-1.0.dist-info"
        info.mkdir()
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {name}",
            "Version: 1.0",
            *(f"Requires-Dist: {each}" for each in requires),
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
    return [str(directory)]


def test_a_tree(tmp_path: Path) -> None:
    """Roots are distributions that no other needs, a shared one is listed in full once, extras and missing ones are left out."""
    path = environment(
        tmp_path,
        App=["lib_a>=1,<2", "Lib.B[fast]~=1.0; python_version > '3'", "colorama; sys_platform == 'win32'"],
        lib_a=["core"],
        lib_b=["core (>=1)", "fast; extra == 'fast'"],
        core=["base"],
        base=[],
        fast=[],
    )
    assert list(text(installed(path))) == [
        "App 1.0",
        "  lib_a 1.0",
        "    core 1.0",
        "      base 1.0",
        "  lib_b 1.0",
        "    core 1.0  (needs: see above)",
        "fast 1.0",
    ]
    app, fast = tree(installed(path))
    assert [each["name"] for each in app["requires"]] == ["lib_a", "lib_b"]
    assert app["requires"][1]["requires"] == [{"name": "core", "version": "1.0"}]
    assert fast == {"name": "fast", "version": "1.0", "requires": []}


def test_cycles(tmp_path: Path) -> None:
    """Distributions in a cycle are listed, each in full once."""
    path = environment(tmp_path, one=["two"], two=["one"], self=["self"])
    assert list(text(installed(path))) == [
        "one 1.0",
        "  two 1.0",
        "    one 1.0  (needs: see above)",
        "self 1.0",
        "  self 1.0  (needs: see above)",
    ]


def test_broken_metadata(tmp_path: Path) -> None:
    """A directory of an interrupted installation, or with unreadable metadata, is no distribution."""
    path = environment(tmp_path, good=[], garbage=[])
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "garbage-1.0.dist-info" / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    assert list(installed(path)) == ["good"]


@pytest.mark.anyio
async def test_the_response() -> None:
    """The response is text or JSON, and has all distributions of this interpreter with their versions."""
    transport = httpx.ASGITransport(Starlette(routes=routes("/mon")))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        plain = await client.get("/mon/deps")
        as_json = (await client.get("/mon/deps", headers={"accept": "application/json"})).json()
    assert f"starlette {metadata.version('starlette')}" in plain.text
    assert plain.headers["content-type"].startswith("text/plain")
    seen: dict[str, str] = {}

    def walk(nodes: list[dict[str, Any]]) -> None:
        for each in nodes:
            seen[each["name"]] = each["version"]
            walk(each.get("requires", []))

    walk(as_json["tree"])
    assert len(seen) == as_json["distributions"] == len(installed(sys.path))
    assert seen["httptools"] == metadata.version("httptools")
