"""Listeners, over real sockets on loopback."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cluster2.errors import AddressInUse, ConfigError
from cluster2.kernel.listeners import PATH_BYTES, Listener, open_all, queue_length, systemd_fds
from cluster2.settings import Address, FdAddress, TcpAddress, UnixAddress

Open = Callable[..., list[Listener]]

LOOPBACKS = ["127.0.0.1", "::1"]


@pytest.fixture
def listen() -> Iterator[Open]:
    """`open_all`, with the listeners closed after the test."""
    opened: list[Listener] = []

    def listen(*addresses: Address, backlog: int = 16) -> list[Listener]:
        listeners = open_all(addresses, backlog=backlog)
        opened.extend(listeners)
        return listeners

    yield listen
    for listener in opened:
        listener.close()


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def port_of(listener: Listener) -> int:
    assert isinstance(listener.address, TcpAddress)
    return listener.address.port


def connect(listener: Listener) -> socket.socket:
    """A connected client."""
    client = socket.socket(listener.sock.family)
    client.settimeout(10)
    client.connect(listener.sock.getsockname())
    return client


def accept(listener: Listener) -> socket.socket:
    """The next connection; it is waited for, since a connect over loopback may return first."""
    assert select.select([listener.sock], [], [], 10)[0]
    sock, _ = listener.sock.accept()
    sock.settimeout(10)
    return sock


def serve(listener: Listener, clients: Sequence[socket.socket]) -> None:
    """Accept all clients in turn, and pass a word each way."""
    for number, client in enumerate(clients):
        sock = accept(listener)
        assert sock.recv(100) == b"question %d" % number
        sock.sendall(b"answer")
        assert client.recv(100) == b"answer"
        sock.close()
        client.close()


def ask(listener: Listener, count: int) -> list[socket.socket]:
    clients = [connect(listener) for _ in range(count)]
    for number, client in enumerate(clients):
        client.sendall(b"question %d" % number)
    return clients


# ------------------------------------------------------------------------------------------------------------------ TCP


def test_a_listener_is_ready(listen: Open) -> None:
    """It listens, doesn't block, is close-on-exec, shares its port with nobody, and knows its real port."""
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
    """The error names the address and who has it: here, a process of ours."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # it holds the socket alone, once we have closed ours
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    listener.sock.close()
    try:
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(AddressInUse) as caught:
                open_all([TcpAddress(host, port_of(listener))], backlog=1)
            name = Path(f"/proc/{child}/comm").read_text().strip()
            assert str(caught.value).startswith(
                f"{host}:{port_of(listener)} is in use by process {child} ({name}"[:40]
            )
            assert str(child) in str(caught.value)
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_an_address_given_twice(listen: Open) -> None:
    """Two addresses of ours that are in each other's way are told apart from a stranger's."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    with pytest.raises(AddressInUse, match="another address of this configuration"):
        open_all([TcpAddress("0.0.0.0", port_of(listener))], backlog=1)


