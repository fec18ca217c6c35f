"""Messages with descriptors, over real SEQPACKET sockets."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from cluster2.errors import ClusterError
from cluster2.linux.descriptor_passing import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, PacketError, Packets
from tests.linux.children import leaving

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.fixture
def ends() -> Iterator[tuple[Packets, Packets]]:
    pair = Packets.pair()
    yield pair
    for end in pair:
        end.close()


def fill(end: Packets) -> int:
    """Return how many messages, numbered and with a descriptor each, an end that doesn't block could send."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            end.send(b"%d" % sent, [0])
            sent += 1
    return sent


def test_messages_keep_their_bounds(ends: tuple[Packets, Packets]) -> None:
    """Two messages are received as two, in order, in both directions."""
    one, other = ends
    one.send(b"first")
    one.send(b"second")
    assert other.receive() == (b"first", [])
    assert other.receive() == (b"second", [])
    other.send(b"back")
    assert one.receive() == (b"back", [])


def test_descriptors_travel_in_order(ends: tuple[Packets, Packets]) -> None:
    """Several descriptors arrive as copies for the same files, close-on-exec, in the order sent."""
    pipes = [os.pipe() for _ in range(3)]
    ends[0].send(b"pipes", [reader for reader, _ in pipes])
    data, fds = ends[1].receive()
    assert data == b"pipes"
    assert len(fds) == 3
    for (reader, writer), fd in zip(pipes, fds, strict=True):
        assert os.path.sameopenfile(reader, fd)
        assert fd != reader
        assert not os.get_inheritable(fd)
        os.write(writer, b"x")
        assert os.read(fd, 1) == b"x"
    for fd in (*fds, *(fd for pipe in pipes for fd in pipe)):
        os.close(fd)


def test_as_many_descriptors_as_the_kernel_takes(ends: tuple[Packets, Packets]) -> None:
    """253 descriptors travel in one message; 254 are refused before anything is sent."""
    ends[0].send(b"many", [0] * MAX_DESCRIPTORS)
    _, fds = ends[1].receive(max_fds=MAX_DESCRIPTORS)
    assert len(fds) == MAX_DESCRIPTORS
    for fd in fds:
        os.close(fd)
    with pytest.raises(PacketError, match="at most 253 descriptors, not 254"):
        ends[0].send(b"many", [0] * (MAX_DESCRIPTORS + 1))


def test_a_closed_descriptor_is_refused(ends: tuple[Packets, Packets]) -> None:
    """Sending a descriptor that isn't open fails and sends nothing."""
    with pytest.raises(OSError, match="Bad file descriptor"):
        ends[0].send(b"x", [987_654])
    ends[1].set_blocking(False)
    with pytest.raises(BlockingIOError):
        ends[1].receive()


def test_the_end(ends: tuple[Packets, Packets]) -> None:
    """Messages that were sent before a close are received, then b"" each time; sending to a closed end fails."""
    ends[0].send(b"last")
    ends[0].close()
    assert [ends[1].receive() for _ in range(3)] == [(b"last", []), (b"", []), (b"", [])]
    with pytest.raises(BrokenPipeError):
        ends[1].send(b"x")


def test_an_empty_message_is_refused(ends: tuple[Packets, Packets]) -> None:
    """An empty message is refused: it would look like EOF."""
    with pytest.raises(PacketError, match="1 to 65536 bytes, not 0"):
        ends[0].send(b"")


def test_the_longest_message(ends: tuple[Packets, Packets]) -> None:
    """65,536 bytes go through, one more is refused."""
    ends[0].send(b"x" * MAX_MESSAGE_BYTES)
    assert ends[1].receive() == (b"x" * MAX_MESSAGE_BYTES, [])
    with pytest.raises(PacketError, match="not 65537"):
        ends[0].send(b"x" * (MAX_MESSAGE_BYTES + 1))


def test_a_message_too_long_for_the_buffer() -> None:
    """The kernel's EMSGSIZE is reported with both sizes; shorter messages still go through."""
    one, other = Packets.pair(buffer=4608)
    with pytest.raises(PacketError, match="20000 bytes is too long for a send buffer of 9216"):
        one.send(b"x" * 20_000)
    one.send(b"x" * 2000)
    assert len(other.receive()[0]) == 2000
    one.close()
    other.close()


