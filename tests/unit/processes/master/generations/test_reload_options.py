"""A reload with anything wrong leaves the old generation serving; what a reload can't change is named.

The cases are made from the declaration of the options: each option has at least one bad value, by the kind of its values.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster2 import events
from cluster2.cluster import Cluster
from cluster2.config.settings import OPTIONS, Option
from cluster2.errors import ClusterError
from cluster2.linux.scoreboard import Header
from tests.unit.clusters import APP, Observed, nobody_is_left, processes
from tests.unit.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]

WRONG: dict[str, object] = {
    "FLAG": "perhaps", "COUNT": -1, "PORT": 65536, "DURATION": "3 fortnights", "SIZE": "512", "RATIO": 2,
    "TEXT": 7, "NAME": 7.5, "PATH": 7, "/PATH": "without a slash", "TOKEN": "short", "OCTAL": "999",
    "HOST": "a host", "ADDRESS": "nowhere", "REFERENCE": "no reference", "LIST": "no list",
}  # fmt: skip
"""By the label of a kind: a value that no option of that kind may have."""

MEANS_NOTHING: dict[str, list[object]] = {
    "app": ["no_such_module:app", "site_of_test.py:absent", "raises.py:app", "leaves.py:app", "dies.py:app", ""],
    "factory": [True],
    "env_file": ["absent.env", "a_directory", "bad.env"],
    "chdir": ["no_such_directory", "bad.env"],
    "warm_up": ["no_such_module:function", "judging:raises", "judging:not_callable"],
    "recycle_when": [
        "no_such_module:function", "judging:absent", "judging:not_callable", "raises:function", "leaves:function",
        "judging:in_vain",
    ],
    "ecv.validator": ["no_such_module:function", "judging:not_callable", "raises:function"],
    "engine": ["elsewhere", "granian", "tcp"],
    "ssl_certfile": ["absent.pem", "a_directory", "bad.pem"],
    "ssl_keyfile": ["absent.pem"],
    "ssl_keyfile_password": ["secret"],
    "ssl_ca_certs": ["absent.pem"],
    "user": ["no-such-user"],
    "group": ["no-such-group"],
    "monitor_host": ["0.0.0.0"],
    "ecv.agent_port": [3456],
}  # fmt: skip
"""By option: values of the right kind that can't be used."""

SAID = {"": "no app is named", "dies.py:app": "the process that imports the app"}
"""By value: what the reason says, where it can't name the option or the value."""

BESIDE: dict[str, dict[str, object]] = {"ecv.validator": {"ecv.monitor": "/"}, "monitor_host": {"monitor_port": 3456}}
"""By option: what else must be set, so that the option itself is what is wrong."""

FILES = {
    "raises.py": "1 / 0",
    "leaves.py": "raise SystemExit(7)",
    "dies.py": "import os\nos._exit(7)",
    "judging.py": "not_callable = 7\ndef raises():\n    raise ValueError('no')\nasync def in_vain(facts):\n    return False",
    "bad.env": "no variable",
    "bad.pem": "no certificate",
}


WHEN_S = 1_600_000_000
"""A modification time."""


def bad_values(option: Option) -> Iterator[object]:
    """Values that a file may give this option, each of which is wrong."""
    yield WRONG.get(option.kind.label, "none of them")
    yield from MEANS_NOTHING.get(option.name, [])


def options_text(**values: object) -> str:
    """Return the text of a TOML file: JSON's values are TOML's, for these."""
    return "".join(f"{name.replace('__', '.')} = {json.dumps(value)}\n" for name, value in values.items())


@asynccontextmanager
async def configured(directory: Path, monkeypatch: pytest.MonkeyPatch, text: str = APP) -> AsyncIterator[Observed]:
    """Yield a cluster of one worker that has all of its options from a file."""
    monkeypatch.chdir(directory)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    before = set(processes())
    (directory / "site_of_test.py").write_text(text)
    write(directory)
    found = Observed(directory, Cluster())
    try:
        async with found.cluster.running() as found.running:
            await found.event(events.Listening)
            yield found
    finally:
        await nobody_is_left(before)


