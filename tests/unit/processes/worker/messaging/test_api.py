"""`from cluster2 import worker`: outside of a worker, in a simulated one, and with `cluster = false`."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster2 import worker
from cluster2.errors import ClusterError, ConfigError, DelegateError, DelegateTimeout, NotAWorker
from cluster2.processes.worker.messaging import api
from cluster2.processes.worker.messaging.pending_calls import delegate_message

pytestmark = pytest.mark.anyio


async def test_outside_of_a_worker() -> None:
    """Raise NotAWorker for what only a worker can do: it is a RuntimeError, and says what to do. Registering works anywhere."""
    for call in (lambda: worker.emit("x"), lambda: worker.delegate_nowait("x"), lambda: worker.delegate_sync("x")):
        with pytest.raises(NotAWorker, match="this process is no worker; call it inside of one.*simulated"):
            call()
    with pytest.raises(RuntimeError, match=r"worker.delegate: this process is no worker"):
        await worker.delegate("x")
    with pytest.raises(NotAWorker, match=r"worker.pid"):
        worker.pid  # noqa: B018
    assert worker.draining is False
    with pytest.raises(ConfigError, match="reducer = 'max': expected sum, concat"):
        worker.register_status("x", view=int, reducer="max")


async def test_simulated() -> None:
    """Make a test's process a worker within the block: it delegates, emits, receives events and returns its status."""
    heard: list[Any] = []
    value = {"depth": 1}

    @worker.on("simulated-news")
    def news(event: Any) -> None:
        heard.append(event.data)

    worker.register_status("simulated-depth", view=lambda: value["depth"], update=lambda new: value.update(depth=new))
    try:
        with worker.simulated(slot=3, delegates={"read": lambda message: {"read": message}}) as me:
            assert (worker.slot, worker.draining) == (3, False)
            me.life.draining = True
            assert worker.draining
            assert await worker.delegate("read", {"name": "db"}) == {"read": {"name": "db"}}
            assert await asyncio.to_thread(worker.delegate_sync, "read", (1,)) == {"read": [1]}
            worker.delegate_nowait("audit", 1)
            worker.emit("done", {"n": 1})
            assert me.emitted == [("done", {"n": 1})]
            assert me.delegated == [("read", {"name": "db"}), ("read", [1]), ("audit", 1)]
            me.receive("simulated-news", "hello")
            assert heard == ["hello"]
            assert await me.status("simulated-depth") == 1
            await me.set_status("simulated-depth", 5)
            assert await me.status("simulated-depth") == 5
    finally:
        worker.off("simulated-news", news)
        api.components.forget("simulated-depth")
    with pytest.raises(NotAWorker):
        worker.emit("x")


async def test_simulated_failures() -> None:
    """Fail for a handler that raises, that is missing or that is too slow, as in a master."""

    async def endless(message: Any) -> None:
        await asyncio.Event().wait()

    with worker.simulated(delegates={"broken": lambda message: 1 / 0, "endless": endless}):
        with pytest.raises(DelegateError, match="'broken' failed in the master: ZeroDivisionError") as caught:
            await worker.delegate("broken")
        assert caught.value.type == "ZeroDivisionError"
        with pytest.raises(DelegateError, match="no handler for 'other'"):
            await worker.delegate("other")
        with pytest.raises(DelegateTimeout, match=r"'endless' had no result within 0.01 s"):
            await worker.delegate("endless", timeout=0.01)
        with pytest.raises(TimeoutError):
            await worker.delegate("endless", timeout=0.01)
        with pytest.raises(ClusterError, match="a thread that runs an event loop"):
            worker.delegate_sync("broken")
        with pytest.raises(ClusterError, match=r"the message of delegate\('x'\) can't travel"):
            worker.delegate_nowait("x", threading.Lock())
        with pytest.raises(ClusterError, match="timeout = 0: expected seconds above 0"):
            await worker.delegate("x", timeout=0)
        with pytest.raises(ValueError, match="event 'died' is the master's"):
            worker.emit("died")


def test_matches() -> None:
    """Compare calls by names of fields, or by fields with values; refuse fields that the message doesn't have."""
    message = {"name": "db", "asked": 3}
    named = delegate_message("x", message, None, ["name"], None, None)
    assert bytes(named.matches) == bytes(delegate_message("x", {"other": 1}, None, {"name": "db"}, None, None).matches)
    assert bytes(delegate_message("x", message, None, "name", None, None).matches) == bytes(named.matches)
    with pytest.raises(ClusterError, match=r"matches = \['nome'\]: the message has no such fields"):
        delegate_message("x", message, None, ["nome"], None, None)


ALONE = """
import asyncio, json, os, signal
from cluster2 import Cluster, worker

cluster = Cluster(cluster=False, port=0, host="127.0.0.1", monitor_port=0)
found = {}

@cluster.on_delegate("double")
def double(message):
    return 2 * message

@cluster.on_delegate("audit")
async def audit(message):
    found.setdefault("audited", []).append(message)

@cluster.on("cold")
def cold(event):
    found["emitted"] = event.data
    cluster.emit("warm", event.data + 1)

@worker.on("warm")
def warm(event):
    found["heard"] = event.data

worker.register_status("depth", view=lambda: 5, reducer="sum")

@worker.on_start
async def start():
    found["async"] = await worker.delegate("double", 4)
    found["sync"] = await asyncio.to_thread(worker.delegate_sync, "double", 5)
    worker.emit("cold", 7)
    while "heard" not in found:
        await asyncio.sleep(0.001)
    found["status"] = (await cluster.status("depth")).value
    asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)

@worker.on_stop
def stop():
    for number in range(100):
        worker.delegate_nowait("audit", number)

async def app(scope, receive, send):
    pass

cluster.listen(app)
found["audited"] = found["audited"] == list(range(100))
print(json.dumps(found))
"""


async def test_without_a_master(tmp_path: Path) -> None:
    """Delegate, emit and return the status in one process with `cluster = false`, to the last message."""
    (tmp_path / "alone.py").write_text(ALONE)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "alone.py", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said = await asyncio.wait_for(process.stdout.read(), 60)
    assert await process.wait() == 0
    assert json.loads(said) == {
        "async": 8, "sync": 10, "emitted": 7, "heard": 8, "status": 5, "audited": True,
    }  # fmt: skip
