"""Settings of gunicorn: all are classified, and what becomes of them is valid."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gunicorn import config as gunicorn_config

from cluster2.config.settings import OPTIONS
from cluster2.errors import ConfigError
from cluster2.migration import gunicorn
from cluster2.migration.translation import Mapped, Missing, Translation, Unneeded
from cluster2.runtime import option_sources


@pytest.fixture
def valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Translation], dict[str, Any]]:
    """The options of a translation, which cluster2 takes without a warning."""
    monkeypatch.chdir(tmp_path)

    def check(found: Translation) -> dict[str, Any]:
        file = tmp_path / "cluster2.toml"
        file.write_text(found.toml())
        config = option_sources.load({}, check=False)
        assert config.warnings == ()
        plain = tomllib.loads(file.read_text())
        assert {name.partition(".")[0] for name in found.options} <= plain.keys()
        return plain

    return check


def test_each_setting_has_a_fate() -> None:
    """The table has all settings of the installed gunicorn, and no others."""
    assert {setting.name for setting in gunicorn_config.KNOWN_SETTINGS} == gunicorn.SETTINGS.keys()


def test_each_flag_is_known() -> None:
    """The flags are those of the installed gunicorn, with or without a value as there."""
    for setting in gunicorn_config.KNOWN_SETTINGS:
        flags = tuple(setting.cli or ())
        known = gunicorn._FLAGS.get(setting.name) or gunicorn._SWITCHES.get(setting.name) or ()
        assert known == flags, setting.name
        takes_value = setting.action not in ("store_true", "store_false", "store_const")
        if flags:
            assert (setting.name in gunicorn._FLAGS) == takes_value, setting.name


@pytest.mark.parametrize("setting", gunicorn_config.KNOWN_SETTINGS, ids=lambda each: each.name)
def test_the_default_of_each_setting(setting: Any, valid: Callable[[Translation], dict[str, Any]]) -> None:
    """A setting that stands in a file with its default is translated into options that are valid."""
    value = setting().get()
    if value is None or setting.name in ("chdir", "wsgi_app"):
        return
    valid(gunicorn.translate({setting.name: value}, "a test"))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"bind": ":8000"}, {"bind": [":8000"]}),
        ({"bind": ["127.0.0.1:1", "unix:/run/app.sock"]}, {"bind": ["127.0.0.1:1", "unix:/run/app.sock"]}),
        ({"workers": 3}, {"workers": 3}),
        ({"worker_class": "gthread", "threads": 4}, {"threads": 4}),
        ({"worker_class": "sync"}, {"threads": 1}),
        ({"worker_class": "uvicorn.workers.UvicornWorker", "threads": 4}, {}),
        ({"timeout": 60}, {"max_heartbeat_delay": 60, "request_timeout": 60}),
        ({"timeout": 0}, {}),
        ({"graceful_timeout": 20}, {"drain_timeout": 20}),
        ({"keepalive": 0}, {"keep_alive": False}),
        ({"keepalive": 5}, {}),
        ({"max_requests": 1000}, {"request_threshold": 1000}),
        ({"umask": 0o27}, {"umask": "027"}),
        ({"umask": "0o22"}, {"umask": "022"}),
        ({"accesslog": "-"}, {"access_log": True}),
        ({"errorlog": "/var/log/shop/error.log"}, {"logs": "/var/log/shop"}),
        ({"loglevel": "WARNING"}, {"log_level": "warning"}),
        ({"forwarded_allow_ips": "10.0.0.1, 10.0.0.2"}, {"forwarded_allow_ips": "10.0.0.1,10.0.0.2"}),
        ({"proc_name": "shop"}, {"proc_name": "shop"}),
        ({"user": "nobody", "group": "nogroup"}, {"user": "nobody", "group": "nogroup"}),
        ({"asgi_lifespan": "off"}, {"lifespan": "off"}),
    ],
)
def test_what_a_setting_becomes(
    settings: dict[str, Any], options: dict[str, Any], valid: Callable[[Translation], dict[str, Any]]
) -> None:
    """The options do what the setting did."""
    plain = valid(gunicorn.translate({"bind": ":1", "workers": 1, "worker_class": "gthread"} | settings, "a test"))
    given = {"bind": [":1"], "workers": 1} | options
    assert {name: plain[name] for name in given} == given
    assert plain.keys() <= given.keys() | {"threads"}


def test_a_file(tmp_path: Path, valid: Callable[[Translation], dict[str, Any]]) -> None:
    """A file is executed as gunicorn does; hooks are named with their replacement, variables of the user's are left alone."""
    path = tmp_path / "gunicorn.conf.py"
    path.write_text(
        "import os\ncores = 2\nworkers = cores * 2 + 1\nwsgi_app = 'shop.wsgi:application'\n"
        "raw_env = ['STAGE=test']\ndef post_fork(server, worker): pass\nlogger_class = 'x.Y'\n"
    )
    found = gunicorn.from_file(path)
    assert valid(found)["workers"] == 5
    assert (found.target, found.environment) == ("shop.wsgi:application", {"STAGE": "test"})
    assert [remark.partition(":")[0] for remark in found.missing] == [
        "post_fork = post_fork()", "logger_class = 'x.Y'",
    ]  # fmt: skip
    assert "@worker.on_start" in found.toml()
    assert "cores" not in found.toml()


