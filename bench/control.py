"""Commands from a measurement to cluster2's master, over `master.sock` in its pids directory.

An open connection can carry a command each millisecond. Starting `cluster2 status` takes a hundred times as
long, and takes CPU time from the servers that are measured.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError

TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Status:
    """The master's report of its processes.

    Attributes:
        workers: the state by pid; a "ready" worker serves.
        keeper: the keeper's pid; None: there is none.
        raw: the whole response.
    """

    workers: dict[int, str]
    keeper: int | None
    raw: dict[str, Any]

    @property
    def ready(self) -> frozenset[int]:
        """Return the pids of the workers that serve."""
        return frozenset(pid for pid, state in self.workers.items() if state == "ready")


def read_answer(line: bytes) -> dict[str, Any]:
    """Read a final response.

    Raises:
        BenchError: the master refused.
    """
    answer = json.loads(line)
    if not answer.get("ok"):
        raise BenchError(f"the master refused: {answer.get('error', {}).get('message', answer)}")
    result: dict[str, Any] = answer["result"]
    return result


def read_status(result: dict[str, Any]) -> Status:
    """Read the result of the command `status`."""
    workers = {worker["pid"]: worker["state"] for worker in result["workers"] if worker["pid"]}
    keeper = result.get("keeper") or {}
    return Status(workers, keeper.get("pid"), result)


class Master:
    """A connection to the master, as a context manager.

    Raises:
        BenchError: no master answers there.
    """

    def __init__(self, pids: Path) -> None:
        self._pids = pids
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        try:
            self._socket.connect(str(pids / "master.sock"))
        except OSError as error:
            self._socket.close()
            raise BenchError(f"the master of {pids} doesn't answer: {error}") from None
        self._lines = self._socket.makefile("rb")

    def status(self) -> Status:
        """Request the status without memory, whose collection takes milliseconds in which the master replaces no worker."""
        try:
            self._socket.sendall(b'{"verb": "status", "params": {"memory": false}}\n')
            line = self._lines.readline()
        except OSError as error:
            raise BenchError(f"the master of {self._pids} doesn't answer: {error}") from None
        if not line:
            raise BenchError(f"the master of {self._pids} is gone")
        return read_status(read_answer(line))

    def __enter__(self) -> Master:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()


class Asking:
    """A command that takes long, over a connection of its own, as a context manager.

    Raises:
        BenchError: no master answers there.
    """

    def __init__(self, pids: Path, verb: str, params: dict[str, Any]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._buffer = b""
        try:
            self._socket.connect(str(pids / "master.sock"))
            self._socket.sendall(json.dumps({"verb": verb, "params": params}).encode() + b"\n")
        except OSError as error:
            self._socket.close()
            raise BenchError(f"the master of {pids} doesn't answer: {error}") from None

    def answered(self, seconds: float) -> dict[str, Any] | None:
        """Return the response, if it arrives within this many seconds. Skip progress. Raise BenchError if the master refused."""
        self._socket.settimeout(seconds)
        try:
            more = self._socket.recv(65536)
        except TimeoutError:
            return None
        if not more:
            raise BenchError("the master is gone")
        *lines, self._buffer = (self._buffer + more).split(b"\n")
        for line in lines:
            if "progress" not in json.loads(line):
                return read_answer(line)
        return None

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def ask(pids: Path, verb: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the response to a command, however long it takes."""
    with Asking(pids, verb, params) as asking:
        while (answer := asking.answered(TIMEOUT)) is None:
            pass
        return answer


def status(pids: Path) -> Status:
    """Request the status once."""
    with Master(pids) as master:
        return master.status()


def command(pids: Path, *words: str) -> None:
    """Run `cluster2 WORDS… --pids DIR` to its end.

    Raises:
        BenchError: it failed.
    """
    line = [sys.executable, "-m", "cluster2", *words, "--pids", str(pids)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BenchError(f"cluster2 {' '.join(words)} failed: {done.stderr.strip()[-300:]}")
