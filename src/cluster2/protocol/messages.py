"""The messages between the processes of a cluster. `codec` encodes and decodes them.

Messages are MessagePack of tagged msgspec structs. No process unpickles anything. Two kinds of channel carry them:

- *Orders* between the master and a zygote are packets over a SEQPACKET pair, one for each message, because descriptors travel with
  them (`linux.descriptor_passing`).
- *Channel messages* between the master and a worker are frames in a byte stream: four bytes of length, most significant first,
  then the message.

Channel messages can be extended: a receiver skips unknown fields, and ignores a message of an unknown type (`Unknown`) with a
warning. A change that an older receiver can't handle that way gets a new PROTOCOL_VERSION, which is in a worker's first message.

The payloads of users (`origin`, `data`, `value`) stay `msgspec.Raw` in the messages. So a process that only passes them on never
decodes them, and equal payloads are equal bytes, since keys are sorted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

PROTOCOL_VERSION = 2
"""The version of the channel messages. A worker with another version is refused, so a reload after such an upgrade is abandoned."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """The base of all messages."""


CHANNEL_VARIABLE = "_CLUSTER2_CHANNEL"
"""The environment variable with the descriptor of the channel, for an executed child."""

# Orders from the master to a zygote.


class Prepare(Message, frozen=True):
    """Import the app and get ready to fork workers.

    Descriptors: a copy of each of `files`.

    Attributes:
        generation: the number of this generation, counted from 1.
        settings: the effective options (`Settings.to_wire`).
        sources: the source of each option that isn't a default, for messages about it.
        log: the file for the output of the receiver; "": its output stays where it is.
        files: fields of the options whose files the master has read for this generation.
        objects: fields of the options that are objects (functions) of a script, which the receiver executes and so has itself.
        pinned: false: a script that is executed again chooses the options of this generation (`Chosen`).
    """

    generation: int
    settings: dict[str, Any]
    sources: dict[str, str]
    log: str = ""
    files: list[str] = []
    objects: list[str] = []
    pinned: bool = True


class Socket(msgspec.Struct, frozen=True):
    """A listening socket whose descriptor travels with an order.

    Attributes:
        app_index: the index of the app that it belongs to.
        address: the address in the form of the options.
        owned: cluster2 opened it. Otherwise its owner (systemd, for one) goes on with its accept queue after the shutdown.
    """

    app_index: int
    address: str
    owned: bool


class Fork(Message, frozen=True):
    """Make a worker.

    Descriptors: `worker_descriptors.WorkerDescriptors`.

    Attributes:
        incarnation: identifies this worker in all messages. It is never used again.
        row: the worker's row of the scoreboard.
        master: the pid of the master, which becomes the worker's parent.
        keeper: there is a keeper.
        become: the receiver becomes the worker itself instead of forking it.
        logs: the directory of log files; "": the worker writes to the descriptors that it inherits.
    """

    incarnation: int
    slot: int
    generation: int
    row: int
    master: int
    sockets: list[Socket]
    keeper: bool = False
    become: bool = False
    logs: str = ""


CONNECTION_REQUEST = b"connection"
"""The packet from the monitor to the master, with a descriptor: a stream on which the monitor sends commands as on the control socket."""


class Reopen(Message, frozen=True):
    """Open the log files again, since they were renamed. For zygotes, and as a channel message for workers."""


class StartMonitor(Message, frozen=True):
    """Start the monitor: the only order that it gets.

    Descriptors: the three of the scoreboard, and the listening sockets of its page and, if there is one, of the agent-check.

    Attributes:
        settings: the effective options (`Settings.to_wire`).
        port: the first TCP port of the first app that has one; 0: none has.
        master: the pid of the master.
        version: the version of the master's package.
        addresses: the addresses of the apps.
        address: the address of the monitor.
        log: as in `Prepare`.
    """

    settings: dict[str, Any]
    port: int
    master: int
    version: str
    addresses: list[str]
    address: str
    log: str = ""


# Orders from a zygote to the master.


class Chosen(Message, frozen=True):
    """The options that a script, executed again for a new generation, has chosen. They are the generation's from now on.

    The zygote sends this before it drops privileges. The master accepts it once for each generation, since the app's code, which
    runs later, could send it too.

    Attributes:
        settings: the effective options (`Settings.to_wire`), with what a reload can't change as it was.
        sources: the source of each option that isn't a default.
        objects: fields of options that are objects.
        warnings: a line for each option that has a new value and needs a restart.
    """

    settings: dict[str, Any]
    sources: dict[str, str]
    objects: list[str] = []
    warnings: list[str] = []


class Prepared(Message, frozen=True):
    """The app is imported.

    Attributes:
        interfaces: the interface of each app, in order.
        engines: the engine of each app.
        threads: names of threads that the import has left running. If there are any, forking is unsafe.
        warnings: warnings for operators, a line each.
        steered: indices of the apps whose engine accepts connections itself. Each worker needs sockets of its own for them.
        movable: indices of the apps whose engine supports hand-off of plain connections.
        owner: the user and group of the workers, by number; -1: unchanged.
    """

    interfaces: list[str]
    engines: list[str]
    threads: list[str]
    steered: list[int] = []
    movable: list[int] = []
    owner: tuple[int, int] = (-1, -1)
    warnings: list[str] = []


class PrepareFailed(Message, frozen=True):
    """The app can't be served. `detail` is the app's own traceback, or ""."""

    message: str
    detail: str
    exit_code: int


class WorkerForked(Message, frozen=True):
    """A worker's process exists."""

    incarnation: int
    pid: int


class ForkFailed(Message, frozen=True):
    """The worker could not be made: the kernel refused the fork, or the fork hung. `detail` has the stacks of a fork that hung."""

    incarnation: int
    message: str
    detail: str = ""


