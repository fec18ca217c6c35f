"""The first steps of a process that the master has executed: a zygote, an executed worker, the keeper, the monitor.

They are taken when the package is imported (`cluster2/__init__.py`), before any line of the app in `python -m
cluster2.processes.child_main`. In script mode the script's own imports may come before.

- SIGUSR1 writes the Python stacks to a file that the master gave (`linux.stacks`). The master logs them before it kills a process
  that hangs.
- The end of the master ends the process by SIGKILL, the only signal that a stopped process obeys. The end of the channel comes
  first and makes the process leave. The signal covers a process that is stopped, or that hangs in foreign code. A worker sets
  another signal as soon as it can drain (`worker.worker_process`). A process that is stopped before it comes here, in its first
  milliseconds, is not covered.
- The at-fork handlers of this project are registered before the app's: for forks that make a worker (`linux.forking`), and for
  the app's own (`linux.app_forks`).
"""

from __future__ import annotations

import os
import signal

from . import app_forks, forking, stacks
from .processes import set_parent_death_signal

STACKS_VARIABLE = "_CLUSTER2_STACKS"
"""The environment variable with the descriptor of the file for stacks."""
_stacks_file = -1


def take_start_steps() -> None:
    """Take the steps. The variable leaves the environment, so that no program of the app takes itself for a cluster process."""
    global _stacks_file
    _stacks_file = int(os.environ.pop(STACKS_VARIABLE))
    set_parent_death_signal(signal.SIGKILL)
    stacks.arm(_stacks_file)
    app_forks.install()
    forking.register_handler()


def stacks_file() -> int:
    """Return the descriptor of the file for stacks; -1: this process wasn't executed by a master."""
    return _stacks_file
