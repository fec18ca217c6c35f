"""Stale bytecode: what CPython would run, and what a process of ours runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster2.processes.zygote import bytecode

TRIED = 20
IMPORT = "import sys; sys.path.insert(0, '.'); import site_of_test; print(site_of_test.VERSION)"
FRESH = f"from cluster2.processes.zygote import bytecode; bytecode.install(); {IMPORT}"
WHEN_S = 1_600_000_000
"""The modification time of every version: an hour in the past."""


def write(directory: Path, version: int) -> Path:
    """Write a version of the module, always of the same size and modification time."""
    source = directory / "site_of_test.py"
    source.write_text(f"VERSION = {version:06}\n".replace("= 0", "= 1"))
    os.utime(source, (WHEN_S, WHEN_S))
    return source


def imported(directory: Path, code: str) -> int:
    """The version that a new process imports."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return int(subprocess.check_output([sys.executable, "-P", "-c", code], cwd=directory, env=env)) - 100_000


def test_the_same_second_and_size(tmp_path: Path) -> None:
    """CPython runs the first of two versions of the same size and time; ours is to run what is there."""
    write(tmp_path, 1)
    assert imported(tmp_path, IMPORT) == 1
    write(tmp_path, 2)
    assert imported(tmp_path, IMPORT) == 1, "CPython has another rule by now: do without ours"
    for version in range(3, 3 + TRIED):
        write(tmp_path, version)
        assert imported(tmp_path, FRESH) == version
    assert list(tmp_path.glob("__pycache__/*.pyc")), "bytecode is written all the same"


def aged(bytecode_file: Path, source: Path, by_ns: int) -> None:
    """Have bytecode be written so long after its source was changed."""
    then = source.stat().st_ctime_ns + by_ns
    os.utime(bytecode_file, ns=(then, then))


def cached(directory: Path) -> tuple[Path, Path]:
    """A source, and what stands for its bytecode."""
    source = write(directory, 1)
    file = directory / "site_of_test.pyc"
    file.touch()
    return source, file


@pytest.mark.parametrize(
    ("by_ns", "stale"), [(-1, True), (0, True), (bytecode.MTIME_MARGIN_NS, True), (bytecode.MTIME_MARGIN_NS + 1, False)]
)
def test_what_is_trusted(tmp_path: Path, by_ns: int, stale: bool) -> None:
    """Bytecode is trusted if it was written more than the margin after the source's inode was changed last."""
    source, file = cached(tmp_path)
    aged(file, source, by_ns)
    assert bytecode.may_be_stale(str(source), str(file)) is stale


@pytest.mark.parametrize("part", ["site-packages", "dist-packages"])
def test_installed_packages_are_exempt(tmp_path: Path, part: str) -> None:
    """What an installer has put there keeps its bytecode, however the times are."""
    (tmp_path / part).mkdir()
    source, file = cached(tmp_path / part)
    aged(file, source, -1)
    assert not bytecode.may_be_stale(str(source), str(file))
    assert not bytecode.may_be_stale(os.__file__, str(file))


def test_good_bytecode_is_used(tmp_path: Path) -> None:
    """Bytecode that was written long enough after its source is read, and isn't written again."""
    source = write(tmp_path, 1)
    assert imported(tmp_path, FRESH) == 1
    (file,) = tmp_path.glob("__pycache__/*.pyc")
    aged(file, source, 10 * bytecode.MTIME_MARGIN_NS)
    before = file.stat()
    assert imported(tmp_path, FRESH) == 1
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