def write(directory: Path, **changes: object) -> None:
    """Write the file of options."""
    usual: dict[str, object] = {
        "app": "site_of_test.py:app",
        "port": 0,
        "host": "127.0.0.1",
        "monitor_port": 0,
        "workers": 1,
    }
    (directory / "cluster2.toml").write_text(options_text(**usual | changes))


async def reload(cluster: Observed) -> dict[str, object]:
    """Return the response to the command."""
    return await asyncio.to_thread(cluster.cluster.reload)


def descriptors() -> int:
    """Return how many descriptors this process, in which the master runs, has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
async def test_a_bad_value_of_any_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bad value of each option abandons the reload, says which, and leaves nothing behind; the old generation serves."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "a_directory").mkdir()
    async with configured(tmp_path, monkeypatch) as cluster:
        workers, before = await cluster.workers(), set(processes())
        open_before = descriptors()
        cases = [(option, value) for option in OPTIONS.values() for value in bad_values(option)]
        for number, (option, value) in enumerate(cases, 2):
            write(tmp_path, **{key.replace(".", "__"): each for key, each in BESIDE.get(option.name, {}).items()},
                  **{option.name.replace(".", "__"): value})  # fmt: skip
            case = f"{option.name} = {value!r}"
            with pytest.raises(ClusterError, match="reload abandoned, the old generation goes on: ") as raised:
                await reload(cluster)
            case = f"{option.name} = {value!r}"
            assert raised.value.exit_code == 1, case
            names = [option.name, str(value).partition(":")[0], SAID.get(value, "")]  # type: ignore[call-overload]
            assert any(each and each in raised.value.message for each in names), f"{case}: {raised.value.message}"
            assert cluster.of(events.ReloadFailed)[-1].generation == number, case
            assert await cluster.workers() == workers, case
            assert await cluster.get() == b"%d" % workers[0], case
        await until(lambda: set(processes()) == before, lambda: f"{processes()} are left; before: {before}")
        await until(lambda: descriptors() <= open_before, lambda: f"{descriptors()} descriptors, {open_before} before")
        write(tmp_path)
        assert (await reload(cluster))["warnings"] == []
        assert (await cluster.whole(without=workers.values(), wanted=1)).keys() == {0}


OTHER: dict[str, object] = {
    "FLAG": False, "COUNT": 77, "PORT": 0, "DURATION": "77s", "SIZE": "77MiB", "TEXT": "other", "NAME": "other", "PATH": "other",
    "/PATH": "/other", "TOKEN": "long-enough", "OCTAL": "0077", "HOST": "127.0.0.2", "ADDRESS": "127.0.0.1:0",
    "REFERENCE": "judging:raises", "critical|error|warning|info|debug": "error", "text|json": "json",
    "both|files|stderr": "stderr",
}  # fmt: skip
"""By the label of a kind: a good value that is another than the one that the option has."""

SPECIAL: dict[str, object] = {
    "user": "0",
    "group": "0",
    "monitor_port": 3456,
    "monitor_host": "::1",
    "port": 3457,
    "ecv.agent_port": 3458,
    "chdir": "a_directory",
}
"""By option: other values, where the kind alone doesn't give one that can be used."""

ALONE: list[dict[str, object]] = [
    {"bind": "127.0.0.1:0", "app": "site_of_test.py:app"},
    {"apps": [["site_of_test.py:app", 3459]]},
]
"""Lines that can't stand beside `host` and `port`."""


