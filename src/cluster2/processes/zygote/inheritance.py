"""What the import has made that workers can't inherit: threads, and connections to other servers.

A fork copies one thread only: the others are gone, with the locks that they hold. A connection is shared by all copies: two
workers that ask a database over it get each other's answers, and nothing says so. Both are found by looking at the process,
before the first fork, and told in words that name the ways out.

Connections count if they are streams. A datagram that is sent by another process arrives as well (statsd, syslog).
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Collection
from pathlib import Path

from ...linux.native_threads import NativeThread, native_threads

_WAYS_OUT = "make them in worker.on_start, or set preload = false"
_TOLD = 4
"""Threads and connections that are named."""


def connections() -> dict[int, str]:
    """Return the peer of each connection of this process, by the inode of its socket."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed; no socket; not connected
            status = os.fstat(int(name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            sock = socket.socket(fileno=int(name))
            try:
                peer = sock.getpeername()
                # Without a name: one of a pair, such as our own channel.
                if peer and sock.type != socket.SOCK_DGRAM:
                    found[status.st_ino] = _shown(peer)
            finally:
                sock.detach()
    return found


def threads(own_name: str) -> list[str]:
    """Return the names of threads that a fork would lose with their locks held.

    Args:
        own_name: of this process before the import, which is no name of a thread.
    """
    python = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return python or [_told(thread, own_name) for thread in native_threads() if not _is_harmless(thread, own_name)]


def own_name() -> str:
    """Return the name of this process, which its threads inherit."""
    return Path("/proc/self/comm").read_text().strip()


def warnings(threads: Collection[str], connections: Collection[str]) -> list[str]:
    """Return what operators should know if workers are to be forked beside these, a line each."""
    said = []
    if threads:
        said.append(
            f"importing the app started threads ({_few(threads)}): forking it is unsafe, so each worker imports it for itself; "
            "start threads in worker.on_start, or set preload = false to silence this"
        )
    elif connections:
        said.append(
            f"importing the app opened connections ({_few(connections)}), which all workers would share, and take each "
            f"other's answers; {_WAYS_OUT}"
        )
    return said


def _few(names: Collection[str]) -> str:
    told = list(dict.fromkeys(names))
    return ", ".join(told[:_TOLD]) + (f" and {len(told) - _TOLD} more" if len(told) > _TOLD else "")


def _is_harmless(thread: NativeThread, own_name: str) -> bool:
    """Whether a thread may be missing in a fork. Where the kernel doesn't tell its library, those of NumPy get the benefit."""
    return thread.is_replaced or (thread.library is None and thread.name == own_name)


def _told(thread: NativeThread, own_name: str) -> str:
    if thread.library and thread.library.startswith("libgomp"):
        return f"OpenMP, {thread.library}"
    if thread.name != own_name:
        return thread.name
    return f"a thread of {thread.library}" if thread.library else "a native thread"


def _shown(peer: object) -> str:
    match peer:
        case (str() as host, int() as port, *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case bytes():
            return "unix:@" + peer.strip(b"\0").decode(errors="replace")
        case _:
            return f"unix:{peer}"
