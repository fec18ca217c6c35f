"""The parts of granian's internals that the engine uses, and the check that they are still there.

granian has no public way to serve on a given socket inside a running loop. Its own servers fork and supervise processes. But
their parts can be used alone:

- A `SocketHolder` is made from a descriptor, which it owns from then on.
- A worker object serves on it, from threads in Rust.
- A scheduler brings each request to the worker's loop.
- A `WorkerSignal` ends it. granian then stops accepting, closes idle connections, and completes requests under way, whose responses
  say `Connection: close`. At the end it calls back.

granian promises none of this. So the version is pinned to a tested range, also in pyproject.toml, and `check` looks for each part.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Mapping
from types import AsyncGeneratorType, CoroutineType, GeneratorType, SimpleNamespace
from typing import Any

from ...errors import ConfigError
from ..base import TimedAwaitable

_TESTED_VERSIONS = ((2, 8), (2, 9))
"""The first version that was tested, and the first one above the tested range."""
_INSTALL_HINT = "pip install 'cluster2[granian]'"

_PARTS = {
    "granian._granian": ("ASGIWorker", "RSGIWorker", "WSGIWorker", "SocketHolder", "WorkerSignal", "ASGIHTTPProtocol"),
    "granian._futures": ("_new_cbscheduler",),
    "granian.asgi": ("LifespanProtocol", "_callback_wrapper"),
    "granian.rsgi": ("_callback_wrapper",),
    "granian.wsgi": ("_callback_wrapper", "os"),
    "granian.http": ("HTTP1Settings", "HTTP2Settings"),
    "granian.log": ("log_request_builder",),
}
_FUTURE_CLASS = "PyFutureAwaitable"
"""The name of the class that granian's awaitables have. Python can't import the class itself."""
_STEP_CLASSES = ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper")
"""Names of the classes between an `await` and the generator or coroutine behind it. Python can't import them either."""
_AWAITABLES = (AsyncGeneratorType, CoroutineType)
_IMMUTABLE = 1 << 8
"""Py_TPFLAGS_IMMUTABLETYPE, the flag of classes whose methods can't be replaced."""
RESPONSE_METHODS = (
    "response_empty", "response_str", "response_bytes", "response_file", "response_file_range", "response_stream",
)  # fmt: skip
"""The methods by which an RSGI app answers a request."""
_REPLACED_METHODS = (
    *(f"RSGIHTTPProtocol.{name}" for name in RESPONSE_METHODS), "RSGIWebsocketProtocol.accept", "RSGIWebsocketProtocol.close",
)  # fmt: skip
_SERVE_METHODS = ("serve_mtr", "serve_str", "serve_mtr_uds", "serve_str_uds")


# Replacing a method twice must not stack the wrappers: the originals are kept from the first time.
_originals: dict[tuple[type, str], Callable[..., Any]] = {}


def module(name: str) -> Any:
    """Return one of granian's modules, untyped, since granian's stubs lag behind its code."""
    return importlib.import_module(f"granian.{name}")


def check() -> None:
    """Check that the installed granian is of a tested version and has all parts that the engine uses.

    Raises:
        ConfigError: granian isn't installed, has another version, or lacks a part.
    """
    # Imported only when needed, since it costs 1.5 MiB.
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("granian")
    except PackageNotFoundError:
        raise ConfigError(
            f"engine granian: granian isn't installed; {_INSTALL_HINT}, or choose another engine"
        ) from None
    low, high = (".".join(map(str, each)) for each in _TESTED_VERSIONS)
    wanted = f"cluster2 is made for granian from {low} on, below {high}: {_INSTALL_HINT}"
    if (
        not _TESTED_VERSIONS[0]
        <= tuple(int(each) for each in found.split(".")[:2] if each.isdigit())
        < _TESTED_VERSIONS[1]
    ):
        raise ConfigError(f"engine granian: granian {found} is installed; {wanted}")
    try:
        missing = [f"{name}.{part}" for name, parts in _PARTS.items() for part in parts if not _has(name, part)]
        worker = importlib.import_module("granian._granian").RSGIWorker
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"engine granian: granian {found} can't be imported: {error}; {wanted}") from error
    missing += [f"RSGIWorker.{each}" for each in _SERVE_METHODS if not hasattr(worker, each)]
    missing += [f"_granian.{each}, to be replaced" for each in _REPLACED_METHODS if not _can_be_replaced(each)]
    if missing:
        raise ConfigError(f"engine granian: granian {found} lacks {', '.join(missing)}; {wanted}")


def wsgi_callback(app: Callable[..., Any], log: str | None) -> Callable[..., Any]:
    """Return what granian calls for each WSGI request, without the process's environment.

    granian puts `os.environ` into each environ. Secrets in it would appear on an app's error pages, and a variable HTTP_PROXY
    would pass for a header. granian reads it once, when it makes the callback.

    Args:
        app: the WSGI app.
        log: the format of the access log. None: no access log.
    """
    inside = module("wsgi")
    # Only this one module sees another `os`, and only while it makes the callback.
    system = inside.os
    inside.os = SimpleNamespace(environ={})
    try:
        made: Callable[..., Any] = inside._callback_wrapper(app, {}, log)
    finally:
        inside.os = system
    return made


def replace_methods(kind: type, wrappers: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]) -> None:
    """Replace methods of a class that is written in Rust, in this process. This costs a request less than a wrapped object.

    Args:
        kind: the class.
        wrappers: for the name of each method, a function from the original method to its replacement. A second call starts
            again from the original methods.
    """
    for name, wrapper in wrappers.items():
        original = _originals.setdefault((kind, name), getattr(kind, name))
        setattr(kind, name, wrapper(original))


def waits(coroutine: Any) -> bool:
    """Return whether a suspended coroutine waits for granian's threads: for data from its client, or to send a response.

    The function follows the chain of awaited objects to its end.
    """
    awaited = coroutine
    # Not started, ended or running coroutines have nothing to await, which ends the loop.
    while awaited is not None:
        if type(awaited).__name__ == _FUTURE_CLASS and type(awaited).__module__ == "granian._granian":
            return True
        if isinstance(awaited, CoroutineType):
            awaited = awaited.cr_await
        elif isinstance(awaited, AsyncGeneratorType):
            awaited = awaited.ag_await
        elif isinstance(awaited, GeneratorType):  # an `__await__` that is a generator
            awaited = awaited.gi_yieldfrom
        elif type(awaited).__name__ in _STEP_CLASSES:
            # A step of a generator (`__anext__`) has no attribute for its generator, but shows it to the garbage collector.
            awaited = next((each for each in gc.get_referents(awaited) if isinstance(each, _AWAITABLES)), None)
        elif isinstance(awaited, TimedAwaitable):  # the worker's own wrapper of a request that is measured
            awaited = awaited.inner
        else:
            return False
    return False


def _can_be_replaced(method: str) -> bool:
    kind, _, name = method.partition(".")
    found = getattr(module("_granian"), kind, None)
    # setattr on an immutable class raises TypeError, and PyO3 could make its classes immutable in a later version.
    return found is not None and hasattr(found, name) and not found.__flags__ & _IMMUTABLE


def _has(name: str, part: str) -> bool:
    return hasattr(importlib.import_module(name), part)
