"""`cluster = false`: one process that loads the app and serves it, without a master.

For debuggers, and for hosts that bring their own supervisor.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

from . import events, wire
from .config import Config
from .errors import ClusterError, by_exit_code
from .kernel.listeners import Listener
from .kernel.scoreboard import Scoreboard
from .worker import runtime
from .zygote import image

logger = logging.getLogger("cluster2.worker")


def run(
    config: Config,
    listeners: Sequence[tuple[int, Listener]],
    targets: Sequence[object] | None,
    on_ready: Callable[[], None],
    emit: Callable[[events.Event], None],
) -> int:
    """Serve until TERM or INT. Returns the exit code.

    Args:
        emit: takes the events, of which there are few without a master: `enabled` and `disabled`.

    Raises:
        ClusterError: the app can't be loaded or started.
    """
    settings = config.settings
    sources = {name: source for name, source in config.sources.items() if config.explicit(name)}
    made = image.build(settings, sources, targets or [target for target, _ in settings.targets()])
    failures: list[ClusterError] = []

    def heard(message: wire.Talk) -> None:
        if isinstance(message, wire.Ready):
            on_ready()
        elif isinstance(message, wire.BootFailed):
            failures.append(by_exit_code(message.exit_code, message.message, detail=message.detail))
        elif isinstance(message, wire.SetTraffic):
            emit((events.Enabled if message.enabled else events.Disabled)(time=time.time()))
        elif isinstance(message, wire.Note):
            logger.warning("%s", message.text)

    board = Scoreboard.create()
    board.header.started, board.header.traffic, board.header.wanted = time.time(), 1, 1
    birth = runtime.Birth(
        order=wire.Fork(1, 0, 1, board.claim(), os.getppid(), []),
        settings=settings,
        sites=[runtime.Staffed(app, engine) for app, engine in made.sites],
        board=board,
        talk=None,
        sockets=[
            (wire.Socket(site, str(listener.address), listener.owned), listener.sock) for site, listener in listeners
        ],
        validator=made.validator,
        heard=heard,
    )
    code = runtime.serve(birth)
    if failures:
        raise failures[0]
    return code
