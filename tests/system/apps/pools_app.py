"""An app whose handlers have work done by processes of multiprocessing, which use an event loop and ask the app itself."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import uvloop

from tests.system.apps.sample_apps import answer


def square(number: int) -> int:
    return number * number


async def _ask(port: int) -> bytes:
    """Run a program, and ask the server that this process was forked from."""
    await (await asyncio.create_subprocess_exec("/bin/true")).wait()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    answered = await reader.read()
    writer.close()
    return answered


def _put(queue: Any, run: Callable[[Any], bytes], port: int) -> None:
    queue.put(run(_ask(port))[-2:])


async def _in_process(method: str, run: Callable[[Any], bytes], port: int) -> bytes:
    context: Any = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=_put, args=(queue, run, port))
    # On the loop's thread: a fork of a thread of an executor ends with 1, since Python has it join itself (3.11).
    process.start()
    found: bytes = await asyncio.to_thread(queue.get)
    await asyncio.to_thread(process.join)
    return b"%s %d" % (found, process.exitcode)


async def _pool(port: int) -> bytes:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return repr(await asyncio.to_thread(pool.map, square, range(4))).encode()


async def _executor(port: int) -> bytes:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor:
        return b"%d" % await asyncio.get_running_loop().run_in_executor(executor, square, 7)


KINDS: dict[str, Callable[[int], Awaitable[bytes]]] = {
    "pool": _pool,
    "executor": _executor,
    "asyncio": lambda port: _in_process("fork", asyncio.run, port),
    "uvloop": lambda port: _in_process("fork", uvloop.run, port),
    "forkserver": lambda port: _in_process("forkserver", asyncio.run, port),
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`/KIND` does that kind of work, `/` answers "ok"."""
    if scope["type"] != "http":
        return
    if (kind := KINDS.get(scope["path"].strip("/"))) is None:
        await answer(send, b"ok")
    else:
        await answer(send, await kind(scope["server"][1]))
