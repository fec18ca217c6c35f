"""Stacks of other processes, whatever they are stuck in."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster2.linux import stacks
from cluster2.linux.processes import open_pidfd

PATIENCE = 20.0


@dataclass
class Child:
    """A process that has armed itself and runs some code; `say` returns what it has printed."""

    process: subprocess.Popen[str]
    file: int
    pidfd: int

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def capture(self) -> str:
        return asyncio.run(stacks.capture(self.file, self.pidfd, self.process.pid))

    def capture_until(self, text: str) -> str:
        """Return its stacks, once they name what it says it is about to do."""
        deadline = time.monotonic() + PATIENCE
        while text not in (found := self.capture()):
            assert time.monotonic() < deadline, found
        return found


Run = Callable[[str], Child]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run code in an armed process; it must print a line when it is about to do what it is for."""
    children: list[Child] = []

    def run(code: str) -> Child:
        file = stacks.create()
        program = tmp_path / "program.py"
        program.write_text(f"from cluster2.linux import stacks\nstacks.arm({file})\n{code}")
        process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True, pass_fds=[file])
        child = Child(process, file, open_pidfd(process.pid))
        children.append(child)
        assert child.says() == "now"
        return child

    yield run
    for child in children:
        with child.process:
            child.process.kill()
        os.close(child.file)
        os.close(child.pidfd)


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
        "import threading; threading.Event().wait()",
        "import time; time.sleep(1000)",
    ],
    ids=["pure Python", "C with the GIL", "a lock", "asleep"],
)
def test_stuck(run: Run, code: str) -> None:
    """The function in which a process is stuck is named, with its line, whether or not it would ever let go of the GIL."""
    child = run(f"def culprit():\n    print('now', flush=True)\n    {code}\nculprit()\n")
    found = child.capture_until('program.py", line 5 in culprit')
    assert "Current thread" in found
    assert child.process.poll() is None, "it goes on"


def test_all_threads(run: Run) -> None:
    """Threads beside the main one are shown as well."""
    child = run(
        "import threading, time\n"
        "def aside(): time.sleep(1000)\n"
        "def before(): print('now', flush=True); time.sleep(1000)\n"
        "threading.Thread(target=aside, daemon=True).start()\nbefore()\n"
    )
    found = child.capture_until("in aside")
    assert "in before" in found
    assert found.count("hread 0x") == 2


def test_again_and_again(run: Run) -> None:
    """Each capture shows the present only; nothing of the one before is left, even if that was longer."""
    child = run(
        "import sys\n"
        "def deep(n):\n"
        "    if n: deep(n - 1)\n"
        "    else: print('now', flush=True); sys.stdin.readline()\n"
        "def after(): print('then', flush=True); sys.stdin.readline()\n"
        "import os\nread, write = os.pipe(); sys.stdin = os.fdopen(read)\n"
        "import signal; signal.signal(signal.SIGUSR2, lambda *_: os.write(write, b'\\n'))\n"
        "deep(50)\nafter()\n"
    )
    assert child.capture_until("in deep").count("in deep") == 51
    assert child.capture_until("in deep").count("in deep") == 51
    child.process.send_signal(signal.SIGUSR2)
    assert child.says() == "then"
    found = child.capture_until("in after")
    assert "deep" not in found
    assert "\0" not in found


def test_a_process_that_is_stopped(run: Run) -> None:
    """One that is stopped by a signal can't write: the answer says so, and it isn't waited for; continued, it answers."""
    child = run("import time\ndef culprit(): print('now', flush=True); time.sleep(1000)\nculprit()\n")
    child.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert child.capture() == f"no stacks: process {child.process.pid} doesn't react; it is stopped by a signal"
    child.process.send_signal(signal.SIGCONT)
    assert "in culprit" in child.capture_until("in culprit")


def test_a_process_that_has_ended(run: Run) -> None:
    """One that has ended, reaped or not, is an answer as well, and no error."""
    child = run("print('now', flush=True)\n")
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    assert child.capture().startswith(f"no stacks: process {child.process.pid} doesn't react; it is a zombie")
    child.process.wait()
    assert child.capture() == f"no stacks: process {child.process.pid} has ended"


def test_close_on_exec() -> None:
    """A program that a worker executes doesn't inherit the file."""
    file = stacks.create()
    try:
        assert not os.get_inheritable(file)
    finally:
        os.close(file)


def test_what_a_process_adds(run: Run) -> None:
    """A process's addition stands behind its stacks, while it spins or sleeps; an exception is shown, and the process goes on."""
    child = run(
        "import sys, time\n"
        "told = iter(['first', None])\n"
        "stacks.add(lambda frame: frame.f_code.co_name + next(told).join('  '))\n"
        "def spin():\n    print('now', flush=True)\n    began = time.monotonic()\n"
        "    while time.monotonic() - began < 1000: pass\n"
        "spin()"
    )
    shown = asyncio.run(stacks.capture(child.file, child.pidfd, child.process.pid, adds=True))
    assert re.search(r"in spin\n(.*\n)*\nspin first $", shown + " "), shown
    shown = asyncio.run(stacks.capture(child.file, child.pidfd, child.process.pid, adds=True))
    assert "what it works on isn't known: AttributeError" in shown
    assert child.process.poll() is None


def test_many_at_once(run: Run) -> None:
    """A process that is asked again and again, by whatever sends it these signals, goes on, and its file stays small."""
    child = run(
        "import time\nstacks.add(lambda frame: 'x' * 10_000)\nprint('now', flush=True)\nwhile True: time.sleep(0.0001)"
    )
    for number in range(2000):
        os.kill(child.process.pid, signal.SIGURG)
        if number % 20 == 0:
            os.kill(child.process.pid, signal.SIGUSR1)
    shown = asyncio.run(stacks.capture(child.file, child.pidfd, child.process.pid, adds=True))
    assert "xxx" in shown
    assert child.process.poll() is None
    assert os.fstat(child.file).st_size < 2 * stacks.MAX_STACKS_BYTES


def test_a_process_that_adds_nothing(run: Run) -> None:
    """One that is stuck in C shows its stacks, when what it might add was waited for."""
    child = run("stacks.add(lambda frame: 'never')\nprint('now', flush=True)\nsum(range(10**12))")
    deadline = time.monotonic() + PATIENCE
    while "never" in (shown := asyncio.run(stacks.capture(child.file, child.pidfd, child.process.pid, adds=True))):
        assert time.monotonic() < deadline, "it hasn't begun to compute"
    assert "<module>" in shown
