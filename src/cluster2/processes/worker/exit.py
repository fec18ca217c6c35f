"""The end of a worker's threads: what an app has given to executors and threads is finished, within a bounded time.

The interpreter's own end runs the hooks of `threading` first: those of `concurrent.futures` let executors finish what they were
given, and tell the processes of a pool to end. Then it joins threads that are no daemons, and runs `atexit` functions: that of
`multiprocessing` waits for processes, for ever if nobody has told them to end. A worker doesn't take the interpreter down (see
`zygote.main.leave`), and a stuck thread must not keep it, so the same is done here with a deadline.
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
    """Let executors and threads finish what they do. What goes on at the deadline is logged, and ends with the process.

    Args:
        deadline: on the monotonic clock.
    """
    deadline = max(deadline, time.monotonic() + _MIN_EXIT_GRACE_S)
    executors = threading.Thread(target=_run_hooks, name="cluster2-exit", daemon=True)
    executors.start()
    executors.join(max(0.0, deadline - time.monotonic()))
    for thread in app_threads():
        thread.join(max(0.0, deadline - time.monotonic()))
    late = [thread.name for thread in app_threads()]
    if late or executors.is_alive():
        logger.warning("threads of the app have not ended within drain_timeout: %s", ", ".join(late) or "an executor's")
        _end_processes()


def _run_hooks() -> None:
    # Private, and the only way: executors are known to `concurrent.futures` alone.
    for hook in reversed(getattr(threading, "_threading_atexits", [])):
        try:
            hook()
        except Exception:
            logger.exception("a hook of threading failed at the worker's end")


def _end_processes() -> None:
    """End processes of `multiprocessing`, which its `atexit` function would wait for."""
    module = sys.modules.get("multiprocessing.process")
    for process in [] if module is None else module.active_children():
        process.terminate()
