"""Descriptors that a test leaves open."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


def descriptors() -> set[str]:
    """Return the open descriptors of this process: number and file."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process open so many descriptors more, and not one beyond."""
    highest = max(int(each.split()[0]) for each in descriptors()) + count
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    filler = [os.open(os.devnull, os.O_RDONLY)]
    while filler[-1] < highest:  # the lowest number that is free: so every gap is filled
        filler.append(os.dup(filler[0]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (filler[-1] + 1, limits[1]))
    try:
        for _ in range(count):
            os.close(filler.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in filler:
            os.close(each)
