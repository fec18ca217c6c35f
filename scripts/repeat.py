"""Repeat the system tests, and tell what fails in which round: on a machine that is otherwise idle, then with all cores loaded.

Usage: python scripts/repeat.py [--times N] [--only alone|loaded] [TEST ...]. The exit code is 1 if anything failed.
An interrupt ends the rounds, and what has failed so far is told.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
CONDITIONS = ("alone", "loaded")


def main() -> int:
    """Run all rounds, tell of each as it ends, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Repeat system tests, alone and with all cores loaded.")
    parser.add_argument("--times", type=int, default=20, help="rounds in each condition")
    parser.add_argument("--only", choices=CONDITIONS, help="one of the conditions")
    parser.add_argument("tests", nargs="*", default=["tests/system"], help="files or tests")
    options = parser.parse_args()
    failures: dict[str, dict[str, list[int]]] = {}
    rounds: collections.Counter[str] = collections.Counter()
    with contextlib.suppress(KeyboardInterrupt):
        for condition in [options.only] if options.only else CONDITIONS:
            with _load() if condition == "loaded" else contextlib.nullcontext():
                for number in range(1, options.times + 1):
                    began = time.monotonic()
                    failed = _round(options.tests)
                    rounds[condition] += 1
                    for name in failed:
                        failures.setdefault(name, {}).setdefault(condition, []).append(number)
                    lasted = f"{condition} {number}/{options.times}, {time.monotonic() - began:.0f} s"
                    print(f"{lasted}: {'failed: ' + ', '.join(failed) if failed else 'all passed'}", flush=True)
    _print_table(failures, rounds)
    return 1 if failures else 0


@contextlib.contextmanager
def _load() -> Iterator[None]:
    """Keep all cores busy."""
    # They end with this process as well, if it is killed.
    spin = [sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: pass"]
    burners = [subprocess.Popen(spin) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def _round(tests: list[str]) -> list[str]:
    """Run the tests once. Return the names of those that failed; the output of a failed round is shown."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
        done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        failed = _failed(report) if report.exists() else []
        if done.returncode != 0:
            print(done.stdout, flush=True)
            failed = failed or [f"pytest (exit code {done.returncode})"]
    return failed


def _failed(report: Path) -> list[str]:
    """Return the tests that failed according to a report in the format of JUnit, as pytest takes them."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return [
        f"{str(case.get('classname')).replace('.', '/')}.py::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


def _print_table(failures: dict[str, dict[str, list[int]]], rounds: collections.Counter[str]) -> None:
    """Print each test that failed, the most frequent first: how often in each condition, and in which rounds."""
    done = " and ".join(f"{number} rounds {condition}" for condition, number in rounds.items())
    print(f"{len(failures) or 'no'} tests failed in {done or 'no round'}")
    for name, found in sorted(failures.items(), key=lambda item: (-sum(map(len, item[1].values())), item[0])):
        told = "; ".join(
            f"{condition} {len(numbers)} of {rounds[condition]} ({', '.join(map(str, numbers))})"
            for condition, numbers in found.items()
        )
        print(f"  {name}: {told}")


if __name__ == "__main__":
    sys.exit(main())
