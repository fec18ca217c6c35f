"""The control client, against a real Unix socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster2.errors import AddressInUse, ClusterError, ConfigError, NotRunning
from cluster2.runtime.control_client import ControlClient

Act = Callable[[socket.socket, dict[str, Any]], None]


@contextmanager
def master(pids: Path, act: Act) -> Iterator[None]:
    """Something that listens as a master does; it serves one connection and lets `act` answer the request."""
    pids.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        # Bound under a short name, for the same reason that the client connects under one.
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(pids)
            listener.bind("master.sock")
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                act(connection, json.loads(lines.readline()))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def say(connection: socket.socket, *lines: object) -> None:
    connection.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def test_a_call(tmp_path: Path) -> None:
    """Verb and parameters go as one line; the result comes back, progress before it."""
    seen: list[Any] = []

    def act(connection: socket.socket, request: dict[str, Any]) -> None:
        seen.append(request)
        say(connection, {"progress": {"done": 1}}, {"progress": {"done": 2}}, {"ok": True, "result": {"n": 3}})

    with master(tmp_path, act):
        assert ControlClient(tmp_path).call("scale", {"n": 3}, progress=seen.append, timeout=10) == {"n": 3}
    assert seen == [{"verb": "scale", "params": {"n": 3}}, {"done": 1}, {"done": 2}]


def test_an_answer_in_pieces(tmp_path: Path) -> None:
    """An answer that is long, and arrives byte for byte, is put together."""
    result = {"text": "ä" * 70_000}

    def act(connection: socket.socket, request: dict[str, Any]) -> None:
        whole = json.dumps({"ok": True, "result": result}).encode() + b"\n"
        for at in range(16):
            connection.sendall(whole[at : at + 1])
        connection.sendall(whole[16:])

    with master(tmp_path, act):
        assert ControlClient(tmp_path).call("status") == result


def test_a_path_longer_than_a_socket_may_have(tmp_path: Path) -> None:
    """The directory may be as deep as it likes."""
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    with master(deep, lambda connection, request: say(connection, {"ok": True, "result": {}})):
        assert ControlClient(deep).call("status") == {}


@pytest.mark.parametrize(
    ("code", "error"), [(1, ClusterError), (4, AddressInUse), (5, ConfigError), (42, ClusterError)]
)
def test_the_masters_error(tmp_path: Path, code: int, error: type[ClusterError]) -> None:
    """An error of the master is raised here with its class, exit code and detail."""
    said = {"ok": False, "error": {"message": "no", "detail": "why", "exit_code": code}}
    with master(tmp_path, lambda connection, request: say(connection, said)), pytest.raises(ClusterError) as caught:
        ControlClient(tmp_path).call("reload")
    assert type(caught.value) is error
    assert (caught.value.message, caught.value.detail, caught.value.exit_code) == ("no", "why", code)
    assert error.exit_code != 42


def test_no_master(tmp_path: Path) -> None:
    """No directory, no socket, or a socket that nobody listens on: no master is running there, exit code 6."""
    (tmp_path / "file").touch()
    (tmp_path / "dead").mkdir()
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "dead")
        listener.bind("master.sock")
    for pids in (tmp_path, tmp_path / "nowhere", tmp_path / "file", tmp_path / "dead"):
        with pytest.raises(NotRunning, match=str(pids)) as caught:
            ControlClient(pids).call("status")
        assert caught.value.exit_code == 6


def test_a_master_that_leaves_without_an_answer(tmp_path: Path) -> None:
    """The end of the connection is no result."""
    with (
        master(tmp_path, lambda connection, request: None),
        pytest.raises(ClusterError, match="ended without a response to 'status'"),
    ):
        ControlClient(tmp_path).call("status")


@pytest.mark.parametrize("line", [b"HTTP/1.1 400\n", b"[]\n", b'{"what": 1}\n', b'{"error": {}}\n', b"\xff\n"])
def test_a_stranger(tmp_path: Path, line: bytes) -> None:
    """Who answers with something else is named, not believed."""
    with (
        master(tmp_path, lambda connection, request: connection.sendall(line)),
        pytest.raises(ClusterError, match="is no master of cluster2"),
    ):
        ControlClient(tmp_path).call("status")


def test_time_is_bounded(tmp_path: Path) -> None:
    """A master that doesn't answer in time is an error."""
    over = threading.Event()
    with master(tmp_path, lambda connection, request: over.wait(10) and None):
        try:
            with pytest.raises(ClusterError, match=r"within 0\.05 s"):
                ControlClient(tmp_path).call("status", timeout=0.05)
        finally:
            over.set()


def test_gone_waits_for_the_end(tmp_path: Path) -> None:
    """After the answer to `stop` it still waits until the connection ends."""
    answered, released, ended = threading.Event(), threading.Event(), threading.Event()

    def act(connection: socket.socket, request: dict[str, Any]) -> None:
        assert request["verb"] == "stop"
        say(connection, {"progress": {"workers": 2}}, {"ok": True, "result": {"workers": 2}})
        answered.set()
        released.wait(10)

    def leave() -> None:
        assert ControlClient(tmp_path).send_and_wait_for_exit("stop", progress=lambda said: None) == {"workers": 2}
        ended.set()

    with master(tmp_path, act):
        thread = threading.Thread(target=leave)
        thread.start()
        assert answered.wait(10)
        assert not ended.wait(0.02)
        released.set()
        thread.join(10)
    assert ended.is_set()


def test_gone_needs_no_answer(tmp_path: Path) -> None:
    """A master that is killed on the spot is gone, too."""
    with master(tmp_path, lambda connection, request: None):
        assert ControlClient(tmp_path).send_and_wait_for_exit("stop") == {}


def test_gone_passes_a_refusal_on(tmp_path: Path) -> None:
    """A master that won't leave says why."""
    said = {"ok": False, "error": {"message": "not now", "detail": "", "exit_code": 1}}
    with (
        master(tmp_path, lambda connection, request: say(connection, said)),
        pytest.raises(ClusterError, match="not now"),
    ):
        ControlClient(tmp_path).send_and_wait_for_exit("shutdown")
