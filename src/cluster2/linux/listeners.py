"""Listeners: the sockets that the master binds, keeps until its end, and shuts before it leaves.

**Binding.** SO_REUSEADDR is set, so that connections of an earlier master in TIME_WAIT don't keep this one out. SO_REUSEPORT is
not: with it a second master of the same user binds the same port without an error, and each loses half of its connections to the
other. IPV6_V6ONLY lets `0.0.0.0` and `[::]` share one port. Two sockets with SO_REUSEADDR may both *bind* a port that neither
listens on yet, so EADDRINUSE is handled for `listen` too. A host name with several addresses gives one listener, on the first,
IPv4 before IPv6 (as in Go).

**Unix sockets.** A file that is left over looks like one in use. Only a connect distinguishes them (ECONNREFUSED: no process
listens). The file's mode is set by `fchmod` before `bind` and under an umask of 0, so that it never has another one. The default
is 0666, as with other servers, since a proxy runs as another user. The directory around it restricts access. The owner can't be
set before, because `bind` takes that of the process. It is changed through a descriptor of the file (O_PATH) that is known to be
a socket of this process, so that another user with write access to the directory can't have another file given away. A file is
removed only if it is still the one that this process made (device and inode).

**Shutting a listener.** Before a cluster leaves, new connections must be refused, while all that is in the accept queue must be
served, and so must handshakes under way. Those clients believe that they are connected, and some have sent their request. Tried
for TCP (6.18, IPv4 and IPv6):

- `close` resets all that is in the queue.
- `shutdown(SHUT_RD)` does the same. The socket leaves LISTEN and `accept` gives EINVAL (a test shows it).
- `listen(0)` lets new connections in again as soon as the queue is drained. While it is full (by the kernel's source, not tried),
  the last step of handshakes is dropped: the client believes that it is connected, the server doesn't.
- The solution is a second socket on the address, to which all new connections are sent and which drops them: the SYN sink
  (`cluster2.linux.syn_sink` has the details). One process shuts a listener for all that share it, for as long as it keeps the
  sink.

For Unix sockets `shutdown(SHUT_RD)` is right: new connections get ECONNREFUSED, and the queue can be accepted. But the socket is
readable from then on: a process that polls it has to stop at the first EAGAIN, or spins.

**Clients that read slowly on purpose.** By default Linux takes up to 4 MiB (`net.ipv4.tcp_wmem`) of a response into the send
buffer of a connection, even if its client accepts next to nothing. If the client's window is tiny, the segments are too, and the
bytes are cut into them within that very write(2). A write of 1 MiB for a window of some 1,000 bytes takes the kernel 1.3 ms, up
to 7 ms if its slabs have to grow, and 1.9 MiB of memory that belongs to no process. Five hundred such readers held the loops of
two workers for four seconds.

`TCP_NOTSENT_LOWAT` (tcp(7)) bounds the *unsent* bytes there: the same write ends after 132 kB, 0.12 ms and 0.24 MiB. Bytes in
flight to a client aren't bounded, so long fat networks are as fast as ever. Accepted sockets inherit the option: no connection
pays for it, whichever engine accepts it.

**Inherited descriptors** belong to another process: systemd keeps the socket and its queue for the next instance. So they are not
shut, and nothing is unlinked. They get the bound on unsent bytes like other listeners.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol

from cluster2.config.value_types import Address, FdAddress, TcpAddress, UnixAddress
from cluster2.errors import AddressInUse, ConfigError
from cluster2.linux.syn_sink import open_sink

if TYPE_CHECKING:
    import psutil

MAX_PATH_BYTES: Final = 107
"""The longest path of a Unix socket: `sun_path` has 108 bytes, the last of them zero."""

# The addresses that getaddrinfo returns. The third form, raw bytes, comes from a Python that was built without IPv6.
_Resolved = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]

NOTSENT_LOWAT_BYTES: Final = 128 * 1024
"""Bytes of a response that may wait in the kernel to be sent, for each connection; the rest stays with the engine."""

_TCPI_UNACKED: Final = 24  # the offset in struct tcp_info: 8 bytes of flags, then rto, ato, snd_mss, rcv_mss


@dataclass
class Listener:
    """A listening stream socket: non-blocking, close-on-exec.

    Attributes:
        sock: the socket.
        address: where it listens, with the real port; `FdAddress` as given.
        owned: this process bound it, so it may shut it and remove its file.
    """

    sock: socket.socket
    address: Address
    owned: bool
    _file: tuple[str, int, int] | None = field(default=None, repr=False)  # absolute path, device, inode
    _sink: socket.socket | None = field(default=None, repr=False)

    def shut_door(self) -> None:
        """Drop new connections until `close`; queued ones, and handshakes under way, can still be accepted.

        Nothing happens to a socket that isn't owned. A second call does nothing.

        Raises:
            OSError: the listener stays open. The reason is the kernel's, or a lack of descriptors.
        """
        if not self.owned or self._sink is not None:
            return
        if self.sock.family == socket.AF_UNIX:
            self.sock.shutdown(socket.SHUT_RD)
        else:
            self._sink = open_sink(self.sock)

    def close(self) -> None:
        """Close this process's descriptor, and remove the socket file if it is still the same; a second call does nothing."""
        self.sock.close()
        if self._sink is not None:  # the sink is closed after the listener: no connection gets in between
            self._sink.close()
            self._sink = None
        if self._file is not None:
            path, *identity = self._file
            self._file = None
            with contextlib.suppress(
                OSError
            ):  # the file is gone, or may not be removed: the next server on that path does it
                found = os.lstat(path)
                if [found.st_dev, found.st_ino] == identity:
                    os.unlink(path)


