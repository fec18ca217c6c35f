"""The client of the control socket: send a command to a running master and read its response.

The protocol is JSON lines over `master.sock` in the pids directory. A request is one line, `{"verb": "status", "params": {}}`.
The response is any number of `{"progress": {…}}`, then `{"ok": true, "result": {…}}` or
`{"ok": false, "error": {"message": "…", "detail": "…", "exit_code": 1}}`. For a verb that ends the master, the response is
complete only when the connection ends, which it does when the master has ended.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ClusterError, NoAnswer, by_exit_code
from ..linux.pid_files import CONTROL_SOCKET, connect_control

Progress = Callable[[dict[str, Any]], None]


class ControlClient:
    """A client of the master of one pids directory. Each call opens a connection of its own.

    Args:
        pids: the pids directory.
    """

    def __init__(self, pids: Path) -> None:
        self.pids = pids

    def call(
        self,
        verb: str,
        params: Mapping[str, Any] | None = None,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Send a command and return the result.

        Args:
            progress: called with each progress line of the master.
            timeout: seconds for the whole call; None: no bound.

        Raises:
            NotRunning: no master runs on the directory.
            NoAnswer: the master didn't respond, or not in time.
            ClusterError: the master's own error, with its exit code.
        """
        with self._connect() as connection:
            lines = _exchange(connection, verb, params, timeout)
            answer = self._answer(lines, progress)
        if answer is None:
            raise NoAnswer(f"the master at {self.pids} ended without a response to {verb!r}")
        return answer

    def follow(self, verb: str, tell: Progress) -> None:
        """Call `tell` with each line that the master sends, until it ends or drops this client for reading too slowly.

        Raises:
            NotRunning: no master runs on the directory.
            ClusterError: the master's own error.
        """
        with self._connect() as connection:
            self._answer(_exchange(connection, verb, None, None), tell)

    def send_and_wait_for_exit(
        self, verb: str, *, progress: Progress | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Send a command that ends the master (`stop`, `shutdown`), and wait until its process has ended.

        Returns:
            The result; empty if the connection ended without one.

        Raises:
            NotRunning: no master runs on the directory.
            NoAnswer: the master ended during a shutdown without a result, as one that is killed does.
            ClusterError: the master refuses, or runs still after `timeout` seconds; or it has ended, and requests were lost.
        """
        failure: ClusterError | None = None
        with self._connect() as connection:
            lines = _exchange(connection, verb, None, timeout)
            told: dict[str, Any] = {}

            def hear(said: dict[str, Any]) -> None:
                told.update({"leaves": said.pop("leaves", None)})
                if progress is not None:
                    progress(said)

            try:
                answer = self._answer(lines, hear)
            except NoAnswer:
                raise
            except ClusterError as error:
                answer, failure = told, error
            if answer is None and verb == "shutdown":
                failure = NoAnswer(f"the master at {self.pids} ended before it reported how its workers left")
            master_pidfd = _open_process(answer or told)
            try:
                for _ in lines:
                    pass  # further lines don't matter: the end of the connection does
                if master_pidfd is not None:
                    # The connection ends a moment before the process. Wait for the process, so that a master that is started
                    # next finds the addresses and the directory free.
                    select.select([master_pidfd], [], [], timeout)
            finally:
                if master_pidfd is not None:
                    os.close(master_pidfd)
        if failure is not None:
            raise failure
        return answer or {}

    def _connect(self) -> socket.socket:
        try:
            return connect_control(self.pids)
        except OSError as error:
            raise NoAnswer(f"can't connect to the master at {self.pids}: {error.strerror}") from None

    def _answer(self, lines: Iterator[bytes], progress: Progress | None) -> dict[str, Any] | None:
        """Return the result; None: the connection ended first."""
        for line in lines:
            kind, content = decode_line(line, f"{self.pids}/{CONTROL_SOCKET}")
            if kind == "result":
                return content
            if progress is not None:
                progress(content)
        return None


def request(verb: str, params: Mapping[str, Any] | None) -> bytes:
    """Encode a request as a line."""
    return json.dumps({"verb": verb, "params": dict(params or {})}).encode() + b"\n"


def decode_line(line: bytes, speaker: str) -> tuple[str, dict[str, Any]]:
    """Decode one line of a response: return "progress" or "result", and its content.

    Args:
        speaker: the path of the socket, for the error.

    Raises:
        ClusterError: the master's own error; or the line isn't one of a master's.
    """
    try:
        plain = json.loads(line)
        kind, content = next((key, plain[key]) for key in ("progress", "result", "error") if key in plain)
        error = _error(content) if kind == "error" else None
        content = dict(content)
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError):
        raise ClusterError(
            f"the process that listens at {speaker} is no master of cluster2: it sent {line!r:.80}"
        ) from None
    if error is not None:
        raise error
    return kind, content


def _exchange(
    connection: socket.socket, verb: str, params: Mapping[str, Any] | None, timeout: float | None
) -> Iterator[bytes]:
    """Send a request, and yield the lines of the response until the connection ends. Raises NoAnswer: the timeout is over."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pending = b""
    try:
        connection.settimeout(timeout)
        connection.sendall(request(verb, params))
        while True:
            if deadline is not None:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
            received = connection.recv(65536)
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            yield from lines
    except TimeoutError:
        raise NoAnswer(f"the master didn't finish {verb!r} within {timeout:g} s") from None
    except ConnectionError:
        return  # the master was killed with our request unread: this ends the connection, too


def _open_process(answer: Mapping[str, Any]) -> int | None:
    """Open a pidfd of the process that will end, by the master's response; None: none will, or it has ended already."""
    try:
        return os.pidfd_open(int(answer["leaves"])) if answer.get("leaves") else None
    except ProcessLookupError:
        return None


def _error(said: Mapping[str, Any]) -> ClusterError:
    """Make an exception of the master's error, of the class that has its exit code."""
    code = int(said.get("exit_code", 1))
    error = by_exit_code(code, str(said["message"]), detail=str(said.get("detail") or ""))
    vars(error)["exit_code"] = code  # of a newer master: no class here has this code
    return error
