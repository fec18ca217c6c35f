"""`cluster2 top` on a real terminal: its screens, and the terminal after it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.system.harness import Running, command, sample, wait_until

Serve = Callable[..., Running]


class Terminal:
    """A pseudoterminal with `cluster2 top` on it."""

    def __init__(self, running: Running, *options: str, columns: int = 120) -> None:
        self.ours, self._theirs = pty.openpty()
        self.resize(columns)
        self.before = termios.tcgetattr(self._theirs)
        self.shown = b""
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self.process = subprocess.Popen(
            command("top", "-i", "0.1", *options),
            cwd=running.directory,
            env=environment | {"TERM": "xterm"},
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # all descriptors of the other end are closed
            while more := os.read(self.ours, 65536):
                self.shown += more

    def resize(self, columns: int) -> None:
        """Change the window's size."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def screen(self) -> str:
        """Return the last whole screen without colours."""
        screens = self.shown.decode(errors="replace").split("\x1b[H")
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screens[-2] if len(screens) > 2 else "")

    def type(self, keys: str) -> None:
        """Type characters."""
        os.write(self.ours, keys.encode())

    def leave(self) -> int:
        """Wait for its end, and return its exit code. The terminal is as it was before."""
        code = self.process.wait(30)
        assert termios.tcgetattr(self._theirs) == self.before
        wait_until(lambda: self.shown.rstrip().endswith(b"\x1b[?1049l"), lambda: f"it leaves: {self.shown[-80:]!r}")
        assert b"\x1b[?25h" in self.shown
        return code

    def close(self) -> None:
        """End the process and close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._theirs)
        self._reader.join()
        os.close(self.ours)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Return a function that opens a terminal with `top` on it."""
    opened: list[Terminal] = []

    def terminal(running: Running, *options: str, columns: int = 120) -> Terminal:
        opened.append(Terminal(running, *options, columns=columns))
        return opened[-1]

    yield terminal
    for each in opened:
        each.close()


@pytest.fixture
def cluster(run: Serve) -> Running:
    return run(sample("plain"), "--log-to", "stderr").ready()


def test_live(cluster: Running, terminal: Callable[..., Terminal]) -> None:
    """`top` shows both workers and the successor of one that is killed; `q` ends it with 0."""
    top = terminal(cluster)
    first, second = (each["pid"] for each in cluster.workers())
    wait_until(lambda: f"{first} " in top.screen() and f"{second} " in top.screen(), "both are shown")
    assert re.search(r"^ *PID +SLOT +GEN +STATE", top.screen(), re.MULTILINE)
    os.kill(first, signal.SIGKILL)

    def successors() -> set[int]:
        return {each["pid"] for each in cluster.workers()} - {first, second}

    (successor,) = wait_until(successors, "it is replaced")
    wait_until(lambda: f"{successor} " in top.screen() and f"{first} " not in top.screen(), lambda: top.screen())
    top.type("q")
    assert top.leave() == 0


def test_interrupt(cluster: Running, terminal: Callable[..., Terminal]) -> None:
    """Ctrl-C ends it with 0, too, without a message."""
    top = terminal(cluster)
    wait_until(lambda: "generation 1" in top.screen(), "it shows something")
    top.type("\x03")
    assert top.leave() == 0
    assert b"Traceback" not in top.shown


def test_narrow(cluster: Running, terminal: Callable[..., Terminal]) -> None:
    """On 40 columns lines are cut and not wrapped, also when the window shrinks meanwhile."""
    top = terminal(cluster)
    wait_until(lambda: any(len(line) > 60 for line in top.screen().splitlines()), "lines are long")
    top.resize(40)
    wait_until(lambda: 0 < max(map(len, top.screen().splitlines() or [""])) <= 40, lambda: top.screen())
    assert "PID" in top.screen()
    top.type("q")
    assert top.leave() == 0


def test_the_master_leaves(cluster: Running, terminal: Callable[..., Terminal]) -> None:
    """When the master leaves it says so, and waits for the next one."""
    top = terminal(cluster)
    wait_until(lambda: "generation 1" in top.screen(), "it shows something")
    assert cluster.shutdown() == 0
    wait_until(lambda: "no master" in top.screen(), lambda: top.screen())
    top.type("q")
    assert top.leave() == 0


def test_no_terminal(cluster: Running) -> None:
    """Into a pipe it writes one table without colours, with --json an object for each sample until the reader leaves."""
    shown = cluster.cli("top", "-i", "0.1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\x1b" not in shown.stdout
    assert len(re.findall(r"^ *\d+ +\d+ +1 +ready", shown.stdout, re.MULTILINE)) == 2
    looks = subprocess.Popen(
        command("top", "--json", "-i", "0.1"), cwd=cluster.directory, stdout=subprocess.PIPE, text=True
    )
    assert looks.stdout is not None
    with looks.stdout:
        seen = [json.loads(looks.stdout.readline()) for _ in range(2)]
    assert looks.wait(30) == 0
    assert [[worker["slot"] for worker in each["workers"]] for each in seen] == [[0, 1], [0, 1]]
    assert seen[1]["time"] > seen[0]["time"]
    assert seen[1]["workers"][0]["rate"] == 0
    nobody = cluster.cli("top", "--pids", "elsewhere")
    assert nobody.returncode == 6
    assert nobody.stderr.count("\n") == 1
