"""The table of signals names each signal, and the docs show it."""

from __future__ import annotations

import signal
from pathlib import Path

from cluster2.core import signal_table
from cluster2.linux.signals import numbers

DOCS = Path(__file__).parents[3] / "docs" / "signals.md"


def test_each_signal_has_a_row() -> None:
    """Each signal that a process can be sent stands in one row."""
    named = [number for name in signal_table.SIGNAL_EFFECTS for number in numbers(name)]
    assert sorted(named) == sorted(map(int, signal.valid_signals()))


def test_each_row_tells_of_each_process() -> None:
    """No kind of process is left out."""
    assert all(set(effects) == set(signal_table.SIGNAL_ROLES) for effects in signal_table.SIGNAL_EFFECTS.values())


def test_the_docs_show_the_table() -> None:
    """The page has the table as it is declared."""
    assert signal_table.table() in DOCS.read_text(), f"put this into {DOCS}:\n{signal_table.table()}"
