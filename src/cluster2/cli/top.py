"""The command `top`: the table of `status`, updated live.

It uses plain ANSI sequences: the alternate screen, the cursor at home, lines that are overwritten in place. Without a terminal it
prints one table, from two statuses.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import termios
import time
import tty
from pathlib import Path
from typing import Any, NoReturn

import click

from ..errors import ClusterError
from ..runtime.control_client import ControlClient
from ..runtime.option_sources import lookup
from . import shown_until_left
from .table import Rates, describe, weighed

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _TO_END, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_BOLD, _REVERSE, _RED, _YELLOW, _PLAIN = "\x1b[1m", "\x1b[7m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
_MEMORY_INTERVAL_S = 10.0
"""Seconds between two measurements of memory. A measurement walks the page tables of all processes."""


@click.command()
@click.option("--pids", metavar="PATH", help="The directory of pid files that the master was started with.  [./pids]")
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    metavar="SECONDS",
    help="Time between two updates.  [1]",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, one line for each update, until Ctrl-C.")
def top(pids: str | None, interval: float, as_json: bool) -> int:
    """Watch the workers live, until q or Ctrl-C. Without a terminal, show them once."""
    watch = StatusPoller(ControlClient(Path(lookup("pids", pids))))
    watch.poll()
    with shown_until_left():
        if as_json:
            while True:
                time.sleep(interval)
                watch.poll()
                click.echo(json.dumps(watch.plain()))
        if not (sys.stdout.isatty() and sys.stdin.isatty()) or os.environ.get("TERM") == "dumb":
            time.sleep(interval)
            watch.poll()
            click.echo("\n".join(watch.lines()))
            return 0
        with _Screen() as screen:
            lines = watch.lines()
            _show(lines)
            while not screen.quits_within(interval):
                try:
                    watch.poll()
                    lines = watch.lines()
                except ClusterError as error:  # the master has ended, or can't respond now; it may come back
                    lines = [f"{time.strftime('%H:%M:%S')}  {error.message}"]
                _show(lines)
    return 0


class StatusPoller:
    """The last two statuses of the master."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self._found: dict[str, Any] = {}
        self._rates: Rates | None = None
        self._at = self._weighed_at = 0.0

    def poll(self) -> None:
        """Get the status from the master. Raises ClusterError: no master responds."""
        now = time.monotonic()
        weigh = now - self._weighed_at >= _MEMORY_INTERVAL_S or not self._found
        found = self._client.call("status", {"memory": weigh}, timeout=10)
        now = time.monotonic()
        if weigh:
            self._weighed_at = now
        elif self._found:
            found = weighed(found, self._found)
        self._rates = Rates(self._found, found, now - self._at) if self._found else None
        self._found, self._at = found, now

    def lines(self) -> list[str]:
        """Return the status as lines for people."""
        return describe(self._found, self._rates)

    def plain(self) -> dict[str, Any]:
        """Return the status for programs, with the rates of requests and of CPU time of each worker."""
        rates = self._rates
        each = [
            worker | {"rate": rates and rates.rate_of(worker["pid"], "requests"),
                      "cpu_share": rates and rates.rate_of(worker["pid"], "cpu")}
            for worker in self._found["workers"]
        ]  # fmt: skip
        return self._found | {"time": time.time(), "workers": each}


class _Screen:
    """The terminal's alternate screen, without a cursor and with unbuffered keys. Every exit restores the terminal.

    TERM and HUP end the command as q does. ^Z leaves the screen, and `fg` returns to it. A change of the terminal's size ends a
    wait, so that the table is drawn again.
    """

    def __init__(self) -> None:
        """Leave the terminal as it is; `with` takes it."""
        self._keys = sys.stdin.fileno()
        self._before: list[Any] = []
        self._woken, self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> _Screen:
        """Switch the terminal to the alternate screen."""
        self._before = termios.tcgetattr(self._keys)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        signal.signal(signal.SIGTSTP, self._pause)
        signal.signal(signal.SIGWINCH, lambda *_: None)
        # Python handles a signal between bytecodes only; the descriptor ends a select(2) that PEP 475 would otherwise resume.
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the terminal."""
        signal.set_wakeup_fd(-1)
        self._leave()

    def quits_within(self, seconds: float) -> bool:
        """Wait for that time or until the screen must be drawn again. Returns whether q was typed or the terminal was closed."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            readable = select.select([self._keys, self._woken], [], [], left)[0]
            if self._keys in readable:
                try:
                    keys = os.read(self._keys, 100)
                except OSError:  # EIO: hung up
                    return True
                if not keys or b"q" in keys:
                    return True
            if self._woken in readable:
                os.read(self._woken, 100)
                return False
        return False

    def _enter(self) -> None:
        tty.setcbreak(self._keys)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()

    def _leave(self) -> None:
        with contextlib.suppress(OSError, termios.error):  # the terminal is gone
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def _pause(self, number: int, _: object) -> None:
        self._leave()
        signal.signal(number, signal.SIG_DFL)  # only the default stops the process
        signal.raise_signal(number)  # returns after SIGCONT
        signal.signal(number, self._pause)
        self._enter()


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _show(lines: list[str]) -> None:
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    columns, rows = columns or 80, max(rows or 24, 3)  # a terminal may report no size
    hidden = len(lines) - (rows - 1)
    if hidden > 0:
        lines = [*lines[: rows - 2], f"… {hidden + 1} more"]
    table = next((at for at, line in enumerate(lines) if not line), -1) + 1
    lines = ["".join(each if each.isprintable() else "?" for each in line) for line in lines]
    painted = [_painted(line[:columns], at == 0, 0 < table == at) + _TO_END for at, line in enumerate(lines)]
    sys.stdout.write(_HOME + "\n".join(painted) + _BELOW)
    sys.stdout.flush()


def _painted(line: str, first: bool, heading: bool) -> str:
    """Return a line with colours: the heading, and states that need attention."""
    if first:
        return f"{_BOLD}{line}{_PLAIN}"
    if heading:
        return f"{_REVERSE}{line}{_PLAIN}"
    for word, colour in (
        ("dying", _RED),
        ("stuck", _RED),
        ("disabled", _RED),
        ("booting", _YELLOW),
        ("draining", _YELLOW),
    ):
        if f" {word}" in line:
            return f"{colour}{line}{_PLAIN}"
    return line
