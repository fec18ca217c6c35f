"""What a test may leave open, or not."""

from __future__ import annotations

import os


def descriptors() -> set[str]:
    """What is open in this process, by number and what stands behind it."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found
