"""One reader of the configuration for all workers: they delegate the reading to the master, and are notified of changes.

Run it:  `echo '{"greeting": "hello"}' > config.json; python examples/config_reader.py [PORT [FILE]]`
Try it:  `curl localhost:3000; echo '{"greeting": "good morning"}' > config.json; curl localhost:3000`
"""

import json
import sys
from pathlib import Path

from cluster2 import Cluster, worker

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
FILE = Path(sys.argv[2] if len(sys.argv) > 2 else "config.json").absolute()

# In each worker

config = {}


@worker.on_start
async def read():
    # All workers delegate the same work when they start, so the file is read once.
    config.update(await worker.delegate("read-config", {"file": str(FILE)}))


@worker.on("config-changed")
def changed(event):
    config.clear()
    config.update(event.data)


async def app(scope, receive, send):
    """Answer with the greeting of the configuration."""
    if scope["type"] == "http":
        body = config["greeting"].encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


# In the master

cluster = Cluster(host="127.0.0.1", port=PORT, workers=2, heartbeat_interval=1)
seen = {}


@cluster.on_delegate("read-config")
def read_config(message):  # a plain function runs in a thread, so the master never waits for the disk
    file = Path(message["file"])
    seen[file] = file.stat().st_mtime_ns
    return json.loads(file.read_text())


@cluster.on("heartbeat")
def reread(event):
    for file, before in list(seen.items()):
        if file.stat().st_mtime_ns != before:
            cluster.notify("config-changed", read_config({"file": file}))


if __name__ == "__main__":
    cluster.listen(app)
