"""Listeners, over real sockets on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest

from cluster2.config.value_types import FdAddress, TcpAddress, UnixAddress
from cluster2.errors import AddressInUse, ConfigError
from cluster2.linux.listeners import NOTSENT_LOWAT_BYTES, Listener, open_all, systemd_fds
from tests.linux.children import leaving
from tests.linux.visitors import Open, accept, ask, serve

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def port_of(listener: Listener) -> int:
    assert isinstance(listener.address, TcpAddress)
    return listener.address.port


def fill(sock: socket.socket) -> int:
    """Send until the kernel takes no more; returns how many bytes it took."""
    sock.setblocking(False)
    took = 0
    with contextlib.suppress(BlockingIOError):
        while took < 64 * NOTSENT_LOWAT_BYTES:
            took += sock.send(bytes(8 * NOTSENT_LOWAT_BYTES))
    return took


# ------------------------------------------------------------------------------------------------------------------ TCP


def test_a_listener_is_ready(listen: Open) -> None:
    """A listener listens, doesn't block, is close-on-exec, shares its port with no other, and knows its real port."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    sock = listener.sock
    assert listener.address == TcpAddress(*sock.getsockname())
    assert port_of(listener) > 0
    assert listener.owned
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    serve(listener, ask(listener, 2))


def test_both_families_on_one_port(listen: Open) -> None:
    """0.0.0.0 and [::] stand beside each other, in the order given, and each serves its own."""
    (first,) = listen(TcpAddress("0.0.0.0", 0))
    (second,) = listen(TcpAddress("::", port_of(first)))
    assert port_of(first) == port_of(second)
    for listener, family, host in ((first, socket.AF_INET, "127.0.0.1"), (second, socket.AF_INET6, "::1")):
        client = socket.socket(family)
        client.connect((host, port_of(listener)))
        accept(listener).close()
        client.close()


def test_several_ports_of_the_kernels_choice(listen: Open) -> None:
    """Port 0 may be given as often as wanted: each gets a port of its own."""
    listeners = listen(*[TcpAddress("127.0.0.1", 0)] * 3)
    assert len({port_of(listener) for listener in listeners}) == 3


@pytest.mark.parametrize("inherited", [False, True])
def test_a_reader_that_takes_nothing(listen: Open, inherited: bool) -> None:
    """If the client's window is tiny, the kernel takes some 128 KiB of a response, not megabytes in tiny segments."""
    address = FdAddress(socket.create_server(("127.0.0.1", 0)).detach()) if inherited else TcpAddress("127.0.0.1", 0)
    (listener,) = listen(address)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(listener.sock.getsockname())
        with accept(listener) as taken:
            assert 0 < fill(taken) < 2 * NOTSENT_LOWAT_BYTES
    listener.close()


def test_a_host_name(listen: Open) -> None:
    """A name gives one listener, on its IPv4 address if it has one."""
    (listener,) = listen(TcpAddress("localhost", 0))
    assert listener.address == TcpAddress("127.0.0.1", port_of(listener))


def test_an_unknown_host() -> None:
    """A name that can't be resolved is named."""
    for host in ("no-such-host.invalid", "a" * 70 + ".invalid"):
        with pytest.raises(ConfigError, match=f"the host '{host}' can't be resolved"):
            open_all([TcpAddress(host, 0)], backlog=1)


def test_a_port_in_use(listen: Open) -> None:
    """The error names the address and the process that has it: here, this one."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # it holds the socket alone, once we have closed ours
        with leaving():
            os.close(writer)
            os.read(reader, 1)
    os.close(reader)
    listener.sock.close()
    try:
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(AddressInUse) as caught:
                open_all([TcpAddress(host, port_of(listener))], backlog=1)
            name = Path(f"/proc/{child}/comm").read_text().strip()
            holder = f"{host}:{port_of(listener)} is in use by process {child} ({name})"
            assert str(caught.value) == f"{holder}; stop that, or choose another port"
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_an_address_given_twice(listen: Open) -> None:
    """Two addresses of one configuration that collide give another error than a foreign server."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    with pytest.raises(AddressInUse, match="another address of this configuration"):
        open_all([TcpAddress("0.0.0.0", port_of(listener))], backlog=1)


