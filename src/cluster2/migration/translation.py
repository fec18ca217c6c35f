"""The result of a translation: a `cluster2.toml` with its reasons.

A setting of another server has one of three fates, declared in a table for each server:

- `Mapped`: an option of cluster2 does the same. The table converts the value.
- `Unneeded`: cluster2 does it without an option, or does not need it. The note says why.
- `Missing`: cluster2 lacks a counterpart. The note names the closest thing.

The file holds the mapped options, and a comment for each setting of the user's that is unneeded or missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Convert = Callable[[Any], Mapping[str, Any]]
"""Turns the value of a setting into options of cluster2, by their dotted names. Raises ValueError if it can't."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """A setting that becomes options of ours.

    Attributes:
        convert: makes the options of the setting's value.
        note: what differs, if anything; it becomes a comment above the options.
    """

    convert: Convert
    note: str = ""


@dataclass(frozen=True, slots=True)
class Unneeded:
    """A setting that needs no counterpart; the note says why."""

    note: str


@dataclass(frozen=True, slots=True)
class Missing:
    """A setting without a counterpart; the note names the closest thing."""

    note: str


Fate = Mapped | Unneeded | Missing


@dataclass(slots=True)
class Translation:
    """Options of cluster2, and remarks about what could not be translated.

    Attributes:
        origin: what was translated, for the first line of the file.
        target: the app, as cluster2 takes it on the command line; None if the source does not name one.
        options: by dotted name, in the order in which they are written.
        notes: a comment for an option, by its name.
        unneeded: remarks on settings that need no counterpart.
        missing: remarks on settings that have no counterpart.
        environment: variables that the other server sets for the app.
    """

    origin: str
    target: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unneeded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def add(self, setting: str, value: Any, fate: Fate) -> None:
        """Record the fate of a setting that the user has set.

        Raises:
            ValueError: the value is none that the other server would take.
        """
        shown = f"{setting} = {_short(value)}"
        match fate:
            case Mapped(convert, note):
                options = convert(value)
                self.options.update(options)
                if note and options:
                    self.notes[next(iter(options))] = f"{shown}: {note}"
                elif note:
                    self.unneeded.append(f"{shown}: {note}")
            case Unneeded(note):
                self.unneeded.append(f"{shown}: {note}")
            case Missing(note):
                self.missing.append(f"{shown}: {note}")

    def toml(self) -> str:
        """Return the text of `cluster2.toml`."""
        lines = [f"# Made by `cluster2 import` from {self.origin}."]
        if self.target is not None:
            lines += ["", f"app = {toml_value(self.target)}"]
        tables: dict[str, list[str]] = {}
        for name, value in self.options.items():
            table, _, key = name.rpartition(".")
            said = [f"# {line}" for line in self.notes.get(name, "").splitlines()]
            (tables.setdefault(table, []) if table else lines).extend(["", *said, f"{key} = {toml_value(value)}"])
        for title, remarks in (
            ("Without a counterpart in cluster2:", self.missing),
            ("Not needed in cluster2:", self.unneeded),
        ):
            if remarks:
                lines += ["", f"# {title}", *(f"# - {remark}" for remark in remarks)]
        for table, rows in tables.items():
            lines += ["", f"[{table}]", *rows[1:]]
        return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Return a value as TOML: text, number, boolean, or a list of these; anything else, such as a path, becomes text."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    # A JSON string is a basic string of TOML, except for DEL, which no option may hold.
    return json.dumps(value if isinstance(value, str | bool) else str(value), ensure_ascii=False)


def option(name: str) -> Convert:
    """Return a conversion that keeps the value and gives it the name of an option."""
    return lambda value: {name: value}


def _short(value: Any) -> str:
    text = f"{getattr(value, '__name__', '…')}()" if callable(value) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
