"""inotify: a directory in which something is written becomes readable."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from cluster2.linux.inotify import Inotify


def readable(watched: Inotify) -> bool:
    return bool(select.select([watched], [], [], 0)[0])


def test_what_happens_in_a_directory(tmp_path: Path) -> None:
    """A new file, a write to one and a rename make it readable, each until it is cleared; reading doesn't."""
    watched = Inotify(str(tmp_path))
    assert not readable(watched)
    with (tmp_path / "a").open("w") as file:
        assert readable(watched)
        watched.clear()
        file.write("one")
        file.flush()
        assert readable(watched)
        watched.clear()
    (tmp_path / "a").read_text()
    assert not readable(watched)
    (tmp_path / "a").rename(tmp_path / "b")
    assert readable(watched)
    watched.close()


def test_many_writes_are_cleared_at_once(tmp_path: Path) -> None:
    """One `clear` takes all events that have come."""
    watched = Inotify(str(tmp_path))
    for number in range(3000):
        (tmp_path / f"{number % 7}").write_text("x")
    watched.clear()
    assert not readable(watched)
    watched.close()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """A directory that doesn't exist is refused by its name, and no descriptor is left."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError, match="none"):
        Inotify(str(tmp_path / "none"))
    assert os.listdir("/proc/self/fd") == before
