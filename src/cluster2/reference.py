"""Writes what is derived from the options: their page, and a sample file (`python -m cluster2.reference sample`)."""

from __future__ import annotations

import json
import sys
from itertools import groupby

from .settings import OPTIONS, UMASK, Option

_HEAD = """\
# Options

This page is made by `python -m cluster2.reference options`; don't edit it.

An option is set, in this order of precedence, by a flag or a keyword of the API, by an environment variable, by the
file (`cluster2.toml`, or the table `[tool.cluster2]` of `pyproject.toml`, in the working directory; `--config FILE`
names another), or by its default. Of `bind`, `apps`, and `host` with `port`, which say the same, the one set at the
higher precedence counts. `cluster2 config` shows all values and where each comes from;
`python -m cluster2.reference sample` prints a file to start from.

| form | of `drain_timeout` |
|---|---|
| flag | `--drain-timeout 30s` |
| environment | `CLUSTER2_DRAIN_TIMEOUT=30s` |
| file | `drain_timeout = "30s"` |
| API | `Cluster(drain_timeout="30s")` or `Cluster(drain_timeout=30)` |

An on/off option has a flag for each: `--keeper`, `--no-keeper`. A list is a flag given several times, a text with
commas in the environment, an array in the file. Relative paths are relative to the directory in which cluster2 is
started.
"""
_FOOT = """
¹ Fixed for the life of the master: a change needs a restart.
² Refused at start by an engine that can't honour it.
"""


def options() -> str:
    """The reference page, Markdown."""
    parts = [_HEAD]
    for heading, group in groupby(OPTIONS.values(), lambda option: option.group):
        parts.append(f"\n## {heading}\n\n| option | value | default | meaning |\n|---|---|---|---|\n")
        parts.extend(_row(option) for option in group)
    return "".join([*parts, _FOOT])


def _row(option: Option) -> str:
    marks = ("¹" if option.restart else "") + ("²" if option.needs else "")
    notes = []
    if option.short:
        notes.append(f"`{option.short}`")
    if option.positional:
        notes.append("the argument TARGET of the command line")
    if option.code_only:
        notes.append("no flag or variable")
    if option.seed and option.seed != option.name:
        notes.append(f"was `{option.seed}`")
    meaning = option.help + (f" ({'; '.join(notes)})" if notes else "")
    default = option.show(option.default) if option.default != () else ""
    cells = (f"`{option.name}`{marks}", option.kind.describe, f"`{default}`" if default else "–", meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def sample() -> str:
    """A file that has all options, commented out, with their defaults or an example: valid TOML either way."""
    parts = ["# cluster2.toml: the options of cluster2, with their defaults. Durations take 30s, 5m, 24h, 250ms.\n"]
    # Keys that belong to no table must precede the first table.
    ordered = sorted(OPTIONS.values(), key=lambda option: option.name.rpartition(".")[0])
    table = ""
    for heading, group in groupby(ordered, lambda option: option.group):
        parts.append(f"\n# {heading}\n")
        for option in group:
            within, _, key = option.name.rpartition(".")
            if within != table:
                table = within
                parts.append(f"\n# [{table}]\n")
            parts.append(f"# {option.help}\n# {key} = {_toml(option)}\n")
    return "".join(parts)


def _toml(option: Option) -> str:
    """The default as TOML, or where there is none an example."""
    if option.default in (None, ()):
        return _EXAMPLES[option.kind.label]
    if isinstance(option.default, int):  # true and false, too
        return option.kind.show(option.default) if option.kind.show(option.default) != "auto" else '"auto"'
    return json.dumps(option.kind.show(option.default), ensure_ascii=False)


_EXAMPLES = {
    "TEXT": '"…"',
    "PATH": '"path"',
    "NAME": '"www-data"',
    "REFERENCE": '"module:function"',
    "ADDRESS": '["127.0.0.1:3000", "unix:/run/app.sock"]',
    "LIST": '[["module:attr", 3000], ["other:attr", "unix:/run/other.sock"]]',
    UMASK.label: '"022"',
}


if __name__ == "__main__":
    pages = {"options": options, "sample": sample}
    if len(sys.argv) != 2 or sys.argv[1] not in pages:
        sys.exit(f"usage: python -m cluster2.reference {'|'.join(pages)}")
    sys.stdout.write(pages[sys.argv[1]]())
