"""The registry of engines: find an engine, choose one for an app, and check which options it can honour.

An engine declares its capabilities for each interface that it serves. An option names the capability that it needs
(`settings.Option.requires`). An option that was set on purpose is honoured or refused, never ignored:

- A value that asks nothing of the engine (`Option.no_op_values`: `keeper = false`, `timeout = 0`) is honoured by all engines.
- With one app, an option is refused if the app's engine lacks the capability for the app's interface.
- With several apps that differ (HTTP beside raw TCP), an option is refused only if no app could honour it. Options belong to
  the cluster, and each app uses those that make sense for it. The log names the apps for which an option means nothing.
- An option that protects must hold for every app (`_SECURITY_CAPABILITIES`). Where TLS was asked for, no port is left plain.

`docs/reference/engines.md` has the table.

A third party adds an engine by an entry point in the group `cluster2.engines`. Its object is a class that satisfies `Engine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NamedTuple

from ..config.settings import OPTIONS, Settings
from ..errors import ConfigError
from .base import Capability, Engine, Interface, ProtocolEngine, owns_accept

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_SECURITY_CAPABILITIES = frozenset({Capability.TLS})
"""Capabilities that every app must have if an option asks for them. It isn't enough that another app has them."""
BUILT_IN_ENGINES: Mapping[str, str] = {
    "http": "cluster2.engines.http.http_engine:HttpEngine",
    "granian": "cluster2.engines.granian.granian_engine:GranianEngine",
    "tcp": "cluster2.engines.tcp.tcp_engine:TcpEngine",
}
_REPLACED = {"uvicorn": "http"}
"""Engines of earlier versions, and their replacements."""
_DEFAULT = {
    Interface.ASGI: "http",
    Interface.WSGI: "http",
    Interface.RSGI: "granian",
    Interface.TCP: "tcp",
}


def names() -> list[str]:
    """Return the names of the engines that are installed."""
    return [*BUILT_IN_ENGINES, *sorted(point.name for point in _entry_points())]


def _entry_points() -> Iterable[EntryPoint]:
    # Imported here: it takes 1.5 MiB, and a script that becomes the master needs only the types of this package.
    from importlib.metadata import entry_points

    return entry_points(group="cluster2.engines")


def find(name: str) -> type[Engine]:
    """Return the engine of that name. Raises ConfigError if there is none, it can't be imported, or it isn't an engine."""
    found = _named(name)
    parts = _PARTS if owns_accept(found) else _PARTS | _FED_PARTS
    lacking = sorted(each for each in parts if not hasattr(found, each))
    if lacking:
        raise ConfigError(f"engine {name!r} lacks {', '.join(lacking)}: it isn't made for this version of cluster2")
    if not isinstance(found.capabilities, Mapping):
        raise ConfigError(
            f"engine {name!r} must declare its capabilities for each interface; it isn't made for this version"
        )
    return found


_PARTS = {each for each in vars(Engine) if not each.startswith("_")} | {"name", "capabilities"}
_FED_PARTS = {each for each in vars(ProtocolEngine) if not each.startswith("_")}


def _named(name: str) -> type[Engine]:
    try:
        if name in BUILT_IN_ENGINES:
            found: type[Engine] = resolve_name(BUILT_IN_ENGINES[name])
            return found
        for point in _entry_points():
            if point.name == name:
                found = point.load()
                return found
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"engine {name!r} can't be imported: {error}; install what it needs") from error
    if name in _REPLACED:
        raise ConfigError(
            f"engine {name!r} is no more: leave `engine` out, or choose {_REPLACED[name]!r}, which does the same"
        )
    raise ConfigError(f"engine {name!r} is unknown; installed are {', '.join(names())}")


def choose_engine(name: str, interface: Interface) -> type[Engine]:
    """Return the engine for an app; "auto" is the default of the interface.

    Raises:
        ConfigError: the engine can't serve such an app.
    """
    if name == "auto":
        name = _DEFAULT[interface]
    engine = find(name)
    if interface not in engine.capabilities:
        takes = ", ".join(sorted(each.upper() for each in engine.capabilities))
        raise ConfigError(
            f"engine {name!r} can't serve a {interface.upper()} app (it takes {takes}); leave `engine` out to let cluster2 choose"
        )
    return engine


class EngineChoice(NamedTuple):
    """An app's interface, and the engine that will serve it.

    Attributes:
        label: the app's name in messages.
        interface: the app's interface.
        engine: the class that will serve it.
    """

    label: str
    interface: Interface
    engine: type[Engine]

    def can(self, needs: str) -> bool:
        """Return whether the engine has this capability for apps of this interface."""
        return needs in self.engine.capabilities[self.interface]


def check_options(choices: Sequence[EngineChoice], settings: Settings, given: Mapping[str, str]) -> list[str]:
    """Refuse options that can't be honoured, by the rules in the module's docstring.

    Args:
        choices: the apps and their engines.
        settings: the values of the options.
        given: the source of each option that was set on purpose, by dotted name.

    Returns:
        Lines for the log: which option has no meaning for which app.

    Raises:
        ConfigError: names the first option that is refused, its source, the engine, and the way out.
    """
    notes: list[str] = []
    for name, source in given.items():
        option = OPTIONS[name]
        value = getattr(settings, option.field)
        if option.requires is None or value is None or value in option.no_op_values:
            continue
        lacking = [each for each in choices if not each.can(option.requires)]
        if not lacking:
            continue
        _, interface, engine = lacking[0]
        reason = f"{name} ({source}): engine {engine.name!r} has no {option.requires} for {interface.upper()} apps"
        if len(lacking) == len(choices) or option.requires in _SECURITY_CAPABILITIES:
            raise ConfigError(f"{reason}; leave the option out{_elsewhere(interface, option.requires)}")
        notes.extend(f"{reason}, so it means nothing to {each.label}" for each in lacking)
    return notes


def _elsewhere(interface: Interface, needs: str) -> str:
    """Return the end of an error message: the engines that have a capability for an interface; "" if none has it."""
    able = []
    for name in names():
        try:
            engine = find(name)
        except ConfigError:
            continue  # an engine that can't be imported is no way out
        if needs in engine.capabilities.get(interface, ()):
            able.append(repr(name))
    return f", or choose engine {' or '.join(able)}" if able else ""
