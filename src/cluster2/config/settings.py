"""The options of cluster2, each declared once as a field of `Settings`.

A declaration has the name, type and default of an option, the kind of its values, and a line of help. All other forms are derived
from it: flags (`--conn-threshold`), environment variables (`CLUSTER2_CONN_THRESHOLD`), keys of the file, keywords of the API, the
reference page and the sample file (`reference`). `runtime.option_sources` loads the values. Two files are generated from the
declarations and are written again after a change: `python -m cluster2.reference keywords > src/cluster2/config/keywords.py` and
`python -m cluster2.reference options > docs/reference/options.md`.

The file is long because it is a list: one declaration for each option.
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
    """The declaration of an option.

    Attributes:
        field: the attribute of `Settings`: `ecv_control`.
        name: the dotted name in messages and files: `ecv.control`.
        default: the default, in the form that `kind.read` returns.
        group: the heading in help and docs.
        short: the short flag (`-w`), or None.
        repeatable: the flag may be given several times, for a list.
        legacy_name: the name in the Node.js cluster2 of 2012, or None.
        former: the dotted name that the option had before, or None. An error about the former name has the new one.
        requires: the capability of the engine without which the option isn't supported, or None.
        no_op_values: values, besides None, that ask for nothing, so that every engine supports them.
        requires_master: the master carries the option out, so with `cluster = false` it has no effect.
        restart: a change takes effect by a restart of the master. Otherwise a reload is enough.
        code_only: the option has no form as a text, so only code and files can set it.
        positional: the option is an argument of the command line, not a flag.
        secret: the value must not be shown.
        file: the option names a file that a generation needs. It is read once, when the generation is loaded.
        shared_variable: an environment variable that other servers read for the same purpose. It ranks below the file, and doesn't
            count as set on purpose: an engine without support doesn't refuse it.
    """

    field: str
    name: str
    kind: ValueType
    default: Any
    help: str
    group: str
    short: str | None = None
    repeatable: bool = False
    legacy_name: str | None = None
    former: str | None = None
    requires: str | None = None
    no_op_values: tuple[Any, ...] = ()
    requires_master: bool = False
    restart: bool = False
    code_only: bool = False
    positional: bool = False
    secret: bool = False
    file: bool = False
    shared_variable: str | None = None

    @property
    def flag(self) -> str | None:
        """The long flag, `--ecv-control`, or None."""
        return None if self.code_only or self.positional else "--" + self.field.replace("_", "-")

    @property
    def variable(self) -> str | None:
        """The environment variable, `CLUSTER2_ECV_CONTROL`, or None."""
        return None if self.code_only else "CLUSTER2_" + self.field.upper()

    def parse(self, raw: object) -> Any:
        """Return the value of a text or a native value. If the default is None, None and an empty text stand for None.

        Raises:
            ValueError: the value is invalid; the text has the values that are allowed.
        """
        return None if self.default is None and raw in (None, "") else self.kind.parse(raw)

    def show(self, value: Any) -> str:
        """Return a value as the text that would set it; "" for None, "***" for a secret."""
        if value is None:
            return ""
        return "***" if self.secret else getattr(value, "__qualname__", None) or self.kind.show(value)


def option(default: Any, kind: ValueType, help: str, group: str, *, within: str = "", **more: Any) -> Any:
    """Declare a field of `Settings`.

    Args:
        within: the table of the option: "ecv" makes `ecv.control` of the field `ecv_control`.
        more: further attributes of `Option`.
    """
    return field(
        default=default, metadata={"within": within, "option": {"kind": kind, "help": help, "group": group} | more}
    )


def options_of(declarations: type) -> Mapping[str, Option]:
    """Return the options that the fields of a dataclass declare, by dotted name, in order."""
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
    """The values of all options. Durations are in seconds, sizes in bytes; paths and addresses are texts."""

    app: str | None = option(None, TEXT, "the app to serve: module:attr or path/file.py:attr", _APP, positional=True)
    factory: bool = option(False, FLAG, "TARGET is a callable that returns the app", _APP)
    apps: tuple[tuple[Any, tuple[int | str, ...]], ...] = option(
        (),
        APPS,
        "several apps, each with its port or addresses",
        _APP,
        legacy_name="apps",
        restart=True,
        code_only=True,
    )
    env_file: str | None = option(
        None, PATH, "a file of lines NAME=value for the environment of the app", _APP, file=True
    )
    chdir: str = option(".", PATH, "the app's working directory, also put on the import path", _APP, restart=True)
    preload: bool = option(True, FLAG, "import the app once and fork workers; off: each worker imports it", _APP)
    warm_up: str | Callable[..., Any] | None = option(  # noqa: RUF009 - it makes a field; ruff can't know
        None, REFERENCE, "called once after the import, before workers are forked", _APP, legacy_name="warmUp"
    )
    setup: str | Callable[..., Any] | None = option(  # noqa: RUF009
        None, REFERENCE, "called with the cluster in the master", _APP, restart=True
    )

    cluster: bool = option(True, FLAG, "off: one process, no master", _PROCESSES, legacy_name="cluster", restart=True)
    workers: int = option(
        0,
        WORKERS,
        "worker processes; auto: one for each usable CPU",
        _PROCESSES,
        short="-w",
        legacy_name="noWorkers",
        shared_variable="WEB_CONCURRENCY",
        no_op_values=(1,),
        requires_master=True,
    )
    boot_timeout: float = option(60.0, POSITIVE, "time for a worker to become ready", _PROCESSES, requires_master=True)
    max_surge: int = option(
        1, count(1), "number of workers that are replaced at a time", _PROCESSES, requires_master=True
    )
    restart_limit: int = option(
        10,
        COUNT,
        "crashes within restart_window above which the cluster is degraded and backs off",
        _PROCESSES,
        restart=True,
        requires_master=True,
    )
    restart_window: float = option(
        60.0,
        POSITIVE,
        "the period in which restart_limit counts crashes",
        _PROCESSES,
        restart=True,
        requires_master=True,
    )

    conn_threshold: int = option(
        0,
        COUNT,
        "replace a worker after that many connections; 0: never",
        _RECYCLE,
        legacy_name="connThreshold",
        requires="connection-count",
        no_op_values=(0,),
        requires_master=True,
    )
    request_threshold: int = option(
        0,
        COUNT,
        "replace a worker after that many requests; 0: never",
        _RECYCLE,
        no_op_values=(0,),
        requires_master=True,
    )
    uptime_threshold: float = option(
        0.0,
        DURATION,
        "replace a worker after that time; 0: never",
        _RECYCLE,
        legacy_name="uptimeThreshold",
        no_op_values=(0.0,),
        requires_master=True,
    )
    memory_threshold: int = option(
        0,
        SIZE,
        "replace a worker whose memory (PSS) reaches that size; 0: never",
        _RECYCLE,
        no_op_values=(0,),
        requires_master=True,
    )
    recycle_when: str | Callable[..., Any] | None = option(  # noqa: RUF009
        None,
        REFERENCE,
        "function that the master calls with a worker's status; if it returns true, the worker is replaced",
        _RECYCLE,
        legacy_name="shouldKill",
        requires_master=True,
    )
    threshold_jitter: float = option(
        0.5,
        RATIO,
        "thresholds are raised at random by up to this share, so that workers aren't replaced together",
        _RECYCLE,
        requires_master=True,
    )

    host: str = option("0.0.0.0", HOST, "the host to listen on", _LISTEN, legacy_name="host", restart=True)
    port: int | tuple[int, ...] = option(
        3000, PORTS, "the port, or several; 0 picks one", _LISTEN, repeatable=True, legacy_name="port", restart=True,
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
        "127.0.0.1",
        HOST,
        "the host that the monitor listens on",
        _LISTEN,
        legacy_name="monHost",
        former="mon_host",
        restart=True,
    )
    monitor_port: int = option(
        3001, PORT, "the monitor's port; if it isn't set and 3001 is in use, the next free one; 0: no monitor", _LISTEN,
        legacy_name="monPort", former="mon_port", restart=True,
    )  # fmt: skip
    monitor_path: str = option(
        "/", BARE_PATH, "the path of the monitor's page", _LISTEN, former="mon_path", restart=True
    )
    monitor_token: str | None = option(
        None, TOKEN,
        "bearer token for actions of the monitor; required for all pages except health checks if monitor_host is not loopback",
        _LISTEN,
        former="mon_token", restart=True, secret=True,
    )  # fmt: skip

    ecv_path: str = option(
        "/ecv",
        ECV_PATH,
        "path of the health check on the app's port; off: none",
        _ECV,
        within="ecv",
        legacy_name="path",
    )
    ecv_monitor: str | None = option(
        None,
        URL_PATH,
        "path of the app that must respond with a status below 300 for the health check to pass",
        _ECV,
        within="ecv",
        legacy_name="monitor",
        requires="ecv",
    )
    ecv_validator: str | Callable[..., Any] | None = option(  # noqa: RUF009
        None, REFERENCE, "function that is called with status, headers and body of that response; true: the check passes", _ECV,
        within="ecv", legacy_name="validator", requires="ecv",
    )  # fmt: skip
    ecv_control: bool = option(
        False, FLAG, "POST to PATH/disable and PATH/enable switches traffic", _ECV, within="ecv", legacy_name="control"
    )
    ecv_token: str | None = option(
        None, TOKEN, "bearer token for these POSTs; unset: they must come from this machine", _ECV,
        within="ecv", secret=True,
    )  # fmt: skip
    ecv_agent_port: int = option(0, PORT, "port of HAProxy's agent-check; 0: none", _ECV, within="ecv", restart=True)

    timeout: float = option(
        30.0,
        DURATION,
        "end a connection whose client makes no progress for that time; also bounds the head of a request",
        _TIME,
        legacy_name="timeout",
        requires="idle-timeout",
        no_op_values=(0.0,),
    )
    lame_duck: float = option(
        0.0, DURATION, "at a shutdown, health checks fail for that time while the cluster serves on", _TIME
    )
    drain_timeout: float = option(
        30.0, DURATION, "bound of a graceful end: requests that aren't finished then are cut off", _TIME
    )
    drain_idle: float = option(
        2.0, DURATION, "time for which a draining worker waits for one more request on an idle connection", _TIME
    )
    heartbeat_interval: float = option(
        5.0,
        DURATION,
        "time between two heartbeat events; 0: none",
        _TIME,
        legacy_name="heartbeatInterval",
        no_op_values=(0.0,),
        requires_master=True,
    )
    max_heartbeat_delay: float = option(
        30.0,
        POSITIVE,
        "a worker whose event loop is stuck is replaced when its heartbeat (every 2 s) is late by that time, or by a shorter "
        "request_timeout",
        _TIME,
        legacy_name="maxHeartbeatDelay",
        requires_master=True,
    )
    request_timeout: float = option(
        0.0,
        DURATION,
        "a worker with a request older than this is replaced; 0: never",
        _TIME,
        requires="request-age",
        no_op_values=(0.0,),
        requires_master=True,
    )

    keep_alive: bool = option(
        True,
        FLAG,
        "connections stay open for more requests; off: each response ends its connection",
        _KEEPER,
        requires="keep-alive",
        no_op_values=(True,),
    )
    keeper: bool = option(
        True,
        FLAG,
        "connections outlive their worker",
        _KEEPER,
        restart=True,
        requires="keeper",
        no_op_values=(False,),
        requires_master=True,
    )
    handoff_idle_after: float = option(
        2.0,
        DURATION,
        "hand connections that are idle for that time to the keeper; 0: never",
        _KEEPER,
        former="rest_after",
        requires="keeper",
        no_op_values=(0.0,),
        requires_master=True,
    )
    handoff_slow_above: float = option(
        0.005,
        DURATION,
        "if handlers block the event loop for longer, hand connections to the keeper after each response; 0: never",
        _KEEPER,
        former="park_above",
        requires="keeper",
        no_op_values=(0.0,),
        requires_master=True,
    )

    engine: str = option("auto", NAME, "auto, http, granian, tcp, or the name of an installed one", _ENGINE)
    threads: int = option(
        8,
        COUNT,
        "threads of a worker that serves a WSGI app; 0: the app runs inline, one request at a time",
        _ENGINE,
        requires="threads",
    )
    http2: bool = option(False, FLAG, "speak HTTP/2 as well", _ENGINE, requires="http2", no_op_values=(False,))
    lifespan: str = option(
        "auto",
        choice("auto", "on", "off"),
        "ASGI lifespan events",
        _ENGINE,
        requires="lifespan",
        no_op_values=("auto", "off"),
    )
    forwarded_allow_ips: str = option(
        "127.0.0.1,::1,unix:",
        PROXIES,
        "proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted",
        _ENGINE,
        requires="proxy-headers",
        no_op_values=("",),
        shared_variable="FORWARDED_ALLOW_IPS",
    )
    root_path: str = option(
        "", ROOT_PATH, "the path under which a proxy shows the app; the proxy must strip it", _ENGINE,
        requires="root-path", no_op_values=("",),
    )  # fmt: skip

    ssl_certfile: str | None = option(None, PATH, "certificate chain, PEM", _TLS, requires="tls", file=True)
    ssl_keyfile: str | None = option(
        None, PATH, "private key, PEM, if it isn't in the certificate's file", _TLS, requires="tls", file=True
    )
    ssl_keyfile_password: str | None = option(
        None, TEXT, "password of the private key", _TLS, requires="tls", secret=True
    )
    ssl_ca_certs: str | None = option(
        None, PATH, "certificate authorities for client certificates", _TLS, requires="tls", file=True
    )

    pids: str = option(
        "./pids",
        PATH,
        "directory of pid files and control socket",
        _FILES,
        legacy_name="pids",
        restart=True,
        requires_master=True,
    )
    logs: str = option("./logs", PATH, "directory of the log files", _FILES, legacy_name="logs", restart=True)
    proc_name: str | None = option(None, TEXT, "name of the processes in ps", _FILES, restart=True)
    umask: int | None = option(None, UMASK, "file mode mask", _FILES, restart=True)
    user: str | None = option(None, ACCOUNT, "user of all processes except the master", _FILES, restart=True)
    group: str | None = option(None, ACCOUNT, "group of all processes except the master", _FILES, restart=True)

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
        requires="access-log", no_op_values=(False,),
    )  # fmt: skip
    log_to: str = option(
        "both", choice("both", "files", "stderr"), "standard error, files in the directory of logs, or both; in the "
        "background (start): files", _LOG, restart=True,
    )  # fmt: skip
    log_size: int = option(
        16 << 20, SIZE, "rotate a log file above this size; 0: never, another program rotates", _LOG, restart=True
    )
    log_total: int = option(
        512 << 20,
        SIZE,
        "remove the oldest log files when all together have more than this; 0: never",
        _LOG,
        restart=True,
    )

    @property
    def ports(self) -> tuple[int, ...]:
        """`port` as a tuple."""
        return self.port if isinstance(self.port, tuple) else (self.port,)

    @property
    def monitor_ecv_path(self) -> str:
        """The path of the health check at the monitor: that of the app's port, or the default if that one is off."""
        return self.ecv_path or str(OPTIONS["ecv.path"].default)

    def targets(self) -> tuple[tuple[Any, tuple[Address, ...]], ...]:
        """Return pairs of a target (a text, an app object, or None if none is set) and its addresses."""
        if self.apps:
            return tuple((target, tuple(self._place(place) for place in places)) for target, places in self.apps)
        return ((self.app, tuple(self._place(place) for place in self.bind or self.ports)),)

    def addresses(self) -> tuple[Address, ...]:
        """Return all addresses to listen on: those of `apps`, else `bind`, else `host` with each port."""
        return tuple(address for _, addresses in self.targets() for address in addresses)

    def _place(self, place: int | str) -> Address:
        return parse_address(place) if isinstance(place, str) else TcpAddress(self.host, place)

    def to_wire(self) -> dict[str, Any]:
        """Return the values by field as plain data; objects (callables, apps) become None."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    def to_public(self) -> dict[str, Any]:
        """Return the values by dotted name as plain data, for users: a secret is `***`."""
        values = self.to_wire()
        return {
            name: "***" if option.secret and values[option.field] is not None else values[option.field]
            for name, option in OPTIONS.items()
        }

    def objects(self) -> list[str]:
        """Return the fields whose values are objects, which can't be sent to another process. Apps don't count: their index does."""
        plain = (str, int, float, list, tuple, type(None))
        return [each.name for each in fields(self) if not isinstance(getattr(self, each.name), plain)]

    @classmethod
    def from_wire(cls, values: Mapping[str, Any]) -> Settings:
        """Make settings of the result of `to_wire`. Objects are lost, and fields that are missing have their default."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: _frozen(value) for name, value in values.items() if name in known})


