"""`import`: options of gunicorn or uvicorn become `cluster2.toml`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ..errors import ConfigError
from ..migration import gunicorn, procfile, uvicorn
from ..migration.translation import Translation

_ENV_FILE = "cluster2.env"

_HELP = """Translate the options of another server into cluster2.toml.

\b
cluster2 import gunicorn gunicorn.conf.py
cluster2 import gunicorn -- gunicorn -w 4 -b :8000 shop.wsgi
cluster2 import uvicorn -- uvicorn shop:app --port 8000
cluster2 import procfile Procfile

A configuration file of gunicorn is a program: it is executed. Settings without a counterpart stand in the file as
comments, each with what to use instead. Variables that the other server sets go to cluster2.env.
"""


@click.command("import", help=_HELP, context_settings={"ignore_unknown_options": True})
@click.option("-o", "--output", default="cluster2.toml", metavar="FILE", help="where to write; -: standard output")
@click.option("--force", is_flag=True, help="overwrite the file")
@click.option("--process", default="web", metavar="NAME", help="of a Procfile: the line to translate  [web]")
@click.argument("server", metavar="gunicorn|uvicorn|procfile", type=click.Choice(["gunicorn", "uvicorn", "procfile"]))
@click.argument("words", metavar="FILE|-- COMMAND", nargs=-1, type=click.UNPROCESSED)
def import_(output: str, force: bool, process: str, server: str, words: tuple[str, ...]) -> int:
    """Translate, write the files, and say what needs a look."""
    found = _translate(server, list(words), process)
    if found.environment:
        found.options["env_file"] = _ENV_FILE
    text = found.toml()
    variables = "".join(f"{name}={_env_value(value)}\n" for name, value in found.environment.items())
    if output == "-":
        click.echo(text, nl=False)
        if variables:
            click.echo(f"# {_ENV_FILE}:\n" + "".join(f"#   {line}\n" for line in variables.splitlines()), nl=False)
        return 0
    path = Path(output)
    files = {path: text} | ({path.with_name(_ENV_FILE): variables} if variables else {})
    for each in files:
        if each.exists() and not force:
            raise ConfigError(f"{each} is there already: --force overwrites it, --output names another file")
    for each, content in files.items():
        try:
            each.write_text(content)
        except OSError as error:
            raise ConfigError(f"can't write {each}: {error.strerror}") from None
    _summarize(found, files)
    return 0


def _env_value(value: str) -> str:
    """Return a value as an environment file has it: in quotes if it would be read otherwise without."""
    if value == value.strip() and not value.startswith(("'", '"')) and not re.search(r"[\r\n]|\s#|^#", value):
        return value
    quoted = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n").replace("\r", r"\r")
    return f'"{quoted}"'


def _translate(server: str, words: list[str], process: str) -> Translation:
    if len(words) > 2 and words[0].rpartition("/")[2].startswith("python") and words[1] == "-m":
        words = words[2:]
    program = words[0].rpartition("/")[2] if words else ""
    match server:
        case "procfile":
            return procfile.from_file(Path(words[0] if words else "Procfile"), process)
        case "uvicorn":
            return uvicorn.from_command(words[1:] if program == "uvicorn" else words)
        case _ if len(words) <= 1 and (not words or words[0].endswith(".py")):
            return gunicorn.from_file(Path(words[0] if words else "gunicorn.conf.py"))
        case _:
            return gunicorn.from_command(words[1:] if program == "gunicorn" else words)


def _summarize(found: Translation, files: dict[Path, str]) -> None:
    """Say on standard error what was written, and what needs a look."""
    click.echo(f"wrote {' and '.join(map(str, files))} with {len(found.options)} options", err=True)
    for remark in found.missing:
        click.echo(f"no counterpart: {remark}", err=True)
    click.echo(f"next: cluster2 check{'' if found.target else ' TARGET'}", err=True)
