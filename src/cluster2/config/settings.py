"""All options of cluster2, each declared once.

An option is a field of `Settings`: its name, type, default, the kind of its values, and a line of help. Everything else
is derived from that declaration: flags (`--conn-threshold`), environment (`CLUSTER2_CONN_THRESHOLD`), keys of the file,
keywords of the API, the reference page, the sample file (`reference`). Where values come from is `config`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from ..errors import ConfigError
from .value_types import (
    ACCOUNT,
    ADDRESS,
    ADDRESSES,
    APPS,
    BARE_PATH,
    COUNT,
    DURATION,
    ECV_PATH,
    FLAG,
    HOST,
    NAME,
    PATH,
    PORT,
    PORTS,
    POSITIVE,
    PROXIES,
    RATIO,
    REFERENCE,
    ROOT_PATH,
    SIZE,
    TEXT,
    TOKEN,
    UMASK,
    URL_PATH,
    WORKERS,
    Address,
    TcpAddress,
    ValueType,
    choice,
    count,
    is_loopback,
    parse_address,
)


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
        former: the dotted name that it had before, or None. Where it is still used, the error names the new one.
        needs: the engine's capability without which it can't be honoured, or None.
        moot: values, besides None, that ask for nothing, so that nothing has to honour them.
        needs_master: the master carries it out, so with `cluster = false` it means nothing.
        restart: whether a change needs a restart of the master; else a reload does.
        code_only: whether it has no form as a text, so that only code and files can set it.
        positional: whether the command line has it as an argument and not as a flag.
        secret: whether its value must not be shown.
        file: whether it names a file that a generation needs, and that is read once, when the generation is loaded.
        shared_variable: an environment variable that other servers read for the same. It counts less than the file, and
            isn't taken for the user's wish: an engine that can't honour it isn't refused.
    """

    field: str
    name: str
    kind: ValueType
    default: Any
    help: str
    group: str
    short: str | None = None
    repeatable: bool = False
    seed: str | None = None
    former: str | None = None
    needs: str | None = None
    moot: tuple[Any, ...] = ()
    needs_master: bool = False
    restart: bool = False
    code_only: bool = False
    positional: bool = False
    secret: bool = False
    file: bool = False
    shared_variable: str | None = None

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


def option(default: Any, kind: ValueType, help: str, group: str, *, within: str = "", **more: Any) -> Any:
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


