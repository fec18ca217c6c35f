"""What cluster2 adds around an app: one thin layer.

For nearly all requests the layer is a comparison of the path and one test of a number, and returns the app's own awaitable:
nothing is wrapped, nothing is counted here (engines count already, and the worker's tick reads them). A few are measured
(`steps`), and those that ask for the health are answered (`ecv`). An engine that can call its app in a way of its own, past
the layer, asks `concerns` first: whether the layer has something to do with the next request, by its path.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

from ...engines.base import RSGI_HOOKS, Interface, is_async
from .health.endpoint import Ecv
from .sampling.steps import StepSampler

Call = Callable[..., Any]


def wrap(
    app: Call, interface: Interface, watch: StepSampler, woken: Callable[[], None], ecv: Ecv | None = None
) -> Call:
    """The app as its engine shall see it.

    Args:
        interface: by which the engine calls it (a bridge of the engine's, if it has one, is part of the app here).
        ecv: answers requests for the health; None: the app has all paths.
        woken: called when a request is noticed, at the latest with the first one after a rest.
    """
    match interface:
        case Interface.ASGI:
            return _asgi(app, watch, woken, ecv)
        case Interface.RSGI:
            return _rsgi(app, watch, woken, ecv)
        case Interface.WSGI:
            return _wsgi(app, watch, ecv)
        case _:
            return _tcp(app, watch, woken) if is_async(app) else app


def _asgi(app: Call, watch: StepSampler, woken: Callable[[], None], ecv: Ecv | None) -> Call:
    ours = frozenset[str]() if ecv is None else ecv.paths

    def wrapped(scope: Any, receive: Call, send: Call) -> Any:
        if scope.get("path") in ours and scope["type"] == "http":
            assert ecv is not None
            return ecv.asgi(scope, receive, send)
        if watch.due and scope["type"] == "http":
            woken()
            return watch.measured(app(scope, receive, send))
        return app(scope, receive, send)

    def concerns(path: str) -> bool:
        return watch.due > 0 or path in ours

    wrapped.concerns = concerns  # type: ignore[attr-defined]
    return wrapped


def _rsgi(app: Call, watch: StepSampler, woken: Callable[[], None], ecv: Ecv | None) -> Call:
    ours = frozenset[str]() if ecv is None else ecv.paths

    def wrapped(scope: Any, protocol: Any) -> Any:
        if scope.path in ours and scope.proto == "http":
            assert ecv is not None
            return ecv.rsgi(scope, protocol)
        if watch.due and scope.proto == "http":
            woken()
            return watch.measured(app(scope, protocol))
        return app(scope, protocol)

    return functools.update_wrapper(wrapped, app, assigned=RSGI_HOOKS, updated=())


def _wsgi(app: Call, watch: StepSampler, ecv: Ecv | None) -> Call:
    """Wrap an app that an engine with an accept loop of its own calls in threads. Its steps show nothing of the loop."""
    ours = frozenset[str]() if ecv is None else ecv.paths
    loop = asyncio.get_running_loop()

    def report(began: float) -> None:
        # The worker's row is the loop's to write. A loop that is closed has no use for the figure.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(watch.took, time.monotonic() - began)

    def wrapped(environ: Any, start_response: Call) -> Any:
        if environ["PATH_INFO"] in ours:
            assert ecv is not None
            return ecv.wsgi(environ, start_response)
        if watch.due > 0 and watch.claim():
            return _timed(app, environ, start_response, report)
        return app(environ, start_response)

    return wrapped


def _timed(app: Call, environ: Any, start_response: Call, report: Callable[[float], None]) -> Any:
    """Call a WSGI app, and report when its call began as soon as its body is complete."""
    began = time.monotonic()
    try:
        body = app(environ, start_response)
    except BaseException:
        report(began)
        raise
    if isinstance(body, list | tuple):
        report(began)
        return body
    return _TimedBody(body, functools.partial(report, began))


class _TimedBody:
    """A WSGI body that reports its end. The engine closes each body, as PEP 3333 demands."""

    __slots__ = ("_ended", "_inner")

    def __init__(self, inner: Any, ended: Callable[[], None]) -> None:
        self._inner = inner
        self._ended = ended

    def __iter__(self) -> Any:
        return iter(self._inner)

    def close(self) -> None:
        try:
            if (close := getattr(self._inner, "close", None)) is not None:
                close()
        finally:
            self._ended()


def _tcp(handler: Call, watch: StepSampler, woken: Callable[[], None]) -> Call:
    async def wrapped(reader: Any, writer: Any) -> None:
        woken()
        await watch.stream(handler(reader, writer))

    return wrapped