class SocketFile(NamedTuple):
    """The mode and the owner of the files of Unix sockets.

    Attributes:
        mode: their mode.
        owner: their user and group; None: those of this process.
    """

    mode: int = 0o666
    owner: tuple[int, int] | None = None


_DEFAULT_SOCKET_FILE: Final = SocketFile()


def open_all(addresses: Sequence[Address], *, backlog: int, files: SocketFile = _DEFAULT_SOCKET_FILE) -> list[Listener]:
    """Bind and listen: one listener for each address, in their order. All or none: an error closes those that were opened.

    Args:
        backlog: the length of each accept queue (the kernel bounds it by `net.core.somaxconn`).
        files: how the files of Unix sockets are made.
    Raises:
        AddressInUse: another process listens there.
        ConfigError: an address that can't be bound, or an inherited descriptor that is no listening stream socket.
    """
    listeners: list[Listener] = []
    try:
        for address in addresses:
            match address:
                case TcpAddress():
                    listeners.append(_open_tcp(address, backlog))
                case UnixAddress():
                    listeners.append(_open_unix(address, backlog, files))
                case FdAddress():
                    if any(address == other.address for other in listeners):
                        raise ConfigError(f"{address} is given twice")
                    listeners.append(_adopt(address))
    except BaseException:
        for listener in listeners:
            if listener.owned:
                listener.close()
            else:
                listener.sock.detach()
        raise
    return listeners


class ListeningSocket(Protocol):
    """A listener, or a group of them."""

    def shut_door(self) -> None:
        """Drop new connections. Raises OSError."""


def shut(listener: ListeningSocket, address: Address, warn: Callable[[str], None]) -> bool:
    """Shut a listener. An error is a warning: return false then, and new connections still arrive."""
    try:
        listener.shut_door()
    except OSError as error:
        warn(f"{address}: new connections can't be held back while the cluster leaves: {error.strerror or error}")
        return False
    return True


def bound_unsent(sock: socket.socket) -> None:
    """Limit the unsent bytes (`NOTSENT_LOWAT_BYTES`) of each connection that a listening socket accepts from now on."""
    if sock.family != socket.AF_UNIX:  # a Unix socket's buffer is the reader's, and small
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)


