"""The worker factory with real children: zygotes, executed workers, and every way in which they end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster2.config.settings import Settings
from cluster2.linux import stacks
from cluster2.linux.parent_death_timer import Lifeline
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.master.generations.worker_factory import WorkerFactory, default_argv
from cluster2.processes.master.state.inbox import InboxMessage, ZygoteMessage
from cluster2.protocol import codec, messages
from cluster2.protocol.worker_descriptors import WorkerDescriptors
from tests.linux.leaks import descriptors
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio
OWNER = (os.geteuid(), os.getegid())
HELLO = """
async def app(reader, writer):
    writer.write(b"hello")
"""


class Ward:
    """A worker factory whose messages are kept."""

    def __init__(self, directory: Path, text: str = HELLO, argv: list[str] | None = None) -> None:
        (directory / "site_of_test.py").write_text(text)
        self.facts: list[InboxMessage] = []
        settings = Settings(app="site_of_test.py:app", chdir=str(directory), workers=1)
        prepare = messages.Prepare(1, settings.to_wire(), {})
        self.nursery = WorkerFactory(prepare, argv or default_argv(), self.facts.append)

    async def on_message(self, number: int = 0) -> messages.Orders | None:
        """Return the messages of the children, in order."""
        await until(lambda: len(self.facts) > number, "a fact")
        fact = self.facts[number]
        assert isinstance(fact, ZygoteMessage)
        assert fact.generation == 1
        return fact.message


@asynccontextmanager
async def ward(directory: Path, text: str = HELLO, argv: list[str] | None = None) -> AsyncIterator[Ward]:
    """Yield a worker factory that has loaded; all its processes are gone afterwards."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    found = Ward(directory, text, argv)
    found.nursery.load()
    try:
        yield found
    finally:
        found.nursery.close()
        await found.nursery.wait_closed(1.0)
        await until(lambda: not _children() - before, "no child is left")


def _children() -> set[int]:
    """Pids of children; those that have ended are reaped, as a subreaper has to."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
            else:
                found.add(child.pid)
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
    return found


class Birth:
    """The order and the descriptors of a worker, and the master's end of its channel."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.board = Scoreboard.create()
        self.row = self.board.claim()
        self.stacks = stacks.create()
        self.lifeline = Lifeline()
        self.line = self.lifeline.twin()
        self._unpacker = codec.Unpacker()
        self._heard: list[messages.ChannelMessage] = []

    def order(self, incarnation: int = 1) -> messages.Fork:
        return messages.Fork(incarnation, 0, 1, self.row, os.getpid(), [messages.Socket(0, "127.0.0.1:0", True)])

    def descriptors(self) -> WorkerDescriptors:
        return WorkerDescriptors(
            self.theirs.fileno(), self.stacks, self.line, self.board.descriptors, [self.listener.fileno()]
        )

    async def hears(self) -> messages.ChannelMessage:
        """Return the next message of the worker."""
        loop = asyncio.get_running_loop()
        while not self._heard:
            data = await asyncio.wait_for(loop.sock_recv(self.ours, 65536), PATIENCE)
            assert data, "the worker has gone"
            self._heard += self._unpacker.unpack(data)
        return self._heard.pop(0)

    async def greeting(self) -> bytes:
        reader, writer = await asyncio.open_connection(*self.listener.getsockname())
        try:
            return await asyncio.wait_for(reader.read(), PATIENCE)
        finally:
            writer.close()

    def close(self) -> None:
        for each in (self.ours, self.theirs, self.listener, self.board):
            each.close()
        os.close(self.stacks)
        os.close(self.line)
        self.lifeline.close()


@pytest.fixture
def birth() -> Any:
    found = Birth()
    yield found
    found.close()


