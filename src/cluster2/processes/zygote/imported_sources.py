"""Report the folders that the app was imported from, for development mode.

`cluster2 dev` watches the packages that the app uses, which only the process that has imported it knows. It names a file in a
variable; each zygote writes the folders there, one a line, also if the import has failed: the next edit is to be noticed
then, too.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from ...runtime.development import SOURCES_VARIABLE
from .bytecode import is_installed


def record() -> None:
    """Write the folders of the modules that are imported now, if development mode asks for them. Errors are ignored."""
    path = os.environ.pop(SOURCES_VARIABLE, None)
    if path is None:
        return
    temporary = Path(f"{path}.{os.getpid()}")
    with contextlib.suppress(OSError):  # without the list the working directory is watched all the same
        temporary.write_text("".join(f"{folder}\n" for folder in folders(list(sys.modules.values()))))
        temporary.replace(path)


def folders(modules: Iterable[ModuleType]) -> list[str]:
    """Return the folder of each top-level package or module among these, without the standard library and installed ones."""
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = set()
    for module in modules:
        file = getattr(module, "__file__", None)
        name = getattr(module, "__name__", "")
        if not isinstance(file, str) or not isinstance(name, str) or not file.endswith(".py"):
            continue
        file = os.path.abspath(file)
        if is_installed(file) or file.startswith(own + os.sep):
            continue
        # a.b.c lies two folders below that of the package a; an __init__.py is the package itself.
        depth = name.count(".") + (os.path.basename(file) == "__init__.py")
        folder = os.path.dirname(file)
        for _ in range(depth - 1):
            folder = os.path.dirname(folder)
        found.add(folder)
    return sorted(found)