def queue_length(sock: socket.socket) -> int:
    """Return how many connections wait in the accept queue of a listening TCP socket (TCP_INFO: `tcpi_unacked`).

    Raises:
        OSError: EOPNOTSUPP: it is a Unix socket, whose queue the kernel doesn't report that way.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED + 4)
    return int(struct.unpack_from("I", info, _TCPI_UNACKED)[0])


def systemd_fds(environ: MutableMapping[str, str], pid: int) -> list[int]:
    """Return the sockets that a service manager passed on, by sd_listen_fds(3); they are close-on-exec afterwards.

    LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are removed: they are not for children of this process.

    Args:
        environ: where to look, `os.environ` usually.
        pid: this process's; descriptors meant for another process aren't taken.
    Raises:
        ConfigError: the variables are no numbers, or a descriptor isn't open.
    """
    meant_for, count, _ = (environ.pop(name, None) for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if meant_for is None or count is None:
        return []
    if not meant_for.isdecimal() or not count.isdecimal():
        raise ConfigError(f"LISTEN_PID={meant_for} LISTEN_FDS={count} in the environment: both must be numbers")
    if int(meant_for) != pid:
        return []
    fds = list(range(3, 3 + int(count)))
    for fd in fds:
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS={count} in the environment: descriptor {fd} is not open") from error
    return fds


def _open_tcp(address: TcpAddress, backlog: int) -> Listener:
    family, resolved = _resolve(address)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        _refuse_tcp(address, resolved, error)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound_unsent(sock)
        sock.bind(resolved)
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        _refuse_tcp(address, resolved, error)
    host, port = sock.getsockname()[:2]
    return Listener(sock, replace(address, host=host, port=port), owned=True)


def _resolve(address: TcpAddress) -> tuple[socket.AddressFamily, _Resolved]:
    # Bytes where possible: a text goes through the codec for international names, which brings 0.2 MiB into the master.
    host = address.host.encode() if address.host.isascii() else address.host
    try:
        found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        raise ConfigError(
            f"{address}: the host {address.host!r} can't be resolved: {reason}; give an IP address"
        ) from error
    best = min(found, key=lambda entry: entry[0] != socket.AF_INET)  # min keeps the resolver's order otherwise
    return best[0], best[4]


def _refuse_tcp(address: TcpAddress, resolved: _Resolved, error: OSError) -> NoReturn:
    match error.errno:
        case errno.EADDRINUSE:
            holder = _holder(str(resolved[0]), address.port)
            raise AddressInUse(f"{address} is in use{holder}; stop that, or choose another port") from error
        case errno.EACCES | errno.EPERM:
            reason = "ports below 1024 need root or CAP_NET_BIND_SERVICE" if address.port < 1024 else "not permitted"
        case errno.EADDRNOTAVAIL:
            reason = f"no interface of this machine has the address {resolved[0]}"
        case errno.EAFNOSUPPORT:
            reason = f"this machine has no {'IPv6' if ':' in str(resolved[0]) else 'IPv4'}"
        case _:
            reason = os.strerror(error.errno or errno.EIO)
    raise ConfigError(f"{address} can't be bound: {reason}; choose another address") from error


def _holder(host: str, port: int) -> str:
    """Return which process listens there, as a piece of a sentence; empty if /proc doesn't show it."""
    import psutil  # 10 ms, for an error only

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(psutil.Error, OSError):
        for found in psutil.net_connections("tcp"):
            if found.status != psutil.CONN_LISTEN or not found.laddr or found.laddr.port != port:
                continue
            # [::] without V6ONLY takes the port of IPv4 as well.
            same = found.family == family and (host in ("0.0.0.0", "::", found.laddr.ip) or found.laddr.ip == "0.0.0.0")
            if not same and found.laddr.ip != "::":
                continue
            if found.pid == os.getpid():
                return ": another address of this configuration takes it"
            if found.pid is not None:
                return f" by {_described(psutil.Process(found.pid))}"
    return ""


