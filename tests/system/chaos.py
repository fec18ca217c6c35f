"""Drives a real cluster through sequences of faults and commands, and checks after each step what must hold.

A step is a function below with the decorator `step`; a script is a list of their names. A random script is made from a seed, so a
failure can be repeated: the assertion names the steps so far, which can be passed to `Chaos.play` again.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.system.apps.rolling_site import gone, write
from tests.system.clients import Load
from tests.system.harness import Running, descendants, wait_until

CLIENTS = 4
STEPS: dict[str, Callable[[Chaos], None]] = {}


def step(function: Callable[[Chaos], None]) -> Callable[[Chaos], None]:
    """Register a step by its name."""
    STEPS[function.__name__] = function
    return function


class Chaos:
    """A cluster that serves `rolling_site` under load, and what it may have lost so far.

    Attributes:
        wanted: workers that the cluster is to have.
        may_fail: requests and connections that killed processes may have cost: each client has one at most.
    """

    def __init__(self, running: Running, seed: int = 0, workers: int = 2) -> None:
        self.running = running
        self.random = random.Random(seed)
        self.wanted = workers
        self.may_fail = 0
        self._version = 1
        self._done: list[str] = []
        self._descriptors: dict[int, int] = {}

    def script(self, length: int, names: Iterable[str] | None = None) -> list[str]:
        """Return a random script of that length."""
        return self.random.choices(sorted(names or STEPS), k=length)

    def play(self, script: Iterable[str]) -> None:
        """Carry out the steps under load; after each, wait until the cluster is as it should be."""
        with Load(self.running.address, clients=CLIENTS, pause=0.002) as load:
            self._settle(load)
            for name in script:
                self._done.append(name)
                answered = load.counts.answered
                STEPS[name](self)
                self._settle(load)
                wait_until(lambda: load.counts.answered > answered, self._why("no request is answered"))  # noqa: B023
        assert self.running.shutdown() == 0, self._why("the shutdown failed")()

    def _settle(self, load: Load) -> None:
        wait_until(self._is_settled, self._why("the cluster is not as it should be"))
        # What a step has opened it has closed again. No command is sent while this waits: its connection would count, too.
        most = self._descriptors.setdefault(self.wanted, self._open_descriptors())
        wait_until(lambda: self._open_descriptors() <= most, self._why("the master has more descriptors than before"))
        counts = load.counts
        lost = [*counts.failed, *counts.refused, *["closed"] * counts.closed]
        assert not counts.refused, self._why(f"connections were refused: {counts.refused}")()
        assert len(lost) <= self.may_fail, self._why(f"{len(lost)} lost, {self.may_fail} allowed: {lost}")()

    def _is_settled(self) -> bool:
        """Whether each wanted slot has one ready worker, and nothing is there but that, one zygote, keeper and master."""
        try:
            workers = self.running.status()["workers"]
        except OSError:
            return False
        if sorted((row["slot"], row["state"]) for row in workers) != [(slot, "ready") for slot in range(self.wanted)]:
            return False
        return len(self.processes("worker")) == self.wanted and len(self.processes("zygote")) == 1

    def _open_descriptors(self) -> int:
        """Count the master's descriptors but log files, which it begins to follow when there is something to read."""
        count = 0
        for number in os.listdir(f"/proc/{self.master}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile
                count += "/logs/" not in os.readlink(f"/proc/{self.master}/fd/{number}")
        return count

    def _why(self, what: str) -> Callable[[], str]:
        return lambda: (
            f"{what}; after {self._done}; wanted {self.wanted} workers; status "
            f"{self._status()}\n{self.running.stderr[-4000:]}"
        )

    def _status(self) -> object:
        try:
            return self.running.status()
        except OSError as error:
            return error

    # What steps need.

    @property
    def master(self) -> int:
        """The master's pid."""
        return self.running.process.pid

    def processes(self, role: str) -> list[int]:
        """Return the pids of the cluster's processes of a role, by their titles."""
        found = []
        for pid in descendants() - self.running._before:
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(f"cluster2: {role}".encode()):
                found.append(pid)
        return sorted(found)

    def worker(self) -> int:
        """Return the pid of a ready worker."""
        return int(self.random.choice(self.running.workers())["pid"])

    def kill(self, pid: int) -> None:
        """Kill a process and wait until it is reaped; each client may lose what it had there."""
        self.may_fail += CLIENTS
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: gone(pid), self._why(f"{pid} is not reaped"))

    def new_code(self, *, startup: str = "pass", first: str = "") -> None:
        """Write another version of the site."""
        self._version += 1
        write(self.running.directory, f"v{self._version}", startup=startup, first=first)

    def command(self, *words: str, code: int = 0) -> None:
        """Run a command of cluster2, which must end with this code."""
        done = self.running.cli(*words)
        assert done.returncode == code, self._why(f"{words} ended with {done.returncode}: {done.stderr}")()


