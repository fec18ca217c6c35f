"""An app that says what could be taken for markup, wherever a worker can say something."""

from __future__ import annotations

import sys
from typing import Any

from cluster2 import worker

MARKUP = '<script>pwned = 1</script><img src=x onerror="pwned = 2"><b>bold</b>&lt;'

INHERITED = ("__proto__", "constructor", "toString", "hasOwnProperty", "valueOf", "__defineGetter__")
"""Names that every object of JavaScript has."""

worker.register_status(MARKUP, lambda: {MARKUP: [MARKUP]}, reducer="first")
worker.register_status("pool", lambda: 3, reducer="sum")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers "hello"; /say: emits an event, and writes a line, both of markup; /inherited: emits events of such names."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/inherited":
        for name in INHERITED:
            worker.emit(name, {"said": name})
    if scope["path"] == "/say":
        worker.emit(MARKUP, {"said": MARKUP})
        print(MARKUP, file=sys.stderr, flush=True)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})
