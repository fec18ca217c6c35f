"""What all tests share: uvloop as anyio's backend, a process that nobody's orphan can escape, examples that take their time."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

PR_SET_CHILD_SUBREAPER = 36

# How long an example takes, and to make one, depends on what else the machine does.
settings.register_profile("cluster2", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cluster2")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run async tests on uvloop: it is what the master and the workers run on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", autouse=True)
def _adopt_orphans() -> None:
    """Become the parent of every orphan that a test makes: then a test can see that it left no process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.fixture(scope="session", autouse=True)
def _hear_interrupts() -> None:
    """Let what tests start be interrupted: a shell that puts us in the background has SIGINT ignored, and that is inherited."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
