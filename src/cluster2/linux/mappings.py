"""Shared mappings of a file that leave no descriptor behind.

The standard library's `mmap` keeps a duplicate of the descriptor for as long as the mapping exists (until Python 3.13, which has
`trackfd`). That is wrong here twice: it costs each process a descriptor for each mapping, and code that finds the duplicate of a
writable descriptor in /proc/self/fd can map the parts that were never meant for it. So this module calls mmap(2) itself.

A view of memory that is unmapped would crash the process when used. The memory is therefore unmapped when the last view of it is
gone, not earlier, and there is no way to do it by hand.

The permissions of a mapping are final: mprotect(2) can't add PROT_WRITE to a shared mapping of a descriptor that was opened for
reading only, or of a memfd that has been sealed with F_SEAL_FUTURE_WRITE.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import cache
from typing import Any, Final

PAGE_BYTES: Final = mmap.PAGESIZE
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def map_shared(fd: int, size: int, offset: int = 0, *, writable: bool) -> memoryview[int]:
    """Map a part of a file and return its bytes; without `writable` the view and the pages are read-only.

    Args:
        size: bytes, all of them within the file: access to a page behind its end is a SIGBUS.
        offset: bytes, a multiple of `PAGE_BYTES`.
    Raises:
        OSError: EACCES (the descriptor wasn't opened for that), EPERM (a seal forbids it), ENOMEM, EBADF, ENODEV.
    """
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc().mmap(None, size, protection, mmap.MAP_SHARED, fd, offset)
    if address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    # A subclass of its own, since plain ctypes arrays can't be referred to weakly.
    kind: Any = type("_Memory", (ctypes.c_ubyte * size,), {})
    memory = kind.from_address(address)
    # At exit the kernel unmaps it: views may be in use until then.
    weakref.finalize(memory, _libc().munmap, address, size).atexit = False
    view = memoryview(memory).cast("B")
    return view if writable else view.toreadonly()
