"""The reference pages, the index of modules and the table of the lifecycle say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster2 import reference
from cluster2.answers import GROUPS
from cluster2.cli import COMMANDS
from cluster2.config.settings import OPTIONS
from cluster2.core.lifecycle import TRANSITIONS, WorkerAction, WorkerEvent, WorkerState
from cluster2.engines.base import Capability
from cluster2.events import EVENTS

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
SOURCE = Path(reference.__file__).parent


@pytest.mark.parametrize("name", reference.REFERENCE_PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    """Each page in docs/reference is what the code makes of it."""
    page = (FOLDER / f"{name}.md").read_text("utf-8")
    assert page == reference.REFERENCE_PAGES[name](), (
        f"run: python -m cluster2.reference {name} > docs/reference/{name}.md"
    )


def test_no_page_is_forgotten() -> None:
    """The folder has the pages that are made, and no other."""
    assert {path.stem for path in FOLDER.glob("*.md")} == set(reference.REFERENCE_PAGES)


def test_all_options_are_told() -> None:
    """The page of options names each of them."""
    page = reference.options()
    assert all(f"`{name}`" in page for name in OPTIONS)


def test_options_stand_under_their_heading() -> None:
    """Options of one group are declared together: each heading stands once, on the page and in the sample file."""
    headings = [line for line in reference.options().splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings)) == len({option.group for option in OPTIONS.values()})


def test_the_index_of_modules_is_up_to_date() -> None:
    """The page docs/internals/modules.md has the first line of each module's docstring."""
    page = (FOLDER.parent / "internals" / "modules.md").read_text("utf-8")
    assert page == reference.modules(), "run: python -m cluster2.reference modules > docs/internals/modules.md"


def test_the_index_names_each_module() -> None:
    """Each module is in the index, with a whole sentence."""
    rows = re.findall(r"^\| `(\w+)\.py` \| (.*) \|$", reference.modules(), re.MULTILINE)
    files = [path.stem for path in SOURCE.rglob("*.py") if not path.stem.startswith("__")]
    assert sorted(name for name, _ in rows) == sorted(files)
    assert [name for name, line in rows if not line.endswith(".")] == []


def test_the_lifecycle_table_in_the_docs() -> None:
    """The table in docs/internals/master.md is the one in the code."""
    page = (FOLDER.parent / "internals" / "master.md").read_text("utf-8")
    for state in WorkerState:
        cells = [_cell(state, *TRANSITIONS[state, event]) for event in WorkerEvent]
        assert f"| **{state.label}** | {' | '.join(cells)} |" in page


def _cell(before: WorkerState, after: WorkerState, actions: tuple[WorkerAction, ...]) -> str:
    if before is after and not actions:
        return "–"
    return after.label + (": " + ", ".join(f"`{action.name}`" for action in actions) if actions else "")


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


def test_all_capabilities_are_told() -> None:
    """The page of engines has a row for each capability, in which each option that needs it is named."""
    rows = [line for line in reference.engines().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(Capability)
    assert all(any(f"`{option.name}`" in row for row in rows) for option in OPTIONS.values() if option.requires)


def test_all_answers_are_told() -> None:
    """The page of answers has a row for each field, with unit and meaning; that none is missing is shown in test_monitor_page."""
    rows = [line.strip("| ").split(" | ") for line in reference.answers().splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == [field.path for group in GROUPS.values() for field in group]
    assert all(len(row) == 4 and all(row) for row in rows)
