"""The pids directory, on a real file system."""

from __future__ import annotations

import binascii
import fcntl
import os
import select
import socket
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster2.errors import AlreadyRunning, ConfigError, NotRunning
from cluster2.linux.pid_files import PidsDirectory, connect_control
from tests.linux.children import leaving, told

NOBODY = 65534

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pids"


@pytest.fixture
def pids(path: Path) -> Iterator[PidsDirectory]:
    """Acquire a directory."""
    pids = PidsDirectory(path)
    pids.acquire()
    yield pids
    pids.release()


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories have no names, as where the system refuses abstract sockets."""
    monkeypatch.setattr(PidsDirectory, "_claim_name", lambda self: None)


def name_of(path: Path, uid: int) -> bytes:
    """Return the abstract socket that a master of this user has."""
    real = os.fsencode(path)
    return b"\0cluster2:%d:%08x:%s" % (uid, binascii.crc32(real), real[-60:])


def names(path: Path) -> set[str]:
    """Return the names in a directory, without the lock."""
    return {entry.name for entry in path.iterdir()} - {"master.lock"}


def held(path: Path) -> bool:
    """Return whether a process holds the lock of a directory."""
    try:
        lock = os.open(path / "master.lock", os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def test_a_life(path: Path) -> None:
    """Created, locked, filled, emptied, unlocked: the directory itself stays, empty."""
    pids = PidsDirectory(path)
    assert not held(path)
    pids.acquire()
    assert stat.S_IMODE(path.stat().st_mode) == 0o755 & ~_umask()
    assert names(path) == set()
    assert held(path)
    pids.write_master(100)
    pids.write_worker(101)
    pids.write_worker(102)
    pids.remove_worker(101)
    pids.remove_worker(101)
    assert names(path) == {"master.100.pid", "worker.102.pid"}
    assert (path / "worker.102.pid").read_text() == "102\n"
    pids.keep()
    pids.release()
    pids.release()
    assert names(path) == set()
    assert not held(path)


def test_a_start_that_fails(tmp_path: Path) -> None:
    """A directory that was made for a cluster that never served goes with it; one that was there before, or is used, stays."""
    made, found, used = (tmp_path / name for name in ("made", "found", "used"))
    found.mkdir()
    for path in (made, found, used):
        pids = PidsDirectory(path)
        pids.acquire()
        pids.write_master(100)
        (used / "note").touch() if path == used else None
        pids.release()
    assert names(tmp_path) == {"found", "used"}
    assert names(used) == {"note"}


def test_a_directory_that_goes_while_it_is_waited_for(
    path: Path, nameless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A master that has opened the lock before it was removed, and locks it afterwards, makes another."""
    first, second = PidsDirectory(path), PidsDirectory(path)
    first.acquire()
    lock = second._lock

    def late() -> None:
        first.release()
        lock()

    monkeypatch.setattr(second, "_lock", late)
    second.acquire()
    second.write_master(200)
    second.release()
    assert not path.exists()


def test_masters_that_come_and_go(path: Path) -> None:
    """Many start and fail at the same time: each gets a directory that exists, or the error that names another master."""
    served: list[int] = []

    def start(number: int) -> None:
        for turn in range(50):
            pids = PidsDirectory(path)
            try:
                pids.acquire()
            except AlreadyRunning:
                continue
            try:
                pids.write_master(100 * number + turn + 1)
                assert names(path) == {f"master.{100 * number + turn + 1}.pid"}
                served.append(number)
            finally:
                pids.release()

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(start, number) for number in range(4)]:
            each.result()
    assert served
    assert not path.exists() or not names(path), "who was refused may have made it"


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_second_master(pids: PidsDirectory, path: Path) -> None:
    """A second master is refused with the directory and the pid of the first, and touches nothing."""
    pids.write_master(100)
    with pytest.raises(AlreadyRunning, match=f"{path}: a master with pid {os.getpid()} runs here"):
        PidsDirectory(path).acquire()
    assert names(path) == {"master.100.pid"}


