"""A cluster for end-to-end tests: started by the command line, on a free port, with its files in a directory of the test's."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ClusterError, NoAnswer, NotRunning
from ..linux.processes import set_parent_death_signal
from ..runtime.control_client import ControlClient

if TYPE_CHECKING:
    import httpx

POLL_INTERVAL_S = 0.02
"""Seconds between two looks for what a test waits for."""


class RunningCluster:
    """A cluster that serves an app for a test.

    It is an ordinary `cluster2 run`: the master, its workers, its reload and its logs are those of production. Use it as a context
    manager, or call `close`.

    Args:
        target: the app, as on the command line: `module:attr` or `path/file.py:attr`.
        directory: for logs and pid files; it must exist.
        chdir: the app's working directory, which is on its import path.
        env: variables of the cluster, besides those of this process.
        timeout: seconds that anything may take: start, reload, replacement, end.
        options: options of cluster2 by their names, as of `Cluster`: `workers=2`, `ecv={"control": True}`.

    Raises:
        ClusterError: the cluster does not start; the text has its output.
    """

    def __init__(
        self,
        target: str,
        directory: Path,
        *,
        chdir: Path | str = ".",
        env: dict[str, str] | None = None,
        timeout: float = 30.0,
        **options: object,
    ) -> None:
        self.directory = Path(directory)
        self.timeout = timeout
        self._output = self.directory / "output.txt"
        given = {"workers": 2, "bind": "127.0.0.1:0", "monitor_port": 0} | options
        files = {"pids": self.directory / "pids", "logs": self.directory / "logs", "chdir": Path(chdir).resolve()}
        command = [sys.executable, "-P", "-m", "cluster2", "run", target, *_flags({**files, **given})]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | (env or {}),
                # The cluster ends with a test run that is killed. The kernel ties this to the thread that starts the process:
                # another thread than the main one may end long before the tests do.
                preexec_fn=_end_with_parent if threading.current_thread() is threading.main_thread() else None,
            )
        self._client = ControlClient(self.directory / "pids")
        try:
            self._await(self._is_ready, "it is ready")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunningCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def output(self) -> str:
        """The standard error of the master, and with `log_to = both` that of the workers."""
        return self._output.read_text(errors="replace")

    @functools.cached_property
    def address(self) -> tuple[str, int]:
        """Host and port of the first TCP address that is served."""
        host, _, port = self.status()["addresses"][0].rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def url(self) -> str:
        """The app's URL without a path: `http://127.0.0.1:43211`."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @functools.cached_property
    def client(self) -> httpx.Client:
        """A client of httpx whose base URL is the app's. It needs httpx."""
        import httpx

        return httpx.Client(base_url=self.url, timeout=self.timeout)

    @property
    def async_client(self) -> httpx.AsyncClient:
        """A new asynchronous client of httpx, to be used in `async with`. It needs httpx."""
        import httpx

        return httpx.AsyncClient(base_url=self.url, timeout=self.timeout)

    def get(self, path: str = "/") -> bytes:
        """Return the body of a response to GET. Raises OSError: the status is 400 or more, or nothing answers."""
        with urllib.request.urlopen(self.url + path, timeout=self.timeout) as response:
            return bytes(response.read())

    def status(self) -> dict[str, Any]:
        """Return the status of the cluster, as `cluster2 status --json` shows it. Raises ClusterError: no master answers."""
        return self._client.call("status", timeout=self.timeout)

    def workers(self) -> list[dict[str, Any]]:
        """Return the status of the workers that are ready."""
        return [each for each in self.status()["workers"] if each["state"] == "ready"]

    def reload(self) -> dict[str, Any]:
        """Load the app again, and return when the old workers have left.

        Raises:
            ClusterError: the new code cannot be loaded, or it serves and an old worker did not leave in order.
        """
        return self._client.call("reload", timeout=self.timeout)

    def scale(self, workers: int) -> None:
        """Change the number of workers, and return when that many serve. Raises ClusterError: it cannot be done."""
        self._client.call("scale", {"workers": workers}, timeout=self.timeout)

    def kill_worker(self, slot: int = 0) -> int:
        """Kill a worker by SIGKILL, and return when its successor is ready.

        Returns:
            The successor's pid.

        Raises:
            ValueError: no worker is ready in that slot.
            ClusterError: no successor becomes ready in time.
        """
        pids = [worker["pid"] for worker in self.workers() if worker["slot"] == slot]
        if not pids:
            raise ValueError(f"no worker is ready in slot {slot}")
        os.kill(pids[0], signal.SIGKILL)
        found: list[int] = []

        def replaced() -> bool:
            found[:] = [w["pid"] for w in self.workers() if w["slot"] == slot and w["pid"] != pids[0]]
            return bool(found)

        self._await(replaced, f"the worker in slot {slot} is replaced")
        return found[0]

    def shutdown(self) -> int:
        """Shut down gracefully. Returns the exit code of the master."""
        with contextlib.suppress(NotRunning, NoAnswer):
            self._client.send_and_wait_for_exit("shutdown", timeout=self.timeout)
        return self._process.wait(self.timeout)

    def close(self) -> None:
        """End the cluster at once if it still runs: nothing of it is left."""
        if "client" in self.__dict__:
            self.client.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise ClusterError(f"the cluster ended with exit code {self._process.returncode}:\n{self.output}")
        try:
            status = self.status()
        except (NotRunning, NoAnswer):
            return False
        ready = sum(each["state"] == "ready" for each in status["workers"])
        return bool(ready >= status["wanted"] > 0)

    def _await(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + self.timeout
        while not condition():
            if time.monotonic() > deadline:
                raise ClusterError(f"waited {self.timeout:g} s until {what}:\n{self.output}")
            time.sleep(POLL_INTERVAL_S)


def _end_with_parent() -> None:
    set_parent_death_signal(signal.SIGTERM)


def _flags(options: Mapping[str, object]) -> list[str]:
    """Return options as flags. None counts as not given, and a mapping is a table: `ecv={"control": True}`."""
    found = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, Mapping):
            found += _flags({f"{name}_{key}": each for key, each in value.items()})
        elif isinstance(value, bool):
            found.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            for each in value if isinstance(value, list | tuple) else [value]:
                found += [f"--{flag}", str(each)]
    return found
