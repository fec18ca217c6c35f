"""Renew in a worker, after the fork, the state that modules keep for one process.

Python's own modules do that by at-fork handlers: `random` seeds its global generator anew, `logging` renews its locks, `tempfile`
and `uuid` check the pid or ask the kernel. Two modules that apps often import don't:

- *NumPy's global generator* (`numpy.random.random` and the like) would draw the same numbers in each worker, and again in each
  worker that replaces one. It is seeded from the kernel. Generators that the app has made itself (`numpy.random.default_rng`,
  `random.Random`) can't be found, and the docs say so.
- *multiprocessing* would have each worker, at its exit, join processes that the import has started. Those are the zygote's, and
  each would be an error. It forgets them, as it does in processes that it forks itself.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

logger = logging.getLogger("cluster2.zygote")


def renew() -> None:
    """Renew the modules that are loaded."""
    for name, step in (("multiprocessing.process", _disown_children), ("numpy.random", _seed_numpy)):
        if (module := sys.modules.get(name)) is not None:
            try:
                step(module)
            except Exception:
                logger.exception("%s can't be renewed for this worker; its state is that of the import", name)


def _disown_children(module: Any) -> None:
    module._children.clear()


def _seed_numpy(module: Any) -> None:
    try:
        module.seed()
    # The app has installed another bit generator, which can't be seeded again: a new one of its kind takes its place.
    except TypeError:
        module.set_bit_generator(type(module.get_bit_generator())())
