"""An app whose requests talk to the master: the path says what is called, the body has the arguments as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

from cluster2 import worker
from cluster2.errors import ChannelFull, DelegateError
from cluster2.processes.worker.messaging import api

heard: list[Any] = []
depth = {"value": 0}


@worker.on("news")
def news(event: Any) -> None:
    heard.append([event.event, event.data, event.pid])


@worker.once("once")
async def first(event: Any) -> None:
    heard.append([event.event, event.data, event.pid])


def resize(value: int) -> None:
    depth["value"] = value


worker.register_status("depth", view=lambda: depth["value"], reducer="sum", update=resize)
worker.register_status("pids", view=lambda: [os.getpid()], reducer="concat")
worker.register_status("echo", view=lambda params: params, reducer="first")
worker.register_status("spread", view=lambda: os.getpid(), reducer=lambda values: max(values) - min(values))
worker.register_status("broken", view=lambda: 1 / 0)


@worker.on_start
async def start() -> None:
    async def slow() -> int:
        await asyncio.sleep(depth["value"])
        return os.getpid()

    worker.register_status("slow", view=slow)


async def call(name: str, given: dict[str, Any]) -> Any:
    match name:
        case "delegate":
            return await worker.delegate(given.pop("name"), given.pop("message", None), **given)
        case "threaded":
            return await asyncio.to_thread(worker.delegate_sync, given.pop("name"), given.pop("message", None), **given)
        case "other-loop":
            return await asyncio.to_thread(
                lambda: asyncio.run(worker.delegate(given.pop("name"), given.pop("message", None), **given))
            )
        case "sync-on-loop":
            return worker.delegate_sync(given["name"])
        case "many":
            asked = (worker.delegate(given["name"], given.get("message"), timeout=60) for _ in range(given["times"]))
            return await asyncio.gather(*asked)
        case "nowait":
            for number in range(given["times"]):
                worker.delegate_nowait(given["name"], number)
                if number % 1000 == 999:
                    await asyncio.sleep(0)
        case "nowait-steady":  # at the pace that the channel allows
            for number in range(given["times"]):
                while True:
                    try:
                        worker.delegate_nowait(given["name"], number)
                        break
                    except ChannelFull:
                        await asyncio.sleep(0.001)
        case "many-steady":
            right = 0
            for start in range(0, given["times"], 1000):
                asked = [worker.delegate(given["name"], number, timeout=None) for number in range(start, start + 1000)]
                right += sum(
                    a == b for a, b in zip(await asyncio.gather(*asked), range(start, start + 1000), strict=True)
                )
            return right
        case "mad":  # what no sound worker does, on the very channel
            channel = api._client._channel
            if given["how"] == "deaf":
                channel._transport.pause_reading()
            else:
                channel._transport.write(bytes.fromhex(given["how"]) * given["times"])
        case "emit":
            worker.emit(given["event"], given.get("data"), targets=given.get("targets"))
        case "burst":
            for number in range(given["times"]):
                worker.emit(given["event"], number)
        case "heard":
            return heard
        case "set":
            depth["value"] = given["value"]
        case "transaction":
            worker.transaction(given["duration"], error=given["error"])
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers {"pid": …, "result": …} or {"pid": …, "error": [type, message]}."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer: dict[str, Any] = {"pid": os.getpid()}
    try:
        answer["result"] = await call(scope["path"][1:], json.loads(body or b"{}"))
    except DelegateError as error:
        answer["error"] = [type(error).__name__, error.message, error.type, error.traceback]
    except Exception as error:
        answer["error"] = [type(error).__name__, str(error)]
    said = json.dumps(answer).encode()
    headers = [(b"content-length", b"%d" % len(said)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})