@step
def kill_worker(chaos: Chaos) -> None:
    """A worker is killed."""
    chaos.kill(chaos.worker())


@step
def kill_all_workers(chaos: Chaos) -> None:
    """All workers are killed, one after the other."""
    for row in chaos.running.workers():
        chaos.kill(row["pid"])


@step
def kill_zygote(chaos: Chaos) -> None:
    """The zygote is killed, then a worker, which cannot be replaced before there is another zygote."""
    chaos.kill(chaos.processes("zygote")[0])
    chaos.kill(chaos.worker())


@step
def kill_keeper(chaos: Chaos) -> None:
    """The keeper is killed."""
    keeper = chaos.running.status()["keeper"]
    if keeper is not None and keeper["pid"]:
        chaos.kill(keeper["pid"])


@step
def stop_worker(chaos: Chaos) -> None:
    """A worker is stopped and goes on."""
    pid = chaos.worker()
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
    os.kill(pid, signal.SIGCONT)


@step
def terminate_worker(chaos: Chaos) -> None:
    """A worker is told to leave by TERM."""
    pid = chaos.worker()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), "it leaves")


@step
def reload_good(chaos: Chaos) -> None:
    """New code is loaded."""
    chaos.new_code()
    chaos.command("reload")


@step
def reload_broken_code(chaos: Chaos) -> None:
    """New code cannot be imported."""
    chaos.new_code(first="def app(:")
    chaos.command("reload", code=1)
    chaos.new_code()


@step
def reload_dying_code(chaos: Chaos) -> None:
    """New code dies in its lifespan's startup."""
    chaos.new_code(startup="os._exit(9)")
    chaos.command("reload", code=1)
    chaos.new_code()


@step
def reload_bad_option(chaos: Chaos) -> None:
    """An option names a function that does not exist."""
    config = chaos.running.directory / "cluster2.toml"
    config.write_text('recycle_when = "no_such_module:function"\n')
    try:
        chaos.command("reload", code=1)
    finally:
        config.unlink()


@step
def reload_without_old_code(chaos: Chaos) -> None:
    """While the first worker of new code boots, the old zygote and all old workers are killed."""
    directory = chaos.running.directory
    for name in ("tried", "go"):
        (directory / name).unlink(missing_ok=True)
    chaos.new_code(startup="Path('tried').touch(); exec('while not Path(\"go\").exists(): time.sleep(0.01)')")
    victims = [row["pid"] for row in chaos.running.workers()]
    (zygote,) = chaos.processes("zygote")
    with ThreadPoolExecutor() as pool:
        reload = pool.submit(chaos.command, "reload", code=1)  # old workers die during the reload
        wait_until((directory / "tried").exists, "the new code is tried")
        for pid in (zygote, *victims):
            chaos.kill(pid)
        bound = chaos.wanted + 1
        assert len(chaos.running.status()["workers"]) <= bound, "more workers than wanted and max_surge"
        (directory / "go").touch()
        reload.result()
    chaos.new_code()


@step
def hang_up(chaos: Chaos) -> None:
    """HUP comes three times."""
    chaos.new_code()
    for _ in range(3):
        chaos.running.signal(signal.SIGHUP)
    chaos.command("reload")  # answered when code at least as new serves


@step
def recycle(chaos: Chaos) -> None:
    """All workers are replaced in turn."""
    chaos.command("recycle")


@step
def scale(chaos: Chaos) -> None:
    """The number of workers changes."""
    chaos.wanted = chaos.random.choice([number for number in (1, 2, 3) if number != chaos.wanted])
    chaos.command("scale", str(chaos.wanted))


@step
def traffic(chaos: Chaos) -> None:
    """The cluster is taken out of the balancer and put back."""
    chaos.command("disable")
    chaos.command("enable")


@step
def user_signal(chaos: Chaos) -> None:
    """USR2 comes, with which gunicorn's users upgrade."""
    chaos.running.signal(signal.SIGUSR2)


@step
def garbage(chaos: Chaos) -> None:
    """A client of the control socket sends what is no command, and leaves."""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(f"/proc/self/fd/{chaos.running._pids_fd()}/master.sock")
        control.sendall(chaos.random.randbytes(2000) + b"\n")


@step
def no_descriptors(chaos: Chaos) -> None:
    """For a while the master can open no descriptor; a worker that is killed then comes back afterwards."""
    soft, hard = resource.prlimit(chaos.master, resource.RLIMIT_NOFILE)
    pid = chaos.worker()
    resource.prlimit(chaos.master, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{chaos.master}/fd")), hard))
    try:
        chaos.kill(pid)
    finally:
        resource.prlimit(chaos.master, resource.RLIMIT_NOFILE, (soft, hard))


@step
def remove_pids(chaos: Chaos) -> None:
    """The pids directory is removed; it comes back, with the control socket."""
    running = chaos.running
    shutil.rmtree(running.pids)
    wait_until((running.pids / "master.sock").exists, "it is back")
    os.close(running._fd)
    del running._fd
