"""The fixtures that start clusters, and browsers, and look after what they leave."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.system.harness import Running, command

if TYPE_CHECKING:  # few tests need it, and it takes its time
    from playwright.sync_api import Browser

    from tests.system.browser import Sight

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
        argv = command("run", target, "--monitor-port", "0", *options)
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of a file."""
    from tests.system.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def see(browser: Browser) -> Iterator[Callable[..., Sight]]:
    """Opens pages, and looks at the end whether anything was wrong with one."""
    from tests.system.browser import Sight

    opened: list[Sight] = []

    def see(url: str, **options: Any) -> Sight:
        opened.append(Sight(browser, url, **options))
        return opened[-1]

    yield see
    for sight in opened:
        sight.close()