def test_the_lock_alone_keeps_a_second_master_out(path: Path, nameless: None) -> None:
    """If the name of the directory cannot be had the lock decides, and the refusal has the pid in the file's name."""
    pids = PidsDirectory(path)
    pids.acquire()
    with pytest.raises(AlreadyRunning, match="just starting"):
        PidsDirectory(path).acquire()
    pids.write_master(100)
    with pytest.raises(AlreadyRunning, match=f"{path}: a master with pid 100 runs here"):
        PidsDirectory(path).acquire()
    assert names(path) == {"master.100.pid"}
    pids.release()


def test_the_newest_master_is_named(path: Path, nameless: None) -> None:
    """If a stale file lies beside the master's, the newer one is named."""
    pids = PidsDirectory(path)
    pids.acquire()
    pids.write_master(5)
    os.utime(path / "master.5.pid", ns=(1, 1))
    pids.write_master(4)
    with pytest.raises(AlreadyRunning, match="pid 4 runs here"):
        PidsDirectory(path).acquire()
    pids.release()


@pytest.mark.parametrize("what", ["directory", "files", "lock", "socket", "pid file", "replaced"])
def test_what_is_removed_is_restored(pids: PidsDirectory, path: Path, what: str) -> None:
    """Any removal is noticed, a second master is refused all the time, and the directory is complete again."""
    pids.keep()
    pids.write_master(100)
    control = pids.bind_control(5)
    assert pids.intact()
    match what:
        case "directory" | "replaced":
            path.rename(path.with_name("removed"))
            path.mkdir() if what == "replaced" else None
        case "files":
            for entry in path.iterdir():
                entry.unlink()
        case _:
            (path / {"lock": "master.lock", "socket": "master.sock", "pid file": "master.100.pid"}[what]).unlink()
    assert not pids.intact()
    with pytest.raises(AlreadyRunning):
        PidsDirectory(path).acquire()
    pids.restore()
    assert not pids.intact(), "without a control socket"
    control.close()
    control = pids.bind_control(5)
    assert pids.intact()
    assert held(path)
    assert names(path) == {"master.100.pid", "master.sock"}
    control.close()
    pids.release()
    assert not held(path)
    assert names(path) == set()


def test_a_directory_that_another_master_has_taken(path: Path, nameless: None) -> None:
    """A master that lost its directory to another leaves it alone: it neither restores it, nor clears it when it leaves."""
    first, second = PidsDirectory(path), PidsDirectory(path)
    first.acquire()
    first.write_master(100)
    path.rename(path.with_name("removed"))
    second.acquire()
    second.write_master(200)
    for _ in range(2):
        assert not first.intact()
        with pytest.raises(AlreadyRunning, match="with pid 200"):
            first.restore()
    first.release()
    assert second.intact()
    second.release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_another_user_keeps_no_master_out(tmp_path: Path) -> None:
    """Another user can lock the directory, and take the name of its master, but not block a start by that."""
    path = tmp_path / "pids"
    path.mkdir()
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    took, leave = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with leaving():
            os.setresuid(NOBODY, NOBODY, NOBODY)
            directory_fd = os.open(path, os.O_RDONLY)
            fcntl.flock(directory_fd, fcntl.LOCK_EX)
            name = socket.socket(socket.AF_UNIX)
            name.bind(name_of(path, uid=0))
            name.listen(1)
            os.write(took[1], b"x")
            os.read(leave[0], 1)
    assert os.read(took[0], 1) == b"x"
    pids = PidsDirectory(path)
    pids.acquire()
    pids.write_master(100)
    with pytest.raises(AlreadyRunning, match="with pid 100"):
        PidsDirectory(path).acquire()
    assert told(lambda: opened_as_nobody(path / "master.lock")) == "PermissionError"
    pids.release()
    os.write(leave[1], b"x")
    os.waitpid(child, 0)
    for fd in (*took, *leave):
        os.close(fd)


