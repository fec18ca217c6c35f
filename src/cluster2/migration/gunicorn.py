"""gunicorn's settings, each with its counterpart, and a reader for its configuration files and command lines.

The table holds every setting of gunicorn 27 (`gunicorn.config.KNOWN_SETTINGS`); a test compares it with the installed gunicorn.
gunicorn itself is not needed: a configuration file is a Python program, which is executed as gunicorn executes it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, one_line
from .translation import Fate, Mapped, Missing, Translation, Unneeded, option

_ASGI_CLASSES = ("asgi", "uvicorn.workers.", "uvicorn_worker.", "gunicorn.workers.gasgi")
_GREEN_CLASSES = ("gevent", "eventlet", "tornado", "egg:", "gunicorn.workers.g")


def _bind(value: Any) -> dict[str, Any]:
    parts = value.split(",") if isinstance(value, str) else value
    return {"bind": [_address(str(each).strip()) for each in parts]}


def _address(text: str) -> str:
    """Return an address as cluster2 takes it: gunicorn adds the port 8000, and takes unix:// and tcp:// as well."""
    if text.startswith("unix:"):
        return f"unix:{text.removeprefix('unix:').removeprefix('//')}"
    text = text.removeprefix("tcp://")
    return text if re.search(r":\d+$", text) or text.startswith("fd://") else f"{text}:8000"


def _keepalive(value: Any) -> dict[str, Any]:
    return {"keep_alive": False} if int(value) == 0 else {}


def _timeout(value: Any) -> dict[str, Any]:
    return {"max_heartbeat_delay": int(value), "request_timeout": int(value)} if int(value) else {}


def _user(name: str) -> Any:
    return lambda value: {} if value in (None, 0, "0", "root", "") else {name: str(value)}


def _umask(value: Any) -> dict[str, Any]:
    number = value if isinstance(value, int) else int(str(value), 0)
    return {"umask": f"{number:03o}"} if number else {}


def _log_level(value: Any) -> dict[str, Any]:
    return {"log_level": {"warn": "warning"}.get(str(value).lower(), str(value).lower())}


def _error_log(value: Any) -> dict[str, Any]:
    return {} if value in (None, "-", "") else {"logs": str(Path(str(value)).parent)}


def _access_log(value: Any) -> dict[str, Any]:
    return {"access_log": True} if value else {}


def _forwarded(value: Any) -> dict[str, Any]:
    parts = value.split(",") if isinstance(value, str) else value
    return {"forwarded_allow_ips": ",".join(part.strip() for part in parts)}


def _hook(replacement: str) -> Missing:
    return Missing(f"a hook; {replacement}")


_NO_DIRTY = Missing("dirty arbiters: delegate the work to the master (worker.delegate and @cluster.on_delegate)")
_NO_SYSLOG = Missing("log to standard error and let the service manager pass it on (log_to = 'stderr')")
_NO_STATSD = Missing("no statsd: a collector can scrape the metrics for Prometheus from the monitor's /metrics")
_NO_LOG_CONFIG = Missing(
    "the server's log has one format (log_format = 'text' or 'json'); an app configures its own logging"
)
_STRICT = Missing("HTTP is parsed strictly; there is no switch")
_LIMITS = Missing("limits are fixed: 32 KiB for the request line, 64 KiB for the head, 256 headers")
_TLS_DEFAULTS = Missing("TLS has the defaults of Python's ssl module; put nginx or HAProxy in front for more")
_PROXY = Missing("the PROXY protocol is not spoken; X-Forwarded-For is (forwarded_allow_ips)")
_CONTROL = Unneeded("commands reach the master by the socket in the directory pids")

