"""How to talk to a running master: JSON lines over `master.sock` in its pids directory.

A request is one line, `{"verb": "status", "params": {}}`. The answer is any number of `{"progress": {…}}`, and then
either `{"ok": true, "result": {…}}` or `{"ok": false, "error": {"message": "…", "detail": "…", "exit_code": 1}}`. To a
verb that ends the master the answer is complete only with the end of the connection, which is that of the master.
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
    """The master of one pids directory, seen from another process. Each call is a connection of its own.

    Args:
        pids: the directory.
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
        """Ask the master for something and return the result.

        Args:
            progress: called with what the master says before it answers.
            timeout: seconds for the whole; None waits as long as it takes.

        Raises:
            NotRunning: no master is there.
            NoAnswer: it didn't answer, or not in time.
            ClusterError: the master's own error, with its exit code.
        """
        with self._connect() as connection:
            lines = _exchange(connection, verb, params, timeout)
            answer = self._answer(lines, progress)
        if answer is None:
            raise NoAnswer(f"the master at {self.pids} left without an answer to {verb!r}")
        return answer

    def follow(self, verb: str, tell: Progress) -> None:
        """Have the master tell things until it leaves, or leaves us behind because we are too slow.

        Raises:
            NotRunning: no master is there.
            ClusterError: the master's own error.
        """
        with self._connect() as connection:
            self._answer(_exchange(connection, verb, None, None), tell)

    def send_and_wait_for_exit(
        self, verb: str, *, progress: Progress | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Tell the master to leave (`stop`, `shutdown`), return when it is gone: what it answered, or nothing.

        Raises:
            NotRunning: no master is there.
            NoAnswer: it has left a shutdown without saying how, as one that is killed does.
            ClusterError: it refuses, or is still there after `timeout` seconds; or it is gone, and something was lost.
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
                failure = NoAnswer(f"the master at {self.pids} was gone before it had said how its workers left")
            leaving = _open_process(answer or told)
            try:
                for _ in lines:
                    pass  # whatever it says now, the end of the connection is what counts
                if leaving is not None:
                    # The connection ends a moment before the process: who starts another master now must find all free.
                    select.select([leaving], [], [], timeout)
            finally:
                if leaving is not None:
                    os.close(leaving)
        if failure is not None:
            raise failure
        return answer or {}

    def _connect(self) -> socket.socket:
        try:
            return connect_control(self.pids)
        except OSError as error:
            raise NoAnswer(f"can't talk to the master at {self.pids}: {error.strerror}") from None

    def _answer(self, lines: Iterator[bytes], progress: Progress | None) -> dict[str, Any] | None:
        """The result, or None if the connection ended first."""
        for line in lines:
            kind, content = decode_line(line, f"{self.pids}/{CONTROL_SOCKET}")
            if kind == "result":
                return content
            if progress is not None:
                progress(content)
        return None


def request(verb: str, params: Mapping[str, Any] | None) -> bytes:
    """The line that asks."""
    return json.dumps({"verb": verb, "params": dict(params or {})}).encode() + b"\n"


def decode_line(line: bytes, speaker: str) -> tuple[str, dict[str, Any]]:
    """One line of a master's answer: "progress" or "result", and what that says.

    Args:
        speaker: where it comes from, for the error.

    Raises:
        ClusterError: the master's own error; or it is no master that says this.
    """
    try:
        plain = json.loads(line)
        kind, content = next((key, plain[key]) for key in ("progress", "result", "error") if key in plain)
        error = _error(content) if kind == "error" else None
        content = dict(content)
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError):
        raise ClusterError(f"who listens at {speaker} doesn't speak as a master: {line!r:.80}") from None
    if error is not None:
        raise error
    return kind, content


def _exchange(
    connection: socket.socket, verb: str, params: Mapping[str, Any] | None, timeout: float | None
) -> Iterator[bytes]:
    """Send a request, yield the lines of the answer until the connection ends. Raises ClusterError when time is up."""
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
        return  # killed with our request unread: that is the end of the connection, too


def _open_process(answer: Mapping[str, Any]) -> int | None:
    """A pidfd of the process that the master says will end; None: it lives on, or has ended."""
    try:
        return os.pidfd_open(int(answer["leaves"])) if answer.get("leaves") else None
    except ProcessLookupError:
        return None


def _error(said: Mapping[str, Any]) -> ClusterError:
    """The master's error as ours: of the class that has its exit code, if there is one."""
    code = int(said.get("exit_code", 1))
    error = by_exit_code(code, str(said["message"]), detail=str(said.get("detail") or ""))
    vars(error)["exit_code"] = code  # for a code that no class has
    return error
