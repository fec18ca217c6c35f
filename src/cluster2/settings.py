"""All options of cluster2, each declared once.

An option is a field of `Settings`: its name, type, default, the kind of its values, and a line of help. Everything else
is derived from that declaration: flags (`--conn-threshold`), environment (`CLUSTER2_CONN_THRESHOLD`), keys of the file,
keywords of the API, the reference page, the sample file (`reference`). Where values come from is `config`'s business.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import MappingProxyType
from typing import Any

from .errors import ConfigError

Read = Callable[[object], Any]

# Addresses


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name, IPv4 or IPv6 address without brackets) and a port; port 0 lets the kernel pick one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class FdAddress:
    """A listening socket that our parent opened, by its descriptor."""

    fd: int

    def __str__(self) -> str:
        return f"fd://{self.fd}"


Address = TcpAddress | UnixAddress | FdAddress


def parse_address(text: str) -> Address:
    """The address that a text such as `host:port`, `[::]:port`, `unix:path` or `fd://3` means: the inverse of `str`.

    Raises:
        ValueError: it is none of these.
    """
    if text.startswith("unix:") and len(text) > 5 and "\0" not in text:
        return UnixAddress(text[5:])
    if match := re.fullmatch(r"fd://([0-9]{1,9})", text):
        return FdAddress(int(match[1]))
    if match := re.fullmatch(r"(?:\[([^][]+)]|([^][:/\s]+)):([0-9]{1,5})", text):
        port = int(match[3])
        if port <= 65535 and (match[1] is None or _is_ipv6(match[1])):
            return TcpAddress(match[1] or match[2], port)
    raise ValueError(f"expected {ADDRESS.describe}")


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


# Kinds of values


class _HintError(ValueError):
    """What is wrong with a value, where that is more than being of another kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the values of an option may be.

    Attributes:
        label: one word for a column, or a flag's argument.
        describe: what is allowed, to follow "expected".
        read: makes a value of a text or of a native one; raises ValueError or TypeError.
        show: makes of a value the text that reads as that value.
    """

    label: str
    describe: str
    read: Read
    show: Callable[[Any], str] = str

    def parse(self, raw: object) -> Any:
        """The value that `raw` (a text from flag or environment, or a native value) means.

        Raises:
            ValueError: it means none; the text says what is allowed.
        """
        try:
            return self.read(raw)
        except _HintError as error:
            raise ValueError(f"{error}; expected {self.describe}") from None
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"expected {self.describe}") from None


def _flag(raw: object) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.strip().lower() in words:
        return words[raw.strip().lower()]
    raise ValueError


def _whole(raw: object, least: int = 0, most: float = math.inf, base: int = 10) -> int:
    if isinstance(raw, str) and re.fullmatch(r"[0-9a-z]+", raw.strip().lower()):
        raw = int(raw.strip(), base)
    if not isinstance(raw, int) or isinstance(raw, bool) or not least <= raw <= most:
        raise ValueError
    return raw


_FOREVER = 1e9
"""Seconds, 31 years: the kernel's timers overflow not far above."""

_SECONDS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600), "d": Fraction(86400)}


def _duration(raw: object) -> float:
    if isinstance(raw, str):
        match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z]*)", raw.strip().lower())
        if match is None:
            raise ValueError
        if match[2] not in _SECONDS and match[2]:
            raise _HintError(f"unknown unit {match[2]!r}")
        # Exact until the last step, so that 5ms is 0.005 and not its neighbour.
        raw = float(Fraction(match[1]) * _SECONDS[match[2] or "s"])
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw <= _FOREVER:
        raise ValueError
    return float(raw)


def _positive(raw: object) -> float:
    if not (seconds := _duration(raw)):
        raise ValueError
    return seconds


def _show_duration(seconds: float) -> str:
    exact = Decimal(repr(seconds))
    for unit, scale, least in (("h", 3600, 3600), ("m", 60, 61), ("s", 1, 0)):  # 60s reads better than 1m
        if exact >= least and exact % scale == 0:
            return f"{exact / scale:.0f}{unit}"
    return f"{exact * 1000:.0f}ms" if exact * 1000 % 1 == 0 else f"{exact:f}s"


