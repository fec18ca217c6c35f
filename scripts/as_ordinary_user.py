"""Run a command as an ordinary user without capabilities.

Usage: as root, python scripts/as_ordinary_user.py COMMAND [ARGUMENT ...]

The user is nobody, with no capability in any set, and a temporary directory of its own. Where it could not reach this tree or the
interpreter, because they are below somebody's closed home directory, the command gets a mount namespace: there an empty directory
takes the place of the closed one, and only the two are mounted into it. Nothing is changed outside.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USER = "nobody"
LAST_CAPABILITY = 63
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 4096, 16384, 1 << 18
PR_CAPBSET_DROP = 24

libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Run the command, and return its exit code."""
    if os.geteuid() != 0:
        print("as_ordinary_user.py: only root can become another user", file=sys.stderr)
        return 2
    user = pwd.getpwnam(USER)
    needed = [ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    directory = tempfile.mkdtemp(prefix="cluster2-", dir="/tmp")
    os.chown(directory, user.pw_uid, user.pw_gid)
    environment = dict(
        os.environ,
        HOME=directory,
        TMPDIR=directory,
        USER=USER,
        LOGNAME=USER,
        PYTHONDONTWRITEBYTECODE="1",
        HYPOTHESIS_STORAGE_DIRECTORY=f"{directory}/hypothesis",
    )

    def become() -> None:
        _uncover(needed)
        _drop(user)
        os.chdir(ROOT)  # in the new namespace

    try:
        return subprocess.run(sys.argv[1:], env=environment, preexec_fn=become).returncode
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _uncover(needed: Iterable[Path]) -> None:
    """Make these directories reachable for every user, in a mount namespace of our own if they are not."""
    closed: dict[Path, list[Path]] = {}
    for path in needed:
        above = [each for each in reversed(path.parents) if not each.stat().st_mode & stat.S_IXOTH]
        if above:
            closed.setdefault(above[0], []).append(path)
    if not closed:
        return
    _check(libc.unshare(CLONE_NEWNS), "unshare")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    for cover, paths in closed.items():
        kept = {path: os.open(path, os.O_PATH) for path in paths}
        _mount("tmpfs", str(cover), "tmpfs", 0, "mode=755")
        for path, fd in kept.items():
            path.mkdir(parents=True, exist_ok=True)
            _mount(f"/proc/self/fd/{fd}", str(path), None, MS_BIND | MS_REC)
            os.close(fd)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if each is None else each.encode() for each in (source, target, kind, data)]
    _check(libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def _drop(user: pwd.struct_passwd) -> None:
    """Become this user, for good: no program that is executed gets a capability back."""
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # an error for those that this kernel does not have
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    sys.exit(main())
