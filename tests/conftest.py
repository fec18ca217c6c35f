"""What all tests share: uvloop as anyio's backend, a process that no orphan can escape, examples without a deadline, a queue."""

from __future__ import annotations

import ctypes
import os
import signal
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

PR_SET_CHILD_SUBREAPER = 36

# How long an example takes, and to make one, depends on what else the machine does.
settings.register_profile("cluster2", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cluster2")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which several processes share the tests (`scripts/test`)."""
    text = "run only those test files that no other process with this directory has claimed"
    parser.addoption("--share", metavar="DIRECTORY", type=Path, help=text)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that have the most slow tests: else one process may have such a file left when the others are done."""
    if config.getoption("share"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the files that this process claims. Each is run to its end, fixtures included, as if it were the only one."""
    directory: Path | None = session.config.getoption("share")
    if directory is None or session.testsfailed or session.config.option.collectonly:
        return None
    for path, group in groupby(session.items, lambda item: item.path):
        if _claim(directory / str(path.relative_to(session.config.rootpath)).replace("/", ".")):
            items = list(group)
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
    return True


def _claim(mark: Path) -> bool:
    """Whether this process is the first to make that mark."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


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
