"""Start a server from a script: this process is the master, its workers are forked from a second run of this file.

Run it:  python examples/start.py [PORT]
Stop it: python examples/stop.py, or python examples/shutdown.py, from the same directory
"""

import sys

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from cluster2 import Cluster


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


app = Starlette(routes=[Route("/", hello)])

if __name__ == "__main__":
    cluster = Cluster(host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 3000, workers=2)
    cluster.listen(app)
