"""Log files of real processes: what is in them whoever ends how, that they stay within their bound, and who reads them."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.system.clients import Connection, Load, get
from tests.system.harness import Running, command, wait_until

Serve = Callable[..., Running]

APP = str((Path(__file__).parents[1] / "apps" / "log_app.py"))
MiB = 1 << 20
FILES = ("--log-to", "files")


@pytest.fixture
def logging_run(run: Serve) -> Serve:
    """A cluster of the talkative app, with log files."""

    def logging_run(*options: str, target: str = APP + ":app", workers: int = 2, **more: object) -> Running:
        return run(target, *FILES, *options, workers=workers, **more).ready(workers)

    return logging_run


def log(running: Running, name: str) -> str:
    """What a log says, rotated parts included."""
    return "".join(each.read_text(errors="replace") for each in parts(running, name))


def parts(running: Running, name: str) -> list[Path]:
    """The files of a log, oldest first."""
    files = (running.directory / "logs").glob(f"{name}.log*")
    return sorted(files, key=lambda each: -int(each.suffix[1:]) if each.suffix[1:].isdecimal() else 0)


def everything(running: Running) -> str:
    """All logs."""
    return "".join(each.read_text(errors="replace") for each in (running.directory / "logs").iterdir())


def size(running: Running) -> int:
    """Bytes of all log files."""
    total = 0
    for each in (running.directory / "logs").glob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += each.stat().st_size
    return total


@pytest.mark.parametrize("options", [(), ("--no-cluster",)], ids=["cluster", "one process"])
def test_two_clusters_in_one_directory(run: Serve, tmp_path: Path, options: tuple[str, ...]) -> None:
    """A cluster that keeps its logs where another one does warns of it at the start, and names the other's process."""
    place = ("--logs", str(tmp_path / "shared"))
    first = run(APP + ":app", *place).ready()
    second = run(APP + ":app", *place, *options, workers=None)
    wait_until(lambda: "serving on" in second.stderr, "the second one serves")
    warned = [line for line in second.stderr.splitlines() if "keeps its log files there too" in line]
    assert len(warned) == 1, second.stderr
    assert f"logs = {tmp_path}/shared: process {first.process.pid} keeps" in warned[0]
    assert "keeps its log files" not in "".join(first.stderr.splitlines()[:3])
    assert second.shutdown() == 0
    assert first.shutdown() == 0



def ask(running: Running, path: str) -> None:
    """Have some worker do something from which it may not come back."""
    with contextlib.suppress(OSError, HTTPException):
        get(running.address, path)


def slot_of(text: str, running: Running) -> tuple[int, str]:
    """Which slot's log has a text, and that log."""

    def found() -> tuple[int, str] | None:
        for slot in range(2):
            said = log(running, f"worker.{slot}")
            if text in said:
                return slot, said
        return None

    return wait_until(found, f"{text!r} is in a worker's log")


def wait_until_told(running: Running, slot: int, text: str) -> None:
    wait_until(lambda: text in log(running, f"worker.{slot}"), lambda: f"{text!r} in {log(running, f'worker.{slot}')}")


def test_last_words(logging_run: Serve) -> None:
    """What a worker, or a program that it has started, says last is in its slot's file, with its pid, however it ends."""
    running = logging_run("--restart-limit", "20")
    ends = {
        "killed": "words before a kill",
        "exits": "words before an exit",
        "crashes": "Fatal Python error: Segmentation fault",
        "child": "words-of-a-child",
    }
    for kind, words in ends.items():
        ask(running, f"/{kind}?{words.replace(' ', '_')}")
        expected = words if kind == "crashes" else words.replace(" ", "_")
        slot, said = slot_of(expected, running)
        begun = re.findall(rf"worker (\d+) begins \(slot {slot}, generation 1\)", said.partition(expected)[0])
        if kind == "crashes":
            assert "log_app.py" in said.partition(expected)[2]  # where it was
        if kind == "child":
            assert "out-words-of-a-child" in said
        else:
            wait_until_told(running, slot, f"worker {begun[-1]} has ended: ")
        running.ready()
    assert "Segmentation fault" not in running.stderr + log(running, "master")
    assert re.search(r"\[\d+\] .*worker \d+.* SIGSEGV", log(running, "master"))


