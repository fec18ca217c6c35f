"""`breakpoint()` in a worker."""

from __future__ import annotations

import pdb
import sys
from typing import Any

HOOK = f"{__name__}.set_trace"
"""The value of PYTHONBREAKPOINT that names `set_trace`."""


def set_trace(*, header: str | None = None, **options: Any) -> None:
    """Start the debugger of the standard library in the calling frame.

    Unlike `pdb.set_trace` it does not take SIGINT: after `continue` a Ctrl-C would stop the worker in the debugger again, and
    the cluster that the same Ctrl-C shuts down would wait for it.

    Args:
        header: a line that is shown first.
        options: as of `pdb.Pdb`.
    """
    debugger = pdb.Pdb(nosigint=True, **options)
    if header is not None:
        debugger.message(header)
    debugger.set_trace(sys._getframe().f_back)
