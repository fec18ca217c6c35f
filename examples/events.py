"""Log the signals, and the start and end of workers, to a file.

Run it:  python examples/events.py [PORT [FILE]]
Try it:  `kill -9` a worker, then read events.log
"""

import asyncio
import os
import sys
from pathlib import Path

from cluster2 import Cluster

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
LOG = Path(sys.argv[2] if len(sys.argv) > 2 else "events.log")

cluster = Cluster(host="127.0.0.1", port=PORT, workers=2)


def log(line: str) -> None:
    with LOG.open("a") as file:
        file.write(line + os.linesep)


@cluster.on("forked")
def forked(event):
    log(f"Worker {event.pid} forked")


@cluster.on("died")
async def died(event):  # a handler may be async, too
    await asyncio.to_thread(log, f"Worker {event.pid} died")


@cluster.on("SIGTERM")
def sigterm(event):
    log("Got SIGTERM - shutting down")


@cluster.on("SIGINT")
def sigint(event):
    log("Got SIGINT")


async def app(scope, receive, send):
    """Answer hello to every request: the smallest ASGI app."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})


if __name__ == "__main__":
    cluster.listen(app)
