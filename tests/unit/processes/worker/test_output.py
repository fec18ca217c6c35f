"""The output of a worker: a file that follows rotation and survives a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster2.config.settings import Settings
from cluster2.linux import log_files
from cluster2.processes.worker.output import WorkerOutput

BEGIN = """
import os, sys
from cluster2.runtime import logging_setup
from cluster2.config.settings import Settings
from cluster2.processes.worker.output import WorkerOutput
settings = Settings(log_format=os.environ["FORM"])
logging_setup.configure(settings)
paper = WorkerOutput(settings, os.environ["LOGS"], 3)
paper.redirect(7, 3)
"""


def worker(directory: Path, code: str, form: str = "text") -> tuple[int, str]:
    """Run code as a worker of slot 3, generation 7. Return its exit code, and its file's content."""
    environ = os.environ | {"LOGS": str(directory), "FORM": form}
    done = subprocess.run([sys.executable, "-c", BEGIN + code], env=environ, capture_output=True, text=True, timeout=30)
    assert done.stdout == done.stderr == "", done
    return done.returncode, (directory / "worker.3.log").read_text(errors="backslashreplace")


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        ("print('last'); os._exit(3)", 3, ["last"]),
        ("print('last', end=''); sys.stdout.flush(); os._exit(3)", 3, ["last"]),
        ("print('last', file=sys.stderr); os.kill(os.getpid(), 9)", -9, ["last"]),
        ("print('last'); import ctypes; ctypes.string_at(0)", -11, ["last", "Segmentation fault", "in <module>"]),
        ("raise KeyError('why')", 1, ["Traceback (most recent call last)", "KeyError: 'why'"]),
        ("os.write(1, b'raw'); os.write(2, b'\\xff\\x00'); os._exit(0)", 0, ["raw\\xff\x00"]),
        ("os.system('echo child; echo complains >&2')", 0, ["child", "complains"]),
        ("os.abort()", -6, ["Aborted"]),
    ],
)
def test_last_words(tmp_path: Path, code: str, exit_code: int, words: list[str]) -> None:
    """Keep all output in the file, in order, however a worker dies, below a line with its pid, slot and generation."""
    code_found, text = worker(tmp_path, code)
    assert code_found == exit_code
    first, _, rest = text.partition("\n")
    assert "begins (slot 3, generation 7)" in first
    at = -1
    for each in words:
        assert (at := rest.find(each, at + 1)) >= 0, text


def test_json(tmp_path: Path) -> None:
    """Begin with a line that is a JSON object with pid, slot and generation as fields."""
    _, text = worker(tmp_path, "os._exit(0)", "json")
    entry = json.loads(text)
    assert (entry["slot"], entry["generation"], entry["level"]) == (3, 7, "info")
    assert entry["pid"] > 0


def test_output_follows_rotation(tmp_path: Path) -> None:
    """Write into the new file after a rotation was noticed, from Python and from below."""
    code = """
print("one")
os.rename(os.environ["LOGS"] + "/worker.3.log", os.environ["LOGS"] + "/worker.3.log.1")
print("two")
paper.reopen_if_moved()
print("three"); os.write(2, b"four\\n"); sys.stderr.write("five\\n"); os._exit(0)
"""
    _, text = worker(tmp_path, code)
    assert text == "three\nfour\nfive\n"
    assert (tmp_path / "worker.3.log.1").read_text().endswith("one\ntwo\n")


def test_a_full_disk_fails_no_print(tmp_path: Path) -> None:
    """Lose output that can't be written, and go on when the disk has space again. /dev/full is a disk that is always full."""
    code = """
import logging
full = os.open("/dev/full", os.O_WRONLY)
kept = os.dup(1)
os.dup2(full, 1); os.dup2(full, 2)
for _ in range(3000):
    print("x" * 100); print("y" * 20_000, file=sys.stderr)
logging.getLogger("cluster2.worker").warning("lost")
os.dup2(kept, 1); os.dup2(kept, 2)
print("again"); sys.stderr.write("and again\\n"); os._exit(0)
"""
    code_found, text = worker(tmp_path, code)
    assert code_found == 0
    assert "again\n" in text
    assert "and again\n" in text


def test_a_worker_begins_on_a_full_disk(tmp_path: Path) -> None:
    """Serve although a file can't be created or written."""
    paper = WorkerOutput(Settings(), str(tmp_path / "none"), 0)
    paper.reopen_if_moved()  # says so, and goes on
    (tmp_path / "none").mkdir()
    requests = WorkerOutput(Settings(access_log=True), str(tmp_path / "none"), 0, output=False)
    requests.reopen_if_moved()
    assert requests.access is not None
    assert [each.name for each in log_files.log_files(str(tmp_path / "none"))] == ["access.log"]
    requests.tick()
