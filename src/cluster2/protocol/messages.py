"""What processes of a cluster say to each other: the messages. `codec` makes bytes of them.

Messages are MessagePack of tagged msgspec structs; nothing is ever unpickled. Two kinds of channel carry them:

- *orders* between the master and a zygote travel as one packet each over a SEQPACKET pair, because descriptors travel with
  them (`kernel.descriptors`);
- *talk* between the master and a worker is a byte stream: four bytes of length, most significant first, then the message.

The talk can grow: unknown fields are passed over, and a message of an unknown type is `Unknown`, which the receiver ignores with
a warning. What can't be understood that way changes PROTOCOL_VERSION, which a worker tells first of all.

What users say through it (the payloads: `origin`, `data`, `value`) stays `msgspec.Raw` in the messages: who only passes it on
never decodes it, and two equal payloads are equal bytes, since keys are sorted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

PROTOCOL_VERSION = 1
"""Of the talk. A worker of another version can't be talked to: a reload after an upgrade that changes it is abandoned."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """The base of all messages."""


CHANNEL_VARIABLE = "_CLUSTER2_CHANNEL"
"""The variable that tells an executed child the descriptor of its channel."""

# Orders: master → zygote.


class Prepare(Message, frozen=True):
    """Import the app and get ready to fork.

    Its descriptors: a copy of each of `files`.

    Attributes:
        generation: the number of this generation, counted from 1.
        settings: the effective options (`Settings.to_wire`).
        sources: where each option that isn't a default came from, for messages about it.
        log: the file that the output of who receives this goes to; "": it stays where it is.
        files: fields of the options whose files have been read for this generation.
        objects: fields of the options that are objects of a script's (functions): it has them itself.
        pinned: false: a script that is executed again is to choose the options of this generation (`Chosen`).
    """

    generation: int
    settings: dict[str, Any]
    sources: dict[str, str]
    log: str = ""
    files: list[str] = []
    objects: list[str] = []
    pinned: bool = True


class Socket(msgspec.Struct, frozen=True):
    """A listening socket whose descriptor travels beside an order.

    Attributes:
        site: index of the app that it belongs to.
        address: as a user would write it.
        owned: we opened it; else somebody will go on with its queue when we are gone.
    """

    site: int
    address: str
    owned: bool


class Fork(Message, frozen=True):
    """Make a worker.

    Its descriptors: `worker_descriptors.WorkerDescriptors`.

    Attributes:
        incarnation: names this worker in all messages; never used twice.
        row: its row of the scoreboard.
        master: pid of the master, which adopts the worker.
        keeper: whether there is one.
        become: true: the process that receives this order is to become the worker itself instead of forking.
        logs: the directory of log files; "": the worker writes to what it inherits.
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
"""monitor → master, with a descriptor: a stream on which to ask as on the control socket."""


class Reopen(Message, frozen=True):
    """Somebody has renamed log files: open those of these names again. To zygotes, and as talk to workers."""


class StartMonitor(Message, frozen=True):
    """To the monitor, its only order.

    Its descriptors: the three of the scoreboard, the listening sockets of its page and, if there is one, of the agent-check.

    Attributes:
        settings: the effective options (`Settings.to_wire`).
        port: the first TCP port of the first app that has one; 0: none has.
        master: pid of the master.
        version: of the master's package.
        addresses: that the apps listen on.
        address: that the monitor listens on.
        log: as in `Prepare`.
    """

    settings: dict[str, Any]
    port: int
    master: int
    version: str
    addresses: list[str]
    address: str
    log: str = ""


# Orders: zygote → master.


class Chosen(Message, frozen=True):
    """A script, executed again for a new generation, has come to these options. They are the generation's from now on.

    It is said before the script's process gives up any privileges, and heard once.

    Attributes:
        settings: the effective options (`Settings.to_wire`), with what a reload can't change as it was.
        sources: where each option that isn't a default came from.
        objects: fields of options that are objects.
        warnings: a line for each option that has another value now and needs a restart.
    """

    settings: dict[str, Any]
    sources: dict[str, str]
    objects: list[str] = []
    warnings: list[str] = []


class Prepared(Message, frozen=True):
    """The app is imported.

    Attributes:
        interfaces: of each app, in order.
        engines: the engine that each will be served by.
        threads: names of threads that the import left running; with any, forking is unsafe.
        warnings: what operators should know, a line each.
        steered: indices of the apps whose engine takes connections itself: each worker needs sockets of its own for them.
        movable: indices of the apps whose engine lets plain connections outlive their worker.
        owner: user and group that workers will be, by number.
    """

    interfaces: list[str]
    engines: list[str]
    threads: list[str]
    steered: list[int] = []
    movable: list[int] = []
    owner: tuple[int, int] = (-1, -1)
    warnings: list[str] = []


class PrepareFailed(Message, frozen=True):
    """The app can't be served. `detail` is the app's own traceback, where there is one."""

    message: str
    detail: str
    exit_code: int


class WorkerForked(Message, frozen=True):
    """A worker's process exists."""

    incarnation: int
    pid: int


class ForkFailed(Message, frozen=True):
    """There is no such worker: the kernel refused, or the fork hung. `detail` has the stacks of what hung."""

    incarnation: int
    message: str
    detail: str = ""