_APP, _PROCESSES, _RECYCLE, _LISTEN, _FILES = "App", "Processes", "Recycling", "Addresses", "Files and identity"
_ECV = "Health checks"
_TIME, _KEEPER, _ENGINE, _TLS, _LOG = "Time limits", "Connections", "Engine", "TLS", "Logging"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The value of each option. Durations are seconds, sizes bytes, paths and addresses texts."""

    app: str | None = option(None, TEXT, "what to serve: module:attr or path/file.py:attr", _APP, positional=True)
    factory: bool = option(False, FLAG, "TARGET is a callable that returns the app", _APP)
    apps: tuple[tuple[Any, tuple[int | str, ...]], ...] = option(
        (), APPS, "several apps, each with its port or addresses", _APP, seed="apps", restart=True, code_only=True
    )
    env_file: str | None = option(None, PATH, "lines NAME=value for the environment of the app", _APP, file=True)
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
        shared_variable="WEB_CONCURRENCY",
        moot=(1,),
        needs_master=True,
    )
    boot_timeout: float = option(
        60.0, POSITIVE, "how long a worker may take to become ready", _PROCESSES, needs_master=True
    )
    max_surge: int = option(1, count(1), "how many workers may be replaced at a time", _PROCESSES, needs_master=True)
    restart_limit: int = option(
        10,
        COUNT,
        "crashes within the window above which the cluster is degraded and backs off",
        _PROCESSES,
        restart=True,
        needs_master=True,
    )
    restart_window: float = option(
        60.0, POSITIVE, "the window of the restart limit", _PROCESSES, restart=True, needs_master=True
    )

    conn_threshold: int = option(
        0,
        COUNT,
        "replace a worker after so many connections; 0: never",
        _RECYCLE,
        seed="connThreshold",
        needs="connection-count",
        moot=(0,),
        needs_master=True,
    )
    request_threshold: int = option(
        0, COUNT, "replace a worker after so many requests; 0: never", _RECYCLE, moot=(0,), needs_master=True
    )
    uptime_threshold: float = option(
        0.0,
        DURATION,
        "replace a worker after so long; 0: never",
        _RECYCLE,
        seed="uptimeThreshold",
        moot=(0.0,),
        needs_master=True,
    )
    memory_threshold: int = option(
        0, SIZE, "replace a worker that has so much memory (PSS); 0: never", _RECYCLE, moot=(0,), needs_master=True
    )
    recycle_when: str | Callable[..., Any] | None = option(  # noqa: RUF009
        None,
        REFERENCE,
        "called in the master with a worker's status; true: replace it",
        _RECYCLE,
        seed="shouldKill",
        needs_master=True,
    )
    threshold_jitter: float = option(
        0.5,
        RATIO,
        "thresholds are stretched at random by up to this share, so that workers don't leave together",
        _RECYCLE,
        needs_master=True,
    )

    host: str = option("0.0.0.0", HOST, "where to listen", _LISTEN, seed="host", restart=True)
    port: int | tuple[int, ...] = option(
        3000, PORTS, "the port, or several; 0 picks one", _LISTEN, repeatable=True, seed="port", restart=True,
        shared_variable="PORT",
    )  # fmt: skip
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
    monitor_host: str = option(
        "127.0.0.1", HOST, "where the monitor listens", _LISTEN, seed="monHost", former="mon_host", restart=True
    )
    monitor_port: int = option(
        3001, PORT, "the monitor's port, unless set the next one if it is in use; 0: no monitor", _LISTEN,
        seed="monPort", former="mon_port", restart=True,
    )  # fmt: skip
    monitor_path: str = option(
        "/", BARE_PATH, "the path under which the monitor answers", _LISTEN, former="mon_path", restart=True
    )
    monitor_token: str | None = option(
        None, TOKEN, "what changes need, and everything but health checks where others can reach it", _LISTEN,
        former="mon_token", restart=True, secret=True,
    )  # fmt: skip

    ecv_path: str = option(
        "/ecv",
        ECV_PATH,
        "where load balancers ask for the health; off: not on the app's port",
        _ECV,
        within="ecv",
        seed="path",
    )
    ecv_monitor: str | None = option(
        None, URL_PATH, "a path of the app that must answer below 300", _ECV, within="ecv", seed="monitor", needs="ecv"
    )
    ecv_validator: str | Callable[..., Any] | None = option(  # noqa: RUF009
        None, REFERENCE, "called with status, headers and body of that answer; true: it is fine", _ECV,
        within="ecv", seed="validator", needs="ecv",
    )  # fmt: skip
    ecv_control: bool = option(
        False, FLAG, "whether POST to PATH/disable and PATH/enable steers traffic", _ECV, within="ecv", seed="control"
    )
    ecv_token: str | None = option(
        None, TOKEN, "what these POSTs must bear; unset: they must come from this machine", _ECV,
        within="ecv", secret=True,
    )  # fmt: skip
    ecv_agent_port: int = option(
        0, PORT, "where HAProxy's agent-check is answered; 0: nowhere", _ECV, within="ecv", restart=True
    )

    timeout: float = option(
        30.0,
        DURATION,
        "end a connection whose client makes no progress for so long; also bounds a head",
        _TIME,
        seed="timeout",
        needs="idle-timeout",
        moot=(0.0,),
    )
    lame_duck: float = option(
        0.0, DURATION, "at a shutdown health checks fail first, and serving goes on for so long", _TIME
    )
    drain_timeout: float = option(30.0, DURATION, "bound of a graceful end: what isn't finished then is cut off", _TIME)
    drain_idle: float = option(2.0, DURATION, "how long a draining worker waits for one more request", _TIME)
    heartbeat_interval: float = option(
        5.0,
        DURATION,
        "between two heartbeat events; 0: none",
        _TIME,
        seed="heartbeatInterval",
        moot=(0.0,),
        needs_master=True,
    )
    max_heartbeat_delay: float = option(
        30.0,
        POSITIVE,
        "a worker whose loop is stuck for so long is replaced",
        _TIME,
        seed="maxHeartbeatDelay",
        needs_master=True,
    )
    request_timeout: float = option(
        0.0,
        DURATION,
        "a worker with a request older than this is replaced; 0: never",
        _TIME,
        needs="request-age",
        moot=(0.0,),
        needs_master=True,
    )

    keep_alive: bool = option(
        True,
        FLAG,
        "connections stay open for more requests; off: every response ends its own",
        _KEEPER,
        needs="keep-alive",
        moot=(True,),
    )
    keeper: bool = option(
        True,
        FLAG,
        "connections outlive their worker",
        _KEEPER,
        restart=True,
        needs="keeper",
        moot=(False,),
        needs_master=True,
    )
    handoff_idle_after: float = option(
        2.0,
        DURATION,
        "idle for so long: to the keeper; 0: never",
        _KEEPER,
        former="rest_after",
        needs="keeper",
        moot=(0.0,),
        needs_master=True,
    )
    handoff_slow_above: float = option(
        0.005,
        DURATION,
        "handlers hold the loop for longer: to the keeper after each response; 0: never",
        _KEEPER,
        former="park_above",
        needs="keeper",
        moot=(0.0,),
        needs_master=True,
    )

    engine: str = option("auto", NAME, "auto, http, granian, tcp, or the name of an installed one", _ENGINE)
    threads: int = option(
        8,
        COUNT,
        "threads of a worker that serves a WSGI app; 0: the app runs inline, one request at a time",
        _ENGINE,
        needs="threads",
    )
    http2: bool = option(False, FLAG, "speak HTTP/2 as well", _ENGINE, needs="http2", moot=(False,))
    lifespan: str = option(
        "auto", choice("auto", "on", "off"), "ASGI lifespan events", _ENGINE, needs="lifespan", moot=("auto", "off")
    )
    forwarded_allow_ips: str = option(
        "127.0.0.1,::1,unix:",
        PROXIES,
        "proxies whose X-Forwarded-For and X-Forwarded-Proto are believed",
        _ENGINE,
        needs="proxy-headers",
        moot=("",),
        shared_variable="FORWARDED_ALLOW_IPS",
    )
    root_path: str = option(
        "", ROOT_PATH, "the path under which a proxy shows the app; the proxy must strip it", _ENGINE,
        needs="root-path", moot=("",),
    )  # fmt: skip

    ssl_certfile: str | None = option(None, PATH, "certificate chain, PEM", _TLS, needs="tls", file=True)
    ssl_keyfile: str | None = option(
        None, PATH, "private key, PEM, if the certificate's file hasn't it", _TLS, needs="tls", file=True
    )
    ssl_keyfile_password: str | None = option(None, TEXT, "what decrypts the key", _TLS, needs="tls", secret=True)
    ssl_ca_certs: str | None = option(
        None, PATH, "authorities that client certificates are checked by", _TLS, needs="tls", file=True
    )

    pids: str = option(
        "./pids",
        PATH,
        "directory of pid files and control socket",
        _FILES,
        seed="pids",
        restart=True,
        needs_master=True,
    )
    logs: str = option("./logs", PATH, "directory of the log files", _FILES, seed="logs", restart=True)
    proc_name: str | None = option(None, TEXT, "how ps names the processes", _FILES, restart=True)
    umask: int | None = option(None, UMASK, "file mode mask", _FILES, restart=True)
    user: str | None = option(None, ACCOUNT, "who all processes but the master run as", _FILES, restart=True)
    group: str | None = option(None, ACCOUNT, "the group that they run as", _FILES, restart=True)

    log_level: str = option(
        "info",
        choice("critical", "error", "warning", "info", "debug"),
        "least severity that is logged",
        _LOG,
        restart=True,
    )
    log_format: str = option("text", choice("text", "json"), "form of log lines", _LOG, restart=True)
    access_log: bool = option(
        False, FLAG, "log each request, in the combined format, or as JSON if log_format is json", _LOG,
        needs="access-log", moot=(False,),
    )  # fmt: skip
    log_to: str = option(
        "both", choice("both", "files", "stderr"), "standard error, files in the directory of logs, or both; in the "
        "background (start): files", _LOG, restart=True,
    )  # fmt: skip
    log_size: int = option(
        16 << 20, SIZE, "rotate a log file above this size; 0: never, something else does it", _LOG, restart=True
    )
    log_total: int = option(
        512 << 20, SIZE, "the oldest log files go when all have more than this; 0: never", _LOG, restart=True
    )

    @property
    def ports(self) -> tuple[int, ...]:
        """`port` as a tuple."""
        return self.port if isinstance(self.port, tuple) else (self.port,)

    @property
    def monitor_ecv_path(self) -> str:
        """Where the monitor answers as `ecv_path` does on the app's port: also where that is off."""
        return self.ecv_path or str(OPTIONS["ecv.path"].default)

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

    def to_public(self) -> dict[str, Any]:
        """Return the values by dotted name as plain data, for users: a secret is `***`."""
        values = self.to_wire()
        return {
            name: "***" if option.secret and values[option.field] is not None else values[option.field]
            for name, option in OPTIONS.items()
        }

    def objects(self) -> list[str]:
        """Return the fields whose values are objects, which don't travel; apps aside, which are named by their place."""
        plain = (str, int, float, list, tuple, type(None))
        return [each.name for each in fields(self) if not isinstance(getattr(self, each.name), plain)]

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of `to_wire`, except for what was no plain data. Fields that are missing have their default."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: _frozen(value) for name, value in values.items() if name in known})