async def test_a_zygote_forks_workers(tmp_path: Path, birth: Birth) -> None:
    """A zygote reports what it has loaded; on an order it forks a worker that is our own child, serves, and drains."""
    async with ward(tmp_path) as w:
        assert await w.on_message() == messages.Prepared(["tcp"], ["tcp"], [], movable=[0], owner=OWNER)
        assert w.nursery.ready
        w.nursery.spawn(birth.order(), birth.descriptors())
        birth.theirs.close()
        born = await birth.hears()
        assert isinstance(born, messages.Started)
        assert await w.on_message(1) == messages.WorkerForked(1, born.pid)
        assert psutil.Process(born.pid).ppid() == os.getpid()
        assert await birth.hears() == messages.Ready()
        assert await birth.greeting() == b"hello"
        birth.ours.send(codec.pack(messages.Drain(True)) + codec.pack(messages.KeeperGone()))
        assert await asyncio.to_thread(os.waitpid, born.pid, 0) == (born.pid, 0)


async def test_an_executed_worker(tmp_path: Path, birth: Birth) -> None:
    """Where forking is unsafe, a worker is executed, loads the app by itself, and becomes the worker."""
    async with ward(tmp_path) as w:
        await w.on_message()
        (zygote,) = w.nursery.pids()
        w.nursery.each_executed()
        assert w.nursery.ready
        w.nursery.spawn(birth.order(7), birth.descriptors())
        forked = await w.on_message(1)
        assert isinstance(forked, messages.WorkerForked)
        assert forked.incarnation == 7
        assert await birth.hears() == messages.Started(forked.pid, messages.PROTOCOL_VERSION)
        assert await birth.hears() == messages.Ready()
        assert await birth.greeting() == b"hello"
        await until(lambda: not psutil.pid_exists(zygote), "the zygote, of no more use, has left")
        os.kill(forked.pid, signal.SIGTERM)
        assert await asyncio.to_thread(os.waitpid, forked.pid, 0) == (forked.pid, 0)


@pytest.mark.parametrize(
    ("text", "says", "detail"),
    [
        ("raise LookupError('no table')", "LookupError: no table", "line 1, in <module>"),
        ("raise LookupError('ж' * 200_000)", "LookupError: жжжж", "LookupError"),
        ("raise LookupError('a\\udcff')", r"LookupError: a\udcff", r"LookupError: a\udcff"),
        ("def f(n):\n    return f(n - 1) if n else 1 / 0\nf(600)", "ZeroDivisionError", "1 / 0"),
    ],
    ids=["plain", "very long", "not Unicode", "deep"],
)
async def test_an_app_that_can_not_be_loaded(tmp_path: Path, text: str, says: str, detail: str) -> None:
    """The error and its traceback arrive, however long and odd they are, and the zygote leaves."""
    async with ward(tmp_path, text) as w:
        failed = await w.on_message()
        assert isinstance(failed, messages.PrepareFailed)
        assert says in failed.message
        assert failed.exit_code == 3
        assert not w.nursery.ready
        if "very" not in text:
            assert detail in failed.detail or "ж" in failed.detail


async def test_an_executed_worker_that_can_not_load(tmp_path: Path, birth: Birth) -> None:
    """An executed worker that can't load the app says so as well; nothing that was to travel to it stays open."""
    async with ward(tmp_path) as w:
        await w.on_message()
        w.nursery.each_executed()
        (tmp_path / "site_of_test.py").write_text("1 / 0\n")
        before = set(os.listdir("/proc/self/fd"))
        w.nursery.spawn(birth.order(), birth.descriptors())
        assert isinstance(await w.on_message(1), messages.WorkerForked)
        failed = await w.on_message(2)
        assert isinstance(failed, messages.PrepareFailed)
        assert "ZeroDivisionError" in failed.message
        await until(lambda: set(os.listdir("/proc/self/fd")) <= before, "all descriptors are closed")


