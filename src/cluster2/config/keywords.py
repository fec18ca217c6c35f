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
    """path of the health check on the app's port; off: none"""
    monitor: str | None
    """path of the app that must respond with a status below 300 for the health check to pass"""
    validator: str | Callable[..., Any] | None
    """function that is called with status, headers and body of that response; true: the check passes"""
    control: bool | None
    """POST to PATH/disable and PATH/enable switches traffic"""
    token: str | None
    """bearer token for these POSTs; unset: they must come from this machine"""
    agent_port: int | None
    """port of HAProxy's agent-check; 0: none"""


class ClusterOptions(TypedDict, total=False):
    """The keywords of `Cluster`. None counts as not given."""

    app: str | None
    """the app to serve: module:attr or path/file.py:attr"""
    factory: bool | None
    """TARGET is a callable that returns the app"""
    apps: Sequence[tuple[Any, int | str | Sequence[int | str]]] | None
    """several apps, each with its port or addresses"""
    env_file: str | PurePath | None
    """a file of lines NAME=value for the environment of the app"""
    chdir: str | PurePath | None
    """the app's working directory, also put on the import path"""
    preload: bool | None
    """import the app once and fork workers; off: each worker imports it"""
    warm_up: str | Callable[..., Any] | None
    """called once after the import, before workers are forked"""
    setup: str | Callable[..., Any] | None
    """called with the cluster in the master"""
    cluster: bool | None
    """off: one process, no master"""
    workers: int | Literal["auto"] | None
    """worker processes; auto: one for each usable CPU"""
    boot_timeout: float | str | None
    """time for a worker to become ready"""
    max_surge: int | None
    """number of workers that are replaced at a time"""
    restart_limit: int | None
    """crashes within restart_window above which the cluster is degraded and backs off"""
    restart_window: float | str | None
    """the period in which restart_limit counts crashes"""
    conn_threshold: int | None
    """replace a worker after that many connections; 0: never"""
    request_threshold: int | None
    """replace a worker after that many requests; 0: never"""
    uptime_threshold: float | str | None
    """replace a worker after that time; 0: never"""
    memory_threshold: int | str | None
    """replace a worker whose memory (PSS) reaches that size; 0: never"""
    recycle_when: str | Callable[..., Any] | None
    """function that the master calls with a worker's status; if it returns true, the worker is replaced"""
    threshold_jitter: float | None
    """thresholds are raised at random by up to this share, so that workers aren't replaced together"""
    host: str | None
    """the host to listen on"""
    port: int | Sequence[int] | None
    """the port, or several; 0 picks one"""
    bind: str | Sequence[str] | None
    """host:port, :port, [ipv6]:port, unix:path or fd://3, instead of host and port"""
    backlog: int | None
    """length of each accept queue"""
    monitor_host: str | None
    """the host that the monitor listens on"""
    monitor_port: int | None
    """the monitor's port; if it isn't set and 3001 is in use, the next free one; 0: no monitor"""
    monitor_path: str | None
    """the path of the monitor's page"""
    monitor_token: str | None
    """bearer token for actions of the monitor; required for all pages except health checks if monitor_host is not loopback"""
    timeout: float | str | None
    """end a connection whose client makes no progress for that time; also bounds the head of a request"""
    lame_duck: float | str | None
    """at a shutdown, health checks fail for that time while the cluster serves on"""
    drain_timeout: float | str | None
    """bound of a graceful end: requests that aren't finished then are cut off"""
    drain_idle: float | str | None
    """time for which a draining worker waits for one more request on an idle connection"""
    heartbeat_interval: float | str | None
    """time between two heartbeat events; 0: none"""
    max_heartbeat_delay: float | str | None
    """a worker whose event loop is stuck is replaced when its heartbeat (every 2 s) is late by that time, or by a shorter request_timeout"""
    request_timeout: float | str | None
    """a worker with a request older than this is replaced; 0: never"""
    keep_alive: bool | None
    """connections stay open for more requests; off: each response ends its connection"""
    keeper: bool | None
    """connections outlive their worker"""
    handoff_idle_after: float | str | None
    """hand connections that are idle for that time to the keeper; 0: never"""
    handoff_slow_above: float | str | None
    """if handlers block the event loop for longer, hand connections to the keeper after each response; 0: never"""
    engine: str | None
    """auto, http, granian, tcp, or the name of an installed one"""
    threads: int | None
    """threads of a worker that serves a WSGI app; 0: the app runs inline, one request at a time"""
    http2: bool | None
    """speak HTTP/2 as well"""
    lifespan: Literal["auto", "on", "off"] | None
    """ASGI lifespan events"""
    forwarded_allow_ips: str | None
    """proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted"""
    root_path: str | None
    """the path under which a proxy shows the app; the proxy must strip it"""
    ssl_certfile: str | PurePath | None
    """certificate chain, PEM"""
    ssl_keyfile: str | PurePath | None
    """private key, PEM, if it isn't in the certificate's file"""
    ssl_keyfile_password: str | None
    """password of the private key"""
    ssl_ca_certs: str | PurePath | None
    """certificate authorities for client certificates"""
    pids: str | PurePath | None
    """directory of pid files and control socket"""
    logs: str | PurePath | None
    """directory of the log files"""
    proc_name: str | None
    """name of the processes in ps"""
    umask: int | str | None
    """file mode mask"""
    user: str | int | None
    """user of all processes except the master"""
    group: str | int | None
    """group of all processes except the master"""
    log_level: Literal["critical", "error", "warning", "info", "debug"] | None
    """least severity that is logged"""
    log_format: Literal["text", "json"] | None
    """form of log lines"""
    access_log: bool | None
    """log each request, in the combined format, or as JSON if log_format is json"""
    log_to: Literal["both", "files", "stderr"] | None
    """standard error, files in the directory of logs, or both; in the background (start): files"""
    log_size: int | str | None
    """rotate a log file above this size; 0: never, another program rotates"""
    log_total: int | str | None
    """remove the oldest log files when all together have more than this; 0: never"""
    ecv: EcvOptions | None
