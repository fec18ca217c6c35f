"""Generate the pages of docs/reference, the index of modules, the keywords of `Cluster`, and a sample file, from the code.

`python -m cluster2.reference options > docs/reference/options.md` writes a page. A test fails while a page isn't up to date.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import click

from . import cli
from .answers import ALL_PAGES, GROUPS
from .cli.flags import OptionCommand
from .config.settings import OPTIONS, Option
from .config.value_types import UMASK
from .engines.base import Capability
from .engines.registry import BUILT_IN_ENGINES, find
from .events import EVENTS, Event, Reason
from .migration import gunicorn as gunicorn_settings
from .migration import uvicorn as uvicorn_options
from .migration.translation import Fate, Mapped, Missing

PACKAGE = Path(__file__).parent
"""The directory of cluster2's code."""

_HEAD = """\
# Options

This page is made by `python -m cluster2.reference options`; don't edit it.

An option is set, in this order of precedence, by a flag or a keyword of the API, by an environment variable, by the
file (`cluster2.toml`, or the table `[tool.cluster2]` of `pyproject.toml`, in the working directory; `--config FILE`
names another), or by its default. `bind`, `apps`, and `host` with `port` exclude each other: the one that is set at the
highest precedence counts. Variables that hosting platforms set for any server, such as `PORT`, precede only the default.
`cluster2 config` shows all values and their sources. `python -m cluster2.reference sample` prints a file to start from.

| form | of `drain_timeout` |
|---|---|
| flag | `--drain-timeout 30s` |
| environment | `CLUSTER2_DRAIN_TIMEOUT=30s` |
| file | `drain_timeout = "30s"` |
| API | `Cluster(drain_timeout="30s")` or `Cluster(drain_timeout=30)` |

An on/off option has two flags: `--keeper`, `--no-keeper`. A list is a flag given several times, a text with commas in the
environment, or an array in the file. Relative paths are relative to the directory in which cluster2 is started.
"""
_FOOT = """
¹ Fixed for the life of the master: a change needs a restart.
² Refused at the start if the [engine](engines.md) doesn't support it.
³ Carried out by the master: with `cluster = false` it has no effect, and a warning says so.
"""


def options() -> str:
    """Return the reference page of options, Markdown."""
    parts = [_HEAD]
    for heading, group in groupby(OPTIONS.values(), lambda option: option.group):
        parts.append(f"\n## {heading}\n\n| option | value | default | meaning |\n|---|---|---|---|\n")
        parts.extend(_row(option) for option in group)
    return "".join([*parts, _FOOT])


