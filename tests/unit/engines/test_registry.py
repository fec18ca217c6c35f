"""Finding an engine, and the options that it refuses."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from cluster2.config.settings import OPTIONS, Settings
from cluster2.engines import base, registry
from cluster2.engines.base import Capability, Interface
from cluster2.engines.granian.granian_engine import GranianEngine
from cluster2.engines.http.http_engine import HttpEngine
from cluster2.engines.tcp.tcp_engine import TcpEngine
from cluster2.errors import ConfigError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make a distribution with two engines by entry point, one of which can't be imported."""
    info = tmp_path / "steamworks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: steamworks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cluster2.engines]\nsteam = cluster2.engines.tcp.tcp_engine:TcpEngine\nbroken = no_such_library:Engine\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_auto() -> None:
    """Left to itself, each interface has the engine of its own."""
    assert registry.choose_engine("auto", Interface.ASGI) is HttpEngine
    assert registry.choose_engine("auto", Interface.WSGI) is HttpEngine
    assert registry.choose_engine("auto", Interface.TCP) is TcpEngine
    assert registry.choose_engine("auto", Interface.RSGI) is GranianEngine


def test_by_name() -> None:
    """A named engine is taken if it can serve the app."""
    assert registry.choose_engine("http", Interface.WSGI) is HttpEngine
    with pytest.raises(ConfigError, match=r"engine 'tcp' can't serve a ASGI app \(it takes TCP\)"):
        registry.choose_engine("tcp", Interface.ASGI)


def test_unknown() -> None:
    """An unknown name is refused, with those that there are."""
    with pytest.raises(ConfigError, match="engine 'steam' is unknown; installed are http, granian, tcp"):
        registry.find("steam")


def test_one_that_is_no_more() -> None:
    """An engine of earlier versions is refused, with the one that does the same."""
    with pytest.raises(ConfigError, match=r"engine 'uvicorn' is no more: leave `engine` out, or choose 'http', which"):
        registry.find("uvicorn")


def test_http2_names_the_engine_that_speaks_it() -> None:
    """The default engine speaks HTTP/1.1 only."""
    settings, given = Settings(http2=True), {"http2": "flag --http2"}
    refused = r"http2 \(flag --http2\): engine 'http' has no http2 for ASGI apps; .* choose engine 'granian'$"
    with pytest.raises(ConfigError, match=refused):
        registry.check_options(staff((Interface.ASGI, HttpEngine)), settings, given)


@pytest.mark.usefixtures("installed")
def test_third_parties() -> None:
    """An engine that another distribution brings is found by its entry point, and stands in the list."""
    assert registry.find("steam") is TcpEngine
    assert registry.names() == ["http", "granian", "tcp", "broken", "steam"]


@pytest.mark.usefixtures("installed")
def test_engine_that_can_not_be_imported() -> None:
    """One whose library is missing is refused, naming what is missing."""
    with pytest.raises(ConfigError, match=r"engine 'broken' can't be imported: .*no_such_library.*install"):
        registry.find("broken")


def staff(*engines: tuple[Interface, type[base.Engine]]) -> list[registry.EngineChoice]:
    return [registry.EngineChoice(f"site:{interface}", interface, engine) for interface, engine in engines]


ASGI = (Interface.ASGI, HttpEngine)
WSGI = (Interface.WSGI, HttpEngine)
TCP = (Interface.TCP, TcpEngine)


CELLS = [
    (interface, engine) for engine in map(registry.find, registry.BUILT_IN_ENGINES) for interface in engine.capabilities
]


@pytest.mark.parametrize("each", CELLS, ids=[f"{engine.name} {interface}" for interface, engine in CELLS])
def test_options_that_an_engine_can_not_honour(each: tuple[Interface, type[base.Engine]]) -> None:
    """Each option that was set on purpose and needs what the engine lacks is refused, naming option, source and engine."""
    interface, engine = each
    for name, option in OPTIONS.items():
        asked = Settings(**{option.field: object()})  # a value that certainly asks for something
        if option.requires is None or option.requires in engine.capabilities[interface]:
            assert registry.check_options(staff(each), asked, {name: "flag"}) == []
        else:
            says = rf"^{name} \(flag\): engine '{engine.name}' has no {option.requires} for {interface.upper()} apps; leave"
            with pytest.raises(ConfigError, match=says):
                registry.check_options(staff(each), asked, {"workers": "flag", name: "flag"})


