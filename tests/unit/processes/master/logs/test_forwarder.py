"""The relay: what workers write to their files is shown on the master's standard error."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster2.processes.master.logs import forwarder
from cluster2.processes.master.logs.forwarder import LogForwarder

pytestmark = pytest.mark.anyio


@dataclass
class Shown:
    """The end of a pipe that stands for standard error."""

    reader: int
    writer: int
    text: str = ""
    pages: int = field(default=0)

    async def until(self, what: str) -> str:
        """Read until that has come."""
        async with asyncio.timeout(20):
            while what not in self.text:
                self.read()
                await asyncio.sleep(0.005)
        return self.text

    def read(self) -> None:
        while chunk := self._chunk():
            self.text += chunk.decode()

    def _chunk(self) -> bytes:
        try:
            return os.read(self.reader, 1 << 16)
        except BlockingIOError:
            return b""


@pytest.fixture
def shown() -> Iterator[Shown]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield Shown(reader, writer)
    os.close(reader)
    os.close(writer)


async def test_lines_of_workers(tmp_path: Path, shown: Shown) -> None:
    """Lines of all files but the master's are shown as they come, over a rotation; not what was there before."""
    (tmp_path / "worker.0.log").write_text("old\n")
    relayed = LogForwarder(str(tmp_path), shown.writer)
    relayed.start()
    with (tmp_path / "worker.0.log").open("a") as zero, (tmp_path / "master.log").open("a") as master:
        master.write("mine\n")
        master.flush()
        print("one", file=zero, flush=True)
        await shown.until("one\n")
        (tmp_path / "worker.0.log").rename(tmp_path / "worker.0.log.1")
        (tmp_path / "worker.0.log").write_text("three\n")
        print("two", file=zero, flush=True)
        (tmp_path / "access.log").write_text("GET\n")
        for each in ("two\n", "three\n", "GET\n"):
            await shown.until(each)
    relayed.stop()
    assert sorted(shown.text.splitlines()) == ["GET", "one", "three", "two"]


async def test_a_line_without_an_end(tmp_path: Path, shown: Shown) -> None:
    """The last lines are shown when nothing more comes."""
    relayed = LogForwarder(str(tmp_path), shown.writer)
    relayed.start()
    (tmp_path / "worker.3.log").write_text("name? ")
    await shown.until("name? \n")
    relayed.stop()


async def test_nobody_reads(tmp_path: Path, shown: Shown) -> None:
    """The loop goes on; a late reader gets the end of the output, and a line says how much was left out."""
    relayed = LogForwarder(str(tmp_path), shown.writer)
    relayed.start()
    line = "x" * 99 + "\n"
    lines = 3 * forwarder.MAX_FORWARDED_BYTES // len(line)
    with (tmp_path / "worker.0.log").open("a") as file:
        print("first", file=file, flush=True)
        await shown.until("first\n")
        late = 0.0
        for _ in range(30):
            file.write(line * (lines // 10))
            file.flush()
            before = time.monotonic()
            await asyncio.sleep(0.01)
            late = max(late, time.monotonic() - before)
        print("last", file=file, flush=True)
        await shown.until("last\n")
    assert os.get_blocking(shown.writer), "others have it, too"
    relayed.stop()
    assert "bytes, see worker.0.log" in shown.text
    assert len(shown.text) < 3 * lines * len(line)


async def test_nobody_will_read(tmp_path: Path) -> None:
    """A pipe whose reader has gone, in the middle: the relay goes on, and ends."""
    reader, writer = os.pipe()
    relayed = LogForwarder(str(tmp_path), writer)
    relayed.start()
    (tmp_path / "worker.0.log").write_text("one\n")
    async with asyncio.timeout(20):
        while await asyncio.to_thread(os.read, reader, 10) != b"one\n":
            pass
    os.close(reader)
    (tmp_path / "worker.0.log").write_text("a second one\n")
    relayed.stop()
    os.close(writer)


async def test_last_words(tmp_path: Path, shown: Shown) -> None:
    """Lines that were written just before the end are shown before it."""
    relayed = LogForwarder(str(tmp_path), shown.writer)
    relayed.start()
    (tmp_path / "worker.1.log").write_text("bye\n")
    relayed.stop()
    shown.read()
    assert shown.text == "bye\n"


async def test_no_inotify(tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel gives none any more, the files are looked at ten times a second."""

    def refused(directory: str) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(forwarder, "Inotify", refused)
    relayed = LogForwarder(str(tmp_path), shown.writer)
    relayed.start()
    (tmp_path / "worker.1.log").write_text("seen\n")
    await shown.until("seen\n")
    relayed.stop()
