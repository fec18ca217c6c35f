"""The program of the processes that the master executes: the zygote, and through it the workers.

The packages `zygote` and `worker` do not import each other; they meet only here. `python -m cluster2.processes.child_main` finds
its channel's descriptor in `_CLUSTER2_CHANNEL`. In script mode the master executes the user's own script instead, and
`Cluster.listen` calls `run`.
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
from ..protocol.worker_descriptors import WorkerDescriptors
from ..runtime.option_sources import Config, check_files, restart_warning
from .worker import worker_process
from .worker.output import WorkerOutput
from .worker.spec import AppBinding, WorkerSpec
from .zygote import bytecode, fork_server, image

_EXECUTED_AGAIN_VARIABLE = "_CLUSTER2_EXECUTED_AGAIN"
"""The environment variable that marks the second execution of a script."""


def run(own: Config | None = None, targets: Sequence[object] | None = None) -> int:
    """Run the zygote, or the worker if the order says so. Return the exit code.

    Args:
        own: the options as this process read them (script mode); None: the master sends all of them.
        targets: the apps as objects (script mode); None: as the options name them.
    """
    # Remove the variable, so that a process that the app starts doesn't take itself for a child of the master.
    channel = Packets.attach(int(os.environ.pop(messages.CHANNEL_VARIABLE)))
    secret_environment.remove_and_overwrite(SECRET_VARIABLES)  # a script has read its options by now
    processes.raise_file_limit()

    def prepare(order: messages.Prepare, files: list[int]) -> image.Image:
        if own is None:
            options = Settings.from_wire(order.settings)
        else:
            options = _script_settings(own, order, targets, channel)
        _set_title(options, f"zygote g{order.generation}")
        named = targets or [target for target, _ in options.targets()]
        return image.build(options, order.sources, named, _file_copies(options, order, files))

    return fork_server.main(channel, prepare, _serve)


def refuse(error: ClusterError) -> None:
    """Report to the master why the script fails before it calls `run`."""
    channel = Packets.attach(int(os.environ.pop(messages.CHANNEL_VARIABLE)))
    with contextlib.suppress(OSError):
        # Read the order: if it stayed unread, the end of this process would reset the channel, and the report would be lost.
        channel.receive(MAX_DESCRIPTORS)
    fork_server.refuse(channel, error)


def _script_settings(
    own: Config, order: messages.Prepare, targets: Sequence[object] | None, channel: Packets
) -> Settings:
    """Return the options of a script's generation.

    A new generation gets the options that the script sets now, except for those that a reload can't change. From then on they
    are pinned: the generation is loaded again when its process has died, or for each worker that is executed, and by then the
    script may set other options.

    Raises:
        ConfigError: the options contradict those that a reload can't change.
    """
    ordered = Settings.from_wire(order.settings)
    if order.pinned:
        return dataclasses.replace(ordered, **{name: getattr(own.settings, name) for name in order.objects})
    restart = [option for option in OPTIONS.values() if option.restart]
    settings = dataclasses.replace(own.settings, **{each.field: getattr(ordered, each.field) for each in restart})
    now, before = own.settings.to_wire(), ordered.to_wire()
    changed = [each.name for each in restart if now[each.field] != before[each.field]]
    kept = [name for name in changed if own.explicit(name) or name in order.sources]
    if len(own.settings.apps) != len(ordered.apps) or (targets and len(targets) != len(ordered.targets())):
        raise ConfigError("the script now has a different number of apps: that takes effect only by a restart")
    if kept:
        validate(settings, own.sources)
        check_files(settings, own.sources)
    warnings = [restart_warning(name, own.sources[name]) for name in kept]
    sources = {name: source for name, source in own.sources.items() if own.explicit(name)}
    chosen = messages.Chosen(settings.to_wire(), sources, settings.objects(), warnings)
    with contextlib.suppress(ConnectionError):  # the master is gone: the next receive returns the end of the channel
        channel.send(codec.pack_order(chosen))
    return settings


def _file_copies(options: Settings, order: messages.Prepare, descriptors: Sequence[int]) -> dict[str, str]:
    """Return the path of a copy of each file that the options name, by the option's field.

    The master has made the copies. A script that is executed again may name other files by now, which are copied here.
    """
    handed = dict(zip(order.files, descriptors, strict=True))
    copies = {}
    for name in FILE_OPTIONS:
        if (path := getattr(options, name)) is None:
            continue
        try:
            unchanged = name in handed and order.settings[name] == path
            descriptor = handed[name] if unchanged else file_snapshots.take(path)
        except OSError as error:
            raise ConfigError(f"{name} = {path!r}: can't be read: {error.strerror}") from error
        copies[name] = file_snapshots.path_of(descriptor)
    return copies


def execute_again_if_stale() -> None:
    """In script mode: execute the script once more if its imports may have run old code (see `zygote.bytecode`).

    The bytecode in question is removed first, so the second execution compiles the sources. It inherits the channel, with the
    order that waits in it.
    """
    if bytecode.remove_stale() and os.environ.pop(_EXECUTED_AGAIN_VARIABLE, None) is None:
        os.environ[_EXECUTED_AGAIN_VARIABLE] = "1"
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ)
    os.environ.pop(_EXECUTED_AGAIN_VARIABLE, None)


def _set_title(settings: Settings, role: str) -> None:
    """Set the title of this process that `ps` and `top` show."""
    import setproctitle

    setproctitle.setproctitle(f"{settings.proc_name or 'cluster2'}: {role}")


def _serve(made: image.Image, order: messages.Fork, descriptors: list[int]) -> int:
    """Run the worker of an order, and return its exit code."""
    _set_title(made.settings, f"worker {order.slot} g{order.generation}")
    output = WorkerOutput(made.settings, order.logs, order.slot)
    output.redirect(order.generation, order.slot)
    given = WorkerDescriptors.from_list(descriptors, order)
    stacks.arm(given.stacks_file)
    listeners = [socket.socket(fileno=descriptor) for descriptor in given.sockets]
    queues = [socket.socket(fileno=descriptor) for descriptor in given.queues]
    return worker_process.serve(
        WorkerSpec(
            order=order,
            settings=made.settings,
            bindings=[AppBinding(app, engine) for app, engine in made.apps],
            board=Scoreboard.attach(given.scoreboard, page_of(order.row)),
            channel=socket.socket(fileno=given.channel),
            lifeline=given.lifeline,
            sockets=list(zip(order.sockets, listeners, strict=True)),
            idle_queue=queues[0] if queues else None,
            ready_queues=queues[1:],
            validator=made.validator,
            output=output,
        )
    )


if __name__ == "__main__":
    sys.exit(run())
