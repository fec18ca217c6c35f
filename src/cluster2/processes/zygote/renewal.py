"""What modules keep for one process is made a worker's own after the fork.

Python's own modules see to that by at-fork handlers: `random` seeds its global generator anew, `logging` its locks, `tempfile`
and `uuid` look at the pid or ask the kernel. Two that an app often brings don't:

- *NumPy's global generator* (`numpy.random.random` and the like) would draw the same numbers in each worker, and again in each
  that replaces one. It is seeded from the kernel. Generators that the app has made itself (`numpy.random.default_rng`,
  `random.Random`) can't be found; the docs say so.
- *multiprocessing* would have each worker, at its exit, join processes that the import has started: those are the zygote's, and
  each would be an error. It forgets them, as it does in processes that it forks itself.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

logger = logging.getLogger("cluster2.zygote")


def renew() -> None:
    """Do that, for those modules that are loaded."""
    for name, step in (("multiprocessing.process", _disown_children), ("numpy.random", _seed_numpy)):
        if (module := sys.modules.get(name)) is not None:
            try:
                step(module)
            except Exception:
                logger.exception("%s can't be made this worker's own; it is as the import has left it", name)


def _disown_children(module: Any) -> None:
    module._children.clear()


def _seed_numpy(module: Any) -> None:
    try:
        module.seed()
    except TypeError:  # the app has put another bit generator in its place, which can't be seeded again
        module.set_bit_generator(type(module.get_bit_generator())())
