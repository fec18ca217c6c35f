"""One writer for the log of all workers: they hand their lines to the master, and don't wait.

Run it:  python examples/remote_logger.py [PORT [FILE]]
Try it:  curl localhost:3000/some/path; cat requests.log
"""

import sys
from pathlib import Path

from cluster2 import Cluster, worker

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
FILE = Path(sys.argv[2] if len(sys.argv) > 2 else "requests.log").absolute()


async def app(scope, receive, send):
    """Answer hello, and log the path."""
    if scope["type"] == "http":
        worker.delegate_nowait("log", {"pid": worker.pid, "path": scope["path"]})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})


cluster = Cluster(host="127.0.0.1", port=PORT, workers=2)


@cluster.on_delegate("log", limit=1)  # one at a time, which keeps the lines in order of arrival
def log(line):
    with FILE.open("a") as file:
        print(line["pid"], line["path"], file=file)


if __name__ == "__main__":
    cluster.listen(app)