async def test_a_zygote_that_is_killed(tmp_path: Path, birth: Birth) -> None:
    """The end of a zygote is posted; after it no worker is made until the app was loaded again, and workers are untouched."""
    async with ward(tmp_path) as w:
        await w.on_message()
        w.nursery.spawn(birth.order(), birth.descriptors())
        born = await birth.hears()
        assert isinstance(born, messages.Started)
        assert await birth.hears() == messages.Ready()
        (zygote,) = w.nursery.pids()
        os.kill(zygote, signal.SIGKILL)
        assert await w.on_message(2) is None
        assert not w.nursery.ready
        assert await birth.greeting() == b"hello"
        w.nursery.load()
        assert isinstance(await w.on_message(3), messages.Prepared)
        os.kill(born.pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, born.pid, 0)


async def test_an_import_that_hangs(tmp_path: Path) -> None:
    """A zygote in the middle of an endless import is killed when its time is over."""
    started = tmp_path / "started"
    text = f"import pathlib, threading\npathlib.Path({str(started)!r}).touch()\nthreading.Event().wait()\n"
    async with ward(tmp_path, text) as w:
        await until(started.exists)
        (zygote,) = w.nursery.pids()
        w.nursery.close()
        await w.nursery.wait_closed(0.0)
        assert not psutil.pid_exists(zygote)
        assert w.facts == []


async def test_an_import_that_takes_too_long(tmp_path: Path) -> None:
    """A zygote that hangs in the app's import beyond its time is killed, and its stacks are reported."""
    started = tmp_path / "started"
    text = f"import pathlib, threading\npathlib.Path({str(started)!r}).touch()\nthreading.Event().wait()\n"
    async with ward(tmp_path, text) as w:
        await until(started.exists)
        (zygote,) = w.nursery.pids()
        w.nursery._too_slow()
        failed = await w.on_message()
        assert isinstance(failed, messages.PrepareFailed)
        assert "wasn't imported within boot_timeout" in failed.message
        assert "site_of_test.py" in failed.detail
        await until(lambda: not psutil.pid_exists(zygote), "it is killed")


async def test_nothing_leaks(tmp_path: Path) -> None:
    """Loading and closing leaves no descriptor open."""
    async with ward(tmp_path) as w:
        await w.on_message()
    before = set(os.listdir("/proc/self/fd"))
    async with ward(tmp_path) as w:
        await w.on_message()
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_program_that_is_no_child(tmp_path: Path) -> None:
    """A program that ends without a word (the script has a `sys.exit` before `listen`) is a zygote that died."""
    async with ward(tmp_path, argv=[sys.executable, "-c", "raise SystemExit(3)"]) as w:
        assert await w.on_message() is None


@pytest.mark.parametrize("executed", [False, True])
async def test_a_child_that_can_not_be_heard(
    tmp_path: Path, birth: Birth, monkeypatch: pytest.MonkeyPatch, executed: bool
) -> None:
    """A process whose channel can't be watched is ended, and that is reported; nothing of it is left."""
    loop, before = asyncio.get_running_loop(), descriptors()
    watch, calls = loop.add_reader, []

    def add_reader(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == (
            1 if executed else 2
        ):  # a zygote's pidfd is watched first; an executed worker is the master's to reap
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(*arguments)

    facts: list[InboxMessage] = []
    nursery = WorkerFactory(messages.Prepare(1, {}, {}), default_argv(), facts.append)
    monkeypatch.setattr(loop, "add_reader", add_reader)
    if executed:
        nursery.each_executed()
        with pytest.raises(OSError, match="No space left"):
            nursery.spawn(birth.order(), birth.descriptors())
    else:
        nursery.load()
        (fact,) = facts
        assert isinstance(fact, ZygoteMessage)
        assert fact.message == messages.PrepareFailed("no process can be made: No space left on device", "", 1)
        assert not nursery.ready
    nursery.close()
    await nursery.wait_closed(PATIENCE)
    await until(lambda: descriptors() == before, lambda: f"left: {descriptors() ^ before}")
