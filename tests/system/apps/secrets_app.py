"""Tells where it sees a secret: in its own environment, what the kernel shows of that and of its parent's, in a program's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

SECRETS = ("a-secret-of-the-monitor", "a-secret-of-the-switch")
AT_IMPORT = dict(os.environ)


def sights() -> list[str]:
    """Each place where one of them is seen."""
    places = {
        "os.environ": repr(dict(os.environ)),
        "environ of this process": Path("/proc/self/environ").read_text(errors="replace"),
        "environ of its parent": Path(f"/proc/{os.getppid()}/environ").read_text(errors="replace"),
        "cmdline": Path("/proc/self/cmdline").read_text(errors="replace"),
        "a program's environment": subprocess.run(["/usr/bin/env"], capture_output=True, text=True, check=True).stdout,
    }
    if __name__ != "__main__":  # a script reads its options itself
        places["os.environ at import"] = repr(AT_IMPORT)
    return [name for name, text in places.items() if any(secret in text for secret in SECRETS)]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says it."""
    if scope["type"] != "http":
        return
    body = repr(sights()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    from cluster2 import Cluster

    Cluster(ecv={"control": True}, host="127.0.0.1", port=0, workers=1).listen(app)
