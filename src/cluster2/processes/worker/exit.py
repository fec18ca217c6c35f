"""Wait for executors and threads of the app at a worker's end, within a bounded time.

At its own end the interpreter takes three steps, none of which has a deadline:

1. It runs the hooks of `threading`. Those of `concurrent.futures` let executors finish their work, and end the processes of a
   pool.
2. It joins the threads that aren't daemons.
3. It runs the `atexit` functions. That of `multiprocessing` waits for the processes of the app, which end only if the app has
   asked them to.

A worker doesn't take the interpreter down (see `zygote.fork_server.leave`), and a stuck thread must not keep the worker. So this
module takes the first two steps with a deadline, and prevents the third from blocking.
"""

from __future__ import annotations

import logging
import sys
import threading
import time

from ...linux.app_threads import app_threads

_MIN_EXIT_GRACE_S = 0.5
"""Seconds that threads get even if the drain has used up its time. The master adds a margin of 2 before it kills."""

logger = logging.getLogger("cluster2.worker")


def finish_threads(deadline: float) -> None:
    """Wait until executors and threads have finished, and log what still runs at the deadline: it ends with the process.

    Args:
        deadline: on the monotonic clock.
    """
    deadline = max(deadline, time.monotonic() + _MIN_EXIT_GRACE_S)
    # In a thread, since a hook joins the threads of its executors without a time limit.
    executors = threading.Thread(target=_run_exit_hooks, name="cluster2-exit", daemon=True)
    executors.start()
    executors.join(max(0.0, deadline - time.monotonic()))
    for thread in app_threads():
        thread.join(max(0.0, deadline - time.monotonic()))
    late = [thread.name for thread in app_threads()]
    if late or executors.is_alive():
        logger.warning("threads of the app have not ended within drain_timeout: %s", ", ".join(late) or "an executor's")
        _terminate_processes()


def _run_exit_hooks() -> None:
    # Private, and the only way: `concurrent.futures` keeps no public list of executors.
    for hook in reversed(getattr(threading, "_threading_atexits", [])):
        try:
            hook()
        except Exception:
            logger.exception("a hook of threading failed at the worker's end")


def _terminate_processes() -> None:
    """Terminate processes of `multiprocessing`, since its `atexit` function would wait for them without a time limit."""
    module = sys.modules.get("multiprocessing.process")
    for process in [] if module is None else module.active_children():
        process.terminate()