OPTIONS: Mapping[str, Option] = options_of(Settings)
"""All options by dotted name."""


SECRET_VARIABLES = tuple(option.variable for option in OPTIONS.values() if option.secret and option.variable)
"""Variables whose values must not be shown. No app gets to see them."""

FORMER: Mapping[str, Option] = MappingProxyType({each.former: each for each in OPTIONS.values() if each.former})
"""Options by the names that they had before."""

FILE_OPTIONS = tuple(option.field for option in OPTIONS.values() if option.file)
"""Fields of the options that name files which are read once for each generation."""


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def without_master(settings: Settings, given: Mapping[str, str]) -> str | None:
    """Return a line that names the options that mean nothing, since there is no master; None: there are none.

    Args:
        given: the source of each option that was set on purpose, by dotted name.
    """
    if settings.cluster:
        return None
    said = []
    for name, source in given.items():
        option = OPTIONS[name]
        value = getattr(settings, option.field)
        if option.needs_master and value is not None and value not in option.moot:
            said.append(f"{name} = {option.show(value)} ({source})")
    return f"cluster = false: without a master nothing follows from {', '.join(said)}" if said else None


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
    for name, other in (("ecv.validator", "ecv.monitor"), ("ecv.token", "ecv.control")):
        if getattr(settings, OPTIONS[name].field) is not None and not getattr(settings, OPTIONS[other].field):
            raise ConfigError(f"{said(name)} needs {other}, which isn't set")
    if not settings.ecv_path and settings.ecv_monitor is not None:
        raise ConfigError(f"{said('ecv.monitor')} is asked on the app's port: that needs ecv.path, which is off")
    if not settings.ecv_path and settings.ecv_control and not settings.monitor_port:
        raise ConfigError(f"{said('ecv.control')} needs ecv.path, which is off, or monitor_port, which is 0")
    if settings.monitor_port and settings.monitor_token is None and not is_loopback(settings.monitor_host):
        raise ConfigError(
            f"{said('monitor_host')} lets other machines reach the monitor: that needs monitor_token; or set monitor_port = 0"
        )
    if settings.ecv_agent_port and not settings.monitor_port:
        raise ConfigError(f"{said('ecv.agent_port')} is answered by the monitor: that needs monitor_port")
    # A monitor's port that nobody has asked for gives way.
    fixed = [name for name in ("monitor_port", "ecv.agent_port") if sources.get(name) != "default"]
    if settings.ecv_agent_port and settings.ecv_agent_port == settings.monitor_port and "monitor_port" in fixed:
        raise ConfigError(f"{said('ecv.agent_port')} is the monitor's port too; choose another")
    seen: set[Address] = set()
    for address in settings.addresses():
        port = getattr(address, "port", None)
        if address in seen and port != 0:
            raise ConfigError(f"{address} is listed twice: each address can be bound once")
        for name in fixed:
            if port and port == getattr(settings, OPTIONS[name].field):
                raise ConfigError(f"{said(name)} is the app's port too ({address}); choose another, or 0 for none")
        seen.add(address)
