"""The examples of delegated work, started as a user would."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.system.clients import get
from tests.system.harness import EXAMPLES, Running, wait_until

Start = Callable[..., Running]
ENV = {"CLUSTER2_MONITOR_PORT": "0"}


def test_config_reader(start: Start, tmp_path: Path) -> None:
    """All workers have what the file says, also after it has changed."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"greeting": "hello"}))
    running = start([sys.executable, str(EXAMPLES / "config_reader.py"), "0", str(file)], env=ENV).ready()
    assert get(running.address).body == b"hello"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"greeting": "good morning"}))
    os.replace(other, file)
    wait_until(lambda: {get(running.address).body for _ in range(10)} == {b"good morning"}, "all have the new one")
    assert running.shutdown() == 0


def test_remote_logger(start: Start, tmp_path: Path) -> None:
    """Each request is a line of the one file, also the last ones before the end."""
    log = tmp_path / "requests.log"
    running = start([sys.executable, str(EXAMPLES / "remote_logger.py"), "0", str(log)], env=ENV).ready()
    pids = {str(row["pid"]) for row in running.workers()}
    for number in range(50):
        assert get(running.address, f"/{number}").body == b"hello"
    assert running.shutdown() == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    # Nothing orders what two workers say.
    assert sorted(path for _, path in lines if path != "/") == sorted(f"/{number}" for number in range(50))
    assert {pid for pid, _ in lines} <= pids


def test_rate_limiter(start: Start) -> None:
    """The workers together let through as many requests as one bucket has tokens."""
    running = start([sys.executable, str(EXAMPLES / "rate_limiter.py"), "0", "0.001"], env=ENV).ready()
    assert [get(running.address).status for _ in range(10)] == [200] + [429] * 9
    assert running.shutdown() == 0
