"""Repeat the system tests and count what fails: first on a machine that is otherwise idle, then with all cores loaded.

Usage: python scripts/repeat.py [--times N] [TEST ...]. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
CONDITIONS = ("alone", "loaded")


def main() -> int:
    """Run all rounds, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description="Repeat system tests, alone and with all cores loaded.")
    parser.add_argument("--times", type=int, default=20, help="rounds in each condition")
    parser.add_argument("tests", nargs="*", default=["tests/system"], help="files or tests")
    options = parser.parse_args()
    failures: dict[str, collections.Counter[str]] = {}
    for condition in CONDITIONS:
        with _load() if condition == "loaded" else contextlib.nullcontext():
            for number in range(1, options.times + 1):
                failed = _round(options.tests)
                for name in failed:
                    failures.setdefault(name, collections.Counter())[condition] += 1
                print(f"{condition} {number}/{options.times}: {len(failed)} failed", flush=True)
    _print_table(failures, options.times)
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
    """Return the tests that failed according to a report in the format of JUnit."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


def _print_table(failures: dict[str, collections.Counter[str]], times: int) -> None:
    if not failures:
        print(f"nothing failed in {times} rounds alone and {times} rounds with all cores loaded")
        return
    print(f"{'failed, of ' + str(times):<16}" + "".join(f"{condition:>8}" for condition in CONDITIONS))
    for name, counts in sorted(failures.items(), key=lambda item: (-item[1].total(), item[0])):
        print(f"{'':<16}" + "".join(f"{counts[condition]:>8}" for condition in CONDITIONS) + f"  {name}")


if __name__ == "__main__":
    sys.exit(main())
