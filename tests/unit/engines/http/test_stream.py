"""The writes of a stream of body parts, and their times."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.engines.http import stream as under_test
from cluster2.engines.http.limits import MAX_JOINED_BODY_BYTES, MAX_STREAM_HOLD_BYTES, STREAM_HOLD_S
from cluster2.engines.http.response import InvalidResponse
from cluster2.engines.http.stream import CHUNKED_BODY, LENGTH_BODY, NO_BODY, UNTIL_CLOSE_BODY, BodyStream


class _Wire:
    """The part of a transport and a loop that a stream uses, and a clock.

    Attributes:
        written: what each write has given away.
        due: calls for the end of the step.
        now: the time.
    """

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.due: list[Any] = []
        self.now = 1.0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writelines(self, parts: Any) -> None:
        self.written.append(b"".join(parts))

    def call_soon(self, callback: Any) -> None:
        self.due.append(callback)

    def end_step(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()

    def stream(self, framing: int, left: int = 0) -> BodyStream:
        return BodyStream(cast(asyncio.Transport, self), cast(asyncio.AbstractEventLoop, self), framing, left)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> _Wire:
    wire = _Wire()
    monkeypatch.setattr(under_test, "monotonic", lambda: wire.now)
    return wire


def test_parts_of_one_step_leave_together(wire: _Wire) -> None:
    """Parts that follow the head at once are held to the end of the step, and leave in one write, in order."""
    stream = wire.stream(CHUNKED_BODY)
    for part in (b"a", b"bc", b""):
        stream.send(part, True)
    assert wire.written == []
    assert len(wire.due) == 1
    wire.end_step()
    assert wire.written == [b"1\r\na\r\n2\r\nbc\r\n"]
    wire.end_step()
    assert len(wire.written) == 1


def test_a_slow_stream_is_written_at_once(wire: _Wire) -> None:
    """A part that comes a while after the last waits for nothing."""
    stream = wire.stream(UNTIL_CLOSE_BODY)
    for part in (b"a", b"b"):
        wire.now += 2 * STREAM_HOLD_S
        stream.send(part, True)
    assert wire.written == [b"a", b"b"]
    assert wire.due == []


def test_an_app_that_computes_holds_back_nothing_for_long(wire: _Wire) -> None:
    """Within one long step, what is held leaves with the next part that comes late."""
    stream = wire.stream(UNTIL_CLOSE_BODY)
    stream.send(b"a", True)
    wire.now += 2 * STREAM_HOLD_S
    stream.send(b"b", True)
    assert wire.written == [b"ab"]


def test_the_end_takes_all_along(wire: _Wire) -> None:
    """The last part leaves at once, together with what is held."""
    stream = wire.stream(CHUNKED_BODY)
    stream.send(b"a", True)
    stream.send(b"", False)
    assert wire.written == [b"1\r\na\r\n0\r\n\r\n"]
    wire.end_step()
    assert len(wire.written) == 1


def test_what_is_held_is_bounded(wire: _Wire) -> None:
    """A stream of one step doesn't fill the memory."""
    stream = wire.stream(UNTIL_CLOSE_BODY)
    part = bytes(1024)
    for _ in range(1000):
        stream.send(part, True)
    wire.end_step()
    assert sum(map(len, wire.written)) == 1000 * 1024
    assert max(map(len, wire.written)) <= MAX_STREAM_HOLD_BYTES + 1024


def test_large_parts_keep_their_place(wire: _Wire) -> None:
    """A part that isn't copied leaves behind what is held."""
    stream = wire.stream(CHUNKED_BODY)
    large = bytes(MAX_JOINED_BODY_BYTES + 1)
    stream.send(b"a", True)
    stream.send(large, True)
    stream.send(large, False)
    frame = b"%x\r\n%b\r\n" % (len(large), large)
    assert b"".join(wire.written) == b"1\r\na\r\n" + frame + frame + b"0\r\n\r\n"


def test_what_is_dropped_is_not_written(wire: _Wire) -> None:
    """The client has gone: nothing is written to it any more."""
    stream = wire.stream(UNTIL_CLOSE_BODY)
    stream.send(b"a", True)
    stream.discard()
    wire.end_step()
    assert wire.written == []


def test_a_length_that_does_not_hold(wire: _Wire) -> None:
    """A body that isn't as long as declared is the app's error."""
    with pytest.raises(InvalidResponse, match="longer"):
        wire.stream(LENGTH_BODY, 3).send(b"abcd", True)
    stream = wire.stream(LENGTH_BODY, 3)
    stream.send(b"ab", True)
    with pytest.raises(InvalidResponse, match="shorter"):
        stream.send(b"", False)


def test_no_body(wire: _Wire) -> None:
    """A response that has no body gets none, whatever the app sends."""
    stream = wire.stream(NO_BODY)
    stream.send(b"a", True)
    stream.send(bytes(MAX_JOINED_BODY_BYTES + 1), False)
    assert wire.written == []
    assert wire.due == []


_STEPS = st.lists(
    st.tuples(
        st.integers(0, 3).map(lambda size: [0, 1, 100, MAX_JOINED_BODY_BYTES + 7][size]), st.booleans(), st.booleans()
    )
)


@given(_STEPS, st.sampled_from([CHUNKED_BODY, UNTIL_CLOSE_BODY, LENGTH_BODY]))
def test_nothing_is_lost_or_moved(steps: list[tuple[int, bool, bool]], framing: int) -> None:
    """Whenever parts come and steps end: the bytes are those of the parts, framed, in order, all there at the end."""
    with pytest.MonkeyPatch.context() as patch:
        wire = _Wire()
        patch.setattr(under_test, "monotonic", lambda: wire.now)
        bodies = [bytes([number % 256]) * size for number, (size, _, _) in enumerate(steps)]
        stream = wire.stream(framing, sum(map(len, bodies)))
        for body, (_, late, step_over) in zip(bodies, steps, strict=True):
            wire.now += 2 * STREAM_HOLD_S if late else 0
            stream.send(body, True)
            if step_over:
                wire.end_step()
        stream.send(b"", False)
        if framing == CHUNKED_BODY:
            expected = b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies if body) + b"0\r\n\r\n"
        else:
            expected = b"".join(bodies)
        assert b"".join(wire.written) == expected
