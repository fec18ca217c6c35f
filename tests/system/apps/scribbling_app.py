"""An app that can go mad: it writes over all of the scoreboard that it can reach. It tells before what that is."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
ODD = [struct.pack("d", real) for real in (float("nan"), float("inf"), -1e300)]
ODD += [struct.pack("q", number) for number in (2**63 - 1, -(2**63), 99, -1)]
"""Cells that a reader doesn't expect."""


def mappings() -> list[tuple[int, int, bool, str]]:
    """First address, size, whether it is writable, and name, of what this process has mapped of the scoreboard."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, _, _, _, *name = line.split()
        if name and name[0] in ("/memfd:cluster2-scoreboard", "/memfd:cluster2-pages"):
            first, last = (int(each, 16) for each in addresses.split("-"))
            found.append((first, last - first, "w" in rights, name[0]))
    return found


def unlocked(first: int, size: int) -> bool:
    """Whether what is mapped read-only can be made writable."""
    return bool(_libc.mprotect(first, size, mmap.PROT_READ | mmap.PROT_WRITE) == 0)


def opened(process: str) -> list[str]:
    """Descriptors of a process by which this one could map the scoreboard writable."""
    found = []
    try:
        names = os.listdir(f"/proc/{process}/fd")
    except PermissionError:
        return []
    for name in names:
        path = f"/proc/{process}/fd/{name}"
        try:
            if os.readlink(path).split()[0] in ("/memfd:cluster2-scoreboard", "/memfd:cluster2-pages"):
                descriptor = os.open(path, os.O_RDWR)
                mmap.mmap(descriptor, mmap.PAGESIZE).close()
                found.append(path)
        except OSError:
            continue
    return found


def scribble(seconds: float) -> None:
    """Fill what is writable of it with nonsense, again and again, for longer than the master's and the monitor's next look."""
    chance, until = random.Random(7), time.monotonic() + seconds
    ours = [(first, size) for first, size, writable, _ in mappings() if writable]
    while time.monotonic() < until:
        for first, size in ours:
            ctypes.memmove(first, b"".join(chance.choices(ODD, k=size // 8)), size)


def reach() -> dict[str, Any]:
    """What it can write, and what it can't; and by which ways it could write that all the same."""
    ours = [(first, size) for first, size, writable, _ in mappings() if writable]
    locked = [(first, size, name) for first, size, writable, name in mappings() if not writable]
    return {
        "written": sum(size for _, size in ours),
        "locked": sorted(name for _, _, name in locked),
        "unlocked": [name for first, size, name in locked if unlocked(first, size)],
        "own": opened("self"),
        "master": opened(str(os.getppid())),
    }


async def answer(send: Any, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"x-worker", b"%d" % os.getpid())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """/reach tells what it could write; /scribble goes mad; everything else is answered "hello"."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/reach":
        await answer(send, json.dumps(reach()).encode())
    elif scope["path"] == "/scribble":
        scribble(1.2)
        await answer(send, b"mad")
    else:
        await answer(send, b"hello")
