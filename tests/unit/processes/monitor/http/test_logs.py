"""`/logs`: the list, whole files, their last lines, ranges of bytes, and no other files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from cluster2.config.settings import Settings
from cluster2.linux import log_files
from cluster2.linux.scoreboard import Scoreboard
from cluster2.processes.monitor.app import make_app
from cluster2.processes.monitor.data.cluster_view import ClusterView
from cluster2.processes.monitor.http.log_routes import routes

pytestmark = pytest.mark.anyio
LINES = b"".join(b"line %d\n" % each for each in range(1000))


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Make a directory with a log, and a secret file beside it."""
    directory = tmp_path / "logs"
    directory.mkdir()
    (directory / "master.log").write_bytes(LINES)
    (directory / "worker.0.log.1").write_bytes(b"<script>alert(1)</script>\xff\x00\n")
    (tmp_path / "secret.log").write_text("secret")
    return directory


async def ask(logs: Path, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    """Return the response of the routes."""
    transport = httpx.ASGITransport(Starlette(routes=routes("", Settings(logs=str(logs)))))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        request = client.build_request(method, "http://localhost/")
        request.url = request.url.copy_with(raw_path=path.encode("latin-1"))
        request.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
        return await client.send(request)


async def test_the_list(logs: Path) -> None:
    """The list has files with their sizes, as lines or as JSON; without a directory a line says when there are logs."""
    text = (await ask(logs, "/logs")).text.splitlines()
    assert [line.split()[-1] for line in text] == ["master.log", "worker.0.log.1"]
    found = (await ask(logs, "/logs", accept="application/json")).json()["logs"]
    assert [(each["name"], each["size"]) for each in found] == [("master.log", len(LINES)), ("worker.0.log.1", 28)]
    assert "log_to = stderr" in (await ask(logs / "none", "/logs")).text


async def test_a_file(logs: Path) -> None:
    """A file is sent unchanged, as plain text that no browser runs or stores; HEAD has the same headers."""
    answer = await ask(logs, "/logs/worker.0.log.1")
    assert (answer.status_code, answer.content) == (200, b"<script>alert(1)</script>\xff\x00\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    head = await ask(logs, "/logs/worker.0.log.1", "HEAD")
    assert (head.status_code, head.content, head.headers) == (200, b"", answer.headers)


@pytest.mark.parametrize(("tail", "lines"), [("0", 0), ("1", 1), ("7", 7), ("1000", 1000), ("100000", 1000)])
async def test_the_last_lines(logs: Path, tail: str, lines: int) -> None:
    """`?tail=` is the number of last lines to send."""
    answer = await ask(logs, f"/logs/master.log?tail={tail}")
    assert answer.content.splitlines() == LINES.splitlines()[1000 - lines :]


@pytest.mark.parametrize("tail", ["", "-1", "x", "1.5", "100001", "%D9%A3", "99999999999999999999"])
async def test_what_is_no_number_of_lines_is_refused(logs: Path, tail: str) -> None:
    """A bad number of lines is a 400."""
    assert (await ask(logs, f"/logs/master.log?tail={tail}")).status_code == 400


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=5-5", (5, 6)),
        ("bytes=8880-", (8880, 8890)),
        ("bytes=-3", (8887, 8890)),
        ("bytes=-99999", (0, 8890)),
        ("bytes=8000-99999", (8000, 8890)),
    ],
)
async def test_a_part(logs: Path, asked: str, part: tuple[int, int]) -> None:
    """A range is a 206 with these bytes and their position."""
    answer = await ask(logs, "/logs/master.log", range=asked)
    assert (answer.status_code, answer.content) == (206, LINES[slice(*part)])
    assert answer.headers["content-range"] == f"bytes {part[0]}-{part[1] - 1}/{len(LINES)}"
    assert answer.headers["content-length"] == str(part[1] - part[0])


@pytest.mark.parametrize("asked", ["bytes=8890-", "bytes=9999-10000", "bytes=-0"])
async def test_a_part_that_is_not_there(logs: Path, asked: str) -> None:
    """A range outside of the file is a 416 with the size."""
    answer = await ask(logs, "/logs/master.log", range=asked)
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(LINES)}")


@pytest.mark.parametrize(
    "asked", ["bytes=-", "bytes=9-3", "bytes=0-1,3-4", "lines=0-3", "bytes=a-b", "bytes=" + "9" * 30 + "-"]
)
async def test_a_range_that_is_not_understood_is_ignored(logs: Path, asked: str) -> None:
    """A range that isn't understood gets the whole file (RFC 9110, 14.2)."""
    answer = await ask(logs, "/logs/master.log", range=asked)
    assert (answer.status_code, answer.content) == (200, LINES)


