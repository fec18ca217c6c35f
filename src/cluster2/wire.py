"""What processes of a cluster say to each other: the messages, and their framing.

Messages are MessagePack of tagged msgspec structs; nothing is ever unpickled. Two kinds of channel carry them:

- *orders* between the master and a zygote travel as one packet each over a SEQPACKET pair, because descriptors travel with
  them (`kernel.descriptors`);
- *talk* between the master and a worker is a byte stream: four bytes of length, most significant first, then the message.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

LIMIT = 1 << 20
"""The longest message in bytes. A peer that announces more is broken or hostile: its channel is closed."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """The base of all messages."""


CHANNEL = "_CLUSTER2_CHANNEL"
"""The variable that tells an executed child the descriptor of its channel."""

# Orders: master → zygote.


class Prepare(Message, frozen=True):
    """Import the app and get ready to fork.

    Attributes:
        generation: the number of this generation, counted from 1.
        settings: the effective options (`Settings.to_wire`).
        sources: where each option that isn't a default came from, for messages about it.
    """

    generation: int
    settings: dict[str, Any]
    sources: dict[str, str]


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

    Its descriptors: the talk channel, the scoreboard, the file for its stacks, one for each of `sockets`, and where there is a
    keeper the entry of the rest queue and the exit of each app's ready queue.

    Attributes:
        incarnation: names this worker in all messages; never used twice.
        row: its row of the scoreboard.
        master: pid of the master, which adopts the worker.
        keeper: whether there is one.
        become: true: the process that receives this order is to become the worker itself instead of forking.
    """

    incarnation: int
    slot: int
    generation: int
    row: int
    master: int
    sockets: list[Socket]
    keeper: bool = False
    become: bool = False


# Orders: zygote → master.


class Prepared(Message, frozen=True):
    """The app is imported.

    Attributes:
        interfaces: of each app, in order.
        engines: the engine that each will be served by.
        threads: names of threads that the import left running; with any, forking is unsafe.
    """

    interfaces: list[str]
    engines: list[str]
    threads: list[str]


class PrepareFailed(Message, frozen=True):
    """The app can't be served. `detail` is the app's own traceback, where there is one."""

    message: str
    detail: str
    exit_code: int


class Forked(Message, frozen=True):
    """A worker's process exists."""

    incarnation: int
    pid: int


class ForkFailed(Message, frozen=True):
    """There is no such worker: the kernel refused."""

    incarnation: int
    message: str


# Talk: worker → master.


class Born(Message, frozen=True):
    """The worker's process exists: its first message. The zygote says so as well, but it can die before it does."""

    pid: int


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


class SetTraffic(Message, frozen=True):
    """Somebody who may has told the worker to enable or disable traffic, for the whole cluster."""

    enabled: bool


# Talk: master → worker.


class Drain(Message, frozen=True):
    """Take nothing new, finish what is under way, leave.

    Attributes:
        last: true at a shutdown: no successor takes what waits, so serve the accept queue to its end first.
    """

    last: bool


class Deserted(Message, frozen=True):
    """The keeper is gone for good: no connection comes back any more."""


class TrafficSet(Message, frozen=True):
    """It is so, in all workers. Answers come in the order of the questions."""

    enabled: bool


Orders = Prepare | Fork | Prepared | PrepareFailed | Forked | ForkFailed
Talk = Born | Ready | Leaving | BootFailed | Note | SetTraffic | Drain | Deserted | TrafficSet

_M = TypeVar("_M")
_encode = msgspec.msgpack.Encoder().encode
_orders: msgspec.msgpack.Decoder[Orders] = msgspec.msgpack.Decoder(Orders)
_talk: msgspec.msgpack.Decoder[Talk] = msgspec.msgpack.Decoder(Talk)


def clip(text: str, limit: int, *, end: bool = False) -> str:
    """A text that fits into `limit` bytes: its beginning, or its end; what UTF-8 can't encode is escaped."""
    encoded = text.encode(errors="backslashreplace")
    return (encoded[-limit:] if end else encoded[:limit]).decode(errors="ignore")


class Garbled(ValueError):
    """A peer sent something that is no message."""


def pack_order(message: Orders) -> bytes:
    """The packet of an order."""
    return _encode(message)


def unpack_order(packet: bytes) -> Orders:
    """The order in a packet. Raises Garbled."""
    return _decode(_orders, packet)


def pack(message: Talk) -> bytes:
    """The bytes of a message on a stream. Raises ValueError if it is longer than LIMIT."""
    body = _encode(message)
    if len(body) > LIMIT:
        raise ValueError(f"a message of {len(body)} bytes; at most {LIMIT} are allowed")
    return len(body).to_bytes(4, "big") + body


class Unpacker:
    """Cuts a stream into messages, whatever the pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Talk]:
        """The messages that are complete now. Raises Garbled; the stream can't be used after that."""
        buffer = self._buffer
        buffer += data
        found: list[Talk] = []
        start = 0
        while len(buffer) - start >= 4:
            length = int.from_bytes(buffer[start : start + 4], "big")
            if length > LIMIT:
                raise Garbled(f"a message of {length} bytes was announced; at most {LIMIT} are allowed")
            if len(buffer) - start - 4 < length:
                break
            found.append(_decode(_talk, bytes(buffer[start + 4 : start + 4 + length])))
            start += 4 + length
        del buffer[:start]
        return found


def _decode(decoder: msgspec.msgpack.Decoder[_M], body: bytes) -> _M:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Garbled(f"not a message: {error}") from error
