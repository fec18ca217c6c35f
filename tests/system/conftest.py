"""The fixture that starts clusters and looks after what they leave."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import trustme

from tests.system.harness import Running, command

Serve = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start command lines, each in a new directory unless one is given; nothing of them may be left at the end."""
    started: list[Running] = []

    def start(
        argv: Sequence[str],
        *,
        directory: Path | None = None,
        env: Mapping[str, str] | None = None,
        listeners: Sequence[socket.socket] = (),
    ) -> Running:
        if directory is None:
            directory = tmp_path / str(len(started))
            directory.mkdir()
        running = Running(argv, directory, env=env, listeners=listeners)
        started.append(running)
        return running

    yield start
    for running in started:
        running.close()
    for running in started:
        running.assert_gone()


@pytest.fixture
def run(start: Callable[..., Running]) -> Serve:
    """Start `cluster2 run TARGET`, on a free port of the loopback unless `bind` says otherwise."""

    def run(
        target: str,
        *options: str,
        bind: Sequence[str] = ("127.0.0.1:0",),
        workers: int | None = 2,
        directory: Path | None = None,
        env: Mapping[str, str] | None = None,
        listeners: Sequence[socket.socket] = (),
    ) -> Running:
        argv = command("run", target, "--mon-port", "0", *options)
        argv += [word for each in bind for word in ("--bind", each)]
        argv += [] if workers is None else ["--workers", str(workers)]
        return start(argv, directory=directory, env=env, listeners=listeners)

    return run


@pytest.fixture
def certified(tmp_path: Path) -> tuple[tuple[str, ...], ssl.SSLContext]:
    """Options for TLS, and what a client trusts."""
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "site.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return ("--ssl-certfile", str(tmp_path / "site.pem")), trusting