def test_an_address_of_another_machine() -> None:
    """An address that no interface has is refused by name (TEST-NET-1)."""
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:3000 can't be bound: no interface .* has the address 192\.0\.2\.1"):
        open_all([TcpAddress("192.0.2.1", 3000)], backlog=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_privileged_port() -> None:
    """Who isn't root gets no port below 1024, and is told so."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            open_all([TcpAddress("127.0.0.1", 81)], backlog=1)
        except ConfigError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        told = file.read()
    os.waitpid(child, 0)
    if not told:
        pytest.skip("this machine lets everybody bind low ports (net.ipv4.ip_unprivileged_port_start)")
    assert told == "127.0.0.1:81 can't be bound: ports below 1024 need root or CAP_NET_BIND_SERVICE; choose another address"


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


# ---------------------------------------------------------------------------------------------------------------- doors


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_shut_door_of_tcp(listen: Open, host: str) -> None:
    """No newcomer gets in any more; all who wait in the queue are served."""
    (listener,) = listen(TcpAddress(host, 0))
    clients = ask(listener, 5)
    listener.shut_door()
    newcomer = socket.socket(listener.sock.family)
    newcomer.setblocking(False)
    assert newcomer.connect_ex(listener.sock.getsockname()) == errno.EINPROGRESS
    assert select.select([], [newcomer], [], 0.1)[1] == []
    assert queue_length(listener.sock) == 5
    serve(listener, clients)
    assert queue_length(listener.sock) == 0
    listener.close()
    newcomer.close()


@pytest.mark.parametrize("host", LOOPBACKS)
def test_a_handshake_under_way_ends_behind_a_shut_door(listen: Open, host: str) -> None:
    """A client whose handshake has begun is accepted and served (TCP_DEFER_ACCEPT holds the handshake open for us)."""
    (listener,) = listen(TcpAddress(host, 0))
    listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    client = connect(listener)
    assert queue_length(listener.sock) == 0
    listener.shut_door()
    client.sendall(b"question 0")
    serve(listener, [client])


def test_an_accepted_connection_is_not_hurt(listen: Open) -> None:
    """Connections from before and from behind the shut door go on; the filter, which they inherit, drops nothing."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    before, waiting = connect(listener), connect(listener)
    served = [accept(listener)]
    listener.shut_door()
    served.append(accept(listener))
    for client, sock in zip((before, waiting), served, strict=True):
        sock.setblocking(True)
        client.sendall(b"x" * 1000)
        assert sock.recv(2000, socket.MSG_WAITALL | socket.MSG_PEEK if False else 0)
        sock.sendall(b"y")
        assert client.recv(10) == b"y"
        client.close()
        sock.close()


def test_one_process_shuts_the_door_for_all(listen: Open) -> None:
    """The door is the socket's: what a child shuts is shut for the parent that shares it."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        listener.shut_door()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with socket.socket() as newcomer:
        newcomer.setblocking(False)
        newcomer.connect_ex(listener.sock.getsockname())
        assert select.select([], [newcomer], [], 0.1)[1] == []
        listener.close()


def test_why_not_shutdown(listen: Open) -> None:
    """shutdown(SHUT_RD) on a TCP listener resets those who wait: the reason for the filter."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    client = connect(listener)
    listener.sock.shutdown(socket.SHUT_RD)
    with pytest.raises(OSError, match="Invalid argument"):
        listener.sock.accept()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()


def test_why_not_a_backlog_of_zero(listen: Open) -> None:
    """listen(0) lets newcomers in once the queue is drained: another reason for the filter."""
    (listener,) = listen(TcpAddress("127.0.0.1", 0))
    client = connect(listener)
    listener.sock.listen(0)
    accept(listener).close()
    client.close()
    connect(listener).close()


def test_a_shut_door_of_a_unix_socket(listen: Open, tmp_path: Path) -> None:
    """Newcomers are refused, those who wait are served, and then accept says that there is nothing."""
    (listener,) = listen(UnixAddress(str(tmp_path / "a.sock")))
    clients = ask(listener, 3)
    listener.shut_door()
    with pytest.raises(ConnectionRefusedError):
        connect(listener)
    serve(listener, clients)
    assert select.select([listener.sock], [], [], 0)[0], "readable without end, as the module says"
    with pytest.raises(BlockingIOError):
        listener.sock.accept()


def test_an_inherited_door_stays_open(listen: Open) -> None:
    """A socket that somebody else owns goes on taking connections for its next user."""
    owner = socket.create_server(("127.0.0.1", 0))
    (listener,) = listen(FdAddress(os.dup(owner.fileno())))
    listener.shut_door()
    client = connect(listener)
    listener.close()
    sock, _ = owner.accept()
    for each in (client, sock, owner):
        each.close()


# ----------------------------------------------------------------------------------------------------------------- Unix


def test_a_unix_socket(listen: Open, tmp_path: Path) -> None:
    """It serves, everybody may connect whatever the umask is, and its file goes when it is closed."""
    path = tmp_path / "a.sock"
    umask = os.umask(0o077)
    try:
        (listener,) = listen(UnixAddress(str(path)))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert not listener.sock.getblocking()
    serve(listener, ask(listener, 2))
    listener.close()
    listener.close()
    assert not path.exists()


def test_the_mode_of_a_socket_file(tmp_path: Path) -> None:
    """Its mode is what the caller says."""
    (listener,) = open_all([UnixAddress(str(tmp_path / "a.sock"))], backlog=1, unix_mode=0o660)
    assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o660
    listener.close()


def test_a_relative_path(listen: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of directory doesn't keep the file from being removed."""
    monkeypatch.chdir(tmp_path)
    (listener,) = listen(UnixAddress("a.sock"))
    monkeypatch.chdir("/")
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_the_longest_path(listen: Open, tmp_path: Path) -> None:
    """107 bytes fit (bytes, not characters); one more is refused with both numbers."""
    fitting = f"{tmp_path}/" + "x" * (PATH_BYTES - len(os.fsencode(tmp_path)) - 1)
    if len(os.fsencode(fitting)) != PATH_BYTES:
        pytest.skip("the temporary directory's own path is too long")
    (listener,) = listen(UnixAddress(fitting))
    serve(listener, ask(listener, 1))
    for path in (fitting + "x", fitting[:-1] + "é"):
        with pytest.raises(ConfigError, match="has 108 bytes, a Unix socket's may have 107"):
            open_all([UnixAddress(path)], backlog=1)


def test_a_live_server_is_left_alone(listen: Open, tmp_path: Path) -> None:
    """A path on which a server answers is refused, also when its queue is full."""
    path = str(tmp_path / "a.sock")
    (listener,) = listen(UnixAddress(path), backlog=0)
    with pytest.raises(AddressInUse, match="a server answers there"):
        open_all([UnixAddress(path)], backlog=1)  # its probe stays in the queue and fills it
    with pytest.raises(AddressInUse, match="a server answers there"):
        open_all([UnixAddress(path)], backlog=1)
    accept(listener).close()


def test_a_datagram_server_is_left_alone(tmp_path: Path) -> None:
    """A socket of another type is alive, too."""
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(AddressInUse):
            open_all([UnixAddress(path)], backlog=1)


def test_a_dead_servers_file_is_replaced(listen: Open, tmp_path: Path) -> None:
    """A socket file that nobody listens on makes room."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    (listener,) = listen(UnixAddress(str(path)))
    serve(listener, ask(listener, 1))


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    """A file, a directory, a symbolic link (even to a dead socket) isn't ours to remove."""
    path, target = tmp_path / "a.sock", tmp_path / "target"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "symlink":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(target))
            path.symlink_to(target)
        case "dangling":
            path.symlink_to(target)
    before = path.lstat()
    with pytest.raises(ConfigError, match="there is a file that is no socket"):
        open_all([UnixAddress(str(path))], backlog=1)
    assert path.lstat() == before


def test_a_successors_file_is_left_alone(listen: Open, tmp_path: Path) -> None:
    """Who closes late doesn't remove the file of the one who has bound the path since."""
    path = tmp_path / "a.sock"
    (old,) = listen(UnixAddress(str(path)))
    old.shut_door()
    (new,) = listen(UnixAddress(str(path)))
    old.close()
    assert path.exists()
    serve(new, ask(new, 1))


def test_a_missing_directory(tmp_path: Path) -> None:
    """The error names the path and says what is missing."""
    with pytest.raises(ConfigError, match=r"nowhere/a\.sock can't be bound: its directory doesn't exist"):
        open_all([UnixAddress(str(tmp_path / "nowhere" / "a.sock"))], backlog=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    """Who may not write there is told so."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.setresuid(65534, 65534, 65534)
        try:
            open_all([UnixAddress("a.sock")], backlog=1)
        except ConfigError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        assert "unix:a.sock can't be bound: Permission denied" in file.read()
    os.waitpid(child, 0)


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
    """The same descriptor can't be two listeners; it stays open."""
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
    """Nothing passed, or to another process: nothing is taken, and our children won't see the variables."""
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