def opened_as_nobody(path: Path) -> str:
    os.setresuid(NOBODY, NOBODY, NOBODY)
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return type(error).__name__
    return "opened"


def test_a_lock_that_is_no_file_of_ours(path: Path) -> None:
    """A link or a directory with the name of the lock is an error that names it, and stays as it is."""
    path.mkdir()
    (path / "master.lock").symlink_to(path.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"master\.lock: can't be opened: .*; remove it, or name another directory"):
        PidsDirectory(path).acquire()
    (path / "master.lock").unlink()
    os.mkfifo(path / "master.lock")
    with pytest.raises(ConfigError, match=r"master\.lock: it is user .*'s, or no file; remove it"):
        PidsDirectory(path).acquire()
    assert not (path.parent / "elsewhere").exists()


def test_the_lock_goes_with_the_process(path: Path) -> None:
    """A master that was killed holds nothing: its files are stale, and its successor clears them."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with leaving():
            pids = PidsDirectory(path)
            pids.acquire()
            pids.write_master(os.getpid())
            pids.write_worker(1234)
            pids.bind_control(5)
            os.write(writer, b"x")
            while True:
                select.select([], [], [])
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert names(path) == {f"master.{child}.pid", "worker.1234.pid", "master.sock"}
    assert not held(path)
    pids = PidsDirectory(path)
    pids.acquire()
    assert names(path) == set()
    pids.release()


def test_a_program_that_we_execute_has_no_lock(pids: PidsDirectory, path: Path) -> None:
    """The lock isn't kept by a process that was executed while it was held."""
    reader, writer = os.pipe()
    child = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)],
    )
    pids.release()
    assert not held(path)
    os.close(reader)
    os.close(writer)
    os.waitpid(child, 0)


def test_what_is_not_ours_stays(path: Path) -> None:
    """Files with other names, and things that only look like ours, are neither followed nor removed."""
    path.mkdir()
    precious = path.parent / "precious"
    precious.write_text("precious")
    kept = ["notes.txt", "worker.pid", "worker.0.pid", "worker.07.pid", "master.1.pid.bak", "worker.1.pid\n", "logs"]
    for name in kept:
        (path / name).write_text("")
    (path / "master.5.pid").symlink_to(precious)
    (path / "worker.6.pid").mkdir()
    (path / "master.sock").write_text("no socket")
    (path / "worker.7.pid").write_text("")
    (path / "master.8.pid").write_text("8\n")
    pids = PidsDirectory(path)
    pids.acquire()
    assert names(path) == {*kept, "master.5.pid", "worker.6.pid", "master.sock"}
    assert precious.read_text() == "precious"
    pids.release()


def test_nothing_is_written_through_a_link(pids: PidsDirectory, path: Path) -> None:
    """A link or a directory with the name of a pid file is an error that names it, and stays as it is."""
    precious = path.parent / "precious"
    precious.write_text("precious")
    (path / "master.5.pid").symlink_to(precious)
    (path / "worker.6.pid").mkdir()
    with pytest.raises(ConfigError, match=r"master\.5\.pid: can't be written: something that is no pid file"):
        pids.write_master(5)
    with pytest.raises(ConfigError, match=r"worker\.6\.pid"):
        pids.write_worker(6)
    pids.remove_worker(6)
    assert precious.read_text() == "precious"
    assert names(path) == {"master.5.pid", "worker.6.pid"}


def test_a_pid_that_comes_again(pids: PidsDirectory, path: Path) -> None:
    """A pid file that was left by a process of the same number is replaced."""
    (path / "worker.7.pid").write_text("old and longer\n")
    pids.write_worker(7)
    assert (path / "worker.7.pid").read_text() == "7\n"