_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def _size(raw: object) -> int:
    if isinstance(raw, str):
        match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z]*)", raw.strip().lower())
        if match is None:
            raise ValueError
        if match[2] not in _BYTES:
            raise _HintError(f"unknown unit {match[2]!r}" if match[2] else "unit missing")
        raw = int(Fraction(match[1]) * _BYTES[match[2]])
    return _whole(raw)


def _ratio(raw: object) -> float:
    number = float(raw) if isinstance(raw, str) else raw
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise ValueError
    return float(number)


def _text(raw: object) -> str:
    if not isinstance(raw, str) or "\0" in raw:
        raise ValueError
    return raw


def _name(raw: object) -> str:
    if not _text(raw):
        raise ValueError
    return _text(raw)


def _path(raw: object) -> str:
    return _name(str(raw) if isinstance(raw, PurePath) else raw)


def _account(raw: object) -> str:
    return str(_whole(raw)) if isinstance(raw, int) else _name(raw)


def _host(raw: object) -> str:
    host = _text(raw).removeprefix("[").removesuffix("]")
    return str(_tcp(TcpAddress(host, 0)).host)


def _tcp(address: TcpAddress) -> TcpAddress:
    if parse_address(str(address)) != address:
        raise ValueError
    return address


def _address(raw: object) -> str:
    return str(parse_address(str(raw) if isinstance(raw, TcpAddress | UnixAddress | FdAddress) else _text(raw)))