def test_a_full_queue(ends: tuple[Packets, Packets]) -> None:
    """A sender that doesn't block gets an error if the queue is full, and can go on when a message was taken."""
    ends[0].set_blocking(False)
    sent = fill(ends[0])
    with pytest.raises(BlockingIOError):
        ends[0].send(b"x")
    assert sent > 100
    for expected in range(sent):
        data, (fd,) = ends[1].receive()
        assert data == b"%d" % expected
        os.close(fd)
    ends[0].send(b"again")


def test_a_larger_buffer_holds_more() -> None:
    """The sender's buffer decides how many messages may wait."""
    sent = []
    for buffer in (16384, 65536):
        one, other = Packets.pair(buffer=buffer)
        one.set_blocking(False)
        sent.append(fill(one))
        one.close()
        other.close()
    assert sent[1] > 2 * sent[0]


def test_an_empty_queue(ends: tuple[Packets, Packets]) -> None:
    """A receiver that doesn't block gets an error if there is nothing."""
    ends[1].set_blocking(False)
    with pytest.raises(BlockingIOError):
        ends[1].receive()


@pytest.mark.parametrize("sent", [2, 3, 10])
def test_more_descriptors_than_expected(ends: tuple[Packets, Packets], sent: int) -> None:
    """The loss is an error, what came is closed, and the next message is received whole."""
    ends[0].send(b"x", [0] * sent)
    ends[0].send(b"next", [0])
    with pytest.raises(PacketError, match="more than 1 in a message"):
        ends[1].receive(max_fds=1)
    data, (fd,) = ends[1].receive(max_fds=1)
    assert data == b"next"
    os.close(fd)


def test_no_descriptor_left(ends: tuple[Packets, Packets]) -> None:
    """A receiver at its limit of open files gets an error, not a message that lacks descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ends[0].send(b"x", [0, 0, 0])
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        with pytest.raises(PacketError, match="RLIMIT_NOFILE"):
            ends[1].receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    ends[0].send(b"next")
    assert ends[1].receive() == (b"next", [])


def test_a_foreign_message_too_long() -> None:
    """A message that another program made longer than ours ever are: an error, and its descriptors are closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = Packets.attach(ours.detach())
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
    theirs.sendmsg([b"x" * (MAX_MESSAGE_BYTES + 1)], rights)
    with pytest.raises(PacketError, match="its end is lost"):
        end.receive()
    theirs.close()
    end.close()


def test_attach_takes_seqpacket_sockets_only(ends: tuple[Packets, Packets]) -> None:
    """A file and a stream socket are refused and stay open; a pair's end works as it did."""
    reader, writer = os.pipe()
    stream = socket.socket()
    for fd, reason in ((reader, "no socket"), (stream.fileno(), "AF_INET SOCK_STREAM")):
        with pytest.raises(ClusterError, match=reason):
            Packets.attach(fd)
        os.fstat(fd)
    os.close(reader)
    os.close(writer)
    stream.close()
    copy = Packets.attach(os.dup(ends[0].fileno()))
    copy.send(b"x")
    assert ends[1].receive() == (b"x", [])
    copy.close()


def test_many_readers_share_one_end(ends: tuple[Packets, Packets]) -> None:
    """Each message goes to one reader, with its descriptor: none is lost, none is doubled."""
    results, answers = os.pipe()
    readers = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            with leaving():
                ends[0].close()
                while (message := ends[1].receive())[0]:
                    data, fds = message
                    os.write(answers, b"%s %d\n" % (data, len(fds)))
                    os.close(fds[0])
        readers.append(pid)
    os.close(answers)
    for number in range(300):
        ends[0].send(b"%d" % number, [0])
    ends[0].close()
    with open(results) as file:
        assert sorted(file.read().splitlines()) == sorted(f"{number} 1" for number in range(300))
    assert [os.waitpid(pid, 0)[1] for pid in readers] == [0, 0, 0]


def test_closing_twice_is_harmless(ends: tuple[Packets, Packets]) -> None:
    """After a close there is no descriptor, and another close does nothing."""
    ends[0].close()
    ends[0].close()
    assert ends[0].fileno() == -1
