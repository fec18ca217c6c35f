"""Signals that are dropped: many at once cost no process its life, and programs that it executes get their default effect."""

from __future__ import annotations

import subprocess
import sys

BURST = """
import faulthandler, os, signal
from cluster2.linux import signals
faulthandler.enable()  # makes an alternate stack, of some KiB, on which Python's handlers run
dropped = [*signals.numbers("RTMIN to RTMAX"), signal.SIGHUP, signal.SIGPWR, signal.SIGIO]
for number in dropped:
    signals.ignore_here(number)
handled = []
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: handled.append(number))
everything = {*dropped, signal.SIGUSR1, signal.SIGUSR2}
for _ in range(50):
    signal.pthread_sigmask(signal.SIG_BLOCK, everything)
    for number in everything:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, everything)  # all are delivered here
assert len(handled) == 100, handled
print("alive")
"""


def test_a_burst() -> None:
    """All that are pending at once, those that Python handles among them, fit on the stack on which they are delivered."""
    done = subprocess.run([sys.executable, "-c", BURST], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
