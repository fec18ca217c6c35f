"""Defaults that give way if they aren't available."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from cluster2.errors import AddressInUse
from cluster2.processes import places
from cluster2.runtime import option_sources
from cluster2.runtime.option_sources import Config


def load(directory: Path, **given: Any) -> Config:
    return option_sources.load(given, environ={}, directory=directory)


def test_ports_of_a_monitor(tmp_path: Path) -> None:
    """Return the default and the ports after it, but for the cluster's own; a port that is set, or 0, is the only one."""
    assert places.monitor_ports(load(tmp_path))[:2] == [3001, 3002]
    busy = {"bind": ["127.0.0.1:3001", "unix:a"], "ecv": {"agent_port": 3002}}
    assert places.monitor_ports(load(tmp_path, **busy))[:2] == [3003, 3004]
    assert places.monitor_ports(load(tmp_path, monitor_port=3001)) == [3001]
    assert places.monitor_ports(load(tmp_path, monitor_port=0)) == [0]


def test_the_first_free_port(tmp_path: Path) -> None:
    """Skip ports that are in use; if all are, name the last one."""
    settings = load(tmp_path).settings
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        busy = [one.getsockname()[1], other.getsockname()[1]]
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{busy[1]} is in use"):
            places.first_free(settings, busy)
        listener = places.first_free(settings, [*busy, 0])
        listener.close()


def test_pids_that_can_be_written_stay(tmp_path: Path) -> None:
    """Leave a directory alone that can be created, that exists, or that was set explicitly, and don't create it."""
    for given in ({}, {"pids": "/proc/none"}, {"cluster": False, "pids": "/proc/none"}):
        wanted = load(tmp_path, **given)
        with places.with_writable_pids(wanted) as found:
            assert found is wanted
    assert not (tmp_path / "pids").exists()


def test_pids_that_cannot_be_written(tmp_path: Path) -> None:
    """Replace the default by a temporary directory, which is removed at the end, with a warning that says how to use it."""
    (tmp_path / "pids").write_text("a file")
    with places.with_writable_pids(load(tmp_path)) as found:
        place = found.settings.pids
        assert os.stat(place).st_mode & 0o777 == 0o700
        assert found.warnings == (
            f"{tmp_path}/pids can't be written, so pids are in {place}: give --pids {place} to other commands, or set pids",
        )
        assert not found.explicit("pids")
    assert not os.path.exists(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_working_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """Replace the default also where an ordinary user may not write."""
    tmp_path.chmod(0o500)
    with places.with_writable_pids(load(tmp_path)) as found:
        assert found.settings.pids != f"{tmp_path}/pids"
    tmp_path.chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search everywhere")
def test_a_working_directory_that_cannot_be_searched(tmp_path: Path) -> None:
    """Start in a home directory that can't be searched (`sudo -u www-data cluster2 run`): no option file, and no traceback."""
    (tmp_path / "cluster2.toml").write_text("workers = 7\n")
    tmp_path.chmod(0o600)
    try:
        assert load(tmp_path, chdir="/").sources["workers"] == "default"
    finally:
        tmp_path.chmod(0o700)


def test_no_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the default if there is no temporary directory either: the start fails with the error of ./pids."""
    (tmp_path / "pids").write_text("a file")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    wanted = load(tmp_path)
    with places.with_writable_pids(wanted) as found:
        assert found is wanted