@pytest.mark.parametrize("each", [ASGI, WSGI, TCP], ids=str)
@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.no_op_values])
def test_values_that_ask_nothing(each: tuple[Interface, type[base.Engine]], name: str) -> None:
    """Every engine takes a value that asks nothing of it, and no value at all."""
    for value in (*OPTIONS[name].no_op_values, None):
        assert registry.check_options(staff(each), Settings(**{OPTIONS[name].field: value}), {name: "flag"}) == []


def test_several_apps() -> None:
    """An option that one app's engine honours is accepted for all, and a line names the app for which it means nothing."""
    settings = Settings(access_log=True)
    assert registry.check_options(staff(ASGI, TCP), settings, {"access_log": "flag --access-log"}) == [
        "access_log (flag --access-log): engine 'tcp' has no access-log for TCP apps, so it means nothing to site:tcp"
    ]
    with pytest.raises(ConfigError, match=r"access_log \(flag --access-log\): engine 'tcp' has no access-log"):
        registry.check_options(staff(TCP, TCP), settings, {"access_log": "flag --access-log"})


class Plain(TcpEngine):
    """An engine that can do nothing."""

    name = "plain"
    capabilities = {Interface.TCP: frozenset()}  # noqa: RUF012 - as a third party would write it


def test_what_protects_must_hold_for_all() -> None:
    """TLS is refused if one of several apps would be left without it."""
    with pytest.raises(ConfigError, match=r"ssl_certfile \(file:1\): engine 'plain' has no tls for TCP apps; leave"):
        registry.check_options(
            staff(ASGI, (Interface.TCP, Plain)), Settings(ssl_certfile="x.pem"), {"ssl_certfile": "file:1"}
        )


def test_the_way_out_names_an_engine_that_can() -> None:
    """A refusal names the installed engines that could honour the option."""

    class Lean(HttpEngine):
        name = "lean"
        capabilities = {Interface.ASGI: frozenset()}  # noqa: RUF012

    with pytest.raises(
        ConfigError,
        match=r"^root_path \(flag\): engine 'lean' has no root-path for ASGI apps; leave the option out, or choose engine 'http'$",
    ):
        registry.check_options(staff((Interface.ASGI, Lean)), Settings(root_path="/x"), {"root_path": "flag"})


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (
            "json:JSONDecoder",
            "engine 'odd' lacks abort, .*capabilities, close_idle, .*drain, .*: it isn't made for this version",
        ),
        ("cluster2.engines.tcp.tcp_engine:NoSuch", "engine 'odd' can't be imported: .*NoSuch"),
    ],
)
def test_what_is_no_engine(monkeypatch: pytest.MonkeyPatch, target: str, says: str) -> None:
    """The object of an entry point is checked before it is used."""
    monkeypatch.setitem(registry.BUILT_IN_ENGINES, "odd", target)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=says):
        registry.find("odd")


def test_an_engine_of_an_older_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capabilities that aren't declared for each interface are refused."""
    monkeypatch.setattr(TcpEngine, "capabilities", frozenset({Capability.TLS}))
    with pytest.raises(ConfigError, match="engine 'tcp' must declare its capabilities for each interface"):
        registry.find("tcp")


def test_needs_are_capabilities() -> None:
    """The capabilities that options name exist."""
    assert {option.requires for option in OPTIONS.values()} - {None} <= {str(each) for each in Capability}


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


def test_keys_that_granian_can_not_read() -> None:
    """A key that is to be decrypted is refused with the way out; granian would panic."""
    settings = Settings(ssl_certfile="chain.pem", ssl_keyfile="key.pem", ssl_keyfile_password="xyzzy")
    with pytest.raises(ConfigError, match=r"^ssl_keyfile_password: .*'granian'.*openssl pkey -in key\.pem$"):
        registry.find("granian").preload(settings)
    registry.find("granian").preload(Settings(ssl_certfile="chain.pem", ssl_keyfile="key.pem"))
