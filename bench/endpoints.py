"""FastAPI endpoints that are plain functions, which the framework runs in threads.

`/` does next to nothing, `/async` does the same on the loop, `/slow` computes for 30 ms, and `/pid` returns the worker's
pid. Such a thread and the event loop take turns with the GIL, so the loop is late although none of its own handlers
takes long.
"""

from __future__ import annotations

import os

from fastapi import FastAPI, Response

from bench.apps import compute

app = FastAPI(openapi_url=None)


@app.get("/")
def hello() -> Response:
    """Do trivial work in a thread."""
    return Response(b"hello", media_type="text/plain")


@app.get("/async")
async def hello_async() -> Response:
    """Do trivial work on the loop, which waits only for the GIL."""
    return Response(b"hello", media_type="text/plain")


@app.get("/slow")
def slow() -> Response:
    """Do long work in a thread."""
    compute()
    return Response(b"hello", media_type="text/plain")


@app.get("/pid")
def pid() -> Response:
    """Return the worker's pid."""
    return Response(str(os.getpid()), media_type="text/plain")
