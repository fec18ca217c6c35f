"""Lines of a Procfile, and whole command lines, that start gunicorn or uvicorn."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

from ..errors import ConfigError
from . import gunicorn, uvicorn
from .translation import Translation

_SERVERS: Mapping[str, Callable[[Sequence[str]], Translation]] = {
    "gunicorn": gunicorn.from_command,
    "uvicorn": uvicorn.from_command,
}
_WORKERS = re.compile(r"\$(?:WEB_CONCURRENCY\b|\{WEB_CONCURRENCY(:-\d+)?\})")
_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_PORT = re.compile(r"\$(?:PORT\b|\{PORT(:-(?P<default>\d+))?\})")
_LISTENS_ON_PORT = re.compile(rf"(-b|--bind=|--port=)?([^/=]*:)?{_PORT.pattern}")


def from_file(path: Path, process: str = "web") -> Translation:
    """Translate the line of a process type in a Procfile: `web: gunicorn app:app -w 4`.

    Raises:
        ConfigError: the file can't be read, has no such line, or the line starts another server.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read {path}: {getattr(error, 'strerror', error)}") from None
    lines = dict(re.findall(r"^(\w[\w-]*):\s*(.+?)\s*$", text, re.MULTILINE))
    if process not in lines:
        raise ConfigError(f"{path} has no process {process!r}; it has {', '.join(lines) or 'none'}")
    return from_command(lines[process])


def from_command(command: str) -> Translation:
    """Translate a command line as a shell has it.

    Leading variables (`NAME=value gunicorn …`) become variables of the app. `$PORT` becomes the variable PORT, which cluster2
    reads by itself, and so does `$WEB_CONCURRENCY`.

    Raises:
        ConfigError: it does not start gunicorn or uvicorn.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"{command!r} is no command line: {error}") from None
    environment = {}
    while words and (match := _VARIABLE.fullmatch(words[0])):
        environment[match[1]] = match[2]
        words = words[1:]
    if words[:1] == ["exec"]:
        words = words[1:]
    if len(words) > 2 and PurePath(words[0]).name.startswith("python") and words[1] == "-m":
        words = words[2:]
    name = PurePath(words[0]).name if words else ""
    if name not in _SERVERS:
        raise ConfigError(f"{command!r} starts {name or 'nothing'}; gunicorn and uvicorn can be translated")
    from_port = [_LISTENS_ON_PORT.fullmatch(word) for word in words]
    given = [_PORT.sub(lambda match: match["default"] or "8000", word) for word in words[1:]]
    found = _SERVERS[name]([_WORKERS.sub("1", word) for word in given])
    found.origin = f"`{command}`"
    found.environment |= environment
    if (
        any(_WORKERS.search(word) for word in words) or "workers" in found.notes
    ):  # the note is on the other server's default
        found.options.pop("workers", None)
        found.notes.pop("workers", None)
        found.unneeded.append("$WEB_CONCURRENCY: cluster2 reads the variable by itself, where workers is not set")
    if any(from_port):
        _take_port_from_the_environment(found)
    return found


def _take_port_from_the_environment(found: Translation) -> None:
    """Replace the address by its host: the port comes from the variable PORT."""
    if len(found.options.get("bind", ())) > 1:
        found.missing.append("$PORT: cluster2 reads the variable PORT only without bind; bind has the port to be used")
        return
    bind = found.options.pop("bind", None)
    found.options.pop("port", None)
    found.notes.pop("bind", None)
    if bind:
        found.options["host"] = str(bind[0]).rpartition(":")[0] or "0.0.0.0"
    found.unneeded.append("$PORT: cluster2 reads the variable PORT by itself, where no port is set")
