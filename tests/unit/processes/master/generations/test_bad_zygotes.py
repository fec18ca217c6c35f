"""Zygotes and workers that misbehave: programs that take their place and lie. The master ends with one line, or serves."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import wait_until
from tests.unit.clusters import options_for, processes

PATIENCE = 8.0
"""Seconds that such a master may take to end."""

MASTER = """
import sys
from cluster2.processes import launch
from cluster2.runtime import option_sources
from cluster2.errors import ClusterError

try:
    sys.exit(launch.run(option_sources.load({options!r}, environ={{}}), argv=[sys.executable, {zygote!r}]))
except ClusterError as error:
    print(error.message)
    sys.exit(error.exit_code)
"""
ZYGOTE = """
import os, socket, sys, time
from cluster2.protocol import codec, messages
from cluster2.linux import forking
from cluster2.linux.descriptor_passing import Packets

channel = Packets.attach(int(os.environ.pop(messages.CHANNEL_VARIABLE)))

def hear():
    try:
        packet, descriptors = channel.receive()
    except ConnectionError:
        return None, []
    return (codec.unpack_order(packet) if packet else None), descriptors

def say(message):
    try:
        channel.send(codec.pack_order(message))
    except ConnectionError:
        pass  # the master has given up

def orders():
    while (heard := hear())[0] is not None:
        yield heard

def wait_for_the_end():
    for _ in orders():
        pass

hear()
say(messages.Prepared(["asgi"], ["http"], []))
"""
DEAD = "the process that imports the app ended ({}); its log says why"


def run_with(directory: Path, zygote: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Return the error of a master whose zygote is this program; none of its processes may be left."""
    before = set(processes())
    script = directory / "zygote.py"
    script.write_text(ZYGOTE + textwrap.dedent(zygote))
    program = MASTER.format(options=options_for(directory, app="a:app", **options), zygote=str(script))
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, cwd=directory
        )
    finally:
        wait_until(lambda: not set(processes()) - before, lambda: f"left: {processes()}")
    return ended


def refused(directory: Path, zygote: str, **options: Any) -> str:
    """Return the error of the app with which the master ended, as the user sees it."""
    ended = run_with(directory, zygote, **options)
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.returncode == 3
    assert len(ended.stdout.splitlines()) == 1
    return ended.stdout.strip()


@pytest.mark.parametrize("workers", [1, 60])
def test_one_that_dies_of_an_order(tmp_path: Path, workers: int) -> None:
    """A zygote that dies of its first order, while the master gives it more, ends the first boot."""
    assert refused(tmp_path, "hear(); os._exit(1)", workers=workers) == DEAD.format(
        "exit code 1 while it forked a worker"
    )


def test_one_that_dies_when_it_has_loaded(tmp_path: Path) -> None:
    """A zygote that ends as soon as it has loaded the app, before or between the orders, ends the first boot."""
    told = refused(tmp_path, "os._exit(0)", workers=60)
    assert told in (DEAD.format("exit code 0"), DEAD.format("exit code 0 while it forked a worker"))


def test_one_that_can_not_fork(tmp_path: Path) -> None:
    """A refusal of the kernel is reported once and tried again, until it has failed for too long: not the app's fault."""
    zygote = """
        for order, _ in orders():
            say(messages.ForkFailed(order.incarnation, "Cannot allocate memory"))
        """
    ended = run_with(tmp_path, zygote, restart_limit=2)
    assert (ended.returncode, ended.stdout) == (1, "no worker can be made: Cannot allocate memory\n")
    assert ended.stderr.count("no worker can be made: Cannot allocate memory; it is tried again") == 1


def test_one_that_speaks_of_workers_that_nobody_asked_for(tmp_path: Path) -> None:
    """Numbers that the master doesn't know, and messages that only a master sends, are passed over."""
    zygote = """
        say(messages.WorkerForked(999, 1))
        say(messages.ForkFailed(999, "no"))
        say(messages.Prepare(1, {}, {}))
        hear()
        os._exit(1)
        """
    assert refused(tmp_path, zygote) == DEAD.format("exit code 1 while it forked a worker")


def test_one_that_sends_garbage(tmp_path: Path) -> None:
    """A zygote that says what is no order is as good as dead."""
    zygote = """
        channel.send(b"garbage")
        wait_for_the_end()
        """
    told = refused(tmp_path, zygote, boot_timeout=1.0)
    assert told in (DEAD.format("exit code 0"), DEAD.format("exit code 0 while it forked a worker"))


def test_a_worker_that_is_gone_before_it_is_known(tmp_path: Path) -> None:
    """A worker that was reaped before the master heard of it counts as one that died."""
    zygote = """
        for order, descriptors in orders():
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
            for descriptor in descriptors:
                os.close(descriptor)
            say(messages.WorkerForked(order.incarnation, pid))
        """
    assert refused(tmp_path, zygote, restart_limit=2).startswith("workers end before they are ready")


def test_a_worker_that_is_ready_before_it_was_born(tmp_path: Path) -> None:
    """A worker that says that it is ready before its pid is known doesn't bring the master down."""
    zygote = """
        order, descriptors = hear()
        socket.socket(fileno=descriptors[0]).send(codec.pack(messages.Ready()))
        hear()
        os._exit(1)
        """
    assert "Traceback" not in run_with(tmp_path, zygote, workers=1, boot_timeout=1.0).stderr


def test_one_that_does_not_answer(tmp_path: Path) -> None:
    """A zygote that doesn't carry out an order is killed before the worker's boot_timeout is over."""
    told = refused(tmp_path, "wait_for_the_end()", boot_timeout=2.0)
    assert told == DEAD.format("SIGKILL while it forked a worker")


def test_a_worker_that_never_says_a_word(tmp_path: Path) -> None:
    """A worker that doesn't become ready is given up after boot_timeout."""
    zygote = """
        for order, descriptors in orders():
            pid = forking.fork_orphan()
            if pid is None:
                time.sleep(60)  # the end of the test comes first
            say(messages.WorkerForked(order.incarnation, pid))
        """
    assert "wasn't ready within boot_timeout (2 s)" in refused(tmp_path, zygote, boot_timeout=2.0)
