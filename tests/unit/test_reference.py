"""The reference pages: they say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster2 import reference
from cluster2.cli import COMMANDS
from cluster2.events import EVENTS
from cluster2.settings import OPTIONS

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    """Each page in docs/reference is what the code makes of it."""
    page = (FOLDER / f"{name}.md").read_text("utf-8")
    assert page == reference.PAGES[name](), f"run: python -m cluster2.reference {name} > docs/reference/{name}.md"


def test_no_page_is_forgotten() -> None:
    """The folder has the pages that are made, and no other."""
    assert {path.stem for path in FOLDER.glob("*.md")} == set(reference.PAGES)


def test_all_options_are_told() -> None:
    """The page of options names each of them."""
    page = reference.options()
    assert all(f"`{name}`" in page for name in OPTIONS)


def test_all_events_are_told() -> None:
    """The page of events has each of them with each of its fields, and a meaning for each field."""
    page = reference.events()
    for name, kind in EVENTS.items():
        section = page.split(f"## `{name}`\n")[1].split("\n## ")[0]
        told = [line.split(" | ")[0].strip("| `") for line in section.splitlines() if line.startswith("| `")]
        assert sorted(told) == sorted(set(kind.__struct_fields__) - {"time"})
        assert "Attributes" not in section
        assert " |  |" not in section


def test_all_commands_are_told() -> None:
    """The page of commands has each of them with the flags that are its own."""
    page = reference.commands()
    assert all(f"## `{name}`" in page for name in COMMANDS)
    assert "| `--json` |" in page
    assert "`-c, --config FILE`" in page
    assert "--drain-timeout" not in page
