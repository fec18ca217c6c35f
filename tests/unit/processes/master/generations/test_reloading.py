"""Reloads of a real cluster in this process: when they begin, what they clear, what they say of workers that were lost."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from cluster2 import events
from cluster2.errors import ClusterError
from cluster2.processes.master.master import Master
from cluster2.processes.master.state.inbox import Command, Signal
from tests.unit.clusters import APP, Observed, observed, processes
from tests.unit.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("own_process")]

Answers = list[dict[str, Any] | ClusterError]


async def reload(cluster: Observed) -> dict[str, Any]:
    """Return the response of `Cluster.reload`."""
    return await asyncio.to_thread(cluster.cluster.reload)


@pytest.mark.parametrize("fails", [False, True])
async def test_asked_for_before_the_cluster_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A reload by command or HUP while the first workers start is carried out when they serve, or answered when they can't."""
    answers: Answers = []
    ready = Master.run

    async def run(master: Master) -> int:
        master.post(Command("reload", {}, answers.append))
        master.post(Signal(signal.SIGHUP))
        return await ready(master)

    monkeypatch.setattr(Master, "run", run)
    if fails:
        (tmp_path / "broken").touch()
        with pytest.raises(ClusterError, match="the database is away"):
            async with observed(tmp_path):
                pass
        assert [str(each) for each in answers] == ["the cluster stops"]
        return
    async with observed(tmp_path) as cluster:
        await cluster.event(events.Reloaded, generation=2)
        assert [each["generation"] for each in answers if isinstance(each, dict)] == [2]
        assert len(cluster.of(events.Reloading)) == 1, "both asked for the same"
        assert not cluster.of(events.Warned)


async def test_good_code_ends_the_back_off(tmp_path: Path) -> None:
    """A reload out of a degraded cluster is tried at once, and clears what the old code has brought about."""
    async with observed(tmp_path, restart_limit=2, restart_window="1h") as cluster:
        (tmp_path / "crashing").touch()
        for pid in (await cluster.workers()).values():
            os.kill(pid, signal.SIGKILL)
        await cluster.event(events.Degraded)
        (tmp_path / "site_of_test.py").write_text(APP.replace('"crashing"', '"no longer"'))
        assert (await reload(cluster))["generation"] == 2
        assert (await cluster.event(events.Recovered)).ready == 2
        assert (await cluster.status())["master"]["state"] == "serving"
        victim = (await cluster.whole())[0]
        os.kill(victim, signal.SIGKILL)
        await cluster.whole(without=[victim])
        assert len(cluster.of(events.Degraded)) == 1


SECURE = """
import os, pathlib

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError("no lifespan")
    body = b"%d %s" % (os.getpid(), os.environ["FROM_A_FILE"].encode())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


class Secured:
    """The files of a site with TLS, and a client of it."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self.key, self.variables = (directory / each for each in ("site.pem", "site.key", "site.env"))
        self.authority = trustme.CA()
        self.trusting = ssl.create_default_context()
        self.authority.configure_trust(self.trusting)

    def issue(self, variable: str) -> dict[str, str]:
        """Write a certificate, its key and the environment; the options that name them."""
        issued = self.authority.issue_cert("localhost")
        self.certificate.write_bytes(issued.cert_chain_pems[0].bytes())
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.variables.write_text(f"FROM_A_FILE={variable}\n")
        return {"ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.key), "env_file": str(self.variables)}

    def destroy(self) -> None:
        """Leave nothing that could be used: one file is broken, one is missing, one is empty."""
        self.certificate.write_text("no certificate")
        self.key.unlink()
        self.variables.write_text("")

    async def get(self, cluster: Observed) -> tuple[str, str]:
        """Return the serial number of the certificate, and the variable that the app sees."""
        port = int(cluster.running.addresses[0].rpartition(":")[2])
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=self.trusting, server_hostname="localhost"
        )
        serial = str(writer.get_extra_info("peercert")["serialNumber"])
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        writer.close()
        return serial, body.split()[1].decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "preload"),
    [
        ("http", True),
        ("granian", False),
        pytest.param("http", False, marks=pytest.mark.soak),
        pytest.param("granian", True, marks=pytest.mark.soak),
    ],
)
async def test_files_are_those_that_were_loaded(tmp_path: Path, engine: str, preload: bool) -> None:
    """Certificate, key and environment on disk may break: workers and zygotes that follow have those of their generation."""
    site = Secured(tmp_path)
    options = site.issue("one") | {"engine": engine, "preload": preload}
    async with observed(tmp_path, SECURE, **options) as cluster:
        first = await site.get(cluster)
        site.destroy()
        with pytest.raises(
            ClusterError, match="ssl_certfile = .*site.pem'.*: can't be loaded|ssl_keyfile = .*: can't be read"
        ):
            await reload(cluster)
        before = await cluster.workers()
        if preload:
            os.kill(zygote := cluster.zygote(), signal.SIGKILL)
            await until(lambda: zygote not in processes(), "the zygote is gone")
        os.kill(before[0], signal.SIGKILL)
        await cluster.whole(without=[before[0]])
        await asyncio.to_thread(cluster.cluster.recycle)
        assert not set(before.values()) & set((await cluster.workers()).values())
        assert (await site.get(cluster)) == first
        site.issue("two")
        assert (await reload(cluster))["generation"] == 3
        serial, variable = await site.get(cluster)
        assert variable == "two"
        assert serial != first[0]