SETTINGS: Mapping[str, Fate] = {
    "access_log_format": Missing("the access log is in the combined format, or in JSON with log_format = 'json'"),
    "accesslog": Mapped(_access_log, "the file is access.log in the directory of logs"),
    "asgi_disconnect_grace_period": Unneeded("an app receives the disconnect at once, and cancelled only in a drain"),
    "asgi_lifespan": Mapped(option("lifespan")),
    "asgi_loop": Unneeded("the event loop is uvloop"),
    "backlog": Mapped(option("backlog")),
    "bind": Mapped(_bind),
    "ca_certs": Mapped(option("ssl_ca_certs"), "client certificates are required then"),
    "capture_output": Unneeded("what a worker prints is in its log file"),
    "casefold_http_method": _STRICT,
    "cert_reqs": Unneeded("client certificates are required if ssl_ca_certs is set, and else not asked for"),
    "certfile": Mapped(option("ssl_certfile")),
    "chdir": Mapped(option("chdir")),
    "check_config": Unneeded("that is the command `cluster2 check`"),
    "child_exit": _hook(
        "handle the event: @cluster.on('died') in the master; for prometheus_client see docs/at-import.md"
    ),
    "ciphers": _TLS_DEFAULTS,
    "config": Unneeded("options stand in cluster2.toml"),
    "control_socket": _CONTROL,
    "control_socket_disable": _CONTROL,
    "control_socket_mode": _CONTROL,
    "daemon": Unneeded("that is the command `cluster2 start`"),
    "default_proc_name": Unneeded("see proc_name"),
    "dirty_apps": _NO_DIRTY,
    "dirty_graceful_timeout": _NO_DIRTY,
    "dirty_post_fork": _NO_DIRTY,
    "dirty_threads": _NO_DIRTY,
    "dirty_timeout": _NO_DIRTY,
    "dirty_worker_exit": _NO_DIRTY,
    "dirty_worker_init": _NO_DIRTY,
    "dirty_workers": _NO_DIRTY,
    "disable_redirect_access_to_syslog": _NO_SYSLOG,
    "do_handshake_on_connect": Unneeded("handshakes never hold a worker"),
    "dogstatsd_tags": _NO_STATSD,
    "enable_backlog_metric": Unneeded("/metrics has the length of the accept queues"),
    "enable_stdio_inheritance": Unneeded("what a worker prints is in its log file"),
    "errorlog": Mapped(
        _error_log, "the master's log is master.log in the directory of logs, each worker has its own file"
    ),
    "forwarded_allow_ips": Mapped(_forwarded),
    "forwarder_headers": Unneeded("no header sets SCRIPT_NAME or PATH_INFO; see root_path"),
    "graceful_timeout": Mapped(option("drain_timeout")),
    "group": Mapped(_user("group")),
    "header_map": Unneeded("headers with underscores in their names never reach a WSGI environ"),
    "http2_cleartext": Missing("HTTP/2 needs engine = 'granian' and http2 = true"),
    "http2_initial_window_size": Missing("granian's defaults hold"),
    "http2_max_concurrent_streams": Missing("granian's defaults hold"),
    "http2_max_frame_size": Missing("granian's defaults hold"),
    "http2_max_header_list_size": Missing("granian's defaults hold"),
    "http_parser": Unneeded("the parser is httptools"),
    "http_protocols": Missing("HTTP/2 needs engine = 'granian' and http2 = true"),
    "initgroups": Unneeded("user takes on all groups of that user"),
    "keepalive": Mapped(
        _keepalive,
        "idle connections rest outside of the workers and end after timeout (30 s), which also bounds a request's head",
    ),
    "keyfile": Mapped(option("ssl_keyfile")),
    "limit_request_field_size": _LIMITS,
    "limit_request_fields": _LIMITS,
    "limit_request_line": _LIMITS,
    "logconfig": _NO_LOG_CONFIG,
    "logconfig_dict": _NO_LOG_CONFIG,
    "logconfig_json": _NO_LOG_CONFIG,
    "logger_class": _NO_LOG_CONFIG,
    "loglevel": Mapped(_log_level),
    "max_requests": Mapped(option("request_threshold"), "the successor is ready before the worker leaves"),
    "max_requests_jitter": Unneeded("threshold_jitter stretches thresholds by up to 50 % at random"),
    "nworkers_changed": _hook("handle the events of workers: @cluster.on('forked') and @cluster.on('died')"),
    "on_dirty_starting": _NO_DIRTY,
    "on_exit": _hook("handle the event: @cluster.on('stopped') in the master"),
    "on_reload": _hook("handle the event: @cluster.on('reloading') in the master"),
    "on_starting": _hook("name a function by the option setup: it is called with the cluster in the master"),
    "paste": Missing("load the app with paste.deploy in a module of your own"),
    "permit_obsolete_folding": _STRICT,
    "permit_unconventional_http_method": _STRICT,
    "permit_unconventional_http_version": _STRICT,
    "pidfile": Missing("the directory pids has a file for each process: master.PID.pid"),
    "post_fork": _hook("register it in the app: @worker.on_start"),
    "post_request": _hook("use a middleware of the app's framework, or the access log"),
    "post_worker_init": _hook("register it in the app: @worker.on_start"),
    "pre_exec": _hook("nothing is executed anew: `cluster2 reload` runs new code"),
    "pre_fork": _hook(
        "name a function by the option warm_up: it is called after the import, before workers are forked"
    ),
    "pre_request": _hook("use a middleware of the app's framework"),
    "preload_app": Unneeded(
        "the app is imported once and workers are forked (preload = true), and a reload runs new code all the same"
    ),
    "print_config": Unneeded("that is the command `cluster2 config`"),
    "proc_name": Mapped(option("proc_name")),
    "protocol": Missing("only HTTP is spoken to the app's port; nginx reaches it by proxy_pass"),
    "proxy_allow_ips": _PROXY,
    "proxy_protocol": _PROXY,
    "pythonpath": Missing("set PYTHONPATH in the environment; chdir is on the import path"),
    "raw_env": Unneeded("the variables are in the file that env_file names"),
    "raw_paste_global_conf": Missing("load the app with paste.deploy in a module of your own"),
    "reload": Missing("`cluster2 dev` serves the new code after an edit"),
    "reload_engine": Missing("`cluster2 dev` serves the new code after an edit"),
    "reload_extra_files": Missing("`cluster2 dev` serves the new code after an edit"),
    "reuse_port": Unneeded("all workers share the master's listening socket"),
    "root_path": Mapped(option("root_path"), "the proxy must strip this prefix"),
    "secure_scheme_headers": Missing("the scheme is read from X-Forwarded-Proto only"),
    "sendfile": Missing("files that a WSGI app wraps are read and written; let nginx serve large files"),
    "spew": Missing("`cluster2 stacks` shows where each worker is"),
    "ssl_context": _hook("options set up TLS: ssl_certfile, ssl_keyfile, ssl_ca_certs"),
    "ssl_version": _TLS_DEFAULTS,
    "statsd_host": _NO_STATSD,
    "statsd_prefix": _NO_STATSD,
    "strip_header_spaces": _STRICT,
    "suppress_ragged_eofs": Unneeded("the end of a TLS connection without close_notify is no error"),
    "syslog": _NO_SYSLOG,
    "syslog_addr": _NO_SYSLOG,
    "syslog_facility": _NO_SYSLOG,
    "syslog_prefix": _NO_SYSLOG,
    "threads": Mapped(option("threads")),
    "timeout": Mapped(
        _timeout, "a worker whose event loop is stuck, or that has a request older than this, is replaced"
    ),
    "tmp_upload_dir": Unneeded("large bodies go to Python's default directory for temporary files (TMPDIR)"),
    "umask": Mapped(_umask),
    "user": Mapped(_user("user")),
    "uwsgi_allow_ips": Missing("the uwsgi protocol is not spoken; nginx reaches the app by proxy_pass"),
    "websocket_max_message_size": Missing("a websocket message may have 16 MiB"),
    "when_ready": _hook("handle the event: @cluster.on('listening') in the master, once for each worker"),
    "worker_abort": _hook("handle the event: @cluster.on('died') in the master; its stacks are in the log"),
    "worker_class": Unneeded("the app's interface is found by itself"),
    "worker_connections": Missing("a worker takes connections as its limit of descriptors allows"),
    "worker_exit": _hook("register it in the app: @worker.on_stop"),
    "worker_int": _hook("register it in the app: @worker.on_stop"),
    "worker_tmp_dir": Unneeded("heartbeats are in shared memory, not in files"),
    "workers": Mapped(option("workers")),
    "wsgi_app": Unneeded("the app is named by TARGET"),
}
"""The fate of each setting."""