def _described(process: psutil.Process) -> str:
    """Describe the process to stop: for a cluster the master, since it would replace a worker."""
    name, parent = process.name(), process.parent()
    if not name.startswith("cluster2") or parent is None:
        return f"process {process.pid} ({name})"
    return f"a cluster, whose master is process {parent.pid}"


def _open_unix(address: UnixAddress, backlog: int, files: SocketFile) -> Listener:
    path = os.path.abspath(address.path)
    size = len(os.fsencode(address.path))
    if size > MAX_PATH_BYTES:
        raise ConfigError(
            f"{address}: the path has {size} bytes, a Unix socket's may have {MAX_PATH_BYTES}; choose a shorter one"
        )
    _remove_stale_file(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind_unix(sock, address.path, files.mode)
        found = os.lstat(path)
        if files.owner is not None:
            _give_away(path, *files.owner)
        listener = Listener(sock, address, True, (path, found.st_dev, found.st_ino))
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{address} was taken by another server just now; stop that, or choose another path"
            ) from error
        reason = "its directory doesn't exist" if error.errno == errno.ENOENT else error.strerror
        raise ConfigError(f"{address} can't be bound: {reason}; choose another path or create it") from error
    sock.listen(backlog)
    sock.setblocking(False)
    return listener


def _bind_unix(sock: socket.socket, path: str, mode: int) -> None:
    os.fchmod(sock.fileno(), mode)
    umask = os.umask(0)
    try:
        sock.bind(path)
    finally:
        os.umask(umask)


def _give_away(path: str, user: int, group: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid():
            with contextlib.suppress(
                PermissionError
            ):  # if this process can't become that user, an error says so when the app is loaded
                os.chown(f"/proc/self/fd/{fd}", user, group)
    finally:
        os.close(fd)


def _remove_stale_file(address: UnixAddress) -> None:
    """Remove the file that a dead server left; refuse every other file on that path."""
    try:
        mode = os.lstat(address.path).st_mode
    except OSError:
        return  # no such file, or no right to see it: bind will fail with the reason
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{address}: there is a file that is no socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(address.path)
    if result == errno.ECONNREFUSED:
        try:
            os.unlink(address.path)
        except OSError as error:
            raise ConfigError(f"{address}: a dead server's socket can't be removed: {error.strerror}") from error
    elif result in (errno.EACCES, errno.EPERM):
        raise ConfigError(f"{address}: there is a socket that we may not connect to; choose another path")
    elif result != errno.ENOENT:  # 0, EAGAIN (its queue is full), EPROTOTYPE (no stream socket, but alive)
        raise AddressInUse(f"{address} is in use: a server answers there; stop it, or choose another path")


def _adopt(address: FdAddress) -> Listener:
    try:
        mode = os.fstat(address.fd).st_mode
    except OSError as error:
        raise ConfigError(f"{address}: there is no open descriptor {address.fd}; have the parent pass it on") from error
    if not stat.S_ISSOCK(mode):
        kinds = {
            stat.S_IFREG: "a file",
            stat.S_IFDIR: "a directory",
            stat.S_IFIFO: "a pipe",
            stat.S_IFCHR: "a terminal or device",
        }
        _refuse_fd(address, kinds.get(stat.S_IFMT(mode), "no socket"))
    sock = socket.socket(fileno=address.fd)
    kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if kind != socket.SOCK_STREAM or not listening:
        sock.detach()
        names = {socket.SOCK_STREAM: "a stream socket that doesn't listen", socket.SOCK_DGRAM: "a datagram socket"}
        _refuse_fd(address, names.get(socket.SocketKind(kind), "a socket of another type"))
    sock.set_inheritable(False)
    sock.setblocking(False)
    bound_unsent(sock)
    return Listener(sock, address, owned=False)


def _refuse_fd(address: FdAddress, found: str) -> NoReturn:
    raise ConfigError(f"{address}: descriptor {address.fd} is {found}, not a listening stream socket")