OPTIONS: Mapping[str, Option] = options_of(Settings)
"""All options by dotted name."""


SECRET_VARIABLES = tuple(option.variable for option in OPTIONS.values() if option.secret and option.variable)
"""Environment variables whose values must not be shown. They are removed from the environment of apps."""

FORMER: Mapping[str, Option] = MappingProxyType({each.former: each for each in OPTIONS.values() if each.former})
"""Options by the names that they had before."""

FILE_OPTIONS = tuple(option.field for option in OPTIONS.values() if option.file)
"""Fields of the options that name files to be read once for each generation."""


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def without_master(settings: Settings, given: Mapping[str, str]) -> str | None:
    """Return a warning that names the options without effect, since there is no master; None: there are none.

    Args:
        given: the source of each option that was set on purpose, by dotted name.
    """
    if settings.cluster:
        return None
    said = []
    for name, source in given.items():
        option = OPTIONS[name]
        value = getattr(settings, option.field)
        if option.requires_master and value is not None and value not in option.no_op_values:
            said.append(f"{name} = {option.show(value)} ({source})")
    return f"cluster = false: without a master these options have no effect: {', '.join(said)}" if said else None


def validate(settings: Settings, sources: Mapping[str, str] = MappingProxyType({})) -> None:
    """Refuse settings that contradict each other.

    Args:
        sources: the sources of options by dotted name, for the message.

    Raises:
        ConfigError: it names the options that contradict each other.
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
    # The default port of the monitor isn't checked: if it is taken, another one is chosen.
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