def test_an_address_of_another_machine() -> None:
    """An address that no interface has is refused by name (TEST-NET-1)."""
    with pytest.raises(
        ConfigError, match=r"192\.0\.2\.1:3000 can't be bound: no interface .* has the address 192\.0\.2\.1"
    ):
        open_all([TcpAddress("192.0.2.1", 3000)], backlog=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_privileged_port() -> None:
    """A user without privileges gets no port below 1024, and an error says so."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with leaving():
            os.setresuid(65534, 65534, 65534)
            try:
                open_all([TcpAddress("127.0.0.1", 81)], backlog=1)
            except ConfigError as error:
                os.write(writer, str(error).encode())
    os.close(writer)
    with open(reader) as file:
        told = file.read()
    os.waitpid(child, 0)
    if not told:
        pytest.skip("this machine lets call_servers bind low ports (net.ipv4.ip_unprivileged_port_start)")
    assert (
        told
        == "127.0.0.1:81 can't be bound: ports below 1024 need root or CAP_NET_BIND_SERVICE; choose another address"
    )


def test_all_or_none(listen: Open, tmp_path: Path) -> None:
    """If one address fails, those before it are closed, their files removed; an inherited descriptor stays open."""
    (busy,) = listen(TcpAddress("127.0.0.1", 0))
    path = tmp_path / "a.sock"
    inherited = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(AddressInUse):
        open_all(
            [UnixAddress(str(path)), FdAddress(inherited.fileno()), TcpAddress("127.0.0.1", port_of(busy))], backlog=1
        )
    assert not path.exists()
    inherited.getsockname()
    inherited.close()


# ------------------------------------------------------------------------------------------------------------ inherited


def test_an_inherited_listener(listen: Open, tmp_path: Path) -> None:
    """A listening descriptor is used as it is, TCP or Unix; a Unix file stays when we leave."""
    path = tmp_path / "a.sock"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    unix.listen(5)
    tcp = socket.create_server(("127.0.0.1", 0))
    for sock in (unix, tcp):
        fd = sock.detach()
        os.set_inheritable(fd, True)
        (listener,) = listen(FdAddress(fd))
        assert (listener.address, listener.owned) == (FdAddress(fd), False)
        assert not listener.sock.getblocking()
        assert not listener.sock.get_inheritable()
        serve(listener, ask(listener, 2))
        listener.close()
    assert path.exists()


def test_what_can_not_be_inherited(tmp_path: Path) -> None:
    """A descriptor that is no listening stream socket is refused, with what it is, and stays open."""
    file = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    reader, writer = os.pipe()
    datagram, stream = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for fd, found in {
        file: "a file",
        reader: "a pipe",
        datagram.fileno(): "a datagram socket",
        stream.fileno(): "a stream socket that doesn't listen",
        one.fileno(): "a socket of another type",
    }.items():
        with pytest.raises(ConfigError, match=f"fd://{fd}: descriptor {fd} is {found}, not a listening stream socket"):
            open_all([FdAddress(fd)], backlog=1)
        os.fstat(fd)
    for fd in (file, reader, writer):
        os.close(fd)
    for sock in (datagram, stream, one, other):
        sock.close()
    with pytest.raises(ConfigError, match="no open descriptor"):
        open_all([FdAddress(file)], backlog=1)


def test_a_descriptor_given_twice() -> None:
    """One descriptor can't be two listeners; it stays open."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = FdAddress(sock.fileno())
        with pytest.raises(ConfigError, match="given twice"):
            open_all([address, address], backlog=1)
        sock.getsockname()


# -------------------------------------------------------------------------------------------------------------- systemd


def test_systemd_passes_descriptors() -> None:
    """LISTEN_FDS=N meant for us gives 3 … N + 2, close-on-exec, and the variables are gone."""
    taken = []
    with contextlib.ExitStack() as stack:
        for fd in (3, 4):
            try:
                os.fstat(fd)
            except OSError:
                os.dup2(0, fd, inheritable=True)
                taken.append(fd)
                stack.callback(os.close, fd)
            else:
                was = os.get_inheritable(fd)
                os.set_inheritable(fd, True)
                stack.callback(os.set_inheritable, fd, was)
        environ = {"LISTEN_PID": "77", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
        assert systemd_fds(environ, 77) == [3, 4]
        assert environ == {"HOME": "/"}
        assert not any(os.get_inheritable(fd) for fd in (3, 4))


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_PID": "78", "LISTEN_FDS": "1"}, {"LISTEN_PID": "77"}, {"LISTEN_PID": "77", "LISTEN_FDS": "0"}],
)
def test_no_descriptors_for_us(environ: dict[str, str]) -> None:
    """If nothing is passed, or to another process, nothing is taken, and children won't see the variables."""
    assert systemd_fds(environ, 77) == []
    assert environ == {}


def test_wrong_variables() -> None:
    """No numbers, or descriptors that aren't there: the error names the variable."""
    for environ, reason in (
        ({"LISTEN_PID": "77", "LISTEN_FDS": "many"}, "must be numbers"),
        ({"LISTEN_PID": "77", "LISTEN_FDS": "100000"}, "is not open"),
    ):
        inheritable = {fd: os.get_inheritable(fd) for fd in range(3)}
        with pytest.raises(ConfigError, match=reason):
            systemd_fds(environ, 77)
        assert inheritable == {fd: os.get_inheritable(fd) for fd in range(3)}
