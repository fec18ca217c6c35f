"""Copies of files as they were at one moment.

The files of a generation must not change while it serves: a certificate that is broken, or half written, on disk must not keep
a worker from being replaced. So the master copies such files into memory when the generation is loaded, and every process that
needs one opens the copy.

The copy is a memfd that is sealed against writes. It is handed on as a descriptor and opened by a path below /proc/self/fd. Each
open then has an offset of its own, which copies of a descriptor would share, and OpenSSL, granian and Python accept a path.

Every user that has the descriptor may read the copy. A private key on disk may be readable by root alone although workers run as
another user, which has the key in its memory anyway.
"""

from __future__ import annotations

import errno
import fcntl
import os

_MFD_NOEXEC_SEAL = 0x8
"""Hardened systems (`vm.memfd_noexec = 2`) refuse a memfd without it."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def take(path: str) -> int:
    """Return a descriptor of a copy of the file, which the caller closes.

    Raises:
        OSError: the file can't be read, or there is no memory for a copy.
    """
    with open(path, "rb") as file:
        content = file.read()
    descriptor = _create()
    try:
        os.fchmod(descriptor, 0o444)
        written = 0
        while written < len(content):
            written += os.write(descriptor, memoryview(content)[written:])
        # F_SEAL_WRITE fails while a writable mapping exists, and F_SEAL_SEAL makes the seals final.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _create() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("cluster2-file", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # the kernel is older than 6.3
            raise
        return os.memfd_create("cluster2-file", flags)


def path_of(descriptor: int) -> str:
    """Return the path by which the process that has this descriptor opens the copy."""
    return f"/proc/self/fd/{descriptor}"