def _reference(raw: object) -> Any:
    if callable(raw) or (isinstance(raw, str) and re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", raw)):
        return raw
    raise ValueError


def _items(raw: object) -> Iterable[object]:
    """What is in a list; a text is a list with commas, any other value a list of one."""
    if isinstance(raw, str):
        return [item.strip() for item in raw.split(",") if item.strip()]
    return raw if isinstance(raw, list | tuple) else [raw]


def _ports(raw: object) -> int | tuple[int, ...]:
    ports = tuple(PORT.read(item) for item in _items(raw))
    if not ports:
        raise ValueError
    return ports[0] if len(ports) == 1 else ports


def _place(raw: object) -> int | str:
    digits = isinstance(raw, str) and raw.isdecimal()
    return int(PORT.read(raw)) if digits or not isinstance(raw, str) else _address(raw)


def _apps(raw: object) -> Any:
    if not isinstance(raw, list | tuple):
        raise ValueError
    return tuple((target, tuple(_place(place) for place in _items(places))) for target, places in raw)


def count(least: int = 0) -> Kind:
    """Whole numbers that are not below `least`."""
    return Kind("COUNT", f"a whole number of at least {least}", lambda raw: _whole(raw, least))


def choice(*values: str) -> Kind:
    """One of these words."""

    def read(raw: object) -> str:
        return values[values.index(_text(raw).strip().lower())]

    return Kind("|".join(values), f"one of {', '.join(values)}", read)


def _auto(raw: object) -> int:
    return 0 if isinstance(raw, str) and raw.strip().lower() == "auto" else _whole(raw)


def _joined(values: object) -> str:
    return ",".join(str(value) for value in _items(values))


FLAG = Kind("FLAG", "true or false (also yes, no, on, off, 1, 0)", _flag, lambda value: str(value).lower())
COUNT = count()
WORKERS = Kind("COUNT", "a whole number of at least 1, or auto", _auto, lambda value: str(value or "auto"))
PORT = Kind("PORT", "a port from 0 to 65535", lambda raw: _whole(raw, 0, 65535))
PORTS = Kind("PORT", "a port from 0 to 65535, or several", _ports, _joined)
DURATION = Kind("DURATION", "a duration such as 30s, 5m, 24h or 250ms, or seconds", _duration, _show_duration)
POSITIVE = Kind(
    "DURATION", "a duration above zero such as 30s, 5m, 24h or 250ms, or seconds", _positive, _show_duration
)
SIZE = Kind("SIZE", "a size such as 512MiB, 1GiB or 100MB", _size, lambda value: f"{value}B")
RATIO = Kind("RATIO", "a number from 0 to 1", _ratio, repr)
TEXT = Kind("TEXT", "a text", _text)
NAME = Kind("NAME", "a name", _name)
PATH = Kind("PATH", "a path", _path)
ACCOUNT = Kind("NAME", "a name or a numeric id", _account)
UMASK = Kind(
    "OCTAL", "an octal number from 0 to 777", lambda raw: _whole(raw, 0, 0o777, 8), lambda value: f"{value:04o}"
)
HOST = Kind("HOST", "a host name or an IP address", _host)
ADDRESS = Kind("ADDRESS", "host:port, [ipv6]:port, unix:path or fd://3", _address)
ADDRESSES = Kind("ADDRESS", ADDRESS.describe, lambda raw: tuple(_address(item) for item in _items(raw)), _joined)
REFERENCE = Kind("REFERENCE", "module:function", _reference)
APPS = Kind("LIST", 'a list of pairs such as ["module:attr", 3000], with a port, an address or several', _apps)

# Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option, apart from its value.

    Attributes:
        field: the attribute of `Settings`: `ecv_control`.
        name: the same in dotted form, as messages and files have it: `ecv.control`.
        default: in the form that `kind.read` returns.
        group: the heading under which help and docs show it.
        short: a short flag (`-w`), or None.
        repeatable: whether the flag may be given several times, for a list.
        seed: what the Node.js cluster2 of 2012 called it, or None.
        needs: the engine's capability without which it can't be honoured, or None.
        restart: whether a change needs a restart of the master; else a reload does.
        code_only: whether it has no form as a text, so that only code and files can set it.
        positional: whether the command line has it as an argument and not as a flag.
        secret: whether its value must not be shown.
    """

    field: str
    name: str
    kind: Kind
    default: Any
    help: str
    group: str
    short: str | None = None
    repeatable: bool = False
    seed: str | None = None
    needs: str | None = None
    restart: bool = False
    code_only: bool = False
    positional: bool = False
    secret: bool = False

    @property
    def flag(self) -> str | None:
        """The long flag, `--ecv-control`, or None where there is none."""
        return None if self.code_only or self.positional else "--" + self.field.replace("_", "-")

    @property
    def variable(self) -> str | None:
        """The environment variable, `CLUSTER2_ECV_CONTROL`, or None where there is none."""
        return None if self.code_only else "CLUSTER2_" + self.field.upper()

    def parse(self, raw: object) -> Any:
        """The value that a text or a native value means; None and an empty text mean None where that is the default.

        Raises:
            ValueError: it means none; the text says what is allowed.
        """
        return None if self.default is None and raw in (None, "") else self.kind.parse(raw)

    def show(self, value: Any) -> str:
        """A value as the text that would set it; "" for None, "***" for a secret."""
        if value is None:
            return ""
        return "***" if self.secret else getattr(value, "__qualname__", None) or self.kind.show(value)


def option(default: Any, kind: Kind, help: str, group: str, *, within: str = "", **more: Any) -> Any:
    """Declare a field of `Settings`.

    Args:
        within: the table that the option belongs to: "ecv" makes `ecv.control` of the field `ecv_control`.
        more: further attributes of `Option`.
    """
    return field(
        default=default, metadata={"within": within, "option": {"kind": kind, "help": help, "group": group} | more}
    )


def options_of(declarations: type) -> Mapping[str, Option]:
    """The options that the fields of a dataclass declare, by dotted name, in their order."""
    found = {}
    for each in fields(declarations):
        within = each.metadata["within"]
        name = f"{within}.{each.name.removeprefix(within + '_')}" if within else each.name
        found[name] = Option(field=each.name, name=name, default=each.default, **each.metadata["option"])
    return MappingProxyType(found)


_APP, _PROCESSES, _LISTEN, _FILES = "App", "Processes", "Addresses", "Files and identity"
_TIME, _KEEPER, _ENGINE, _TLS, _LOG = "Time limits", "Connections", "Engine", "TLS", "Logging"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The value of each option. Durations are seconds, sizes bytes, paths and addresses texts."""

    app: str | None = option(None, TEXT, "what to serve: module:attr or path/file.py:attr", _APP, positional=True)
    factory: bool = option(False, FLAG, "TARGET is a callable that returns the app", _APP)
    apps: tuple[tuple[Any, tuple[int | str, ...]], ...] = option(
        (), APPS, "several apps, each with its port or addresses", _APP, seed="apps", restart=True, code_only=True
    )
    env_file: str | None = option(None, PATH, "lines NAME=value for the environment of the app", _APP)
    chdir: str = option(".", PATH, "the app's working directory, also put on the import path", _APP, restart=True)
    preload: bool = option(True, FLAG, "import once and fork workers; off: each worker imports for itself", _APP)
    warm_up: str | Callable[..., Any] | None = option(  # noqa: RUF009 - it makes a field; ruff can't know
        None, REFERENCE, "called once after the import, before workers are forked", _APP, seed="warmUp"
    )
    setup: str | Callable[..., Any] | None = option(  # noqa: RUF009
        None, REFERENCE, "called with the cluster in the master", _APP, restart=True
    )

    cluster: bool = option(True, FLAG, "off: one process, no master", _PROCESSES, seed="cluster", restart=True)
    workers: int = option(
        0,
        WORKERS,
        "worker processes; auto: one for each usable CPU",
        _PROCESSES,
        short="-w",
        seed="noWorkers",
        restart=True,
    )
    boot_timeout: float = option(60.0, POSITIVE, "how long a worker may take to become ready", _PROCESSES)
    restart_limit: int = option(
        10,
        COUNT,
        "crashes within the window above which the cluster is degraded and backs off",
        _PROCESSES,
        restart=True,
    )
    restart_window: float = option(60.0, POSITIVE, "the window of the restart limit", _PROCESSES, restart=True)

    host: str = option("0.0.0.0", HOST, "where to listen", _LISTEN, seed="host", restart=True)
    port: int | tuple[int, ...] = option(
        3000, PORTS, "the port, or several; 0 picks one", _LISTEN, repeatable=True, seed="port", restart=True
    )
    bind: tuple[str, ...] = option(
        (),
        ADDRESSES,
        f"{ADDRESS.describe}, instead of host and port",
        _LISTEN,
        short="-b",
        repeatable=True,
        restart=True,
    )
    backlog: int = option(2048, count(1), "length of each accept queue", _LISTEN, restart=True)
    mon_host: str = option("127.0.0.1", HOST, "where the monitor listens", _LISTEN, seed="monHost", restart=True)
    mon_port: int = option(3001, PORT, "the monitor's port; 0: no monitor", _LISTEN, seed="monPort", restart=True)

    timeout: float = option(
        30.0, DURATION, "close a connection that is silent for so long", _TIME, seed="timeout", needs="idle-timeout"
    )
    drain_timeout: float = option(30.0, DURATION, "bound of a graceful end: what isn't finished then is cut off", _TIME)
    drain_idle: float = option(2.0, DURATION, "how long a draining worker waits for one more request", _TIME)

    keeper: bool = option(True, FLAG, "connections outlive their worker", _KEEPER, restart=True)
    rest_after: float = option(2.0, DURATION, "idle for so long: to the keeper; 0: never", _KEEPER)
    park_above: float = option(
        0.005, DURATION, "handlers hold the loop for longer: to the keeper after each response; 0: never", _KEEPER
    )

    engine: str = option("auto", NAME, "auto, uvicorn, tcp, or the name of an installed one", _ENGINE)
    lifespan: str = option("auto", choice("auto", "on", "off"), "ASGI lifespan events", _ENGINE, needs="lifespan")
    forwarded_allow_ips: str | None = option(
        None, TEXT, "proxies whose X-Forwarded-* are believed, with commas; * for all", _ENGINE, needs="proxy-headers"
    )
    root_path: str = option(
        "", TEXT, "the path under which a proxy has mounted the app", _ENGINE, needs="proxy-headers"
    )

    ssl_certfile: str | None = option(None, PATH, "certificate chain, PEM", _TLS, needs="tls")
    ssl_keyfile: str | None = option(
        None, PATH, "private key, PEM, if the certificate's file hasn't it", _TLS, needs="tls"
    )
    ssl_keyfile_password: str | None = option(None, TEXT, "what decrypts the key", _TLS, needs="tls", secret=True)
    ssl_ca_certs: str | None = option(
        None, PATH, "authorities that client certificates are checked by", _TLS, needs="tls"
    )

    pids: str = option("./pids", PATH, "directory of pid files and control socket", _FILES, seed="pids", restart=True)
    logs: str = option("./logs", PATH, "directory of the log files", _FILES, seed="logs", restart=True)
    proc_name: str | None = option(None, TEXT, "how ps names the processes", _FILES, restart=True)
    umask: int | None = option(None, UMASK, "file mode mask", _FILES, restart=True)
    user: str | None = option(None, ACCOUNT, "who the workers run as", _FILES, restart=True)
    group: str | None = option(None, ACCOUNT, "the group that the workers run as", _FILES, restart=True)

    log_level: str = option(
        "info",
        choice("critical", "error", "warning", "info", "debug"),
        "least severity that is logged",
        _LOG,
        restart=True,
    )
    log_format: str = option("text", choice("text", "json"), "form of log lines", _LOG, restart=True)
    access_log: bool = option(False, FLAG, "log each request", _LOG, needs="access-log")

    @property
    def ports(self) -> tuple[int, ...]:
        """`port` as a tuple."""
        return self.port if isinstance(self.port, tuple) else (self.port,)

    def targets(self) -> tuple[tuple[Any, tuple[Address, ...]], ...]:
        """Pairs of a target (text, an app object, or None where none is set) and the addresses that it is served on."""
        if self.apps:
            return tuple((target, tuple(self._place(place) for place in places)) for target, places in self.apps)
        return ((self.app, tuple(self._place(place) for place in self.bind or self.ports)),)

    def addresses(self) -> tuple[Address, ...]:
        """All addresses to listen on: those of `apps`, else `bind`, else `host` with each port."""
        return tuple(address for _, addresses in self.targets() for address in addresses)

    def _place(self, place: int | str) -> Address:
        return parse_address(place) if isinstance(place, str) else TcpAddress(self.host, place)

    def to_wire(self) -> dict[str, Any]:
        """The values by field as plain data; what isn't (callables, app objects) becomes None."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of `to_wire`, except for what was no plain data. Fields that are missing have their default."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: _frozen(value) for name, value in values.items() if name in known})


OPTIONS: Mapping[str, Option] = options_of(Settings)
"""All options by dotted name."""


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def validate(settings: Settings, sources: Mapping[str, str] = MappingProxyType({})) -> None:
    """Refuse settings that contradict each other.

    Args:
        sources: where options come from, by dotted name, for the message.

    Raises:
        ConfigError: naming the options at odds.
    """

    def said(name: str) -> str:
        source = f" ({sources[name]})" if name in sources else ""
        return f"{name} = {OPTIONS[name].show(getattr(settings, OPTIONS[name].field))}{source}"

    for other in ("app", "bind"):
        if settings.apps and getattr(settings, other):
            raise ConfigError(f"{said(other)} and apps are both set: apps names the targets with their addresses")
    for name in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs"):
        if getattr(settings, name) is not None and settings.ssl_certfile is None:
            raise ConfigError(f"{said(name)} needs ssl_certfile, which isn't set")
    seen: set[Address] = set()
    for address in settings.addresses():
        port = getattr(address, "port", None)
        if address in seen and port != 0:
            raise ConfigError(f"{address} is listed twice: each address can be bound once")
        if port and port == settings.mon_port:
            raise ConfigError(
                f"{said('mon_port')} is the app's port too ({address}); choose another, or 0 for no monitor"
            )
        seen.add(address)
