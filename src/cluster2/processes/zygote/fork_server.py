"""The zygote: a fresh interpreter for each generation, which imports the app once and forks workers from that image.

It has one thread and no event loop, and does one thing at a time: read an order, carry it out, report. It forks twice, so that
the master (a child subreaper) adopts the worker: the master reaps it and sees it by `waitpid`, and the worker outlives the
zygote. The end of the channel means that the master is gone, or wants another generation. The zygote leaves then.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from ...engines.base import Capability, owns_accept
from ...errors import ClusterError
from ...linux import exec_start, forking, processes, signals, stacks
from ...linux.descriptor_passing import MAX_DESCRIPTORS, DescriptorsLost, Packets
from ...linux.log_files import ReopeningFile
from ...protocol import codec, messages
from ...protocol.worker_descriptors import WorkerDescriptors
from . import imported_sources, inheritance
from .image import Image, freeze
from .renewal import renew
from .started import StartedAtImport

Serve = Callable[[Image, messages.Fork, list[int]], int]
"""Run as the worker of an order: (image, order, its descriptors) → exit code. Injected: this package imports no worker."""


def main(channel: Packets, prepare: Callable[[messages.Prepare, list[int]], Image], serve: Serve) -> int:
    """Run as a zygote until the channel ends. Returns the exit code; in a worker it never returns."""
    signals.settle("zygote")  # the master ends this process by closing the channel
    order, files = _receive(channel)
    if not isinstance(order, messages.Prepare):
        return 0
    started = StartedAtImport()
    try:
        with started:
            image = prepare(order, files)
        imported_sources.record()
    except ClusterError as error:
        imported_sources.record()
        # Before the master knows: it kills this process at once if the start fails, and then no `atexit` function runs.
        started.terminate()
        refuse(channel, error)
        return error.exit_code
    output = ReopeningFile(log, 1, 2) if (log := order.log) else None
    signals.settle("zygote")  # again: the app's import may have changed a disposition
    freeze()
    _send(channel, _prepared(image))
    while True:
        try:
            order, descriptors = _receive(channel)
        except DescriptorsLost as error:
            refused = codec.unpack_order(error.data)
            if isinstance(refused, messages.Fork):
                _send(channel, messages.ForkFailed(refused.incarnation, os.strerror(errno.EMFILE)))
            continue
        if output is not None:
            with contextlib.suppress(OSError):  # the file that is open stays in use
                output.reopen_if_moved()
        if isinstance(order, messages.Reopen):
            continue
        if not isinstance(order, messages.Fork):
            started.end_soon()
            return 0
        if order.become:
            channel.close()
            code = serve(image, order, descriptors)
            started.end_soon()
            leave(code)
        _send(channel, _fork(channel, image, order, descriptors, serve))
        for descriptor in descriptors:
            os.close(descriptor)


def refuse(channel: Packets, error: ClusterError) -> None:
    """Report to the master why there will be no zygote."""
    message, detail = (
        codec.clip(error.message, _MAX_MESSAGE_CHARS),
        codec.clip(error.detail, _MAX_DETAIL_CHARS, end=True),
    )
    _send(channel, messages.PrepareFailed(message, detail, error.exit_code))


def _prepared(image: Image) -> messages.Prepared:
    apps = list(enumerate(image.apps))
    return messages.Prepared(
        interfaces=[str(app.interface) for app, _ in image.apps],
        engines=[engine.name for _, engine in image.apps],
        threads=image.threads,
        steered=[app_index for app_index, (_, engine) in apps if owns_accept(engine)],
        owner=(os.geteuid(), os.getegid()),
        warnings=inheritance.warnings(image.threads, image.connections),
        movable=[
            app_index for app_index, (app, engine) in apps if Capability.KEEPER in engine.capabilities[app.interface]
        ],
    )


_MAX_MESSAGE_CHARS, _MAX_DETAIL_CHARS = 4_000, 60_000
"""Bytes of a message and of a traceback that travel: a packet holds no more."""


def _receive(channel: Packets) -> tuple[messages.Orders | None, list[int]]:
    try:
        packet, descriptors = channel.receive(MAX_DESCRIPTORS)
    except ConnectionResetError:  # the master was killed with messages unread
        return None, []
    return (codec.unpack_order(packet) if packet else None), descriptors


def _send(channel: Packets, message: messages.Orders) -> None:
    with contextlib.suppress(ConnectionError):  # the master is gone: the next receive finds the end
        channel.send(codec.pack_order(message))


def _fork(
    channel: Packets, image: Image, order: messages.Fork, descriptors: list[int], serve: Serve
) -> messages.WorkerForked | messages.ForkFailed:
    def born() -> None:
        """Run in the worker before the app's at-fork handlers, which may hang."""
        stacks.arm(WorkerDescriptors.from_list(descriptors, order).stacks_file)
        processes.set_parent_death_signal(signal.SIGKILL)  # until it can drain; then SIGCONT
        if os.getppid() != order.master:
            os._exit(0)

    def dump(pid: int) -> str:
        return stacks.capture_child(file, pid) if (file := exec_start.stacks_file()) >= 0 else ""

    timeout_s = min(forking.FORK_TIMEOUT_S, image.settings.boot_timeout / 2)
    try:
        pid = forking.fork_orphan(born, timeout_s=timeout_s, dump=dump)
    except forking.ForkTimeout as error:
        return messages.ForkFailed(order.incarnation, str(error), codec.clip(error.stacks, _MAX_DETAIL_CHARS))
    except OSError as error:
        return messages.ForkFailed(order.incarnation, error.strerror or str(error))
    if pid:
        return messages.WorkerForked(order.incarnation, pid)
    channel.close()
    renew()
    leave(serve(image, order, descriptors))


def leave(code: int) -> NoReturn:
    """End this process without unwinding the zygote's frames, but with the app's `atexit` functions run and buffers flushed.

    Threads aren't waited for, and the interpreter isn't torn down: that would touch, and so copy, the shared pages.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or the reader has gone
            stream.flush()
    os._exit(code)
