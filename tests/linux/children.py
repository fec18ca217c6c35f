"""Children of a test: processes that are forked, carry out one function, and are waited for."""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Leave after the block, in a forked child: it must not go on as a second pytest."""
    try:
        yield
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(99)


def fork(body: Callable[[], object]) -> int:
    """Fork a child that runs `body` and leaves, with a number that `body` returns as its exit code; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            result = body()
            code = result if isinstance(result, int) else 0
        finally:
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """Return the exit code of a child, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_ended(pid: int) -> None:
    """Until the child has ended; it isn't reaped."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def told(body: Callable[[], object]) -> object:
    """Return the result of `body` in a child of its own (as JSON can express it); an error as its text."""
    reader, writer = os.pipe()

    def tell() -> None:
        try:
            answer = body()
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(answer).encode())

    pid = fork(tell)
    os.close(writer)
    with open(reader) as file:
        answer = json.load(file)
    assert wait(pid) == 0
    return answer
