"""The keywords of `Cluster`, for type checkers and editors.

This file is made by `python -m cluster2.reference keywords` from the declarations in `settings`; don't edit it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, Literal, TypedDict


class EcvOptions(TypedDict, total=False):
    """The keys of `ecv`."""

    path: str | None
    """where load balancers ask for the health; off: not on the app's port"""
    monitor: str | None
    """a path of the app that must answer below 300"""
    validator: str | Callable[..., Any] | None
    """called with status, headers and body of that answer; true: it is fine"""
    control: bool | None
    """whether POST to PATH/disable and PATH/enable steers traffic"""
    token: str | None
    """what these POSTs must bear; unset: they must come from this machine"""
    agent_port: int | None
    """where HAProxy's agent-check is answered; 0: nowhere"""


class ClusterOptions(TypedDict, total=False):
    """The keywords. None is as good as not given."""

    app: str | None
    """what to serve: module:attr or path/file.py:attr"""
    factory: bool | None
    """TARGET is a callable that returns the app"""
    apps: Sequence[tuple[Any, int | str | Sequence[int | str]]] | None
    """several apps, each with its port or addresses"""
    env_file: str | PurePath | None
    """lines NAME=value for the environment of the app"""
    chdir: str | PurePath | None
    """the app's working directory, also put on the import path"""
    preload: bool | None
    """import once and fork workers; off: each worker imports for itself"""
    warm_up: str | Callable[..., Any] | None
    """called once after the import, before workers are forked"""
    setup: str | Callable[..., Any] | None
    """called with the cluster in the master"""
    cluster: bool | None
    """off: one process, no master"""
    workers: int | Literal["auto"] | None
    """worker processes; auto: one for each usable CPU"""
    boot_timeout: float | str | None
    """how long a worker may take to become ready"""
    max_surge: int | None
    """how many workers may be replaced at a time"""
    restart_limit: int | None
    """crashes within the window above which the cluster is degraded and backs off"""
    restart_window: float | str | None
    """the window of the restart limit"""
    conn_threshold: int | None
    """replace a worker after so many connections; 0: never"""
    request_threshold: int | None
    """replace a worker after so many requests; 0: never"""
    uptime_threshold: float | str | None
    """replace a worker after so long; 0: never"""
    memory_threshold: int | str | None
    """replace a worker that has so much memory (PSS); 0: never"""
    recycle_when: str | Callable[..., Any] | None
    """called in the master with a worker's status; true: replace it"""
    threshold_jitter: float | None
    """thresholds are stretched at random by up to this share, so that workers don't leave together"""
    host: str | None
    """where to listen"""
    port: int | Sequence[int] | None
    """the port, or several; 0 picks one"""
    bind: str | Sequence[str] | None
    """host:port, :port, [ipv6]:port, unix:path or fd://3, instead of host and port"""
    backlog: int | None
    """length of each accept queue"""
    monitor_host: str | None
    """where the monitor listens"""
    monitor_port: int | None
    """the monitor's port, unless set the next one if it is in use; 0: no monitor"""
    monitor_path: str | None
    """the path under which the monitor answers"""
    monitor_token: str | None
    """what changes need, and everything but health checks where others can reach it"""
    timeout: float | str | None
    """end a connection whose client makes no progress for so long; also bounds a head"""
    lame_duck: float | str | None
    """at a shutdown health checks fail first, and serving goes on for so long"""
    drain_timeout: float | str | None
    """bound of a graceful end: what isn't finished then is cut off"""
    drain_idle: float | str | None
    """how long a draining worker waits for one more request"""
    heartbeat_interval: float | str | None
    """between two heartbeat events; 0: none"""
    max_heartbeat_delay: float | str | None
    """a worker whose loop is stuck for so long is replaced"""
    request_timeout: float | str | None
    """a worker with a request older than this is replaced; 0: never"""
    keep_alive: bool | None
    """connections stay open for more requests; off: every response ends its own"""
    keeper: bool | None
    """connections outlive their worker"""
    handoff_idle_after: float | str | None
    """idle for so long: to the keeper; 0: never"""
    handoff_slow_above: float | str | None
    """handlers hold the loop for longer: to the keeper after each response; 0: never"""
    engine: str | None
    """auto, http, granian, tcp, or the name of an installed one"""
    threads: int | None
    """threads of a worker that serves a WSGI app; 0: the app runs inline, one request at a time"""
    http2: bool | None
    """speak HTTP/2 as well"""
    lifespan: Literal["auto", "on", "off"] | None
    """ASGI lifespan events"""
    forwarded_allow_ips: str | None
    """proxies whose X-Forwarded-For and X-Forwarded-Proto are believed"""
    root_path: str | None
    """the path under which a proxy shows the app; the proxy must strip it"""
    ssl_certfile: str | PurePath | None
    """certificate chain, PEM"""
    ssl_keyfile: str | PurePath | None
    """private key, PEM, if the certificate's file hasn't it"""
    ssl_keyfile_password: str | None
    """what decrypts the key"""
    ssl_ca_certs: str | PurePath | None
    """authorities that client certificates are checked by"""
    pids: str | PurePath | None
    """directory of pid files and control socket"""
    logs: str | PurePath | None
    """directory of the log files"""
    proc_name: str | None
    """how ps names the processes"""
    umask: int | str | None
    """file mode mask"""
    user: str | int | None
    """who all processes but the master run as"""
    group: str | int | None
    """the group that they run as"""
    log_level: Literal["critical", "error", "warning", "info", "debug"] | None
    """least severity that is logged"""
    log_format: Literal["text", "json"] | None
    """form of log lines"""
    access_log: bool | None
    """log each request, in the combined format, or as JSON if log_format is json"""
    log_to: Literal["both", "files", "stderr"] | None
    """standard error, files in the directory of logs, or both; in the background (start): files"""
    log_size: int | str | None
    """rotate a log file above this size; 0: never, something else does it"""
    log_total: int | str | None
    """the oldest log files go when all have more than this; 0: never"""
    ecv: EcvOptions | None
