"""Find the threads and connections that the import has made and that workers can't inherit.

A fork copies one thread only: the others are gone, with the locks that they hold. A connection is shared by all copies: two
workers that ask a database over it get each other's responses, without an error. This module finds both in the process before the
first fork, and describes them in warnings that name the solutions.

Connections count if they are streams. A datagram that another process sends arrives as well (statsd, syslog).
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

_SOLUTIONS = "make them in worker.on_start, or set preload = false"
_MAX_NAMED = 4
"""Threads and connections that are named."""


def connections() -> dict[int, str]:
    """Return the peer of each connection of this process, by the inode of its socket."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed, no socket, or not connected
            status = os.fstat(int(name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            sock = socket.socket(fileno=int(name))
            try:
                peer = sock.getpeername()
                # A socket without a name is one of a pair, such as this process's channel.
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
    return python or [
        _description(thread, own_name) for thread in native_threads() if not _is_harmless(thread, own_name)
    ]


def own_name() -> str:
    """Return the name of this process, which its threads inherit."""
    return Path("/proc/self/comm").read_text().strip()


def warnings(threads: Collection[str], connections: Collection[str]) -> list[str]:
    """Return the warnings for operators if workers are to be forked with these, a line each."""
    found = []
    if threads:
        found.append(
            f"importing the app started threads ({_few(threads)}): forking it is unsafe, so each worker imports it for itself; "
            "start threads in worker.on_start, or set preload = false to silence this"
        )
    elif connections:
        found.append(
            f"importing the app opened connections ({_few(connections)}), which all workers would share, and take each "
            f"other's answers; {_SOLUTIONS}"
        )
    return found


def _few(names: Collection[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:_MAX_NAMED]) + (f" and {len(shown) - _MAX_NAMED} more" if len(shown) > _MAX_NAMED else "")


def _is_harmless(thread: NativeThread, own_name: str) -> bool:
    """Return whether a thread may be missing in a fork.

    If the kernel doesn't show its library, a thread with the process's name counts as one of NumPy's.
    """
    return thread.is_replaced or (thread.library is None and thread.name == own_name)


def _description(thread: NativeThread, own_name: str) -> str:
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
