"""Apps whose import leaves something behind that workers can't inherit, by the variable AT_IMPORT."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from tests.system.apps.sample_apps import answer

_libc = ctypes.CDLL(None)


def parallel() -> None:
    """Run a parallel region of OpenMP, which does nothing, as code that gcc has compiled does."""
    nothing = ctypes.cast(_libc.abs, ctypes.c_void_p)
    ctypes.CDLL("libgomp.so.1").GOMP_parallel(nothing, None, 3, 0)


async def openmp(scope: Any, receive: Any, send: Any) -> None:
    """Run another parallel region in each request, on the loop's thread."""
    if scope["type"] == "http":
        parallel()
        await answer(send, b"%d" % os.getpid())


async def numpys(scope: Any, receive: Any, send: Any) -> None:
    """Answer random numbers of NumPy's global generator, and of Python's."""
    import random

    import numpy as np

    if scope["type"] == "http":
        await answer(send, b"%d %d %d" % (os.getpid(), np.random.randint(1 << 31), random.getrandbits(31)))


match os.environ.get("AT_IMPORT"):
    case "openmp":
        parallel()
    case "numpy":
        import numpy

        numpy.random.random()
