"""The environment of the servers that cluster2 is compared with, separate from cluster2's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.catalogue import PEERS
from bench.errors import BenchError

_HERE = Path(__file__).resolve().parent


def _run(command: list[str]) -> bool:
    return subprocess.run(command, check=False).returncode == 0


def install() -> None:
    """Make `.venv-peers` with the pinned versions. A server that needs a compiler may be missing, and isn't measured then.

    Raises:
        BenchError: a required server can't be installed.
    """
    pip = [str(PEERS / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]
    if not (PEERS / "python").exists() and not _run([sys.executable, "-m", "venv", str(PEERS.parent)]):
        raise BenchError(f"{PEERS.parent} can't be made: see above")
    if not _run([*pip, str(_HERE / "peers.txt")]):
        raise BenchError("bench/peers.txt can't be installed: see above")
    if not _run([*pip, str(_HERE / "peers-optional.txt")]):
        print("bench/peers-optional.txt is not installed (see above): not available in the figures", file=sys.stderr)
