"""Messages through arbitrary cuts of the stream, and everything that is no message."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.errors import ClusterError
from cluster2.protocol import codec, messages

# Text that UTF-8 can't encode (lone surrogates) can't travel.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NUMBERS = st.integers(0, 2**40)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TALK = st.one_of(
    st.builds(messages.Started, NUMBERS),
    st.builds(messages.Ready),
    st.builds(messages.BootFailed, TEXT, TEXT, NUMBERS),
    st.builds(messages.Note, TEXT),
    st.builds(messages.Drain, st.booleans()),
    st.builds(messages.GiveUp, NUMBERS),
    st.builds(messages.ComponentAnnounced, TEXT),
)
RAW = st.builds(codec.payload, PLAIN)
WITH_PAYLOADS = st.one_of(
    st.builds(messages.Emit, TEXT, RAW, st.none() | st.lists(NUMBERS, max_size=3), st.booleans(), NUMBERS),
    st.builds(
        messages.Delegate, TEXT, RAW, NUMBERS, st.none() | TEXT, st.just(messages.NO_PAYLOAD) | RAW, st.none() | st.floats(0.1, 9.0),
        st.none() | TEXT, st.none() | st.lists(NUMBERS, max_size=3),
    ),
    st.builds(messages.CallResult, NUMBERS, st.just(messages.NO_PAYLOAD) | RAW, st.none() | st.builds(messages.Failure, TEXT, TEXT, TEXT)),
    st.builds(messages.View, NUMBERS, TEXT, st.just(messages.NO_PAYLOAD) | RAW),
    st.builds(messages.Reduce, NUMBERS, TEXT, st.lists(RAW, max_size=3)),
    st.builds(messages.Viewed, NUMBERS, st.just(messages.NO_PAYLOAD) | RAW, TEXT, st.none() | TEXT),
    st.builds(messages.Update, TEXT, RAW),
)  # fmt: skip
ORDERS = st.one_of(
    st.builds(messages.Prepare, NUMBERS, st.dictionaries(TEXT, PLAIN, max_size=4), st.dictionaries(TEXT, TEXT, max_size=4)),
    st.builds(
        messages.Fork, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS,
        st.lists(st.builds(messages.Socket, NUMBERS, TEXT), max_size=3), st.booleans(),
    ),
    st.builds(messages.Prepared, st.lists(TEXT), st.lists(TEXT), st.lists(TEXT)),
    st.builds(messages.PrepareFailed, TEXT, TEXT, NUMBERS),
    st.builds(messages.WorkerForked, NUMBERS, NUMBERS),
    st.builds(messages.ForkFailed, NUMBERS, TEXT),
)  # fmt: skip
NESTED = b"\x91" * 200_000
"""An array in an array in an array…: deeper than any decoder's stack."""


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@given(st.lists(TALK, max_size=8), st.data())
def test_talk_survives_any_cut(messages: list[messages.ChannelMessage], data: st.DataObject) -> None:
    """However the stream is cut, the messages come out whole, in order, each as soon as its last byte is there."""
    stream = b"".join(codec.pack(message) for message in messages)
    ends = [sum(len(codec.pack(each)) for each in messages[: count + 1]) for count in range(len(messages))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    unpacker, found = codec.Unpacker(), []
    for start, end in pairwise([0, *cuts, len(stream)]):
        found += unpacker.unpack(stream[start:end])
        assert len(found) == sum(each <= end for each in ends)
    assert found == messages


@given(ORDERS)
def test_orders_round_trip(order: messages.Orders) -> None:
    """An order comes out of its packet as it went in."""
    assert codec.unpack_order(codec.pack_order(order)) == order


@given(TALK, st.integers(0, 40))
def test_a_truncated_message_is_nothing_yet(message: messages.ChannelMessage, missing: int) -> None:
    """A message whose end hasn't come yet is not given out, and costs nobody who asks again."""
    stream = codec.pack(message)
    cut = max(0, len(stream) - 1 - missing)
    unpacker = codec.Unpacker()
    assert unpacker.unpack(stream[:cut]) == []
    assert unpacker.unpack(b"") == []
    assert unpacker.unpack(stream[cut:]) == [message]


@pytest.mark.parametrize("length", [codec.MAX_MESSAGE_BYTES + 1, 2**31, 2**32 - 1])
def test_an_announcement_that_is_too_long(length: int) -> None:
    """Who announces more than the limit is refused at once, before a byte of it is waited for."""
    with pytest.raises(codec.ProtocolError, match=f"{length} bytes .* at most {codec.MAX_MESSAGE_BYTES}"):
        codec.Unpacker().unpack(length.to_bytes(4, "big"))


def test_the_limit_itself() -> None:
    """A message of exactly the limit travels; a longer one is refused where it is sent."""
    frame = len(codec.pack(messages.Note("")))  # the length of a text of that size takes four bytes more
    longest = messages.Note("x" * (codec.MAX_MESSAGE_BYTES - (frame - 4) - 4))
    packed = codec.pack(longest)
    assert len(packed) == codec.MAX_MESSAGE_BYTES + 4
    assert codec.Unpacker().unpack(packed) == [longest]
    with pytest.raises(ValueError, match="at most"):
        codec.pack(messages.Note(longest.text + "x"))


GARBAGE = {
    "not MessagePack": b"\xc1\xc1\xc1",
    "empty": b"",
    "truncated inside": msgspec.msgpack.encode(messages.Ready())[:-1],
    "something behind it": msgspec.msgpack.encode(messages.Ready()) + b"\x00",
    "another type": msgspec.msgpack.encode([1, 2, 3]),
    "no tag": msgspec.msgpack.encode({"pid": 3}),
    "field missing": msgspec.msgpack.encode({"type": "Started"}),
    "field of another type": msgspec.msgpack.encode({"type": "Started", "pid": "three"}),
    "text that isn't UTF-8": b"\x82\xa4type\xa4Note\xa4text\xa2\xff\xfe",
    "nested without end": NESTED,
    "nested without end in a field": b"\x82\xa4type\xa5Ready\xa1x" + NESTED,
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_the_talk(body: bytes) -> None:
    """What is no message of the talk is Garbled, and nothing else is ever raised."""
    with pytest.raises(codec.ProtocolError):
        codec.Unpacker().unpack(framed(body))


ORDER_GARBAGE = GARBAGE | {
    "unknown tag": msgspec.msgpack.encode({"type": "Explode"}),
    "a word of the talk": codec.pack(messages.Ready())[4:],
    "nested without end in a field": b"\x84\xa4type\xa7Prepare\xaageneration\x01\xa8settings\x81\xa1x" + NESTED,
}


@pytest.mark.parametrize("packet", ORDER_GARBAGE.values(), ids=ORDER_GARBAGE)
def test_garbage_among_the_orders(packet: bytes) -> None:
    """What is no order is Garbled, and nothing else is ever raised."""
    with pytest.raises(codec.ProtocolError):
        codec.unpack_order(packet)


@given(st.binary(max_size=200))
def test_noise(noise: bytes) -> None:
    """Random bytes are waited for, or are Garbled; or they happen to be a message."""
    for read in (codec.Unpacker().unpack, codec.unpack_order):
        try:
            read(noise)
        except codec.ProtocolError:
            pass


@given(st.lists(TALK, min_size=1, max_size=3), st.binary(min_size=1, max_size=3))
def test_a_flipped_byte_harms_nobody_else(messages: list[messages.ChannelMessage], noise: bytes) -> None:
    """A spoilt message spoils what comes behind it on its own stream, and no other stream."""
    spoilt, sound = codec.Unpacker(), codec.Unpacker()
    with pytest.raises(codec.ProtocolError):
        spoilt.unpack(framed(b"\xc1" + noise))
    assert sound.unpack(b"".join(map(codec.pack, messages))) == messages


def test_unknown_fields_are_skipped() -> None:
    """A field that this version doesn't know is passed over, so that messages can grow."""
    body = msgspec.msgpack.encode({"type": "Started", "pid": 3, "mood": {"deep": [1, 2, {"x": None}]}})
    assert codec.Unpacker().unpack(framed(body)) == [messages.Started(3)]


def plain(message: Any) -> Any:
    """A message with its payloads decoded: two Raws are never equal."""
    if isinstance(message, msgspec.Raw):
        return ("payload", codec.value(message))
    if isinstance(message, list):
        return [plain(each) for each in message]
    if isinstance(message, msgspec.Struct):
        return (type(message), [plain(getattr(message, name)) for name in message.__struct_fields__])
    return message


@given(st.lists(WITH_PAYLOADS, max_size=6), st.data())
def test_payloads_survive_any_cut(messages: list[Any], data: st.DataObject) -> None:
    """However the stream is cut, what users say comes out whole and in order."""
    buffer = bytearray()
    for message in messages:
        codec.pack_into(buffer, message)
    stream = bytes(buffer)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    unpacker = codec.Unpacker()
    found = [each for start, end in pairwise([0, *cuts, len(stream)]) for each in unpacker.unpack(stream[start:end])]
    assert plain(found) == plain(messages)


@given(PLAIN)
def test_equal_payloads_are_equal_bytes(value: Any) -> None:
    """The order in which a dictionary was filled doesn't matter: that is how equal requests are found."""

    def reordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reordered(value[key]) for key in reversed(value)}
        return [reordered(each) for each in value] if isinstance(value, list) else value

    assert bytes(codec.payload(value)) == bytes(codec.payload(reordered(value)))


def test_a_message_that_is_refused_leaves_no_trace() -> None:
    """A buffer to which a message couldn't be added is as it was."""
    buffer = bytearray(codec.pack(messages.Ready()))
    before = bytes(buffer)
    for bad, error in (
        (messages.Note("x" * codec.MAX_MESSAGE_BYTES), ValueError),
        (messages.Note(object()), TypeError),
    ):  # type: ignore[arg-type]
        with pytest.raises(error):
            codec.pack_into(buffer, bad)
        assert buffer == before


@pytest.mark.parametrize("body", [{"type": "Explode", "x": [1]}, {"type": "Forked", "pid": 1}])
def test_an_unknown_type_is_told(body: dict[str, Any]) -> None:
    """A message of a type that this version doesn't know is given out as such, and those behind it as ever."""
    stream = framed(msgspec.msgpack.encode(body)) + codec.pack(messages.Ready())
    assert codec.Unpacker().unpack(stream) == [messages.Unknown(body["type"]), messages.Ready()]


@pytest.mark.parametrize("value", [object(), {1j: 2}, 2**70, "\ud800"])
def test_what_cannot_travel(value: object) -> None:
    """A value without a form on the wire is refused with a message that names it."""
    with pytest.raises(ClusterError, match="the data of event 'x' can't travel between processes"):
        codec.sendable(value, "the data of event 'x'")


def test_what_is_too_long_to_travel() -> None:
    """So is one that is longer than a message may be."""
    with pytest.raises(ClusterError, match=r"the answer has \d+ bytes; at most"):
        codec.sendable("x" * codec.MAX_MESSAGE_BYTES, "the answer")
