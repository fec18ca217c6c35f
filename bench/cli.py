"""`python -m bench`: tools that take one measurement, and suites that take many and compare them with the marks.

A tool prints its result as one line of JSON on standard output and one readable line on standard error. A suite
prints a Markdown table on standard output and writes `bench/results/SUITE.json`. Its progress goes to standard error.
"""

from __future__ import annotations

import argparse
import sys

from bench import tools
from bench.catalogue import COMMANDS
from bench.errors import BenchError
from bench.report import RESULTS, Figure, load, save, table
from bench.suites import (
    delegation,
    keeper,
    reload,
    requests,
    rolling,
    serve,
    shares,
    steered,
    tail,
    wakes,
    watched,
    wsgi,
)
from bench.suites.plan import Plan, Suite, say

_SUITES: dict[str, tuple[str, Suite]] = {
    "serve": ("throughput, the master's cost, memory, healing", serve.figures),
    "requests": ("the cost of a request in its usual forms, beside uvicorn and granian", requests.figures),
    "tail": ("p99 when one request in ten blocks its worker", tail.figures),
    "threads": ("p99 when one request in ten computes in a thread", tail.threads),
    "rolling": ("thousands of idle clients while workers are replaced", rolling.figures),
    "reload": ("results of clients while servers reload, nginx and HAProxy included, and the duration", reload.figures),
    "steered": ("granian as an engine, beside granian alone", steered.figures),
    "shares": ("connections of each worker", shares.figures),
    "keeper": ("thousands of idle connections, and over a kill -9", keeper.figures),
    "wsgi": ("WSGI: the cost of a request, and p99 behind slow ones, in threads and inline", wsgi.figures),
    "delegation": ("calls from workers to the master, beside Redis and others, and events", delegation.figures),
    "wakes": ("4, 16 and 48 workers at a low rate", wakes.figures),
    "watched": ("one viewer of the page, and a scraper", watched.figures),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tools.add_to(commands)
    for name, (text, _) in [*_SUITES.items(), ("all", ("all of these suites", None))]:
        command = commands.add_parser(name, help=f"suite: {text}")
        command.add_argument("--quick", action="store_true", help="short runs with rough figures, as a check")
        command.add_argument("--passes", type=int, help="number of rounds of an interleaved run")
        command.add_argument("--workers", type=int, default=4, help="the number of workers of each server [4]")
        command.add_argument("--servers", default=",".join(COMMANDS), help="only these, separated by commas [all]")
        command.set_defaults(run=_suites)
    command = commands.add_parser("tables", help="the last results of all suites as Markdown")
    command.set_defaults(run=_tables)
    return parser


def _tables(options: argparse.Namespace) -> None:
    for name, (text, _) in _SUITES.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            print(f"### {name}: {text}\n\n{table(load(path))}\n")


def _suites(options: argparse.Namespace) -> None:
    servers = options.servers.split(",")
    for name in servers:
        if name not in COMMANDS:
            raise BenchError(f"--servers {name}: not one of {', '.join(COMMANDS)}")
    plan = Plan(servers, options.quick, options.passes, options.workers)
    for name in _SUITES if options.command == "all" else [options.command]:
        say(f"== {name}: {_SUITES[name][0]}")
        figures: list[Figure] = []
        try:
            for figure in _SUITES[name][1](plan):
                figures.append(figure)
                say(table([figure]).splitlines()[-1])
        finally:  # an error of the last suite must not lose hours of results
            # Rough figures have a file of their own, so that `tables` never shows them.
            say(f"written to {save(f'{name}-quick' if plan.quick else name, figures)}")
            print(f"\n{table(figures)}\n", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Return the exit code: 0 on success, 1 if nothing could be measured, 2 for usage, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
