"""uvicorn's options, each with its counterpart, and a reader for its command lines.

The table holds every flag of `uvicorn --help` (0.54); a test compares it with the installed uvicorn.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from .translation import Fate, Mapped, Missing, Translation, Unneeded, option


def _log_level(value: Any) -> dict[str, Any]:
    return {"log_level": "debug" if value == "trace" else str(value)}


def _lifespan(value: Any) -> dict[str, Any]:
    return {} if value == "auto" else {"lifespan": value}


_AFTER_AN_EDIT = Missing("`cluster2 dev` serves the new code after an edit")
_WEBSOCKETS = Missing("fixed: messages of 16 MiB, 16 of them in the queue, a ping every 20 s, permessage-deflate")
_TLS_DEFAULTS = Missing("TLS has the defaults of Python's ssl module; put nginx or HAProxy in front for more")
_HEADERS = Missing("responses have the headers date and server; set others in the app or the proxy")

OPTIONS: Mapping[str, Fate] = {
    "host": Mapped(option("host")),
    "port": Mapped(lambda value: {"port": int(value)}),
    "uds": Mapped(lambda value: {"bind": [f"unix:{value}"]}),
    "fd": Mapped(lambda value: {"bind": [f"fd://{int(value)}"]}),
    "reload": _AFTER_AN_EDIT,
    "reload-dir": _AFTER_AN_EDIT,
    "reload-include": _AFTER_AN_EDIT,
    "reload-exclude": _AFTER_AN_EDIT,
    "reload-delay": _AFTER_AN_EDIT,
    "workers": Mapped(lambda value: {"workers": int(value)}),
    "loop": Unneeded("the event loop is uvloop"),
    "http": Unneeded("the parser is httptools"),
    "http2": Mapped(lambda value: {"engine": "granian", "http2": True}, "HTTP/2 is spoken by the engine granian"),
    "ws": Unneeded("websockets are spoken"),
    "ws-max-size": _WEBSOCKETS,
    "ws-max-queue": _WEBSOCKETS,
    "ws-ping-interval": _WEBSOCKETS,
    "ws-ping-timeout": _WEBSOCKETS,
    "ws-per-message-deflate": _WEBSOCKETS,
    "lifespan": Mapped(_lifespan),
    "interface": Unneeded("the app's interface is found by itself"),
    "env-file": Mapped(option("env_file")),
    "log-config": Missing("the server's log has one format (log_format); an app configures its own logging"),
    "log-level": Mapped(_log_level),
    "access-log": Mapped(lambda value: {"access_log": True}, "the file is access.log in the directory of logs"),
    "no-access-log": Unneeded("there is no access log unless access_log is set"),
    "use-colors": Unneeded("log lines have no colours"),
    "no-use-colors": Unneeded("log lines have no colours"),
    "proxy-headers": Unneeded("they are believed from the peers in forwarded_allow_ips"),
    "no-proxy-headers": Mapped(lambda value: {"forwarded_allow_ips": ""}),
    "server-header": Unneeded("responses have the header server"),
    "no-server-header": _HEADERS,
    "date-header": Unneeded("responses have the header date"),
    "no-date-header": _HEADERS,
    "forwarded-allow-ips": Mapped(option("forwarded_allow_ips")),
    "root-path": Mapped(option("root_path"), "the proxy must strip this prefix"),
    "limit-concurrency": Missing("requests wait in the accept queue (backlog); a worker serves as many as come"),
    "backlog": Mapped(lambda value: {"backlog": int(value)}),
    "limit-max-requests": Mapped(
        lambda value: {"request_threshold": int(value)}, "the successor is ready before the worker leaves"
    ),
    "limit-max-requests-jitter": Unneeded("threshold_jitter stretches thresholds by up to 50 % at random"),
    "timeout-keep-alive": Unneeded(
        "idle connections rest outside of the workers and end after timeout (30 s), which also bounds a request's head"
    ),
    "timeout-graceful-shutdown": Mapped(lambda value: {"drain_timeout": int(value)}),
    "timeout-worker-healthcheck": Mapped(lambda value: {"max_heartbeat_delay": int(value)}),
    "ssl-keyfile": Mapped(option("ssl_keyfile")),
    "ssl-certfile": Mapped(option("ssl_certfile")),
    "ssl-keyfile-password": Mapped(option("ssl_keyfile_password")),
    "ssl-version": _TLS_DEFAULTS,
    "ssl-cert-reqs": Unneeded("client certificates are required if ssl_ca_certs is set, and else not asked for"),
    "ssl-ca-certs": Mapped(option("ssl_ca_certs"), "client certificates are required then"),
    "ssl-ciphers": _TLS_DEFAULTS,
    "header": _HEADERS,
    "version": Unneeded("that is `cluster2 --version`"),
    "app-dir": Mapped(option("chdir")),
    "h11-max-incomplete-event-size": Unneeded("a head may have 64 KiB"),
    "reset-contextvars": Unneeded("each request has a context of its own"),
    "factory": Mapped(lambda value: {"factory": True}),
}
"""The fate of each flag; names are without dashes."""

_SWITCHES = frozenset({
    "reload", "http2", "access-log", "no-access-log", "use-colors", "no-use-colors", "proxy-headers", "no-proxy-headers",
    "server-header", "no-server-header", "date-header", "no-date-header", "version", "reset-contextvars", "factory",
})  # fmt: skip
_LISTS = frozenset({"reload-dir", "reload-include", "reload-exclude", "header"})


def from_command(words: Sequence[str]) -> Translation:
    """Translate the arguments of a uvicorn command, without the word uvicorn.

    Raises:
        ConfigError: uvicorn would not take them.
    """
    origin = f"`uvicorn {' '.join(words)}`"
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for name in OPTIONS:
        action = "store_true" if name in _SWITCHES else "append" if name in _LISTS else "store"
        parser.add_argument(f"--{name}", dest=name, action=action)
    parser.add_argument("app", nargs="?")
    try:
        known, unknown = parser.parse_known_args(list(words))
    except SystemExit:
        raise ConfigError(f"{origin}: uvicorn would not take these arguments") from None
    if unknown:
        raise ConfigError(f"uvicorn has no argument {unknown[0]!r}")
    given = vars(known)
    found = Translation(origin, given.pop("app", None))
    if not given.keys() & {"host", "uds", "fd"}:
        found.options["host"] = "127.0.0.1"
        found.notes["host"] = "uvicorn's default; that of cluster2 is 0.0.0.0"
    if not given.keys() & {"port", "uds", "fd"}:
        found.options["port"] = 8000
        found.notes["port"] = "uvicorn's default; that of cluster2 is 3000"
    if "workers" not in given:
        found.options["workers"] = 1
        found.notes["workers"] = "uvicorn's default; that of cluster2 is a worker for each usable CPU"
    if not given.keys() & {"access-log", "no-access-log"}:
        found.options["access_log"] = True
        found.notes["access_log"] = "uvicorn's default; that of cluster2 is none"
    for name, value in given.items():
        try:
            found.add(f"--{name}", value, OPTIONS[name])
        except ValueError:
            raise ConfigError(f"--{name} {value!r}: expected a number") from None
    return found