@pytest.mark.slow
async def test_an_option_that_a_reload_can_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of an option that needs a restart is a warning, in the response and as an event, and changes nothing."""
    (tmp_path / "a_directory").mkdir()
    restart = [option for option in OPTIONS.values() if option.restart]
    changes = {each.name: SPECIAL.get(each.name, OTHER.get(each.kind.label)) for each in restart}
    del changes["bind"], changes["apps"]
    async with configured(tmp_path, monkeypatch) as cluster:
        master = cluster.running._master
        assert master is not None
        fixed = {each.name: getattr(master.state.settings, each.field) for each in restart}
        write(tmp_path, **{name.replace(".", "__"): value for name, value in changes.items()})
        warnings = (await reload(cluster))["warnings"]
        assert isinstance(warnings, list)
        assert [each.partition(" has changed (cluster2.toml:")[0] for each in warnings] == list(changes)
        assert {*warnings} <= {event.text for event in cluster.of(events.Warned)}
        assert {each.name: getattr(master.state.settings, each.field) for each in restart} == fixed
        (tmp_path / "cluster2.toml").write_text(options_text(**ALONE[0], workers=1, monitor_port=0))
        assert "bind has changed (cluster2.toml:1)" in str((await reload(cluster))["warnings"])
        (tmp_path / "cluster2.toml").write_text(options_text(**ALONE[1], workers=1, monitor_port=0))
        with pytest.raises(ClusterError, match="`apps` takes effect only by a restart"):
            await reload(cluster)
        assert await cluster.get() != b""


async def test_preload_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload honours `preload` as it is now, in both directions: workers are executed, or forked by a zygote."""
    async with configured(tmp_path, monkeypatch) as cluster:
        for number, preload in enumerate((False, True, False), 2):
            write(tmp_path, preload=preload)
            assert (await reload(cluster))["generation"] == number
            await until(
                lambda preload=preload, number=number: titles() == ([f"zygote g{number}"] if preload else []),  # type: ignore[misc]
                lambda: f"zygotes: {titles()}",
            )
            assert await cluster.get() != b""


def titles() -> list[str]:
    """Return the pids of the zygotes."""
    return [title.partition(": ")[2].strip() for title in processes().values() if "zygote" in title]


async def test_an_abandoned_change_of_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation that would have had another number of workers is abandoned: the number that `scale` has set stands again."""
    async with configured(tmp_path, monkeypatch) as cluster:
        await asyncio.to_thread(cluster.cluster.scale, 2)
        write(tmp_path, workers=3)
        (tmp_path / "broken").touch()
        with pytest.raises(ClusterError, match="the database is away"):
            await reload(cluster)
        assert (await cluster.status())["wanted"] == 2
        (tmp_path / "broken").unlink()
        await cluster.whole()


async def test_an_edit_of_the_same_second_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reload runs the code as it is, also where its size and modification time are those of the code before."""
    text = APP.replace('b"%d" % os.getpid()', "version.VERSION").replace("import asyncio", "import version, asyncio")
    source = tmp_path / "version.py"

    def write_version(number: int) -> None:
        source.write_text(f"VERSION = b'{number}'\n")
        os.utime(source, (WHEN_S, WHEN_S))

    write_version(0)
    async with configured(tmp_path, monkeypatch, text) as cluster:
        for number in range(1, 6):
            write_version(number)
            await reload(cluster)
            assert await cluster.get() == b"%d" % number


async def test_the_keepers_timeout_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload with another `timeout` holds for connections that come to rest afterwards; the keeper stays the same process."""
    async with configured(tmp_path, monkeypatch) as cluster:
        write(tmp_path, timeout="2s", handoff_idle_after="100ms")
        keeper = (await cluster.status())["keeper"]["pid"]
        await reload(cluster)
        host, _, port = cluster.running.addresses[0].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await until(
            lambda: cluster_header(cluster).keeper_expired,
            "the keeper has closed it, long before the 30 s of the start",
        )
        await reader.read()
        writer.close()
        assert (await cluster.status())["keeper"]["pid"] == keeper


def cluster_header(cluster: Observed) -> Header:
    """Return the cells that the keeper publishes in."""
    master = cluster.running._master
    assert master is not None
    return master.resources.board.header
