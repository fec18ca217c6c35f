"""Listeners on Unix sockets, over real files."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from cluster2.config.value_types import UnixAddress
from cluster2.errors import AddressInUse, ConfigError
from cluster2.linux.listeners import MAX_PATH_BYTES, SocketFile, open_all
from tests.linux.children import leaving
from tests.linux.visitors import Open, accept, ask, serve

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def test_a_unix_socket(listen: Open, tmp_path: Path) -> None:
    """A listener serves, clients may connect whatever the umask is, and its file goes when it is closed."""
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
    """The mode of the file is the one that the caller gives."""
    (listener,) = open_all([UnixAddress(str(tmp_path / "a.sock"))], backlog=1, files=SocketFile(0o660))
    assert stat.S_IMODE((tmp_path / "a.sock").stat().st_mode) == 0o660
    listener.close()


def test_the_owner_of_a_socket_file(tmp_path: Path) -> None:
    """The owner of the file is the one that the caller gives; a process that may not give files away keeps it."""
    owner = (12345, 23456)
    path = tmp_path / "a.sock"
    (listener,) = open_all([UnixAddress(str(path))], backlog=1, files=SocketFile(0o660, owner))
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (owner if os.geteuid() == 0 else (os.geteuid(), os.getegid()))
    listener.close()
    assert not path.exists()


def test_a_relative_path(listen: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of directory doesn't keep the file from being removed."""
    monkeypatch.chdir(tmp_path)
    (listener,) = listen(UnixAddress("a.sock"))
    monkeypatch.chdir("/")
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_the_longest_path(listen: Open, tmp_path: Path) -> None:
    """107 bytes fit (bytes, not characters); one more is refused with both numbers."""
    fitting = f"{tmp_path}/" + "x" * (MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1)
    if len(os.fsencode(fitting)) != MAX_PATH_BYTES:
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
    """A socket file that no process listens on is replaced."""
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
    """A process that closes late doesn't remove the file of one that has bound the path since."""
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
    """A user that may not write there gets an error."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with leaving():
            os.chdir(tmp_path)
            os.setresuid(65534, 65534, 65534)
            try:
                open_all([UnixAddress("a.sock")], backlog=1)
            except ConfigError as error:
                os.write(writer, str(error).encode())
    os.close(writer)
    with open(reader) as file:
        assert "unix:a.sock can't be bound: Permission denied" in file.read()
    os.waitpid(child, 0)
