"""Options of uvicorn: all are classified, and what becomes of them is valid."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from uvicorn.main import main as uvicorn_main

from cluster2.errors import ConfigError
from cluster2.migration import uvicorn
from cluster2.runtime import option_sources


def test_each_flag_has_a_fate() -> None:
    """The table has all flags of the installed uvicorn, and no others."""
    flags = {
        flag for param in uvicorn_main.params for flag in [*param.opts, *param.secondary_opts] if flag.startswith("--")
    }
    assert {flag.removeprefix("--") for flag in flags} - {"help"} == uvicorn.OPTIONS.keys()


def test_which_flags_take_a_value() -> None:
    """Flags take a value where uvicorn's do."""
    for param in uvicorn_main.params:
        for flag in [*param.opts, *param.secondary_opts]:
            if flag.startswith("--"):
                assert (flag.removeprefix("--") in uvicorn._SWITCHES) == getattr(param, "is_flag", False), flag


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("shop:app", {"host": "127.0.0.1", "port": 8000, "workers": 1, "access_log": True, "app": "shop:app"}),
        ("shop:app --port 80 --host 0.0.0.0 --workers 4", {"host": "0.0.0.0", "port": 80, "workers": 4}),
        ("shop:app --uds app.sock --no-access-log", {"bind": ["unix:app.sock"], "workers": 1}),
        (
            "shop:app --factory --lifespan on --log-level trace",
            {"factory": True, "lifespan": "on", "log_level": "debug"},
        ),
        ("shop:app --no-proxy-headers", {"forwarded_allow_ips": ""}),
        (
            "shop:app --limit-max-requests 10 --timeout-graceful-shutdown 5",
            {"request_threshold": 10, "drain_timeout": 5},
        ),
        ("shop:app --http2", {"engine": "granian", "http2": True}),
    ],
)
def test_what_a_command_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, options: dict[str, Any]
) -> None:
    """The options do what the flags did, and cluster2 takes them without a warning."""
    monkeypatch.chdir(tmp_path)
    found = uvicorn.from_command(command.split())
    (tmp_path / "cluster2.toml").write_text(found.toml())
    assert option_sources.load({}, check=False).warnings == ()
    plain = tomllib.loads(found.toml())
    assert {name: plain[name] for name in options} == options


@pytest.mark.parametrize(
    ("command", "says"),
    [("a:b --such", "uvicorn has no argument '--such'"), ("a:b --port x", "--port 'x': expected a number")],
)
def test_a_wrong_command(command: str, says: str) -> None:
    """The error names what uvicorn would not take."""
    with pytest.raises(ConfigError, match=says):
        uvicorn.from_command(command.split())


def test_what_has_no_counterpart() -> None:
    """A comment in the file says what to use instead."""
    text = uvicorn.from_command(["a:b", "--reload", "--header", "x:y"]).toml()
    assert "# - --reload = True: `cluster2 dev` serves the new code" in text
    assert "# - --header = ['x:y']: responses have" in text
