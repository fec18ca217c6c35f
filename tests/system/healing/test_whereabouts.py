"""Stacks tell which request holds the loop or a thread, and what an async app's tasks wait for; also in the log of a hang."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.harness import Running, wait_until

APPS = Path(__file__).parents[1] / "apps" / "whereabouts_app.py"
HANDSHAKE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
HANGS = ("--max-heartbeat-delay", "1s")
LASTS = ("--threads", "2", "--request-timeout", "1s", "--drain-timeout", "0.2s")
KINDS = {
    "http asgi": ("asgi", ("--engine", "http", *HANGS)),
    "http wsgi inline": ("wsgi", ("--engine", "http", "--threads", "0")),
    "http wsgi threads": ("wsgi", ("--engine", "http", *LASTS)),
    "granian asgi": ("asgi", ("--engine", "granian")),
    "granian rsgi": ("rsgi", ("--engine", "granian")),
    "granian wsgi": ("wsgi", ("--engine", "granian", "--threads", "2")),
    "tcp": ("tcp", ()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whereabouts(run: Callable[..., Running], kind: str) -> None:
    """Stacks name the request that holds the loop or a thread, and show where tasks wait; so does the log of a hang.

    For ASGI, what waits is a websocket.
    """
    app, options = KINDS[kind]
    running = run(f"{APPS}:{app}", *options, workers=1).ready(1)
    with ExitStack() as stack:

        def ask(path: str) -> None:
            client = stack.enter_context(socket.create_connection(running.address, timeout=30))
            more = HANDSHAKE if app == "asgi" and path.startswith("/wait") else ""
            request = f"{path}\n" if app == "tcp" else f"GET {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n"
            client.sendall(request.encode())
            running.held(path.rpartition("/")[2])

        def stacks() -> str:
            return str(running.ask("stacks")["workers"][0]["stacks"])

        def check_tasks(shown: str) -> None:
            tasks = shown.partition("Tasks of its loop")[2]
            named = (
                r"Task-\d+: .*127.0.0.1:\d+"
                if app == "tcp"
                else rf"Task-\d+: .*{'websocket ' * (app == 'asgi')}/wait/one"
            )
            assert re.search(named, tasks), shown
            assert re.search(r"in wait_for_ever\n.* in steps\n", tasks), shown

        if app != "wsgi":
            ask("/wait/one")
            shown = stacks()
            assert "no task holds the loop" in shown
            check_tasks(shown)
        ask("/sleep/two")
        if HANGS[0] in options or LASTS[2] in options:
            wait_until(lambda: "Tasks of its loop" in running.stderr, lambda: running.stderr)
            shown = running.stderr
        else:
            shown = stacks()
    named = r"the connection of 127.0.0.1:\d+" if app == "tcp" else r".*/sleep/two"
    in_thread = kind in ("http wsgi threads", "granian wsgi")
    assert re.search(rf"  {named} {'is in thread' if in_thread else 'holds the loop'}", shown), shown
    assert "in hold" in shown
    if app != "wsgi":
        check_tasks(shown)
