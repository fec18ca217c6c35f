"""Runs a command to which the kernel refuses to steer: `python forbidding.py COMMAND …`.

A filter of system calls (seccomp(2)) answers setsockopt(SO_ATTACH_REUSEPORT_CBPF) with EPERM, as a sandbox does. It is inherited,
and can't be taken off.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

SETSOCKOPT = {"x86_64": 54, "aarch64": 208}
SO_ATTACH_REUSEPORT_CBPF = 51
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
CALL, OPTION = 0, 16 + 2 * 8  # in struct seccomp_data: the number, the third argument


def forbid() -> None:
    """From now on, for this process and all that come of it."""
    steps = [
        (LOAD, 0, 0, CALL),
        (EQUAL, 0, 3, SETSOCKOPT[platform.machine()]),
        (LOAD, 0, 0, OPTION),
        (EQUAL, 0, 1, SO_ATTACH_REUSEPORT_CBPF),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    given = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, given)):
        if libc.prctl(*words) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid()
    os.execvp(sys.argv[1], sys.argv[1:])