async def test_a_part_of_what_has_changed_is_the_whole(logs: Path) -> None:
    """With `If-Range` a file that has changed, or another file, is sent whole."""
    tag = (await ask(logs, "/logs/master.log", "HEAD")).headers["etag"]
    assert (await ask(logs, "/logs/master.log", range="bytes=5-", if_range=tag)).status_code == 206
    with (logs / "master.log").open("ab") as log:
        log.write(b"more\n")
    answer = await ask(logs, "/logs/master.log", range="bytes=5-", if_range=tag)
    assert (answer.status_code, answer.content) == (200, LINES + b"more\n")
    (logs / "master.log").rename(logs / "master.log.1")
    (logs / "master.log").write_bytes(LINES + b"more\n")
    again = await ask(logs, "/logs/master.log", range="bytes=5-", if_range=answer.headers["etag"])
    assert again.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/logs/../secret.log",
        "/logs/..%2fsecret.log",
        "/logs/%2e%2e/secret.log",
        "/logs/%2e%2e%2fsecret.log",
        "/logs/..%5csecret.log",
        "/logs/%252e%252e%252fsecret.log",
        "/logs//etc/passwd",
        "/logs/%2fetc%2fpasswd",
        "/logs/master.log%00",
        "/logs/master.log%0a",
        "/logs/master.log%2f",
        "/logs/..",
        "/logs/access.log",
        "/logs/worker.5.log",
        "/logs/worker.6.log",
        "/logs/worker.7.log",
        "/logs/secret.log",
        "/logs/master.log.gz",
        "/logs/" + "a" * 300,
        "/logs/%ff%fe",
    ],
)
async def test_no_other_files(logs: Path, path: str) -> None:
    """Only regular files of the directory with a log's name are sent: no parent, no link, no fifo, no directory."""
    (logs / "access.log").symlink_to(logs.parent / "secret.log")
    (logs / "worker.5.log").symlink_to("/etc/passwd")
    os.mkfifo(logs / "worker.6.log")
    (logs / "worker.7.log").mkdir()
    (logs / "secret.log").write_text("secret")
    answer = await ask(logs, path)
    assert answer.status_code in (404, 307), answer.text  # a slash at the end is redirected to the name without it
    assert "root:" not in answer.text
    assert "secret" not in answer.text


async def test_access(logs: Path) -> None:
    """Logs are behind access control: a foreign host name, no token on a network, or another method is refused."""
    board = Scoreboard.create()

    async def switch(enabled: bool) -> bool:
        return True

    async def status(settings: Settings, method: str, host: str, **headers: str) -> int:
        transport = httpx.ASGITransport(make_app(ClusterView(board, 0, switch), settings))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return (await client.request(method, "/logs/master.log", headers=headers)).status_code

    local = Settings(logs=str(logs))
    network = Settings(logs=str(logs), monitor_host="0.0.0.0", monitor_token="s3cret")
    try:
        assert await status(local, "GET", "localhost") == 200
        assert await status(local, "GET", "evil.example") == 421
        assert await status(local, "POST", "localhost") == 403
        assert await status(network, "GET", "localhost") == 401
        assert await status(network, "GET", "localhost", authorization="Bearer s3cret") == 200
        assert await status(network, "DELETE", "localhost", authorization="Bearer s3cret") == 405
    finally:
        board.close()


class Taking:
    """A client of the ASGI app that calls a function after each part of the response."""

    def __init__(self, logs: Path, then: Callable[[int], None]) -> None:
        self._app = Starlette(routes=routes("", Settings(logs=str(logs))))
        self._then = then
        self.body = b""
        self.pieces: list[int] = []
        self.complete = False

    async def take(self) -> None:
        scope = {"type": "http", "method": "GET", "path": "/logs/master.log", "query_string": b"", "headers": []}
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            self.body += message["body"]
            self.pieces.append(len(message["body"]))
            self.complete = not message.get("more_body")
            self._then(len(self.pieces))


async def test_a_file_that_is_rotated_while_it_is_read(logs: Path) -> None:
    """A file that is rotated during the response is sent to its end."""
    content = os.urandom(10 * log_files.READ_BLOCK_BYTES)
    (logs / "master.log").write_bytes(content)

    def rotate(pieces: int) -> None:
        if pieces == 3:
            (logs / "master.log").rename(logs / "master.log.1")
            (logs / "master.log").write_bytes(b"another")
        if pieces == 5:
            (logs / "master.log.1").unlink()

    taking = Taking(logs, rotate)
    await taking.take()
    assert taking.complete
    assert taking.body == content
    assert max(taking.pieces) <= log_files.READ_BLOCK_BYTES


async def test_a_file_that_is_truncated_while_it_is_read(logs: Path) -> None:
    """The response of a file that is truncated meanwhile isn't completed, so the client notices."""
    (logs / "master.log").write_bytes(os.urandom(10 * log_files.READ_BLOCK_BYTES))

    def cut(pieces: int) -> None:
        if pieces == 3:
            os.truncate(logs / "master.log", 0)

    taking = Taking(logs, cut)
    await taking.take()
    assert not taking.complete
    assert len(taking.body) == 3 * log_files.READ_BLOCK_BYTES
