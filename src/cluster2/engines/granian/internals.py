"""What the granian engine uses of granian's inside, gathered in one place, and the check that it is still there.

granian has no public way to serve on a given socket inside a running loop; its own servers fork, and supervise. But their
parts can be had: a `SocketHolder` is made of a descriptor (which it owns from then on), a worker object serves on it from
threads of Rust's, a scheduler brings each request to our loop, and a `WorkerSignal` ends it: it stops accepting, closes idle
connections, lets requests under way end (their responses say `Connection: close`), and calls back. None of this carries a
promise, so the version is pinned to a tested range (pyproject.toml says the same) and `check` looks at each part.
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
"""Versions from the first, below the second."""
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
_FUTURE = "PyFutureAwaitable"
"""Its name: the class isn't to be had."""
_STEPS = ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper")
"""What stands between an `await` and the generator or coroutine behind it: names of classes that aren't to be had either."""
_BEHIND = (AsyncGeneratorType, CoroutineType)
_IMMUTABLE = 1 << 8
"""Py_TPFLAGS_IMMUTABLETYPE: the flag of classes whose methods can't be replaced."""
RESPONSE_METHODS = (
    "response_empty", "response_str", "response_bytes", "response_file", "response_file_range", "response_stream",
)  # fmt: skip
"""The methods by which an RSGI app answers a request."""
_REPLACED = (
    *(f"RSGIHTTPProtocol.{name}" for name in RESPONSE_METHODS), "RSGIWebsocketProtocol.accept", "RSGIWebsocketProtocol.close",
)  # fmt: skip
_METHODS = ("serve_mtr", "serve_str", "serve_mtr_uds", "serve_str_uds")


_originals: dict[tuple[type, str], Callable[..., Any]] = {}


def module(name: str) -> Any:
    """One of granian's modules; untyped, since their stubs lag behind what is there."""
    return importlib.import_module(f"granian.{name}")


def check() -> None:
    """See whether this granian is one that was tested, and has all its parts.

    Raises:
        ConfigError: it isn't installed, or it is another.
    """
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
    missing += [f"RSGIWorker.{each}" for each in _METHODS if not hasattr(worker, each)]
    missing += [f"_granian.{each}, to be replaced" for each in _REPLACED if not _can_be_replaced(each)]
    if missing:
        raise ConfigError(f"engine granian: granian {found} lacks {', '.join(missing)}; {wanted}")


def wsgi_callback(app: Callable[..., Any], log: str | None) -> Callable[..., Any]:
    """What granian calls for each WSGI request, without the process's environment.

    granian puts `os.environ` into each environ: what is secret there would stand on an app's error pages, and a variable
    HTTP_PROXY would pass for a header. It reads it once, when the callback is made.
    """
    inside = module("wsgi")
    system = inside.os
    inside.os = SimpleNamespace(environ={})
    try:
        made: Callable[..., Any] = inside._callback_wrapper(app, {}, log)
    finally:
        inside.os = system
    return made


def replace_methods(kind: type, wrappers: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]]) -> None:
    """Replace methods of a class of Rust's, in this process, each by what a wrapper makes of the original one.

    That costs a request less than a wrapper of each object would. A second call replaces what the first one did.
    """
    for name, wrapper in wrappers.items():
        original = _originals.setdefault((kind, name), getattr(kind, name))
        setattr(kind, name, wrapper(original))


def waits(coroutine: Any) -> bool:
    """Whether a suspended coroutine waits for granian's threads: for something from its client, or room for a response.

    What it awaits is followed to its end. A step of a generator (`__anext__`) tells only the garbage collector whose it is.
    """
    awaited = coroutine
    while awaited is not None:
        if type(awaited).__name__ == _FUTURE and type(awaited).__module__ == "granian._granian":
            return True
        if isinstance(awaited, CoroutineType):
            awaited = awaited.cr_await
        elif isinstance(awaited, AsyncGeneratorType):
            awaited = awaited.ag_await
        elif isinstance(awaited, GeneratorType):
            awaited = awaited.gi_yieldfrom
        elif type(awaited).__name__ in _STEPS:
            awaited = next((each for each in gc.get_referents(awaited) if isinstance(each, _BEHIND)), None)
        elif isinstance(awaited, TimedAwaitable):
            awaited = awaited.inner
        else:
            return False
    return False


def _can_be_replaced(method: str) -> bool:
    kind, _, name = method.partition(".")
    found = getattr(module("_granian"), kind, None)
    return found is not None and hasattr(found, name) and not found.__flags__ & _IMMUTABLE


def _has(name: str, part: str) -> bool:
    return hasattr(importlib.import_module(name), part)