def test_a_directory_that_can_not_be(tmp_path: Path) -> None:
    """A file in its place or above it: the error names the directory and the reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"pids = {tmp_path}/file: can't be created: it is no directory"):
        PidsDirectory(tmp_path / "file").acquire()
    with pytest.raises(ConfigError, match="Not a directory"):
        PidsDirectory(tmp_path / "file" / "pids").acquire()
    for asked in (tmp_path / "file", tmp_path / "nothing"):
        assert not held(asked)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
@pytest.mark.parametrize("exists", [True, False])
def test_a_directory_that_may_not_be_written(tmp_path: Path, exists: bool) -> None:
    """A user that may not create or write the directory gets an error at once, and a running master isn't disturbed."""
    if exists:
        (tmp_path / "pids").mkdir()
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with leaving():
            os.chdir(tmp_path)
            os.setresuid(65534, 65534, 65534)
            try:
                PidsDirectory("pids").acquire()
            except ConfigError as error:
                os.write(writer, str(error).encode())
    os.close(writer)
    with open(reader) as file:
        action = "written" if exists else "created"
        assert file.read() == f"pids = {tmp_path}/pids: can't be {action}: Permission denied; name another directory"
    os.waitpid(child, 0)
    assert not held(tmp_path / "pids")


def test_a_link_to_nothing(tmp_path: Path) -> None:
    """A symbolic link is refused, not followed."""
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(ConfigError, match=f"pids = {tmp_path}/link: it links to nothing"):
        PidsDirectory(tmp_path / "link").acquire()


def test_a_link_to_a_directory(tmp_path: Path) -> None:
    """The directory itself may be reached by a link, as people do with /run: the lock is the real one's."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    pids = PidsDirectory(tmp_path / "link")
    pids.acquire()
    assert held(tmp_path / "real")
    pids.release()


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means the directory that it meant at the beginning."""
    monkeypatch.chdir(tmp_path)
    pids = PidsDirectory("pids")
    monkeypatch.chdir("/")
    assert pids.path == str(tmp_path / "pids")


def test_the_control_socket(pids: PidsDirectory, path: Path) -> None:
    """The control socket takes connections, is for its owner only from the first moment, doesn't block, and is cleared."""
    control = pids.bind_control(5)
    assert stat.S_IMODE((path / "master.sock").stat().st_mode) == 0o600
    assert not control.getblocking()
    assert not control.get_inheritable()
    client = connect_control(path)
    sock, _ = control.accept()
    client.sendall(b"x")
    assert sock.recv(1) == b"x"
    for each in (client, sock, control):
        each.close()
    with pytest.raises(NotRunning, match=f"no master is running on {path}"):
        connect_control(path)
    pids.clear()
    with pytest.raises(NotRunning):
        connect_control(path)
    with pytest.raises(NotRunning):
        connect_control(path / "nowhere")


def test_a_deep_directory(tmp_path: Path) -> None:
    """A path of 1,000 bytes is no obstacle to the control socket."""
    path = tmp_path.joinpath(*["directory-of-a-long-name"] * 40)
    pids = PidsDirectory(path)
    pids.acquire()
    with pids.bind_control(5) as control, connect_control(path, timeout=10) as client:
        sock, _ = control.accept()
        sock.sendall(b"x")
        assert client.recv(1) == b"x"
        sock.close()
    pids.release()
    assert not path.exists()


def test_a_control_socket_that_can_not_be_bound(pids: PidsDirectory, path: Path) -> None:
    """A file of its name is not removed but named."""
    (path / "master.sock").write_text("precious")
    with pytest.raises(ConfigError, match=r"master\.sock: the control socket can't be bound: its name is taken"):
        pids.bind_control(5)
    assert (path / "master.sock").read_text() == "precious"


def test_a_file_system_that_can_not_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files can't be locked, that is the error, not a second master."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match="its file system can't lock a file"):
        PidsDirectory(path).acquire()


def test_a_foreign_socket_is_cleared(pids: PidsDirectory, path: Path) -> None:
    """A socket left by a dead master doesn't keep the next one's out."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path / "master.sock"))
    pids.clear()
    assert names(path) == set()
