"""Fixtures of the unit tests: what a process of ours changes in itself is put back."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator

import pytest

MASTERS = [getattr(signal, f"SIG{name}") for name in ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "TTIN", "TTOU"]]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Put back the effects of signals: a master that ends in the test's own process leaves them ignored."""
    before = {number: signal.getsignal(number) for number in MASTERS}
    yield
    for number, effect in before.items():
        if signal.getsignal(number) is not effect:
            signal.signal(number, effect)


@pytest.fixture
def own_process() -> Iterator[None]:
    """Put back what `logs.configure`, `boot` and `zygote.image` change: loggers, directory, import path, collector."""
    loggers = [logging.getLogger(name) for name in ("cluster2", "uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(log, log.handlers[:], log.level, log.propagate) for log in loggers]
    directory, path, modules, environ = os.getcwd(), sys.path[:], set(sys.modules), dict(os.environ)
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    for log, handlers, level, propagate in before:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)
    os.chdir(directory)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(environ)
    for name in set(sys.modules) - modules:
        if not name.startswith(("cluster2", "uvicorn")):
            del sys.modules[name]
    sys.path[:] = path
    gc.unfreeze()
    gc.enable()