_FLAGS: Mapping[str, tuple[str, ...]] = {
    "access_log_format": ("--access-logformat",), "accesslog": ("--access-logfile",), "backlog": ("--backlog",),
    "asgi_lifespan": ("--asgi-lifespan",), "asgi_loop": ("--asgi-loop",), "bind": ("-b", "--bind"),
    "asgi_disconnect_grace_period": ("--asgi-disconnect-grace-period",), "ca_certs": ("--ca-certs",),
    "cert_reqs": ("--cert-reqs",), "certfile": ("--certfile",), "chdir": ("--chdir",), "ciphers": ("--ciphers",),
    "config": ("-c", "--config"), "control_socket": ("--control-socket",),
    "control_socket_mode": ("--control-socket-mode",), "dirty_apps": ("--dirty-app",),
    "dirty_graceful_timeout": ("--dirty-graceful-timeout",), "dirty_threads": ("--dirty-threads",),
    "dirty_timeout": ("--dirty-timeout",), "dirty_workers": ("--dirty-workers",),
    "dogstatsd_tags": ("--dogstatsd-tags",), "errorlog": ("--error-logfile", "--log-file"),
    "forwarded_allow_ips": ("--forwarded-allow-ips",), "forwarder_headers": ("--forwarder-headers",),
    "graceful_timeout": ("--graceful-timeout",), "group": ("-g", "--group"), "header_map": ("--header-map",),
    "http2_cleartext": ("--http2-cleartext",), "http2_initial_window_size": ("--http2-initial-window-size",),
    "http2_max_concurrent_streams": ("--http2-max-concurrent-streams",),
    "http2_max_frame_size": ("--http2-max-frame-size",),
    "http2_max_header_list_size": ("--http2-max-header-list-size",), "http_parser": ("--http-parser",),
    "http_protocols": ("--http-protocols",), "keepalive": ("--keep-alive",), "keyfile": ("--keyfile",),
    "limit_request_field_size": ("--limit-request-field_size",), "limit_request_fields": ("--limit-request-fields",),
    "limit_request_line": ("--limit-request-line",), "logconfig": ("--log-config",),
    "logconfig_json": ("--log-config-json",), "logger_class": ("--logger-class",), "loglevel": ("--log-level",),
    "max_requests": ("--max-requests",), "max_requests_jitter": ("--max-requests-jitter",),
    "paste": ("--paste", "--paster"), "pidfile": ("-p", "--pid"), "proc_name": ("-n", "--name"),
    "protocol": ("--protocol",), "proxy_allow_ips": ("--proxy-allow-from",), "proxy_protocol": ("--proxy-protocol",),
    "pythonpath": ("--pythonpath",), "raw_env": ("-e", "--env"), "raw_paste_global_conf": ("--paste-global",),
    "reload_engine": ("--reload-engine",), "reload_extra_files": ("--reload-extra-file",),
    "root_path": ("--root-path",), "ssl_version": ("--ssl-version",), "statsd_host": ("--statsd-host",),
    "statsd_prefix": ("--statsd-prefix",), "syslog_addr": ("--log-syslog-to",),
    "syslog_facility": ("--log-syslog-facility",), "syslog_prefix": ("--log-syslog-prefix",),
    "threads": ("--threads",), "timeout": ("-t", "--timeout"), "umask": ("-m", "--umask"), "user": ("-u", "--user"),
    "uwsgi_allow_ips": ("--uwsgi-allow-from",), "websocket_max_message_size": ("--websocket-max-message-size",),
    "worker_class": ("-k", "--worker-class"), "worker_connections": ("--worker-connections",),
    "worker_tmp_dir": ("--worker-tmp-dir",), "workers": ("-w", "--workers"),
}  # fmt: skip
"""The flags of settings that take a value."""