def _row(option: Option) -> str:
    marks = ("¹" if option.restart else "") + ("²" if option.requires else "") + ("³" if option.requires_master else "")
    notes = []
    if option.short:
        notes.append(f"`{option.short}`")
    if option.positional:
        notes.append("the argument TARGET of the command line")
    if option.code_only:
        notes.append("no flag or variable")
    if option.legacy_name and option.legacy_name != option.name:
        notes.append(f"was `{option.legacy_name}`")
    if option.shared_variable:
        notes.append(f"if it isn't set, `{option.shared_variable}` counts")
    meaning = option.help + (f" ({'; '.join(notes)})" if notes else "")
    default = option.show(option.default) if option.default != () else ""
    cells = (f"`{option.name}`{marks}", option.kind.describe, f"`{default}`" if default else "–", meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def sample() -> str:
    """Return a file with all options, commented out, with their defaults or an example. With the comment signs removed it is valid."""
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
    """Return the default as TOML, or an example if there is none."""
    if option.default in (None, ()):
        return _EXAMPLES[option.kind.label]
    shown = option.kind.show(option.default)
    if isinstance(option.default, int) and (shown.isdecimal() or isinstance(option.default, bool)):
        return shown
    return json.dumps(shown, ensure_ascii=False)


_KEYWORDS_HEAD = '''\
"""The keywords of `Cluster`, for type checkers and editors.

This file is made by `python -m cluster2.reference keywords` from the declarations in `settings`; don't edit it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, Literal, TypedDict
'''


def keywords() -> str:
    """Return the module `config.keywords`, Python."""
    tables: dict[str, list[Option]] = {}
    for each in OPTIONS.values():
        tables.setdefault(each.name.rpartition(".")[0], []).append(each)
    own = tables.pop("")
    parts = [_KEYWORDS_HEAD]
    for table, options in tables.items():
        parts.append(
            f'\n\nclass {table.capitalize()}Options(TypedDict, total=False):\n    """The keys of `{table}`."""\n\n'
        )
        parts.extend(map(_keyword, options))
    parts.append(
        '\n\nclass ClusterOptions(TypedDict, total=False):\n    """The keywords of `Cluster`. None counts as not given."""\n\n'
    )
    parts.extend(map(_keyword, own))
    parts.extend(f"    {table}: {table.capitalize()}Options | None\n" for table in tables)
    return "".join(parts)


def _keyword(option: Option) -> str:
    return f'    {option.name.rpartition(".")[2]}: {option.kind.annotation} | None\n    """{option.help}"""\n'


_EXAMPLES = {
    "TEXT": '"…"',
    "PATH": '"path"',
    "/PATH": '"/healthy"',
    "NAME": '"www-data"',
    "TOKEN": '"a-long-random-secret"',
    "REFERENCE": '"module:function"',
    "ADDRESS": '["127.0.0.1:3000", "unix:/run/app.sock"]',
    "LIST": '[["module:attr", 3000], ["other:attr", "unix:/run/other.sock"]]',
    UMASK.label: '"022"',
}


_EVENTS_HEAD = """\
# Events

This page is made by `python -m cluster2.reference events`; don't edit it.

`cluster.on(name, handler)`, or the decorator `@cluster.on(name)`, registers a handler that the master calls with the event. The
name `*` means every event. Handlers may be sync or async. If a handler raises, that is logged, and the cluster goes on. For
`cluster2 run`, the option `setup = "module:function"` names a function that is called with the cluster and can register handlers.
A warning at the start names handlers of an event that is probably misspelt.

Each event is frozen and has `name` and `time` (seconds since the epoch), and the fields below. The class of each event, for
annotations, can be imported from `cluster2`; the base of all is `cluster2.Event`.
"""
_USUAL = {
    "pid": "process id of the worker",
    "slot": "slot of the worker, from 0; its successor has the same",
    "generation": "number of the load of the app's code, from 1",
    "text": "one line",
    "signal": "name of the signal",
    "action": "action of the master, in a word",
    "ready": "workers that serve now",
    "code": "exit code of the master",
    "reason": "the reason, in one line",
}
"""The meanings of fields that are the same for all events."""


def events() -> str:
    """Return the reference page of events, Markdown."""
    return "".join([_EVENTS_HEAD, *(_event(kind) for kind in EVENTS.values())])


def _event(kind: type[Event]) -> str:
    summary, own = _documented(kind)
    types = inspect.get_annotations(kind)
    reasons = {"reason": "one of " + ", ".join(f"`{each}`" for each in get_args(Reason))}
    meanings = _USUAL | (reasons if types.get("reason") == "Reason" else {}) | own
    rows = [
        f"| `{name}` | {_type(types[name])} | {meanings[name]} |\n"
        for name in kind.__struct_fields__
        if name in types and name != "time"
    ]
    table = "\n| field | type | meaning |\n|---|---|---|\n" + "".join(rows) if rows else ""
    return f"\n## `{kind.name}`\n\n`cluster2.{kind.__name__}`. {summary}\n{table}"


def _documented(kind: type) -> tuple[str, dict[str, str]]:
    """Return the text of a class's docstring, and its description of each attribute."""
    said, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:\n")
    found = re.findall(r"^ {4}(\w+): (.*)\.$", re.sub(r"\n {8,}", " ", attributes), re.MULTILINE)
    return said, dict(found)


def _type(annotation: Any) -> str:
    text = "str" if annotation == "Reason" else str(annotation)
    return f"`{text}`".replace("|", "\\|")


_COMMANDS_HEAD = """\
# Commands

This page is made by `python -m cluster2.reference commands`; don't edit it.

A command returns 0 when it has succeeded. Otherwise it prints one line on standard error and returns the
[exit code](../signals.md#exit-codes) of the error. Commands for a running master find it by `--pids DIR`, by `CLUSTER2_PIDS`, or by
`pids` in the file of options.
"""


def commands() -> str:
    """Return the reference page of commands, Markdown."""
    parent = click.Context(cli.cli, info_name="cluster2")
    found = [cli.cli.get_command(parent, name) for name in cli.cli.list_commands(parent)]
    return "".join([_COMMANDS_HEAD, *(_command(each, parent) for each in found if each is not None)])


def _command(command: click.Command, parent: click.Context) -> str:
    assert command.name is not None
    context = click.Context(command, info_name=command.name, parent=parent)
    usage = " ".join(["cluster2", command.name, *command.collect_usage_pieces(context)])
    help = inspect.cleandoc(command.help or "").replace("\b", "")
    parts = [f"\n## `{command.name}`\n\n```sh\n{usage}\n```\n\n{help}\n"]
    # Flags of options have a heading. They are on the page of options.
    flags = [each for each in command.params if isinstance(each, click.Option) and not hasattr(each, "heading")]
    records = [record for each in flags if (record := each.get_help_record(context)) is not None]
    if records:
        rows = "".join(f"| `{names}` | {help} |\n" for names, help in records)
        parts.append(f"\n| flag | |\n|---|---|\n{rows}")
    if isinstance(command, OptionCommand):
        parts.append("\nIt takes a flag for each of the [options](options.md).\n")
    return "".join(parts)


_ENGINES_HEAD = """\
# Engines

This page is made by `python -m cluster2.reference engines` from what the engines declare; don't edit it.

The engine of an app follows from the app's interface, which is found by its signature, or from the option `engine`. The
capabilities of an engine also depend on the interface. An option that is set and that the engine doesn't support is refused at the
start, and by `cluster2 check`. The default of such an option isn't refused, and has no effect. Options that aren't in the table work
with every engine.

With several apps of different kinds, such as HTTP beside raw TCP, an option is refused only if no app's engine supports it. The log
names the apps for which it has no effect. TLS must be supported for all.

"""
_ENGINES_FOOT = """
How far `timeout` reaches with granian: [silent clients](../granian.md#silent-clients).

An engine of another package, named by an entry point in the group `cluster2.engines`, declares the same
([how](../internals/engines.md#to-write-one)).
"""
_CAPABILITIES = {
    Capability.TLS: "TLS is terminated",
    Capability.LIFESPAN: "ASGI lifespan events",
    Capability.WEBSOCKETS: "websockets",
    Capability.IDLE_TIMEOUT: "connections of silent clients are ended",
    Capability.PROXY_HEADERS: "headers of trusted proxies name client and scheme",
    Capability.ROOT_PATH: "the app gets the path under which a proxy shows it",
    Capability.ACCESS_LOG: "a line for each request",
    Capability.KEEPER: "connections outlive their worker",
    Capability.REQUEST_AGE: "the oldest request's age is known",
    Capability.ECV: "health checks can ask the app itself",
    Capability.KEEP_ALIVE: "connections may be ended with each response",
    Capability.THREADS: "the app runs in threads, or inline",
    Capability.HTTP2: "HTTP/2",
    Capability.CONNECTION_COUNT: "connections are counted",
}


def engines() -> str:
    """Return the reference page of engines, Markdown. Raises ConfigError: a package that a built-in engine needs isn't installed."""
    columns = [
        (name, interface, can) for name in BUILT_IN_ENGINES for interface, can in find(name).capabilities.items()
    ]
    heads = ["| can | options |", *(f" {name} {interface.upper()} |" for name, interface, _ in columns)]
    parts = [_ENGINES_HEAD, "".join(heads), "\n|---|---|", ":-:|" * len(columns), "\n"]
    for capability, meaning in _CAPABILITIES.items():
        options = ", ".join(f"`{option.name}`" for option in OPTIONS.values() if option.requires == capability)
        cells = "".join(f" {'✓' if capability in can else '–'} |" for _, _, can in columns)
        parts.append(f"| {meaning} | {options} |{cells}\n")
    return "".join([*parts, _ENGINES_FOOT])


_MIGRATION_HEAD = """\
# Coming from {server}

This page is made by `python -m cluster2.reference {server}`; don't edit it.

`cluster2 import {server}` translates {sources} into `cluster2.toml`. This table has the result for each {setting}:

| {server} | cluster2 | |
|---|---|---|
"""


def _migration(server: str, setting: str, sources: str, fates: Mapping[str, Fate], samples: Mapping[str, Any]) -> str:
    rows = []
    for name, fate in fates.items():
        ours = "–" if isinstance(fate, Missing) else ""
        if isinstance(fate, Mapped):
            options = fate.convert(samples.get(name, "1"))
            ours = ", ".join(f"[`{each}`](options.md)" for each in options)
        rows.append(f"| `{name}` | {ours} | {fate.note.replace('|', chr(92) + '|')} |\n")
    return _MIGRATION_HEAD.format(server=server, setting=setting, sources=sources) + "".join(rows)


def gunicorn() -> str:
    """Return the page with the translation of gunicorn's settings, Markdown."""
    samples = {"keepalive": 0, "errorlog": "logs/error.log", "umask": 0o22}
    sources = "a `gunicorn.conf.py` or a command line"
    return _migration("gunicorn", "setting", sources, gunicorn_settings.SETTINGS, samples)


def uvicorn() -> str:
    """Return the page with the translation of uvicorn's flags, Markdown."""
    flags = {f"--{name}": fate for name, fate in uvicorn_options.OPTIONS.items()}
    return _migration("uvicorn", "flag", "a command line", flags, {"--lifespan": "on"})


_ANSWERS_HEAD = """\
# Answers

This page is made by `python -m cluster2.reference answers`; don't edit it.

These are the fields of the JSON of `cluster2 status --json`, of `cluster2 top --json` (a line for each interval), and of the
[monitor](../monitor.md)'s `/` for clients that accept `application/json`. The last column names the outputs that have the field. A
field whose value isn't known is null.

A worker's `cpu` is its CPU time in seconds since it was forked; `cpu_share` is its use of a core now.

The [glossary](../glossary.md) explains the words.
"""


def answers() -> str:
    """Return the reference page of the JSON outputs, Markdown."""
    parts = [_ANSWERS_HEAD]
    for heading, fields in GROUPS.items():
        parts.append(f"\n## {heading}\n\n| field | unit | meaning | in |\n|---|---|---|---|\n")
        for field in fields:
            where = "all" if field.of == ALL_PAGES else ", ".join(field.of)
            parts.append(f"| `{field.path}` | {field.unit} | {field.meaning} | {where} |\n")
    return "".join(parts)


_MODULES_HEAD = """\
# All modules

This page is generated by `python -m cluster2.reference modules`; don't edit it. Each line is the first line of the module's docstring.
"""


def modules() -> str:
    """Return the index of all modules for docs/internals, Markdown: a section for each package, a line for each module."""
    parts = [_MODULES_HEAD]
    for package in sorted(each.parent for each in PACKAGE.rglob("__init__.py")):
        name = package.relative_to(PACKAGE.parent).as_posix()
        paths = sorted(path for path in package.glob("*.py") if not path.stem.startswith("__"))
        rows = [f"| `{path.name}` | {_first_line(path)} |\n" for path in paths]
        table = "\n| module | |\n|---|---|\n" + "".join(rows) if rows else ""
        parts.append(f"\n## {name}\n\n{_first_line(package / '__init__.py')}\n{table}")
    return "".join(parts)


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].replace("|", "\\|")


REFERENCE_PAGES = {
    "options": options, "events": events, "commands": commands, "engines": engines, "answers": answers,
    "gunicorn": gunicorn, "uvicorn": uvicorn,
}  # fmt: skip
"""The pages in docs/reference, by name."""


if __name__ == "__main__":
    pages = REFERENCE_PAGES | {"sample": sample, "keywords": keywords, "modules": modules}
    if len(sys.argv) != 2 or sys.argv[1] not in pages:
        sys.exit(f"usage: python -m cluster2.reference {'|'.join(pages)}")
    sys.stdout.write(pages[sys.argv[1]]())
