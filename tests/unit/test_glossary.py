"""The glossary has the words that users meet, each with a link to the page that uses it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster2.core.health import STUCK_STATE
from cluster2.core.lifecycle import MODES, PHASES, SHOWN_STATES

ROOT = next(parent for parent in Path(__file__).parents if (parent / "mkdocs.yml").exists())
ENTRIES = dict(re.findall(r"^## (.+)\n\n((?:(?!## ).*\n)+)", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.M))


@pytest.mark.parametrize("word", {*PHASES, *(state.label for state in SHOWN_STATES), STUCK_STATE})
def test_each_state_has_an_entry(word: str) -> None:
    """Each state of a cluster and of a worker, as `status` shows it, has an entry of its own."""
    assert word in ENTRIES


@pytest.mark.parametrize("mode", [*MODES, "none"])
def test_each_mode_is_explained(mode: str) -> None:
    """The entry about modes explains each of them."""
    assert f"`{mode}`" in ENTRIES["mode"]


@pytest.mark.parametrize("word", ENTRIES)
def test_each_entry_leads_to_a_page(word: str) -> None:
    """Each entry has one or a few sentences, and a link to a page that exists."""
    pages = re.findall(r"\]\(([\w/.-]+\.md)", ENTRIES[word])
    assert pages
    assert all((ROOT / "docs" / page).exists() for page in pages)
    assert 15 < len(ENTRIES[word].split()) < 100


def test_the_entries_are_in_order() -> None:
    """The words stand in the order of the alphabet."""
    assert list(ENTRIES) == sorted(ENTRIES, key=str.lower)
