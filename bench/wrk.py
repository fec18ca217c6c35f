"""Run wrk, the closed-loop load that saturates a server, and read its report."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

from bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class Report:
    """The counts of wrk.

    Attributes:
        errors: connections that failed, and responses other than 2xx or 3xx.
    """

    requests: int
    seconds: float
    errors: int

    @property
    def rate(self) -> float:
        """Return the requests a second."""
        return self.requests / self.seconds


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def read_report(text: str) -> Report:
    """Read the output of wrk.

    Raises:
        BenchError: the text isn't a report.
    """
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m|h)\b", text)
    if total is None:
        raise BenchError(f"wrk printed no total: {text.strip()[-200:]!r}")
    errors = 0
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    if broken is not None:
        errors += sum(map(int, broken.groups()))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if refused is not None:
        errors += int(refused.group(1))
    return Report(int(total.group(1)), float(total.group(2)) * _UNITS[total.group(3)], errors)


def load(url: str, *, connections: int, seconds: int, close: bool = False, body: int = 0) -> Report:
    """Load a server with as many requests as it takes.

    wrk has one thread. It shares the cores with the server, and more threads would only add switches.

    Args:
        connections: the number of connections in use at a time.
        close: a connection for each request.
        body: bytes that each request uploads; 0: the request is a GET.

    Raises:
        BenchError: wrk isn't installed, or didn't finish.
    """
    program = shutil.which("wrk")
    if program is None:
        raise BenchError("wrk is not installed: apt-get install wrk")
    header = ["-H", "Connection: close"] if close else []
    command = [program, "-t1", f"-c{connections}", f"-d{seconds}s", *header]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if body:
            script.write(f'wrk.method = "POST"\nwrk.body = string.rep("x", {body})\n')
            script.flush()
            command += ["-s", script.name]
        command.append(url)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
        except subprocess.TimeoutExpired:
            raise BenchError(f"wrk did not end within {seconds + 30} s: {' '.join(command)}") from None
    if done.returncode:
        raise BenchError(f"wrk failed: {(done.stderr or done.stdout).strip()[-200:]}")
    return read_report(done.stdout)
