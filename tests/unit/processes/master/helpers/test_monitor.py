"""The monitor process, as the master runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from cluster2.config.settings import OPTIONS, Settings
from cluster2.config.value_types import TcpAddress
from cluster2.linux.listeners import open_all
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.master.helpers.monitor import MonitorProcess
from cluster2.protocol.messages import StartMonitor

pytestmark = pytest.mark.anyio

CHANGED: dict[str, Any] = {
    "ecv_path": "/other",
    "ecv_monitor": "other",
    "ecv_control": True,
    "ecv_token": "another",
    "timeout": 7.0,
}
"""Another value for options of the monitor that a reload can change."""


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard.create()
    yield board
    board.close()


async def renewals(board: Scoreboard, change: dict[str, Any]) -> int:
    """Return how often a monitor is replaced when these options change."""
    listeners = open_all([TcpAddress("127.0.0.1", 0)], backlog=1)
    order = StartMonitor(Settings().to_wire(), 0, 1, "", [], "")
    renewed: list[None] = []
    monitor = MonitorProcess(board, listeners, order, lambda message: None, lambda sock, allowed: sock.close())
    monitor.renew = lambda: renewed.append(None)  # type: ignore[method-assign]
    try:
        monitor.apply_settings(dataclasses.replace(Settings(), **change))
    finally:
        listeners[0].close()
    return len(renewed)


@pytest.mark.parametrize("name", CHANGED)
async def test_a_changed_option_replaces_it(board: Scoreboard, name: str) -> None:
    """A reload that changes an option of the monitor starts another one, which has the new value."""
    assert await renewals(board, {name: CHANGED[name]}) == 1


async def test_other_options_leave_it_alone(board: Scoreboard) -> None:
    """A reload that concerns only the app or its workers keeps the monitor."""
    assert await renewals(board, {"workers": 3, "drain_timeout": 3.0}) == 0


def test_the_options_are_all_known() -> None:
    """Each option of the monitor that a reload can change is tried above, or is none that a value is made up for."""
    mine = {each.field for each in OPTIONS.values() if each.field.startswith(("monitor_", "ecv_")) and not each.restart}
    assert mine - set(CHANGED) <= {"ecv_validator"}