_SWITCHES: Mapping[str, tuple[str, ...]] = {
    "capture_output": ("--capture-output",), "casefold_http_method": ("--casefold-http-method",),
    "check_config": ("--check-config",), "control_socket_disable": ("--no-control-socket",),
    "daemon": ("-D", "--daemon"), "disable_redirect_access_to_syslog": ("--disable-redirect-access-to-syslog",),
    "do_handshake_on_connect": ("--do-handshake-on-connect",), "enable_backlog_metric": ("--enable-backlog-metric",),
    "enable_stdio_inheritance": ("-R", "--enable-stdio-inheritance"), "initgroups": ("--initgroups",),
    "permit_obsolete_folding": ("--permit-obsolete-folding",),
    "permit_unconventional_http_method": ("--permit-unconventional-http-method",),
    "permit_unconventional_http_version": ("--permit-unconventional-http-version",), "preload_app": ("--preload",),
    "print_config": ("--print-config",), "reload": ("--reload",), "reuse_port": ("--reuse-port",),
    "sendfile": ("--no-sendfile",), "spew": ("--spew",), "strip_header_spaces": ("--strip-header-spaces",),
    "suppress_ragged_eofs": ("--suppress-ragged-eofs",), "syslog": ("--log-syslog",),
}  # fmt: skip
"""The flags of settings that take none."""

_LISTS = ("bind", "raw_env", "reload_extra_files", "raw_paste_global_conf", "dirty_apps")


def from_file(path: Path) -> Translation:
    """Translate a configuration file, `gunicorn.conf.py`.

    The file is executed, as gunicorn does.

    Raises:
        ConfigError: the file can't be read, raises, or sets a value that gunicorn would not take.
    """
    return translate(_execute(path), f"gunicorn's {path}")


def from_command(words: Sequence[str]) -> Translation:
    """Translate the arguments of a gunicorn command, without the word gunicorn.

    A configuration file that they name, or `gunicorn.conf.py` in the working directory, is read first, as gunicorn does.

    Raises:
        ConfigError: as `from_file`; or gunicorn has no such flag.
    """
    given, target = _parse(words)
    config = str(given.pop("config", ""))
    default = Path("gunicorn.conf.py")
    if config.startswith("python:"):
        settings = _import(config.removeprefix("python:"))
    elif config or default.exists():
        settings = _execute(Path(config.removeprefix("file:")) if config else default)
    else:
        settings = {}
    if target is not None:
        settings["wsgi_app"] = target
    return translate(settings | given, f"`gunicorn {' '.join(words)}`")


