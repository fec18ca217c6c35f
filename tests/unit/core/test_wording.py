"""Counts and types in messages."""

from __future__ import annotations

import pytest

from cluster2.core.wording import counted, with_article


def test_counts() -> None:
    """One thing is in the singular; none and several are in the plural."""
    assert [counted(number, "worker") for number in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]


@pytest.mark.parametrize(
    ("noun", "said"), [("int", "an int"), ("str", "a str"), ("Union", "a Union"), ("App", "an App")]
)
def test_articles(noun: str, said: str) -> None:
    """The article follows the first letter; types with a U are spoken with a consonant."""
    assert with_article(noun) == said
