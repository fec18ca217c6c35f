"""The worker's thin layer around an app: samples of requests, and health checks.

For nearly all requests the layer is a comparison of the path and one test of a number, and returns the app's own awaitable. It
wraps nothing and counts nothing: engines count already, and the worker's tick reads their counts. A few requests are measured
(`sampling.steps`), and health checks get a response here (`health.endpoint`).

An engine that can call its app in a faster way, past the layer, calls `concerns` first. It returns whether the layer has work to
do for the next request, by its path.
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
    app: Call, interface: Interface, sampler: StepSampler, on_activity: Callable[[], None], ecv: Ecv | None = None
) -> Call:
    """Return an app with the layer around it, for its engine to call.

    Args:
        interface: the interface by which the engine calls the app. An engine's bridge is part of the app here.
        sampler: selects the requests to measure.
        on_activity: called when a request is noticed, at the latest with the first one after an idle time.
        ecv: responds to health checks; None: the app has all paths.
    """
    match interface:
        case Interface.ASGI:
            return _asgi(app, sampler, on_activity, ecv)
        case Interface.RSGI:
            return _rsgi(app, sampler, on_activity, ecv)
        case Interface.WSGI:
            return _wsgi(app, sampler, ecv)
        case _:
            return _tcp(app, sampler, on_activity) if is_async(app) else app


def _asgi(app: Call, sampler: StepSampler, on_activity: Callable[[], None], ecv: Ecv | None) -> Call:
    paths = frozenset[str]() if ecv is None else ecv.paths

    def wrapped(scope: Any, receive: Call, send: Call) -> Any:
        if scope.get("path") in paths and scope["type"] == "http":
            assert ecv is not None
            return ecv.asgi(scope, receive, send)
        if sampler.due and scope["type"] == "http":
            on_activity()
            return sampler.measured(app(scope, receive, send))
        return app(scope, receive, send)

    def concerns(path: str) -> bool:
        return sampler.due > 0 or path in paths

    wrapped.concerns = concerns  # type: ignore[attr-defined]
    return wrapped


def _rsgi(app: Call, sampler: StepSampler, on_activity: Callable[[], None], ecv: Ecv | None) -> Call:
    paths = frozenset[str]() if ecv is None else ecv.paths

    def wrapped(scope: Any, protocol: Any) -> Any:
        if scope.path in paths and scope.proto == "http":
            assert ecv is not None
            return ecv.rsgi(scope, protocol)
        if sampler.due and scope.proto == "http":
            on_activity()
            return sampler.measured(app(scope, protocol))
        return app(scope, protocol)

    return functools.update_wrapper(wrapped, app, assigned=RSGI_HOOKS, updated=())


def _wsgi(app: Call, sampler: StepSampler, ecv: Ecv | None) -> Call:
    """Wrap an app that an engine with an accept loop of its own calls in threads. Its steps show nothing of the loop."""
    paths = frozenset[str]() if ecv is None else ecv.paths
    loop = asyncio.get_running_loop()

    def report(began: float) -> None:
        # Only the loop writes the worker's row. A loop that is closed doesn't need the figure.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(sampler.took, time.monotonic() - began)

    def wrapped(environ: Any, start_response: Call) -> Any:
        if environ["PATH_INFO"] in paths:
            assert ecv is not None
            return ecv.wsgi(environ, start_response)
        if sampler.due > 0 and sampler.claim():
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


def _tcp(handler: Call, sampler: StepSampler, on_activity: Callable[[], None]) -> Call:
    async def wrapped(reader: Any, writer: Any) -> None:
        on_activity()
        await sampler.stream(handler(reader, writer))

    return wrapped
