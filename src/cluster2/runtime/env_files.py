r"""Read environment files: variables for the app, one on each line.

There is no standard. systemd, Docker and a dozen libraries read such files and differ in quotes, comments and expansion. This
module accepts only what most of them agree on, and refuses the rest rather than guess:

| line | value |
|---|---|
| `NAME=some text` | the text without white space around it, up to ` #`, which begins a comment |
| `NAME='some text'` | the text between the quotes, unchanged |
| `NAME="some\ntext"` | the text between the quotes, with `\n`, `\r`, `\t`, `\"`, `\'`, `\$` and `\\` as in a shell or in C |

`export` before the name, empty lines, and lines that begin with `#` are allowed, and so is a byte order mark. A quote that
isn't closed on its line, and anything but a comment after a closing one, are errors. Variables aren't expanded: `$HOME` is these
five characters.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ConfigError

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=(.*)", re.ASCII | re.DOTALL)
_SINGLE = re.compile(r"'([^']*)'(?:\s+#.*)?")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"(?:\s+#.*)?')
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def read(path: Path) -> dict[str, str]:
    """Return the variables of an environment file.

    Raises:
        ConfigError: the file can't be read, or a line is invalid; the message names the first such line.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    found = {}
    # Not splitlines: it also splits at characters (form feed, U+2028) that a value may have.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or "\0" in line:
            raise ConfigError(f"{path}:{number}: expected NAME=value")
        try:
            found[match[1]] = _value(match[2])
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}") from None
    return found


def _value(text: str) -> str:
    """Return the value of the text after the equals sign. Raises ValueError: its quotes are wrong."""
    quoted = text.strip()
    if not quoted.startswith(("'", '"')):
        return re.split(r"\s+#", text, maxsplit=1)[0].strip()
    double = quoted[0] == '"'
    match = (_DOUBLE if double else _SINGLE).fullmatch(quoted)
    if match is None:
        raise ValueError(f"expected a closing {quoted[0]}, and nothing but a comment behind it")
    return re.sub(r"\\([nrt\"'$\\])", lambda found: _ESCAPED.get(found[1], found[1]), match[1]) if double else match[1]
