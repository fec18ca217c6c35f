"""Lines of a Procfile."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster2.errors import ConfigError
from cluster2.migration import procfile


def test_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of a process is translated, with its variables; $PORT is left to the variable PORT."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "Procfile"
    path.write_text("release: ./migrate\nweb: STAGE=test gunicorn shop.wsgi -w 3 --bind 0.0.0.0:$PORT\n")
    found = procfile.from_file(path)
    assert (found.target, found.environment) == ("shop.wsgi", {"STAGE": "test"})
    assert (found.options["workers"], found.options["host"]) == (3, "0.0.0.0")
    assert "bind" not in found.options
    assert "$PORT" in found.toml()


@pytest.mark.parametrize(
    "command",
    [
        "uvicorn shop:app --port ${PORT:-8000}",
        "exec python3 -m uvicorn shop:app --port=$PORT",
        ".venv/bin/uvicorn shop:app --port $PORT",
    ],
)
def test_ways_to_start_a_server(command: str) -> None:
    """A server is found behind `exec`, a path or `python -m`."""
    found = procfile.from_command(command)
    assert found.target == "shop:app"
    assert "port" not in found.options


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("worker: celery\n", "has no process 'web'; it has worker"),
        ("web: daphne shop:app\n", "starts daphne; gunicorn and uvicorn can be translated"),
        ("web: gunicorn 'a\n", "is no command line: No closing quotation"),
        ("web: A=1\n", "starts nothing"),
    ],
)
def test_what_cannot_be_translated(tmp_path: Path, text: str, says: str) -> None:
    """The error names the line's fault."""
    (tmp_path / "Procfile").write_text(text)
    with pytest.raises(ConfigError, match=says):
        procfile.from_file(tmp_path / "Procfile")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("gunicorn shop -b unix:/run/s.sock -b 0.0.0.0:$PORT", {"bind": ["unix:/run/s.sock", "0.0.0.0:8000"]}),
        ("gunicorn shop -b :8001 -e HOME=http://x:$PORT/", {"bind": [":8001"]}),
        ("gunicorn shop -b [::]:${PORT}", {"host": "[::]"}),
        ("gunicorn shop -b0.0.0.0:$PORT", {"host": "0.0.0.0"}),
    ],
)
def test_the_variable_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, options: object) -> None:
    """$PORT replaces an address only where it is the port of the only one."""
    monkeypatch.chdir(tmp_path)
    found = procfile.from_command(command).options
    assert {name: found[name] for name in ("bind", "host", "port") if name in found} == options


def test_a_variable_whose_name_begins_with_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PORT_NUMBER is not $PORT."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="PORT_NUMBER"):
        procfile.from_command("uvicorn shop:app --port $PORT_NUMBER")


def test_the_number_of_workers_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$WEB_CONCURRENCY is left to the variable."""
    monkeypatch.chdir(tmp_path)
    for command in ("gunicorn shop -w $WEB_CONCURRENCY", "uvicorn a:b --workers=${WEB_CONCURRENCY:-2}"):
        found = procfile.from_command(command)
        assert "workers" not in found.options
        assert "$WEB_CONCURRENCY" in found.toml()


def test_workers_of_the_platform() -> None:
    """Without a number of workers the variable WEB_CONCURRENCY counts, as with gunicorn and uvicorn."""
    for command in ("gunicorn shop:app", "uvicorn shop:app", "gunicorn -w $WEB_CONCURRENCY shop:app"):
        found = procfile.from_command(command)
        assert "workers" not in found.options
        assert "WEB_CONCURRENCY" in found.toml()
    assert procfile.from_command("gunicorn -w 3 shop:app").options["workers"] == 3