# Channel messages from a worker to the master.


class Started(Message, frozen=True):
    """The worker's process exists: its first message. The zygote reports that as well, but can end before it does.

    Attributes:
        version: the PROTOCOL_VERSION of the worker.
    """

    pid: int
    version: int = 0


class Ready(Message, frozen=True):
    """The worker serves."""


class SelfDraining(Message, frozen=True):
    """The worker drains without an order of the master, because it got a signal.

    Attributes:
        signal: the name of the signal.
    """

    signal: str


class BootFailed(Message, frozen=True):
    """The worker can't serve, and exits."""

    message: str
    detail: str
    exit_code: int


class Note(Message, frozen=True):
    """A text for operators. The master emits it as a `warning` event."""

    text: str


class Cut(Message, frozen=True):
    """The worker's drain has reached `drain_timeout`, and unfinished requests were reset. The master emits a `warning` event.

    Attributes:
        text: the connections and requests that were reset.
    """

    text: str


class EndFailed(Message, frozen=True):
    """A step after the worker's drain has failed, so it exits with 1. The master emits a `warning` event.

    Attributes:
        text: the step that failed: a hook with its name, or the shutdown of the app.
    """

    text: str


class SetTraffic(Message, frozen=True):
    """An authorized request to the worker's health endpoint enables or disables traffic, for the whole cluster."""

    enabled: bool


# Channel messages from the master to a worker.


class Drain(Message, frozen=True):
    """Drain: accept no more connections, finish the requests under way, exit.

    Attributes:
        last: the cluster shuts down. No successor serves the accept queue, so the worker serves it to its end first.
        open_doors: connections still arrive in the accept queue, because the master cannot hold them back.
    """

    last: bool
    open_doors: bool = False


class KeeperGone(Message, frozen=True):
    """The keeper has ended and won't be started again: no more connections come back from it."""


class TrafficSet(Message, frozen=True):
    """Traffic is switched, in all workers. These messages come in the order of the worker's `SetTraffic`."""

    enabled: bool


NO_PAYLOAD = msgspec.Raw()
"""The absent payload. (msgspec can't decode `Raw | None`.)"""

# Channel messages both ways: events, delegated calls, component status. Payloads are MessagePack of plain data.


class Emit(Message, frozen=True, tag="event", omit_defaults=True):
    """An event of the app's own.

    Attributes:
        event: the name.
        targets: pids of the workers that receive it; None: all workers. From a worker: None means the master's handlers alone,
            unless `all` is true.
        all: from a worker: all workers receive it too.
        origin: the pid of the worker that emitted it; 0: the master.
    """

    event: str
    data: msgspec.Raw
    targets: list[int] | None = None
    all: bool = False
    origin: int = 0


class Delegate(Message, frozen=True, tag="delegate", omit_defaults=True):
    """A delegated call to the master. The fields are those of the message of the Node.js cluster2 of 2012, and the number.

    Attributes:
        delegate: the kind of work.
        origin: the message of the app.
        number: identifies the call on this channel; its `CallResult` has the same.
        expect: the kind of result that the worker waits for; None: it waits for none.
        matches: calls with equal `matches` are one; NO_PAYLOAD: `origin` is compared instead.
        timeout: seconds that the worker waits; None: without a bound.
        notification: the event that publishes later changes; None: no changes are wanted.
        targets: pids of the workers that receive that event; None: all workers.
    """

    delegate: str
    origin: msgspec.Raw
    number: int = 0
    expect: str | None = None
    matches: msgspec.Raw = NO_PAYLOAD
    timeout: float | None = None
    notification: str | None = None
    targets: list[int] | None = None


class Failure(msgspec.Struct, frozen=True):
    """An error of another process: the name of its type, its text, and its traceback as text."""

    type: str
    message: str
    traceback: str = ""


class CallResult(Message, frozen=True, tag="answer", omit_defaults=True):
    """The result of a delegated call: a value, or a failure."""

    number: int
    value: msgspec.Raw = NO_PAYLOAD
    failure: Failure | None = None


class GiveUp(Message, frozen=True, tag="give-up"):
    """The worker no longer waits for the result of that call."""

    number: int


class ComponentAnnounced(Message, frozen=True, tag="component"):
    """The worker has registered that component, and reports its status from now on."""

    name: str


class View(Message, frozen=True, tag="view", omit_defaults=True):
    """A request of the master for the status of that component."""

    number: int
    name: str
    params: msgspec.Raw = NO_PAYLOAD


class Reduce(Message, frozen=True, tag="reduce"):
    """A request to reduce these values with the component's own function, which only workers have."""

    number: int
    name: str
    values: list[msgspec.Raw]


class Viewed(Message, frozen=True, tag="viewed", omit_defaults=True):
    """The response to `View` and `Reduce`.

    Attributes:
        reducer: the name of the component's reducer; "": it is a function of the app's.
        error: why there is no value; None: there is one.
    """

    number: int
    value: msgspec.Raw = NO_PAYLOAD
    reducer: str = "array"
    error: str | None = None


class Update(Message, frozen=True, tag="update"):
    """An order to set that component to this value."""

    name: str
    value: msgspec.Raw


class Unknown(NamedTuple):
    """A message of a type that this version doesn't have."""

    type: str


Orders = Prepare | Fork | Reopen | StartMonitor | Chosen | Prepared | PrepareFailed | WorkerForked | ForkFailed
_BothWays = Emit | Delegate | CallResult | GiveUp | ComponentAnnounced | View | Reduce | Viewed | Update
ChannelMessage = (
    Started
    | Ready
    | SelfDraining
    | BootFailed
    | Note
    | Cut
    | EndFailed
    | SetTraffic
    | Drain
    | KeeperGone
    | TrafficSet
    | Reopen
    | _BothWays
)