def test_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, valid: Callable[[Translation], dict[str, Any]]
) -> None:
    """A command's flags win over the file that it names, and over `gunicorn.conf.py` in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gunicorn.conf.py").write_text("workers = 2\nbacklog = 100\n")
    (tmp_path / "other.py").write_text("workers = 3\n")
    found = gunicorn.from_command(["-w", "4", "-b", "0.0.0.0:80", "-b", ":81", "--preload", "shop:app"])
    plain = valid(found)
    assert (plain["workers"], plain["backlog"], plain["bind"]) == (4, 100, ["0.0.0.0:80", ":81"])
    assert found.target == plain["app"] == "shop:app"
    assert valid(gunicorn.from_command(["-c", "other.py", "shop:app"]))["workers"] == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--no-such-flag"], "gunicorn has no argument '--no-such-flag'"),
        (["-w", "many", "a:b"], "--workers 'many': expected a number"),
        (["-c", "gone.py", "a:b"], "can't read gone.py: No such file"),
        (["-w"], "gunicorn would not take these arguments"),
    ],
)
def test_a_wrong_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str) -> None:
    """The error names what gunicorn would not take."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        gunicorn.from_command(words)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workers = ", "is no Python: SyntaxError"),
        ("1 / 0", "raised ZeroDivisionError"),
        ("umask = 'x'", "umask = 'x'"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, says: str) -> None:
    """A file that gunicorn could not use is an error that names the file or the setting."""
    (tmp_path / "gunicorn.conf.py").write_text(text)
    with pytest.raises(ConfigError, match=says):
        gunicorn.from_file(tmp_path / "gunicorn.conf.py")


def test_notes_name_what_there_is() -> None:
    """Options, commands and events that the remarks name exist."""
    import re

    from cluster2.cli import COMMANDS
    from cluster2.events import EVENTS

    for fate in gunicorn.SETTINGS.values():
        assert isinstance(fate, Mapped | Missing | Unneeded)
        for command in re.findall(r"`cluster2 (\w+)`", fate.note):
            assert command in COMMANDS
        for event in re.findall(r"cluster\.on\('(\w+)'\)", fate.note):
            assert event in EVENTS, event
        for name in re.findall(r"\b(\w+) = ", fate.note):
            assert name in OPTIONS, name


def test_values_of_real_files(valid: Callable[[Translation], dict[str, Any]]) -> None:
    """None is the default, a path is text, and addresses are written as cluster2 takes them."""
    found = gunicorn.translate(
        {
            "bind": "0.0.0.0, unix:///run/s.sock,tcp://[::1]:80,[::1]",
            "keyfile": None,
            "threads": None,
            "forwarded_allow_ips": None,
            "certfile": Path("/etc/cert.pem"),
            "loglevel": "WARN",
        },
        "a test",
    )
    plain = valid(found)
    assert plain["bind"] == ["0.0.0.0:8000", "unix:/run/s.sock", "[::1]:80", "[::1]:8000"]
    assert (plain["ssl_certfile"], plain["log_level"]) == ("/etc/cert.pem", "warning")
    assert not plain.keys() & {"ssl_keyfile", "forwarded_allow_ips"}


def test_threads_that_are_no_number() -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match="threads = 'many'"):
        gunicorn.translate({"threads": "many"}, "a test")


def test_flags_of_real_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask is octal, and a configuration may be a module."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings_of_gunicorn.py").write_text("workers = 3\n")
    found = gunicorn.from_command(["--umask", "007", "-c", "python:settings_of_gunicorn", "shop"])
    assert (found.options["umask"], found.options["workers"]) == ("007", 3)
    with pytest.raises(ConfigError, match="no_such_module"):
        gunicorn.from_command(["-c", "python:no_such_module", "shop"])