def test_usr1(logging_run: Serve) -> None:
    """After logrotate's mv and USR1 all write to new files, and nothing that was said or asked in between is lost."""
    running = logging_run("--access-log", "--log-size", "0")
    logs = running.directory / "logs"
    names = ["master.log", "access.log", "worker.0.log", "worker.1.log"]
    with Load(running.address, clients=4) as load:
        for turn in range(2):
            for name in names:
                (logs / name).rename(logs / f"{name}-{turn}")
            running.signal(signal.SIGUSR1)
            for name in names:
                wait_until((logs / name).exists, f"{name} is there again")
        get(running.address, "/print?afterwards")
        slot_of("afterwards", running)
    answered = load.counts.answered + 1
    assert running.shutdown() == 0
    assert not load.counts.failed
    files = [each for each in logs.iterdir() if each.name.startswith("access.log")]
    lines = [line for each in files for line in each.read_text().splitlines()]
    assert len(files) == 3
    assert len(lines) == answered
    assert "shutdown" in (logs / "master.log").read_text()


def test_a_flood_stays_within_the_bound(logging_run: Serve) -> None:
    """A worker that writes as fast as it can neither fills the disk nor holds up the master or the other worker."""
    running = logging_run("--log-size", "1MiB", "--log-total", "8MiB")
    with Connection(running.address) as flooding:
        flooding.send("/flood?3")
        began, most, slowest, served = time.monotonic(), 0, 0.0, 0
        while not (running.directory / "flooded").exists():
            most = max(most, size(running))
            asked = time.monotonic()
            assert len(running.workers()) == 2
            slowest = max(slowest, time.monotonic() - asked)
            assert get(running.address).status == 200
            served += 1
        took = time.monotonic() - began
        assert flooding.receive().status == 200
    written = int((running.directory / "flooded").read_text())
    # What comes between two looks is added: of 50 ms, in the beginning of 250; more where the master doesn't get its turn.
    assert 0 < most < 8 * MiB + 1.5 * written / took, f"{most / MiB:.0f} MiB of {written / MiB:.0f}"
    assert slowest < 1
    assert served >= 5
    wait_until(lambda: size(running) <= 8 * MiB, "the bound holds again")
    assert "MiB were dropped" in log(running, "master")


def test_a_crash_loop_stays_within_the_bound(run: Serve) -> None:
    """Workers that die as soon as they are there, each saying a megabyte, fill no disk; the last one's words are there."""
    bounds = ("--log-size", "1MiB", "--log-total", "4MiB", "--restart-limit", "1000")
    running = run(APP + ":crashing", *FILES, *bounds)

    def deaths() -> int:
        return log(running, "master").count("exit code 3")

    wait_until(lambda: deaths() >= 6, lambda: f"six have died:\n{log(running, 'master')}")
    wait_until(lambda: size(running) <= 4 * MiB, "all stay within the bound while it goes on")
    running.signal(signal.SIGQUIT)
    assert running.wait() == 0
    assert any("yyyy" in log(running, f"worker.{slot}") for slot in range(2))


def test_follow(logging_run: Serve) -> None:
    """`logs -f` over rotations loses no line and shows none twice; Ctrl-C ends it with 0."""
    running = logging_run("--log-size", "32KiB", "--log-total", "64MiB", workers=1)
    pid, shown = running.workers()[0]["pid"], running.directory / "shown"
    current = running.directory / "logs/worker.0.log"
    with shown.open("wb") as out:
        following = subprocess.Popen(command("logs", "-f", "--json", "worker.0"), cwd=running.directory, stdout=out)

    def numbers() -> list[int]:
        found = re.findall(r'^{"log": "worker.0.log", "line": "number (\d+) \.+"}$', shown.read_text(), re.MULTILINE)
        return [int(each) for each in found]

    def noticed() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return Path(f"/proc/{pid}/fd/2").stat().st_ino == current.stat().st_ino
        return False

    def ask() -> None:
        nonlocal turns
        connection.get(f"/numbers?{turns}")
        turns += 1

    turns = 0
    try:
        wait_until(lambda: "begins" in shown.read_text(), "it follows")
        with Connection(running.address) as connection:
            for rotations in range(1, 6):
                rotated = current.with_suffix(f".log.{rotations}")
                while current.exists() and current.stat().st_size < 32 << 10:
                    ask()
                wait_until(rotated.exists, "it is rotated")
                ask()  # the worker may still write to the old file
                wait_until(noticed, "the worker notices that its file was rotated")
            ask()
        wait_until(lambda: len(numbers()) >= 20 * turns, lambda: f"all of {20 * turns} are shown, not {len(numbers())}")
    finally:
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 0
    assert numbers() == list(range(20 * turns))
