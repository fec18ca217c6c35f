"""Fixtures of the tests of kernel wrappers: they leave no descriptor and no child."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from cluster2.config.value_types import Address
from cluster2.linux.listeners import Listener, open_all
from cluster2.linux.processes import become_subreaper
from cluster2.linux.scoreboard import Scoreboard
from tests.linux.leaks import descriptors
from tests.linux.visitors import Open


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    """Check that no descriptor was opened or changed."""
    gc.collect()  # what earlier tests have left to the collector is none of this one's
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def nothing_is_left(no_descriptor_is_left: None) -> Iterator[None]:
    """Check that neither a descriptor nor a child is left, alive or dead."""
    become_subreaper()
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Make a new scoreboard."""
    board = Scoreboard.create()
    yield board
    board.close()


@pytest.fixture
def listen() -> Iterator[Open]:
    """`open_all`, with the listeners closed after the test."""
    opened: list[Listener] = []

    def listen(*addresses: Address, backlog: int = 16) -> list[Listener]:
        listeners = open_all(addresses, backlog=backlog)
        opened.extend(listeners)
        return listeners

    yield listen
    for listener in opened:
        listener.close()
