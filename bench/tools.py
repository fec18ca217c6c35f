"""The tools on the command line: their options and their output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from bench import balance, counting, cpu, heal, idle, memory, openloop, openloop_keepalive, peers, resting, rolling
from bench import throughput as rate
from bench.catalogue import APPS, COMMANDS
from bench.client import Target, run
from bench.counting import Load
from bench.openloop import Arrivals
from bench.rounds import Rounds
from bench.servers import Running, all_running, running

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _show(tool: str, found: Any, **more: Any) -> None:
    """Print one line of JSON and one readable line."""
    print(json.dumps({"tool": tool, **more, **asdict(found)}, ensure_ascii=False), flush=True)
    named = " ".join([tool, *map(str, more.values())])
    print(f"{named}: {found}", file=sys.stderr, flush=True)


@contextmanager
def _target(options: argparse.Namespace) -> Iterator[Target]:
    """Yield the URL that was given, or the server of that name, which is started for it."""
    if "://" in options.server:
        yield Target.of(options.server)
    else:
        with running(options.server, APPS[options.app], options.workers) as server:
            yield server.target


def _counting(options: argparse.Namespace) -> None:
    expect = options.expect.encode() if options.expect is not None else None
    load = Load(options.connections, options.seconds, options.think, options.close, expect, options.method)
    with _target(options) as target:
        _show("counting", run(counting.count(target, load)), server=options.server)


def _arrivals(options: argparse.Namespace) -> Arrivals:
    return Arrivals(options.rate, options.slow, options.seconds, options.seed)


def _openloop(options: argparse.Namespace) -> None:
    with _target(options) as target:
        _show("openloop", run(openloop.load(target, _arrivals(options))), server=options.server)


def _openloop_keepalive(options: argparse.Namespace) -> None:
    with _target(options) as target:
        found = run(openloop_keepalive.load(target, _arrivals(options), pool=options.pool, warm=not options.cold))
        _show("openloop-keepalive", found, server=options.server)


def _balance(options: argparse.Namespace) -> None:
    with _target(options) as target:
        work = balance.probe(target, connections=options.connections, seconds=options.seconds, every=options.every)
        _show("balance", run(work), server=options.server)


def _resting(options: argparse.Namespace) -> None:
    with _target(options) as target:
        work = resting.rest(
            target,
            connections=options.connections,
            settle=options.settle,
            rate=options.rate,
            seconds=options.seconds,
        )
        _show("resting", run(work), server=options.server)


def _rounds(compare: Callable[[list[Running], Rounds], Any]) -> Callable[[argparse.Namespace], None]:
    def work(options: argparse.Namespace) -> None:
        how = Rounds(options.connections, int(options.seconds), options.rounds, options.close, options.path)
        with all_running(options.servers, APPS[options.app], options.workers) as servers:
            _show(options.command, compare(servers, how))

    return work


def _whole(tool: str, measure: Callable[[Running, argparse.Namespace], Any]) -> Callable[[argparse.Namespace], None]:
    """Add a tool that needs the server itself. It takes names, and runs one server after the other."""

    def work(options: argparse.Namespace) -> None:
        for name in options.servers:
            with running(name, APPS[options.app], options.workers) as server:
                _show(tool, measure(server, options), server=name)

    return work


_memory = _whole("memory", lambda server, options: memory.measure(server, requests=options.requests))
_heal = _whole("heal", lambda server, options: heal.measure(server, kills=options.kills))
_idle = _whole("idle", lambda server, options: idle.measure(server, seconds=options.seconds))
_rolling = _whole(
    "roll",
    lambda server, options: run(
        rolling.roll(server, Load(options.connections, options.seconds, options.think), times=options.times)
    ),
)


def _add(
    commands: Commands, name: str, text: str, work: Callable[[argparse.Namespace], None], *, many: bool = False
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=f"tool: {text}")
    command.set_defaults(run=work)
    if many:
        command.add_argument("servers", nargs="+", choices=COMMANDS, metavar="SERVER", help=", ".join(COMMANDS))
    else:
        command.add_argument("server", metavar="SERVER|URL", help="a server to start, or the URL of a running one")
    command.add_argument(
        "--app", choices=APPS, default="hello", help="the application of a server that is started [hello]"
    )
    command.add_argument("--workers", type=int, default=4, help="the number of workers of a server that is started [4]")
    return command


def _numbers(command: argparse.ArgumentParser, **defaults: float) -> None:
    for name, default in defaults.items():
        command.add_argument(f"--{name}", type=type(default), default=default, help=f"[{default}]")


def add_to(commands: Commands) -> None:
    """Add the tools to the command line."""
    _add_clients(commands)
    _add_probes(commands)
    install = commands.add_parser("peers", help="make .venv-peers, with the servers to compare with")
    install.set_defaults(run=lambda options: peers.install())


def _add_clients(commands: Commands) -> None:
    command = _add(commands, "counting", "a closed loop that counts every failure by kind", _counting)
    _numbers(command, connections=32, seconds=5.0, think=0.0)
    command.add_argument("--close", action="store_true", help="a connection for each request")
    command.add_argument("--expect", help="the body of a correct response")
    command.add_argument("--method", default="GET", help="[GET]")

    command = _add(commands, "openloop", "random arrivals, a connection for each request", _openloop)
    _numbers(command, rate=400.0, slow=0.1, seconds=5.0, seed=1)

    command = _add(commands, "openloop-keepalive", "random arrivals over keep-alive connections", _openloop_keepalive)
    _numbers(command, rate=400.0, slow=0.1, seconds=5.0, seed=1, pool=64)
    command.add_argument("--cold", action="store_true", help="don't warm the connections up first")

    command = _add(commands, "balance", "keep-alive connections of each worker over time", _balance)
    _numbers(command, connections=200, seconds=4.0, every=1.0)

    command = _add(commands, "resting", "thousands of idle connections, woken at a rate", _resting)
    _numbers(command, connections=2000, settle=4.0, rate=2000.0, seconds=6.0)


def _add_probes(commands: Commands) -> None:
    for name, text, compare in (
        ("cpu", "CPU time for each request of whole process trees, interleaved", cpu.compare),
        ("throughput", "requests a second at saturation, interleaved", rate.compare),
    ):
        command = _add(commands, name, text, _rounds(cast(Any, compare)), many=True)
        _numbers(command, connections=64, seconds=3, rounds=5)
        command.add_argument("--close", action="store_true", help="a connection for each request")
        command.add_argument("--path", default="/", help="[/]")

    _numbers(_add(commands, "memory", "PSS of a tree, before and after requests", _memory, many=True), requests=100_000)
    _numbers(_add(commands, "heal", "from kill -9 of a worker to its replacement", _heal, many=True), kills=5)
    _numbers(_add(commands, "idle", "CPU and memory of an idle master", _idle, many=True), seconds=20.0)
    command = _add(commands, "roll", "results of clients while workers are replaced", _rolling, many=True)
    _numbers(command, connections=200, seconds=9.0, think=0.02, times=2)
