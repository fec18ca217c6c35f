"""Counts and types in messages for people: `1 worker`, `2 workers`, `an int`."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which is in the singular form: `1 worker`, `2 workers`. The noun takes an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article, by its first letter: `a str`, `an int`."""
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"
