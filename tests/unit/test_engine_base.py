"""How an engine is found, and what it refuses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from cluster2.engines import base
from cluster2.engines.base import Capability, Interface
from cluster2.engines.tcp import TcpEngine
from cluster2.engines.uvicorn import UvicornEngine
from cluster2.errors import ConfigError
from cluster2.settings import OPTIONS


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A distribution with two engines by entry point, one of which can't be imported."""
    info = tmp_path / "steamworks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steamworks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cluster2.engines]\nsteam = cluster2.engines.tcp:TcpEngine\nbroken = no_such_library:Engine\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_auto() -> None:
    """Left to itself, each interface has the engine of its own."""
    assert base.choose("auto", Interface.ASGI) is UvicornEngine
    assert base.choose("auto", Interface.WSGI) is UvicornEngine
    assert base.choose("auto", Interface.TCP) is TcpEngine


def test_by_name() -> None:
    """A named engine is taken if it can serve the app."""
    assert base.choose("uvicorn", Interface.WSGI) is UvicornEngine
    with pytest.raises(ConfigError, match=r"engine 'tcp' can't serve a ASGI app \(it takes TCP\)"):
        base.choose("tcp", Interface.ASGI)


def test_no_engine_for_an_interface() -> None:
    """An interface that no installed engine takes is refused, naming those that are installed."""
    with pytest.raises(ConfigError, match="no engine for RSGI apps is installed; installed are uvicorn, tcp"):
        base.choose("auto", Interface.RSGI)


def test_unknown() -> None:
    """An unknown name is refused, with those that there are."""
    with pytest.raises(ConfigError, match="engine 'steam' is unknown; installed are uvicorn, tcp"):
        base.find("steam")


@pytest.mark.usefixtures("installed")
def test_third_parties() -> None:
    """An engine that another distribution brings is found by its entry point, and stands in the list."""
    assert base.find("steam") is TcpEngine
    assert base.names() == ["uvicorn", "tcp", "broken", "steam"]


@pytest.mark.usefixtures("installed")
def test_engine_that_can_not_be_imported() -> None:
    """One whose library is missing is refused, naming what is missing."""
    with pytest.raises(ConfigError, match=r"engine 'broken' can't be imported: .*no_such_library.*install"):
        base.find("broken")


@pytest.mark.parametrize("engine", [UvicornEngine, TcpEngine])
def test_options_that_an_engine_can_not_honour(engine: type[base.Engine]) -> None:
    """Each option that was set on purpose and needs what the engine lacks is refused, naming option and source."""
    for name, option in OPTIONS.items():
        if option.needs is None or option.needs in engine.capabilities:
            base.check_options(engine, [(name, "flag")])
        else:
            with pytest.raises(ConfigError, match=rf"{name} \(flag\): engine '{engine.name}' has no {option.needs}"):
                base.check_options(engine, [("workers", "flag"), (name, "flag")])


def test_needs_are_capabilities() -> None:
    """What options name as needed are capabilities that exist."""
    assert {option.needs for option in OPTIONS.values()} - {None} <= {str(each) for each in Capability}


def test_is_async() -> None:
    """Async functions, methods, partials and objects with an async `__call__` make coroutines; others don't."""

    async def function(a: Any, b: Any) -> None: ...

    class Object:
        async def __call__(self, a: Any) -> None: ...

        async def method(self, a: Any) -> None: ...

    class Plain:
        def __call__(self, a: Any) -> None: ...

    assert all(map(base.is_async, (function, functools.partial(function, 1), Object(), Object().method)))
    assert not any(map(base.is_async, (Plain(), Plain, Object, print, lambda a: None)))
