"""Which processes use a directory, by real locks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster2.linux.directory_claim import DirectoryClaim

CLAIM = """
import sys
from cluster2.linux.directory_claim import DirectoryClaim
claim = DirectoryClaim(sys.argv[1])
print(claim.shared, *claim.others, flush=True)
sys.stdin.readline()
"""


def another(directory: Path) -> subprocess.Popen[str]:
    """Start a process that claims the directory until its standard input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_the_other_is_named(tmp_path: Path) -> None:
    """The second and the third process learn the pids of those before them; the first one learns nothing."""
    mine = DirectoryClaim(str(tmp_path))
    assert (mine.shared, mine.others) == (False, [])
    with another(tmp_path) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == f"True {os.getpid()}\n"
        mine.release()
        mine.release()
        again = DirectoryClaim(str(tmp_path))
        assert (again.shared, again.others) == (True, [second.pid])
        again.release()
        second.communicate("\n")
    alone = DirectoryClaim(str(tmp_path))
    assert not alone.shared
    alone.release()


def test_a_fork_of_the_apps_has_no_claim(tmp_path: Path) -> None:
    """A claim ends with `release`, although a child that was forked meanwhile lives on."""
    claim = DirectoryClaim(str(tmp_path))
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        claim.release()
        later = DirectoryClaim(str(tmp_path))
        assert not later.shared
        later.release()
    finally:
        os.close(reader)
        os.close(writer)
        os.waitpid(child, 0)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """A directory that can't be opened is an error of the system's."""
    with pytest.raises(FileNotFoundError):
        DirectoryClaim(str(tmp_path / "none"))
