"""Resources and users of processes: CPUs, files, memory, threads. Real ones, in children."""

from __future__ import annotations

import grp
import os
import pwd
import resource
import signal
from pathlib import Path

import pytest

from cluster2.errors import ConfigError
from cluster2.linux import processes
from cluster2.linux.privileges import drop_privileges
from cluster2.linux.processes import memory, raise_file_limit, usable_cpus
from tests.linux.children import fork, told, wait_ended

pytestmark = pytest.mark.usefixtures("nothing_is_left")

DAEMON = pwd.getpwnam("daemon")
BIN = grp.getgrnam("bin").gr_gid

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users and control groups")


# ------------------------------------------------------------------------------------------------------------ resources


def test_cpus_by_affinity() -> None:
    """A process that is bound to one CPU may use one."""

    def body() -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return usable_cpus()

    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))
    assert told(body) == 1


def groups(tmp_path: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> str:
    """Make up a /proc/self whose control groups are mounted below tmp_path."""
    (tmp_path / "cgroup").write_text(cgroup)
    (tmp_path / "mountinfo").write_text(mountinfo.replace("MOUNT", str(tmp_path / "mount")))
    for name, content in files.items():
        file = tmp_path / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return str(tmp_path)


V2 = "30 23 0:26 / MOUNT rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 32 0:29 {root} MOUNT rw - cgroup cgroup rw,cpu,cpuacct\n34 32 0:30 / /elsewhere rw - cgroup cgroup rw,cpuset\n"


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "files", "expected"),
    [
        ("0::/a/b\n", V2, {"a/b/cpu.max": "150000 100000\n"}, 2),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "20000 100000\n"}, 1),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "max 100000\n"}, 64),
        ("0::/a/b\n", V2, {}, 64),
        ("0::/../x\n", V2, {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", V2, {"cpu.max": "100000 100000\n"}, 1),
        ("4:cpu,cpuacct:/d/c1\n0::/\n", V1.format(root="/d/c1"), {"cpu.cfs_quota_us": "250000\n"}, 3),
        ("4:cpu,cpuacct:/d/c1\n", V1.format(root="/"), {"d/c1/cpu.cfs_quota_us": "-1\n"}, 64),
        ("4:cpuset:/d\n", V1.format(root="/"), {"d/cpu.cfs_quota_us": "100000\n"}, 64),
        ("", "", {}, 64),
    ],
)
def test_cpus_by_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, mountinfo: str, files: dict[str, str], expected: int
) -> None:
    """On a machine of 64 CPUs the smallest quota from our group upwards counts, rounded up; none: all CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    files = files | {name.replace("quota", "period"): "100000\n" for name in files if name.endswith("cpu.cfs_quota_us")}
    assert usable_cpus(groups(tmp_path, cgroup, mountinfo, files)) == expected


@root
def test_cpus_of_a_real_control_group() -> None:
    """A process in a group with a quota of one CPU may use one."""
    parent = next(iter(processes._cpu_groups("/proc/self")), None)
    if parent is None:
        pytest.skip("there is no CPU control group here")
    group = Path(parent) / f"cluster2-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            name, value = (
                ("cpu.max", "100000 100000") if (group / "cpu.max").exists() else ("cpu.cfs_quota_us", "100000")
            )
            (group / name).write_text(value)
        except OSError as error:
            pytest.skip(f"no quota can be set here: {error}")

        def body() -> int:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return usable_cpus()

        assert told(body) == 1
    finally:
        group.rmdir()


def test_the_file_limit() -> None:
    """Soft becomes hard, and hard stays."""

    def body() -> list[object]:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        return [raise_file_limit() == hard, resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)]

    assert told(body) == [True, True]


def test_memory_counts_shared_pages_by_share() -> None:
    """A page that two processes share counts half for each: so a fork of a large process isn't large."""
    block = bytearray(b"x") * (64 << 20)
    alone = memory(os.getpid())
    assert alone > 64 << 20
    child = fork(signal.pause)
    assert memory(child) < alone * 3 / 4
    assert memory(os.getpid()) < alone * 3 / 4
    os.kill(child, signal.SIGKILL)
    wait_ended(child)
    assert memory(child) == 0
    os.waitpid(child, 0)
    with pytest.raises(ProcessLookupError):
        memory(child)
    del block


def test_memory_without_permission() -> None:
    """If the proportional size may not be read, the resident size is returned."""
    if os.geteuid() != 0:
        assert memory(1) > 0
        return

    def body() -> int:
        os.setresuid(65534, 65534, 65534)
        return memory(os.getppid())

    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    answer = told(body)
    assert isinstance(answer, int)
    assert 0.5 * resident < answer < 2 * resident


# ----------------------------------------------------------------------------------------------------------- privileges


def identity() -> list[object]:
    return [os.getresuid(), os.getresgid(), sorted(os.getgroups())]


@root
@pytest.mark.parametrize(
    ("user", "group", "uid", "gid"),
    [
        ("daemon", None, DAEMON.pw_uid, DAEMON.pw_gid),
        ("daemon", "bin", DAEMON.pw_uid, BIN),
        ("daemon", 54321, DAEMON.pw_uid, 54321),
        (DAEMON.pw_uid, None, DAEMON.pw_uid, DAEMON.pw_gid),
        (str(DAEMON.pw_uid), str(BIN), DAEMON.pw_uid, BIN),
        (54321, 54322, 54321, 54322),
        (None, "bin", 0, BIN),
    ],
)
def test_privileges_are_dropped(user: str | int | None, group: str | int | None, uid: int, gid: int) -> None:
    """By name or number, known to the databases or not: real, effective and saved ids change, groups with them."""

    def body() -> list[object]:
        drop_privileges(user, group)
        return identity()

    answer = told(body)
    assert isinstance(answer, list)
    assert answer[:2] == [[uid] * 3, [gid] * 3]
    assert gid in answer[2]
    if uid != 0:
        assert 0 not in answer[2]


@root
def test_privileges_are_gone_for_good() -> None:
    """There is no way back to root."""

    def body() -> None:
        drop_privileges("daemon", None)
        os.setuid(0)

    assert told(body) == "PermissionError: [Errno 1] Operation not permitted"


@root
def test_privileges_that_were_dropped_before() -> None:
    """A process of that user already needs no privilege; a change to another user is refused by name."""

    def same() -> list[object]:
        drop_privileges("daemon", None)
        drop_privileges("daemon", "daemon")
        return identity()

    def other() -> None:
        drop_privileges("daemon", None)
        drop_privileges("bin", None)

    assert told(same) == [[DAEMON.pw_uid] * 3, [DAEMON.pw_gid] * 3, [DAEMON.pw_gid]]
    refusal = "ConfigError: user = 'bin', group = None: only root can change them; start as root or as that user"
    assert told(other) == refusal


def test_unknown_users_and_groups() -> None:
    """Unknown users and groups are named, and nothing has changed; without any nothing is done."""
    before = identity()
    with pytest.raises(ConfigError, match="user = 'no-such-user': there is no such user"):
        drop_privileges("no-such-user", None)
    with pytest.raises(ConfigError, match="group = 'no-such-group': there is no such group"):
        drop_privileges(None, "no-such-group")
    drop_privileges(None, None)
    assert identity() == before
