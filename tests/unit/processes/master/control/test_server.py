"""The control socket, over a real one: what clients may send, and what they get."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster2.errors import ConfigError, UsageError
from cluster2.processes.master.control import server
from cluster2.processes.master.control.server import MAX_LINE_BYTES, ControlServer
from cluster2.processes.master.state.inbox import Command, InboxMessage
from tests.unit.waiting import PATIENCE, until

pytestmark = pytest.mark.anyio


def echo(command: Command) -> None:
    """Answer each command with its own request, as a master."""
    if command.verb == "fail":
        command.answer(ConfigError("that won't do", detail="first\nsecond"))
    elif command.verb == "unknown":
        command.answer(UsageError("the master knows no command 'unknown'"))
    else:
        command.answer({"verb": command.verb, "params": command.params})


@asynccontextmanager
async def controlled(directory: Path, handle: Callable[[Command], None] = echo) -> AsyncIterator[ControlServer]:
    """Yield a control socket whose commands are handled by a function, as messages of an inbox."""

    def put(fact: InboxMessage) -> None:
        assert isinstance(fact, Command)
        asyncio.get_running_loop().call_soon(handle, fact)

    control = ControlServer(put)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "c.sock"))
        listener.listen(64)
        await control.open(listener)
        try:
            yield control
        finally:
            await control.close()


@asynccontextmanager
async def client(directory: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(str(directory / "c.sock"), limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> dict[str, Any]:
    line = await asyncio.wait_for(reader.readline(), PATIENCE)
    found: dict[str, Any] = json.loads(line)
    return found


async def ask(directory: Path, raw: bytes) -> dict[str, Any]:
    """Return the response to one line, on a connection of its own."""
    async with client(directory) as (reader, writer):
        writer.write(raw + b"\n")
        return await answer(reader)


async def test_a_command(tmp_path: Path) -> None:
    """Verb and parameters arrive as one command, its result comes back as one line; parameters may be left out."""
    async with controlled(tmp_path):
        said = await ask(tmp_path, b'{"verb": "scale", "params": {"n": 3}}')
        assert said == {"ok": True, "result": {"verb": "scale", "params": {"n": 3}}}
        assert (await ask(tmp_path, b'{"verb": "status"}'))["result"]["params"] == {}


async def test_who_was_admitted(tmp_path: Path) -> None:
    """Is heard over a socket of its own as far as its verbs go; what is no stream, or comes too late, is closed."""
    async with controlled(tmp_path) as controls:
        ours, theirs = socket.socketpair()
        controls.serve_client(theirs, {"status"})
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        writer.write(b'{"verb": "stop"}\n{"verb": "status"}\n')
        refused = await answer(reader)
        assert (refused["ok"], refused["error"]["message"]) == (False, "'stop' may not be asked for here")
        assert (await answer(reader))["result"]["verb"] == "status"
        odd, datagram = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        controls.serve_client(datagram, {"status"})
        await until(lambda: datagram.fileno() == -1, "it is closed")
        odd.close()
    assert await reader.read() == b""
    writer.close()
    ours, theirs = socket.socketpair()
    controls.serve_client(theirs, {"status"})
    assert ours.recv(1) == b""
    ours.close()


async def test_too_many_are_admitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections beyond a bound are closed at once; after one has closed, another is accepted."""
    monkeypatch.setattr(server, "MAX_CLIENTS", 1)
    async with controlled(tmp_path) as controls:
        first, second, third = (socket.socketpair() for _ in range(3))
        controls.serve_client(first[1], {"status"})
        controls.serve_client(second[1], {"status"})
        assert second[0].recv(1) == b""
        first[0].close()
        await until(lambda: not controls._serving, "it has left")
        controls.serve_client(third[1], {"status"})
        reader, writer = await asyncio.open_unix_connection(sock=third[0])
        writer.write(b'{"verb": "status"}\n')
        assert (await answer(reader))["ok"]
        writer.close()
    second[0].close()


async def test_an_error(tmp_path: Path) -> None:
    """An error comes back with its message, its detail and the exit code that belongs to it."""
    async with controlled(tmp_path):
        error = {"message": "that won't do", "detail": "first\nsecond", "exit_code": 5}
        assert await ask(tmp_path, b'{"verb": "fail"}') == {"ok": False, "error": error}


BAD = {
    "no JSON": b"status please",
    "empty line": b"",
    "cut off": b'{"verb": "sta',
    "no object": b"[1, 2]",
    "no verb": b'{"params": {}}',
    "verb of another type": b'{"verb": 3}',
    "params of another type": b'{"verb": "status", "params": [1]}',
    "not UTF-8": b'{"verb": "\xff\xfe"}',
    "binary": bytes(range(9)) + b"\x80\xff",
    "nested without end": b'{"verb": "status", "params": {"x": ' + b"[" * 60000,
}


