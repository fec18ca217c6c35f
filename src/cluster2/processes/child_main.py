"""What the processes that the master executes run: the zygote, and through it the workers.

Here, and only here, the zygote and the worker meet; the packages don't know each other. `python -m cluster2.processes.child_main` is
executed with the channel's descriptor in `_CLUSTER2_CHANNEL`; in script mode it is the user's own script that is executed,
and `Cluster.listen` comes here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
from collections.abc import Sequence

from ..config.settings import FILE_OPTIONS, OPTIONS, SECRET_VARIABLES, Settings, validate
from ..errors import ClusterError, ConfigError
from ..linux import file_snapshots, processes, secret_environment, stacks
from ..linux.descriptor_passing import MAX_DESCRIPTORS, Packets
from ..linux.scoreboard import Scoreboard, page_of
from ..protocol import codec, messages
from ..runtime.option_sources import Config, check_files, restart_warning
from .worker import worker_process
from .worker.output import WorkerOutput
from .worker.spec import AppBinding, WorkerSpec
from .zygote import bytecode, fork_server, image

_EXECUTED_AGAIN_VARIABLE = "_CLUSTER2_EXECUTED_AGAIN"
"""The variable by which a script that is executed a second time knows that."""


def run(own: Config | None = None, targets: Sequence[object] | None = None) -> int:
    """Be the child. Returns its exit code.

    Args:
        own: the options as this process read them (script mode); None: all of them are sent by the master.
        targets: the apps as objects (script mode); None: as the options name them.
    """
    # Out of the environment, so that what the app starts doesn't take itself for one of us.
    channel = Packets.attach(int(os.environ.pop(messages.CHANNEL_VARIABLE)))
    secret_environment.remove_and_overwrite(SECRET_VARIABLES)  # a script has read its options by now
    processes.raise_file_limit()

    def prepare(order: messages.Prepare, files: list[int]) -> image.Image:
        options = Settings.from_wire(order.settings) if own is None else _agreed(own, order, targets, channel)
        title(options, f"zygote g{order.generation}")
        named = targets or [target for target, _ in options.targets()]
        return image.build(options, order.sources, named, _copies(options, order, files))

    return fork_server.main(channel, prepare, _serve)


def refuse(error: ClusterError) -> None:
    """Tell the master, in place of `run`, why the script doesn't come to that."""
    channel = Packets.attach(int(os.environ.pop(messages.CHANNEL_VARIABLE)))
    with contextlib.suppress(OSError):
        # The order: if it stayed unread, the end of this process would reset the channel.
        channel.receive(MAX_DESCRIPTORS)
    fork_server.refuse(channel, error)


def _agreed(own: Config, order: messages.Prepare, targets: Sequence[object] | None, channel: Packets) -> Settings:
    """Return the options of a script's generation.

    A new generation gets what the script says now, except for what a reload can't change. What it got is fixed: when it is loaded
    again, because its process has died or each worker is executed, the script may say something else by then.

    Raises:
        ConfigError: the options contradict what can't be changed.
    """
    ordered = Settings.from_wire(order.settings)
    if order.pinned:
        return dataclasses.replace(ordered, **{name: getattr(own.settings, name) for name in order.objects})
    restart = [option for option in OPTIONS.values() if option.restart]
    settings = dataclasses.replace(own.settings, **{each.field: getattr(ordered, each.field) for each in restart})
    said, before = own.settings.to_wire(), ordered.to_wire()
    changed = [each.name for each in restart if said[each.field] != before[each.field]]
    kept = [name for name in changed if own.explicit(name) or name in order.sources]
    if len(own.settings.apps) != len(ordered.apps) or (targets and len(targets) != len(ordered.targets())):
        raise ConfigError("the script has another number of apps now: that takes effect only by a restart")
    if kept:
        validate(settings, own.sources)
        check_files(settings, own.sources)
    warnings = [restart_warning(name, own.sources[name]) for name in kept]
    sources = {name: source for name, source in own.sources.items() if own.explicit(name)}
    chosen = messages.Chosen(settings.to_wire(), sources, settings.objects(), warnings)
    with contextlib.suppress(ConnectionError):  # the master is gone: the next thing that is received is the end
        channel.send(codec.pack_order(chosen))
    return settings


def _copies(options: Settings, order: messages.Prepare, descriptors: Sequence[int]) -> dict[str, str]:
    """Return the path of a copy of each file that the options name, by field.

    The master has copied them. A script that is executed again may name others by now.
    """
    handed = dict(zip(order.files, descriptors, strict=True))
    found = {}
    for name in FILE_OPTIONS:
        if (path := getattr(options, name)) is None:
            continue
        try:
            same = name in handed and order.settings[name] == path
            descriptor = handed[name] if same else file_snapshots.take(path)
        except OSError as error:
            raise ConfigError(f"{name} = {path!r}: can't be read: {error.strerror}") from error
        found[name] = file_snapshots.path_of(descriptor)
    return found


def execute_again_if_stale() -> None:
    """In script mode: execute the script once more if its imports may have run old code (`zygote.bytecode` tells how).

    The bytecode in question is removed first, so the second execution compiles the sources. The channel and the order that
    waits in it are inherited.
    """
    if bytecode.remove_stale() and os.environ.pop(_EXECUTED_AGAIN_VARIABLE, None) is None:
        os.environ[_EXECUTED_AGAIN_VARIABLE] = "1"
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ)
    os.environ.pop(_EXECUTED_AGAIN_VARIABLE, None)


def title(settings: Settings, role: str) -> None:
    """Name this process for `ps` and `top`."""
    import setproctitle

    setproctitle.setproctitle(f"{settings.proc_name or 'cluster2'}: {role}")


def _serve(made: image.Image, order: messages.Fork, descriptors: list[int]) -> int:
    title(made.settings, f"worker {order.slot} g{order.generation}")
    paper = WorkerOutput(made.settings, order.logs, order.slot)
    paper.redirect(order.generation, order.slot)
    talk, stack_file, line, *shared = descriptors
    board, others = shared[:3], shared[3:]
    stacks.arm(stack_file)
    sockets = [socket.socket(fileno=descriptor) for descriptor in others]
    doors, ways = sockets[: len(order.sockets)], sockets[len(order.sockets) :]
    return worker_process.serve(
        WorkerSpec(
            order=order,
            settings=made.settings,
            sites=[AppBinding(app, engine) for app, engine in made.sites],
            board=Scoreboard.attach(board, page_of(order.row)),
            channel=socket.socket(fileno=talk),
            lifeline=line,
            sockets=list(zip(order.sockets, doors, strict=True)),
            idle_queue=ways[0] if ways else None,
            ready_queues=ways[1:],
            validator=made.validator,
            output=paper,
        )
    )


if __name__ == "__main__":
    sys.exit(run())
