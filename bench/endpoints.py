"""FastAPI endpoints that are plain functions: the framework runs them in threads.

`/` does next to nothing, `/async` as little but on the loop, `/slow` computes for 30 ms, `/pid` tells the worker's
pid. Such a thread holds the GIL in turns with the event loop, so that the loop is late although none of its own handlers
is long.
"""

from __future__ import annotations

import os

from fastapi import FastAPI, Response

from bench.apps import compute

app = FastAPI(openapi_url=None)


@app.get("/")
def hello() -> Response:
    """Trivial work in a thread."""
    return Response(b"hello", media_type="text/plain")


@app.get("/async")
async def hello_async() -> Response:
    """Trivial work on the loop: what it waits for is the GIL."""
    return Response(b"hello", media_type="text/plain")


@app.get("/slow")
def slow() -> Response:
    """Long work in a thread."""
    compute()
    return Response(b"hello", media_type="text/plain")


@app.get("/pid")
def pid() -> Response:
    """Who answers."""
    return Response(str(os.getpid()), media_type="text/plain")
