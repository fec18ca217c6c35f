"""`cluster2 top` in a terminal: it shows, follows the terminal's size, and gives the terminal back however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

PROGRAM = """
import itertools, sys
from cluster2.cli import cli
from cluster2.runtime.control_client import ControlClient
from cluster2.errors import NoAnswer
turn = itertools.count()

def call(self, verb, params=None, **more):
    now = next(turn)
    if now == LOST:
        raise NoAnswer("the master doesn't answer")
    row = {"slot": 0, "generation": 7, "state": "ready", "mode": "batch", "connections": 1, "in_flight": 0, "uptime": 5.0}
    workers = [row | {"pid": 100 + each, "requests": 100 * now, "cpu": 0.0, "errors": 0, "memory": 2**20} for each in range(30)]
    master = {"pid": 10, "uptime": 1.0, "version": "0.1.0", "state": "serving", "memory": 1}
    return {"master": master, "generation": 7, "wanted": 30, "traffic": "enabled", "addresses": ["unix:/\\x1b[31m"],
            "workers": workers}

ControlClient.call = call
cli(sys.argv[1:])
"""
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """A pseudo-terminal with `top` in it."""

    def __init__(self, *arguments: str, lost: int = -1, rows: int = 40, columns: int = 120) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.replace("LOST", str(lost)), "top", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm"},
            preexec_fn=_own_terminal,
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, text: str, after: int = 0) -> int:
        """Read until that is shown, behind that place; where it is."""
        deadline = time.monotonic() + 30
        while (at := self.text.find(text, after)) < 0:
            assert time.monotonic() < deadline, f"{text!r} isn't shown: {self.text!r}"
            if select.select([self.ours], [], [], 0.1)[0]:
                self.text += os.read(self.ours, 65536).decode()
        return at

    def frame(self) -> list[str]:
        """The lines of the next whole picture."""
        begun = self.until("\x1b[H", len(self.text))
        return self.text[begun + 3 : self.until("\x1b[J", begun)].split("\r\n")

    def end(self, key: bytes) -> int:
        """Type that; the exit code."""
        os.write(self.ours, key)
        return self.restored()

    def restored(self) -> int:
        """The exit code; the terminal is as it was, on its first screen, with a cursor."""
        deadline = time.monotonic() + 30
        code: int | None = None
        while select.select([self.ours], [], [], 0.05)[0] or code is None:
            assert time.monotonic() < deadline, f"it doesn't end: {self.text!r}"
            code = self.process.poll() if code is None else code
            if select.select([self.ours], [], [], 0)[0]:
                self.text += os.read(self.ours, 65536).decode()
        assert self.text.count(ENTER) == self.text.count(LEAVE)
        assert self.text.rfind("\x1b[?25h") > self.text.rfind("\x1b[?25l")
        assert termios.tcgetattr(self.theirs) == self.before
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


def _own_terminal() -> None:
    """Be the foreground of the terminal that standard input is, so that ^C and ^Z reach us."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def opened() -> Iterator[Any]:
    terminals: list[Terminal] = []

    def open_one(*arguments: str, **more: int) -> Terminal:
        terminals.append(Terminal(*arguments, **more))
        return terminals[-1]

    yield open_one
    for terminal in terminals:
        terminal.close()


def test_it_shows_and_q_quits(opened: Any) -> None:
    """The table, with rates from the second look on; nothing of what others say reaches the terminal as a command."""
    terminal = opened("-i", "0.1")
    terminal.until("REQ/S")
    assert "master 10" in terminal.text
    assert "unix:/?[31m" in terminal.text
    assert "\x1b[31m" not in terminal.text
    assert terminal.end(b"q") == 0


@pytest.mark.parametrize(
    ("how", "code"),
    [(b"\x03", 0), (b"\x04", 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)],
)
def test_the_terminal_is_given_back(opened: Any, how: bytes | signal.Signals, code: int) -> None:
    """After ^C, and after a signal; ^D means nothing."""
    terminal = opened("-i", "0.1")
    terminal.until("REQ/S")
    if isinstance(how, signal.Signals):
        terminal.process.send_signal(how)
        assert terminal.restored() == code
        return
    if how == b"\x04":
        os.write(terminal.ours, how)
        terminal.frame()
        how = b"q"
    assert terminal.end(how) == code


def test_it_follows_the_size(opened: Any) -> None:
    """As many rows and columns as there are, at once, not at the next look; what is hidden is counted."""
    terminal = opened("-i", "3600", rows=40, columns=120)
    terminal.until("\x1b[J")
    shown = len(terminal.text)
    terminal.resize(10, 30)
    terminal.process.send_signal(signal.SIGWINCH)
    begun = terminal.until("\x1b[H", shown)
    lines = terminal.text[begun + 3 : terminal.until("\x1b[J", begun)].split("\r\n")
    assert len(lines) == 9
    assert "more" in lines[-1]
    assert max(len(line) for line in lines) <= 30 + len("\x1b[1m\x1b[0m\x1b[K") + 4
    assert terminal.end(b"q") == 0


def test_a_master_that_does_not_answer(opened: Any) -> None:
    """That is shown, and it goes on when one answers again."""
    terminal = opened("-i", "0.1", lost=3)
    said = terminal.until("the master doesn't answer")
    terminal.until("REQ/S", said)
    assert terminal.end(b"q") == 0


def test_it_can_be_suspended(opened: Any) -> None:
    """^Z gives the terminal back, `fg` brings the screen again."""
    terminal = opened("-i", "0.1")
    terminal.until("REQ/S")
    # The kernel doesn't stop one of an orphaned group, which nobody could wake: it goes on at once.
    terminal.process.send_signal(signal.SIGTSTP)
    left = terminal.until(LEAVE)
    terminal.until(ENTER, left)
    terminal.frame()
    assert terminal.end(b"q") == 0


def test_without_a_terminal_it_is_one_table(opened: Any) -> None:
    """No escape sequence, no colours; JSON on demand, a look a line."""
    program = [sys.executable, "-c", PROGRAM.replace("LOST", "-1"), "top", "-i", "0.1"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b[?" not in done.stdout
    assert done.stdout.count("REQ/S") == 1
    with subprocess.Popen([*program, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.stdout.close()  # as `| head -2` does
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert looks[1]["time"] > looks[0]["time"]
    assert looks[1]["workers"][0]["rate"] > 0
