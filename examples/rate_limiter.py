"""A rate limit that all workers share: RATE requests a second for each client, whichever worker answers it.

Run it:  python examples/rate_limiter.py [PORT [RATE]]
Try it:  `for i in $(seq 20); do curl -s -o /dev/null -w '%{http_code} ' localhost:3000; done`
"""

import sys
import time

from cluster2 import Cluster, worker

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
RATE = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
BURST = max(RATE, 1.0)


async def app(scope, receive, send):
    """Answer hello, or 429 if the client sends requests too often."""
    if scope["type"] == "http":
        client = scope["client"][0] if scope["client"] else "local"
        status = 200 if await worker.delegate("take", client, timeout=1) else 429
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})


cluster = Cluster(host="127.0.0.1", port=PORT, workers=2)
buckets = {}


# An async handler runs on the master's loop, one call after the other, so it needs no lock. With `single=False` each request takes
# a token of its own, although all calls are equal.
@cluster.on_delegate("take", single=False)
async def take(client):
    now = time.monotonic()
    tokens, at = buckets.get(client, (BURST, now))
    tokens = min(BURST, tokens + (now - at) * RATE)
    taken = tokens >= 1
    buckets[client] = (tokens - taken, now)
    return taken


if __name__ == "__main__":
    cluster.listen(app)