@pytest.mark.parametrize("line", [pytest.param(each, id=name) for name, each in BAD.items()])
async def test_bad_requests(tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The response to a line that is no request is a usage error of one line, and the connection goes on; nothing is logged."""
    async with controlled(tmp_path), client(tmp_path) as (reader, writer):
        writer.write(line + b"\n")
        said = await answer(reader)
        assert said["ok"] is False
        assert said["error"]["exit_code"] == 2
        assert said["error"]["message"].startswith("not a request: ")
        assert "\n" not in said["error"]["message"]
        writer.write(b'{"verb": "status"}\n')
        assert (await answer(reader))["ok"] is True
    assert caplog.records == []


async def test_a_line_that_is_too_long(tmp_path: Path) -> None:
    """A client that sends more than a line may have is cut off before the master keeps it all; others are served."""
    async with controlled(tmp_path):
        async with client(tmp_path) as (reader, writer):
            writer.write(b'{"verb": "' + b"x" * 4 * MAX_LINE_BYTES)
            try:
                assert b'"ok":true' not in await asyncio.wait_for(reader.read(), PATIENCE)
            except ConnectionResetError:
                pass  # bytes that the server has not read make the end of the connection a reset
        assert (await ask(tmp_path, b'{"verb": "status"}'))["ok"] is True


async def test_many_clients(tmp_path: Path) -> None:
    """Many clients at once, each with many requests in one piece: each has its own answers, in order."""
    async with controlled(tmp_path):

        async def one(number: int) -> None:
            async with client(tmp_path) as (reader, writer):
                for count in range(5):
                    writer.write(json.dumps({"verb": f"v{number}", "params": {"n": count}}).encode() + b"\n")
                for count in range(5):
                    assert (await answer(reader))["result"] == {"verb": f"v{number}", "params": {"n": count}}

        await asyncio.gather(*map(one, range(60)))


async def test_a_client_that_says_nothing(tmp_path: Path) -> None:
    """A client that connects and is silent, or leaves in the middle of a line, doesn't affect others."""
    async with controlled(tmp_path), client(tmp_path):
        async with client(tmp_path) as (_, writer):
            writer.write(b'{"verb": "sta')
        assert (await ask(tmp_path, b'{"verb": "status"}'))["ok"] is True


async def test_a_client_that_leaves_before_its_answer(tmp_path: Path) -> None:
    """A response to a client that has left causes no error, and a second response to a command is ignored."""
    kept: list[Command] = []
    async with controlled(tmp_path, kept.append):
        async with client(tmp_path) as (_, writer):
            writer.write(b'{"verb": "slow"}\n')
            await until(lambda: kept)
        kept[0].answer({})
        kept[0].answer(UsageError("too late"))
        async with client(tmp_path) as (reader, writer):
            writer.write(b'{"verb": "slow"}\n')
            await until(lambda: len(kept) == 2)
            kept[1].answer({"n": 1})
            kept[1].answer({"n": 2})
            assert (await answer(reader))["result"] == {"n": 1}


async def test_a_follower_that_leaves(tmp_path: Path) -> None:
    """The end of a client is noticed with the next progress; the response is then dropped without a traceback."""
    commands: list[Command] = []
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    async with controlled(tmp_path, commands.append):
        async with client(tmp_path) as (_, writer):
            writer.write(b'{"verb": "events"}\n')
            await until(lambda: commands)
            assert commands[0].send_progress({"turn": 0})
        turns = iter(range(1, 1_000_000))
        await until(lambda: not commands[0].send_progress({"turn": next(turns)}))
        commands[0].answer({})
        assert await _another(tmp_path, commands)
    assert not failures


async def _another(directory: Path, commands: list[Command]) -> bool:
    """Another client gets a response."""
    asking = asyncio.ensure_future(ask(directory, b'{"verb": "status"}'))
    await until(lambda: len(commands) == 2)
    commands[1].answer({})
    return (await asking)["ok"] is True


async def test_the_end_of_the_master(tmp_path: Path) -> None:
    """Connections end with the master, also one whose answer never came: that is what `stop` waits for."""
    kept: list[Command] = []
    async with controlled(tmp_path, kept.append) as control, client(tmp_path) as (reader, writer):
        writer.write(b'{"verb": "stop"}\n')
        await until(lambda: kept)
        await control.close()
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user(tmp_path: Path) -> None:
    """Another user is refused even where the socket's mode lets it in."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(directory, 0o755)
    async with controlled(tmp_path):
        os.chmod(tmp_path / "c.sock", 0o666)
        said = await asyncio.to_thread(_ask_as_nobody, str(tmp_path / "c.sock"))
    assert said["error"]["message"] == "only the user of the master, and root, may control it"


def _ask_as_nobody(path: str) -> dict[str, Any]:
    # The credentials that count are those of the thread that connects: only this one changes them.
    import ctypes

    libc, sys_setresuid = ctypes.CDLL(None), 117
    with socket.socket(socket.AF_UNIX) as sock:
        assert libc.syscall(sys_setresuid, -1, 65534, -1) == 0
        try:
            sock.connect(path)
        finally:
            assert libc.syscall(sys_setresuid, -1, 0, -1) == 0
        sock.settimeout(PATIENCE)
        found: dict[str, Any] = json.loads(sock.makefile("rb").readline())
        return found
