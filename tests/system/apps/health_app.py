"""Apps whose health a test decides by files in their directory. Each answer tells the worker."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from flask import Flask


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"pool": "open"}


app = FastAPI(lifespan=lifespan)


@app.middleware("http")
async def mark(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    response.headers["x-marked"] = "yes"
    return response


@app.get("/pid")
async def pid() -> Response:
    return Response(str(os.getpid()))


@app.post("/ecv/disable")
async def own() -> Response:
    return Response("the app's own")


@app.get("/health")
async def health(request: Request) -> Response:
    """Fine if the lifespan has run; 503 if there is a file `sick`; never while there is a file `slow`."""
    while Path("slow").exists():
        await asyncio.sleep(0.01)
    fine = request.state.pool == "open" and not Path("sick").exists()
    return Response(f"fine for {request.headers['user-agent']}", status_code=200 if fine else 503)


def valid(status: int, headers: dict[str, str], body: bytes) -> bool:
    """What the file `verdict` says; it takes its time while there is a file `hanging`."""
    while Path("hanging").exists():
        time.sleep(0.01)
    if Path("raising").exists():
        raise LookupError("no verdict")
    assert threading.current_thread() is not threading.main_thread()
    return (status, headers["x-marked"], body) == (200, "yes", b"fine for cluster2-ecv") and not Path(
        "refused"
    ).exists()


async def valid_async(status: int, headers: dict[str, str], body: bytes) -> bool:
    await asyncio.sleep(0)
    return not Path("refused").exists()


flask = Flask(__name__)


@flask.get("/pid")
def flask_pid() -> str:
    return str(os.getpid())


@flask.get("/health")
def flask_health() -> tuple[str, int]:
    while Path("slow").exists():
        time.sleep(0.01)
    return "fine", 503 if Path("sick").exists() else 200


async def rsgi(scope: Any, protocol: Any) -> None:
    """The same for RSGI."""
    while scope.path == "/health" and Path("slow").exists():
        await asyncio.sleep(0.01)
    status = {"/pid": 200, "/health": 503 if Path("sick").exists() else 200}.get(scope.path, 404)
    protocol.response_str(status, [("content-type", "text/plain")], str(os.getpid()))