def translate(settings: Mapping[str, Any], origin: str) -> Translation:
    """Translate settings of gunicorn, by their names.

    Raises:
        ConfigError: a value is none that gunicorn would take.
    """
    found = Translation(origin)
    settings = {name: value for name, value in settings.items() if value is not None}  # None: the default
    app = settings.get("wsgi_app")
    found.target = str(app) if app else None
    if "bind" not in settings:
        found.options["bind"] = ["127.0.0.1:8000"]
        found.notes["bind"] = "gunicorn's default; that of cluster2 is 0.0.0.0:3000"
    if "workers" not in settings:
        found.options["workers"] = 1
        found.notes["workers"] = "gunicorn's default; that of cluster2 is a worker for each usable CPU"
    try:
        threaded = _adds_threads(found, settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"threads = {settings['threads']!r} ({origin}): {error}") from None
    for name, value in settings.items():
        if name in ("wsgi_app", "raw_env") or (name == "threads" and not threaded):
            continue
        fate = SETTINGS.get(name)
        if fate is None:
            continue  # a variable of the user's program
        try:
            found.add(name, value, fate)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name} = {value!r} ({origin}): {error}") from None
    if settings.get("raw_env"):
        found.environment = dict(str(line).partition("=")[::2] for line in settings["raw_env"])
    return found


def _adds_threads(found: Translation, settings: Mapping[str, Any]) -> bool:
    """Translate worker_class; return whether the setting threads counts for it."""
    kind = settings.get("worker_class", "sync")
    name = kind if isinstance(kind, str) else getattr(kind, "__qualname__", "")
    if name.startswith(_ASGI_CLASSES):
        return False
    if name.startswith(_GREEN_CLASSES) and "gthread" not in name and "sync" not in name:
        found.missing.append(
            f"worker_class = {name!r}: there are no green threads; for a WSGI app that waits a lot raise threads, "
            "or make it an ASGI app"
        )
        return True
    if name == "sync" and int(settings.get("threads", 1)) <= 1:
        found.options["threads"] = 1
        found.notes["threads"] = "one request at a time, as gunicorn's sync workers; threads = 8 is cluster2's default"
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for name, flags in _FLAGS.items():
        parser.add_argument(*flags, dest=name, action="append" if name in _LISTS else "store")
    for name, flags in _SWITCHES.items():
        parser.add_argument(*flags, dest=name, action="store_false" if name == "sendfile" else "store_true")
    parser.add_argument("wsgi_app", nargs="?")
    return parser


def _parse(words: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    try:
        known, unknown = _parser().parse_known_args(list(words))
    except SystemExit:
        raise ConfigError(f"`gunicorn {' '.join(words)}`: gunicorn would not take these arguments") from None
    if unknown:
        raise ConfigError(f"gunicorn has no argument {unknown[0]!r}")
    given = vars(known)
    for name in ("workers", "threads", "backlog", "max_requests", "timeout", "graceful_timeout", "keepalive"):
        if name in given:
            try:
                given[name] = int(given[name])
            except ValueError:
                raise ConfigError(f"{_FLAGS[name][-1]} {given[name]!r}: expected a number") from None
    if re.match(r"0\d", given.get("umask", "")):  # octal in a flag, but not in a file
        given["umask"] = f"0o{given['umask'][1:]}"
    return given, given.pop("wsgi_app", None)


def _execute(path: Path) -> dict[str, Any]:
    try:
        code = compile(path.read_bytes(), str(path), "exec")
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is no Python: {one_line(error)}") from None
    found: dict[str, Any] = {"__file__": str(path), "__name__": "__config__"}
    try:
        exec(code, found)  # gunicorn does the same; the file is the user's own
    except Exception as error:
        raise ConfigError(f"{path} raised {one_line(error)}") from None
    return {name: value for name, value in found.items() if name in SETTINGS}


def _import(name: str) -> dict[str, Any]:
    """Return the settings of a module, for `--config python:NAME`."""
    sys.path.insert(0, os.getcwd())
    try:
        found = vars(importlib.import_module(name))
    except Exception as error:
        raise ConfigError(f"{name} raised {one_line(error)}") from None
    finally:
        sys.path.remove(os.getcwd())
    return {name: value for name, value in found.items() if name in SETTINGS}