# Talk: worker → master.


class Started(Message, frozen=True):
    """The worker's process exists: its first message. The zygote says so as well, but it can die before it does.

    Attributes:
        version: of the talk that it speaks.
    """

    pid: int
    version: int = 0


class Ready(Message, frozen=True):
    """The worker serves."""


class Leaving(Message, frozen=True):
    """The worker drains although nobody told it to: it was sent TERM.

    Attributes:
        signal: the name of what it was sent.
    """

    signal: str


class BootFailed(Message, frozen=True):
    """The worker can't serve and leaves."""

    message: str
    detail: str
    exit_code: int


class Note(Message, frozen=True):
    """Something that an operator should know; becomes a `warning` event."""

    text: str


class Cut(Message, frozen=True):
    """The worker drained for as long as it may, and has reset what was not finished; becomes a `warning` event.

    Attributes:
        text: what was reset.
    """

    text: str


class EndFailed(Message, frozen=True):
    """The worker has ended its drain, and failed in what it does behind it; it exits with 1. Becomes a `warning` event.

    Attributes:
        text: what failed: the hook with its name, or the shutdown of the app.
    """

    text: str


class SetTraffic(Message, frozen=True):
    """Somebody who may has told the worker to enable or disable traffic, for the whole cluster."""

    enabled: bool


# Talk: master → worker.


class Drain(Message, frozen=True):
    """Take nothing new, finish what is under way, leave.

    Attributes:
        last: true at a shutdown: no successor takes what waits, so serve the accept queue to its end first.
        open_doors: true if newcomers still arrive, because the master cannot hold them back.
    """

    last: bool
    open_doors: bool = False


class KeeperGone(Message, frozen=True):
    """The keeper is gone for good: no connection comes back any more."""


class TrafficSet(Message, frozen=True):
    """It is so, in all workers. Answers come in the order of the questions."""

    enabled: bool


NO_PAYLOAD = msgspec.Raw()
"""The payload that isn't there. (msgspec can't decode `Raw | None`.)"""

# Talk both ways: events, delegated work, component status. Payloads are MessagePack of plain data.


class Emit(Message, frozen=True, tag="event", omit_defaults=True):
    """An event of the user's.

    Attributes:
        event: its name.
        targets: pids of the workers that are to have it; None: all. From a worker: None for the master's listeners alone,
            unless it is for `all`.
        origin: pid of the worker that emitted it; 0: the master.
    """

    event: str
    data: msgspec.Raw
    targets: list[int] | None = None
    all: bool = False
    origin: int = 0


class Delegate(Message, frozen=True, tag="delegate", omit_defaults=True):
    """Work for the master. The fields are those of the seed's message, and the number.

    Attributes:
        delegate: what kind of work.
        origin: the message itself.
        number: names it on this channel; in the answer.
        expect: the kind of answer that is waited for; None: none.
        matches: what makes it equal to another one; NO_PAYLOAD: the whole of `origin`.
        timeout: seconds that the asker waits; None: for as long as it takes.
        notification: the event by which later changes may be published; None: none are wanted.
        targets: pids of the workers that are to have that event; None: all.
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
    """An error that has travelled: the name of its type, its text, and its traceback as text."""

    type: str
    message: str
    traceback: str = ""


class CallResult(Message, frozen=True, tag="answer", omit_defaults=True):
    """What came of delegated work: a value, or a failure."""

    number: int
    value: msgspec.Raw = NO_PAYLOAD
    failure: Failure | None = None


class GiveUp(Message, frozen=True, tag="give-up"):
    """Nobody waits for that answer any more."""

    number: int


class ComponentAnnounced(Message, frozen=True, tag="component"):
    """The worker can tell the status of that component, from now on."""

    name: str


class View(Message, frozen=True, tag="view", omit_defaults=True):
    """The master asks for the status of that component."""

    number: int
    name: str
    params: msgspec.Raw = NO_PAYLOAD


class Reduce(Message, frozen=True, tag="reduce"):
    """Reduce these values by the component's own function, which only workers have."""

    number: int
    name: str
    values: list[msgspec.Raw]


class Viewed(Message, frozen=True, tag="viewed", omit_defaults=True):
    """The answer to both.

    Attributes:
        reducer: its name; "" if it is a function of the app's.
        error: why there is no value, or None.
    """

    number: int
    value: msgspec.Raw = NO_PAYLOAD
    reducer: str = "array"
    error: str | None = None


class Update(Message, frozen=True, tag="update"):
    """Set that component to this value."""

    name: str
    value: msgspec.Raw


class Unknown(NamedTuple):
    """A message of a type that this version doesn't know."""

    type: str


Orders = Prepare | Fork | Reopen | StartMonitor | Chosen | Prepared | PrepareFailed | WorkerForked | ForkFailed
Both = Emit | Delegate | CallResult | GiveUp | ComponentAnnounced | View | Reduce | Viewed | Update
Talk = (
    Started
    | Ready
    | Leaving
    | BootFailed
    | Note
    | Cut
    | EndFailed
    | SetTraffic
    | Drain
    | KeeperGone
    | TrafficSet
    | Reopen
    | Both
)
