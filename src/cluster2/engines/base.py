"""The seam between cluster2 and the servers that it runs.

An engine turns apps into connections' protocols inside a worker: it starts the app (lifespan), makes a protocol object for
each connection, says what it is doing, drains and stops. It doesn't accept: who takes a connection is decided by the
worker's acceptor. An engine declares what it can do; an option that needs more is refused at start, never ignored.

A third party adds an engine by an entry point in the group `cluster2.engines`; its object is a class that satisfies `Engine`.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from ..errors import ConfigError
from ..settings import OPTIONS, Settings

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Interface(StrEnum):
    """What kind of callable an app is."""

    ASGI = "asgi"
    WSGI = "wsgi"
    RSGI = "rsgi"
    TCP = "tcp"


class Capability(StrEnum):
    """What an engine may be able to do. Options name the one that they need (`Option.needs`)."""

    TLS = "tls"
    LIFESPAN = "lifespan"
    WEBSOCKETS = "websockets"
    IDLE_TIMEOUT = "idle-timeout"
    PROXY_HEADERS = "proxy-headers"
    ACCESS_LOG = "access-log"


class Census(NamedTuple):
    """What an engine is doing, counted when somebody asks.

    Attributes:
        requests: answered since the start; None where the engine can't know.
        connections: open now; None where the engine can't know.
        in_flight: requests (for TCP: connections) under way.
    """

    requests: int | None
    connections: int | None
    in_flight: int


@dataclass(frozen=True, slots=True)
class Site:
    """One app with what its engine needs to know.

    Attributes:
        app: the callable, already wrapped (`worker.wrapper`).
        tls: the context of its listeners, or None for plain connections.
    """

    app: Callable[..., Any]
    interface: Interface
    settings: Settings
    tls: ssl.SSLContext | None


class Engine(Protocol):
    """A server of one app inside a worker's event loop. All methods run on that loop."""

    name: ClassVar[str]
    interfaces: ClassVar[frozenset[Interface]]
    capabilities: ClassVar[frozenset[Capability]]

    def __init__(self, site: Site) -> None: ...

    @staticmethod
    def preload() -> None:
        """Import all that serving needs. Called in the zygote, so that workers share it."""

    async def start(self) -> None:
        """Start the app. Raises AppError if it refuses."""

    def protocol(self) -> asyncio.BaseProtocol:
        """The protocol object of a new connection."""

    def tick(self) -> None:
        """Called now and then while there is work, once a second at rest: for dates and time limits."""

    def census(self) -> Census:
        """What it is doing."""

    def drain(self) -> None:
        """From now on each connection ends politely as soon as it can, and no new ones come."""

    def sweep(self, grace: float) -> None:
        """Called again and again while draining: end what has been idle for `grace` seconds of it."""

    def idle(self) -> bool:
        """Whether nothing is under way and no connection is open."""

    async def stop(self) -> None:
        """Stop the app, after the last connection has gone."""


def is_async(app: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine: an async function, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__)


BUILT_IN: Mapping[str, str] = {
    "uvicorn": "cluster2.engines.uvicorn:UvicornEngine",
    "tcp": "cluster2.engines.tcp:TcpEngine",
}
_DEFAULT = {Interface.ASGI: "uvicorn", Interface.WSGI: "uvicorn", Interface.TCP: "tcp"}


def names() -> list[str]:
    """The engines that are installed."""
    return [*BUILT_IN, *sorted(point.name for point in _entry_points())]


def _entry_points() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # 1.5 MiB that a master, which reads the API's types only, needn't have

    return entry_points(group="cluster2.engines")


def find(name: str) -> type[Engine]:
    """The engine of that name. Raises ConfigError if there is none, or if it can't be imported."""
    try:
        if name in BUILT_IN:
            found: type[Engine] = resolve_name(BUILT_IN[name])
            return found
        for point in _entry_points():
            if point.name == name:
                found = point.load()
                return found
    except ImportError as error:
        raise ConfigError(f"engine {name!r} can't be imported: {error}; install what it needs") from error
    raise ConfigError(f"engine {name!r} is unknown; installed are {', '.join(names())}")


def choose(name: str, interface: Interface) -> type[Engine]:
    """The engine for an app, `auto` being the default of its interface. Raises ConfigError if it can't take such an app."""
    if name == "auto":
        if interface not in _DEFAULT:
            raise ConfigError(
                f"no engine for {interface.upper()} apps is installed; installed are {', '.join(names())}"
            )
        name = _DEFAULT[interface]
    engine = find(name)
    if interface not in engine.interfaces:
        takes = ", ".join(sorted(each.upper() for each in engine.interfaces))
        raise ConfigError(
            f"engine {name!r} can't serve a {interface.upper()} app (it takes {takes}); leave `engine` out to let cluster2 choose"
        )
    return engine


def check_options(engine: type[Engine], given: Iterable[tuple[str, str]]) -> None:
    """Refuse options that the engine can't honour.

    Args:
        given: name and source of each option that was set on purpose.

    Raises:
        ConfigError: naming the first one.
    """
    for name, source in given:
        needs = OPTIONS[name].needs
        if needs is not None and needs not in engine.capabilities:
            raise ConfigError(f"{name} ({source}): engine {engine.name!r} has no {needs}; leave the option out")
