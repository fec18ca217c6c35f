"""What stands behind `cluster2.worker`: this process's hooks and, if it is a worker, its life."""

from __future__ import annotations

from typing import Any

from .life import Hook, Hooks, Life

FACTS = frozenset({"pid", "slot", "generation", "draining"})

hooks = Hooks()
_life: Life | None = None


def begin(life: Life) -> None:
    """This process is a worker from now on. Called once, by the runtime."""
    global _life
    _life = life


def current(fact: str) -> Any:
    """A fact about the worker. Raises RuntimeError outside of one."""
    if _life is None:
        if fact == "draining":
            return False
        raise RuntimeError(
            f"worker.{fact}: this process is no worker; such facts exist only inside of one, after the fork"
        )
    return getattr(_life, fact)


def on_start(hook: Hook) -> Hook:
    """Run this in each worker after the fork, before the first request: pools, threads, seeds. Sync or async."""
    hooks.start.append(hook)
    return hook


def on_stop(hook: Hook) -> Hook:
    """Run this in each worker after the last request. Sync or async."""
    hooks.stop.append(hook)
    return hook
