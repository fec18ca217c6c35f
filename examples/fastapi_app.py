"""A FastAPI app with a lifespan, a page, a slow endpoint and a websocket.

Run it:  cluster2 run examples/fastapi_app.py:app --workers 2
Try it:  curl http://127.0.0.1:3000/
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, WebSocket, WebSocketDisconnect


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.greeting = "hello from FastAPI"  # each worker runs this once, before its first request
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def index() -> dict[str, object]:
    return {"message": app.state.greeting, "worker": os.getpid()}


@app.get("/slow")
async def slow(seconds: float = 1.0) -> dict[str, float]:
    await asyncio.sleep(min(seconds, 10))
    return {"slept": seconds}


@app.websocket("/ws")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect:
        pass  # the client has left
