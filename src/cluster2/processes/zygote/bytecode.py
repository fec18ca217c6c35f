"""Ignore bytecode that may be older than its source.

CPython trusts a `.pyc` file whose header has the size of the source and its modification time, in whole seconds (PEP 3147,
`importlib`). A source may be written twice within a second, to the same size, or its time may be set on purpose (`rsync -t`,
`tar`, reproducible builds). Then the bytecode of its first version stays for ever: a reload would serve old code and report
success.

The rule here is that of git for its index ("racily clean"): a record that was made too shortly after a change proves nothing. No
program can set the kernel's time of an inode's last change (`ctime`), and a write, a rename and `utime` all renew it. So bytecode
is ignored, and written anew by the usual import machinery, unless it was written more than MTIME_MARGIN_NS after that. The cost
is one `stat` for each module. Code that is older than MTIME_MARGIN_NS when it is first imported keeps its bytecode.

Modules below `site-packages` and of the standard library are exempt. Installers write their bytecode and replace whole
directories. Unpacking a container image renews the `ctime` of all sources, but keeps the time of the bytecode: without the
exemption, a start would compile everything in it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import time
from collections.abc import Iterable
from importlib.machinery import SourceFileLoader
from types import ModuleType

from ...linux import processes

MTIME_MARGIN_NS = 2_000_000_000
"""The margin covers the second of CPython's comparison, the time between reading a source and writing its bytecode, and file
systems that keep time in steps of two seconds.
"""

_SUFFIX = ".pyc"
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_STDLIB = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_BY_HASH = 1
"""The flag of bytecode that is checked by the source's hash, or on purpose never (PEP 552): times don't matter for it."""

_read = SourceFileLoader.get_data


def install() -> None:
    """Make imports in this process, and in all that are forked from it, ignore bytecode that may be stale."""
    # The method of the class is replaced; a finder of our own would miss loaders of other packages (tracers, type checkers) that
    # derive from this class, and `spec_from_file_location`, which uses it as well.
    SourceFileLoader.get_data = _get_data  # type: ignore[method-assign,assignment]


def _get_data(self: SourceFileLoader, path: str) -> bytes:
    data = _read(self, path)
    if path.endswith(_SUFFIX) and not data[4] & _BY_HASH and may_be_stale(self.path, path):
        raise OSError(f"{path} may be older than {self.path}")  # importlib then compiles the source
    return data


def is_installed(source: str) -> bool:
    """Return whether a source belongs to the standard library or was put into its place by an installer."""
    return source.startswith(_STDLIB) or any(each in source for each in _INSTALLED)


def may_be_stale(source: str, bytecode: str) -> bool:
    """Return whether the source may have changed after it was read for this bytecode. Raises OSError if one doesn't exist."""
    if is_installed(source):
        return False
    return os.stat(bytecode).st_mtime_ns <= os.stat(source).st_ctime_ns + MTIME_MARGIN_NS


def remove_stale(modules: Iterable[ModuleType] | None = None) -> bool:
    """Remove the bytecode of loaded modules that may be stale by now, for processes that imported them without `install`.

    In script mode the user's script imports its modules before it calls this package.

    Args:
        modules: None: all that this process has loaded.

    Returns:
        True if one of them was loaded from bytecode that this process has not written itself, and so may run old code.
    """
    began_ns = _process_start_ns()
    old = False
    for module in list(sys.modules.values() if modules is None else modules):
        source, bytecode = getattr(module, "__file__", None), getattr(module, "__cached__", None)
        if not isinstance(source, str) or not isinstance(bytecode, str) or not bytecode.endswith(_SUFFIX):
            continue
        with contextlib.suppress(OSError):  # there is no bytecode, or it isn't ours to remove
            if may_be_stale(source, bytecode):
                old = old or os.stat(bytecode).st_mtime_ns < began_ns
                os.unlink(bytecode)
    return old


def _process_start_ns() -> int:
    """Return when this process was executed or forked, as nanoseconds since the epoch."""
    ticks = processes.start_ticks()
    assert ticks is not None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return int((time.time() - age_s) * 1e9)
