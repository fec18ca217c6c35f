"""What an app is, and of which kind it is.

A target is a text (`targets`) or the object itself. Its interface is read off its signature; the wrappers
`asgi`, `wsgi`, `rsgi` and `tcp` say so explicitly where the signature can't.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ..core.wording import counted, with_article
from ..engines.base import Interface, is_async
from ..engines.tcp.boundary import boundary
from ..errors import AppError
from . import targets


@dataclass(frozen=True, slots=True)
class App:
    """An app that can be served.

    Attributes:
        call: the callable itself.
        label: how messages name it.
    """

    call: Callable[..., Any]
    interface: Interface
    label: str


@dataclass(frozen=True, slots=True)
class Declared:
    """An app whose interface its author has said."""

    call: Callable[..., Any]
    interface: Interface


def asgi(app: Callable[..., Any]) -> Declared:
    """Say that this is an ASGI 3 app: `await app(scope, receive, send)`."""
    return Declared(app, Interface.ASGI)


def wsgi(app: Callable[..., Any]) -> Declared:
    """Say that this is a WSGI app: `app(environ, start_response)` (PEP 3333)."""
    return Declared(app, Interface.WSGI)


def rsgi(app: Callable[..., Any]) -> Declared:
    """Say that this is an RSGI app: `await app(scope, protocol)`, or an object with `__rsgi__`."""
    return Declared(app, Interface.RSGI)


class _Tcp:
    """What `cluster2.tcp` is: it says that an app serves TCP, and has `boundary`, by which the app says more."""

    boundary: Final = boundary

    def __call__(self, app: Callable[..., Any]) -> Declared:
        """Say that this serves TCP: `async def handler(reader, writer)`, or a callable that returns an asyncio.Protocol."""
        return Declared(app, Interface.TCP)


tcp: Final = _Tcp()
"""Says that an app serves raw TCP; `tcp.boundary`: where its connections may change their worker (`engines.boundary`)."""


def load(target: str | object, *, factory: bool = False) -> App:
    """The app that a target names.

    Raises:
        AppError: it can't be imported (`detail` has the app's own traceback), or it isn't an app.
    """
    if isinstance(target, str):
        found, label = targets.find(target, factory=factory)
    else:
        label = _label(target)
        found = targets.made_by(target, label) if factory else target
    interface = detect(found, label)
    call: Any = found.call if isinstance(found, Declared) else found
    return App(call, interface, label)


def detect(app: object, label: str) -> Interface:
    """Tell an app's interface by its signature. Raises AppError, naming `label`, if it has none that we know."""
    if isinstance(app, Declared):
        call: object = app.call
        if not callable(call) and not _is_rsgi(call):
            raise AppError(f"{label} wraps {with_article(type(call).__name__)}, which can't be called")
        return app.interface
    if _is_rsgi(app):
        return Interface.RSGI
    if not callable(app):
        raise AppError(
            f"{label} is {with_article(type(app).__name__)}, which can't be called; name an ASGI or WSGI app, or a TCP handler"
        )
    if _makes_protocols(app):
        return Interface.TCP
    match names := _positional(app):
        case [_, _, _]:
            return Interface.ASGI
        case [_, "start_response"] if is_async(app, through=False):
            raise AppError(f"{label} is async, which a WSGI app can't be; make it a plain function, or an ASGI app")
        case [_, "start_response"]:
            return Interface.WSGI
        case ["scope", _]:
            return Interface.RSGI
        case [_, _] if is_async(app):
            return Interface.TCP
        case ["reader", "writer"]:
            raise AppError(
                f"{label} looks like a TCP handler, but isn't async; make it `async def`, or say cluster2.tcp"
            )
        case [_, _]:
            return Interface.WSGI
    raise AppError(f"{label} {_refusal(app, names)}")


def _refusal(app: Callable[..., Any], names: list[str] | None) -> str:
    """What is told of something that can be called, but is no app."""
    if names == ["scope"]:
        return (
            "takes `scope` alone, as ASGI 2 had it; wrap it in asgiref.compatibility.guarantee_single_callable to make "
            "an ASGI 3 app of it"
        )
    if isinstance(app, type) and any("__call__" in vars(each) for each in app.__mro__):
        return "is a class, not an app; make an object of it, and name that"
    if names == [] and is_async(app):
        return f"is async and takes no argument; if it is a factory, make it a plain function: {targets.NO_LOOP_ERRORS}"
    if names == []:
        return (
            "takes no argument: if it is a factory that returns the app, add --factory, or () behind its name; "
            "if it makes an asyncio.Protocol, say so by cluster2.tcp"
        )
    takes = (
        "its signature doesn't say what it takes" if names is None else f"it takes {counted(len(names), 'argument')}"
    )
    return (
        f"looks like no app that cluster2 knows ({takes}); "
        "say what it is by cluster2.asgi(app), .wsgi(app), .rsgi(app) or .tcp(app)"
    )


def _makes_protocols(app: Callable[..., Any]) -> bool:
    """Whether it is a class of asyncio protocols, a partial of one, or a function that says that it returns one."""
    made: object = app
    while isinstance(made, functools.partial):
        made = made.func
    if inspect.isroutine(made):
        try:
            made = inspect.signature(made, eval_str=True).return_annotation
        except Exception:  # annotations are evaluated, and may raise anything: then they say nothing
            return False
    return isinstance(made, type) and issubclass(made, asyncio.BaseProtocol)


def _is_rsgi(app: object) -> bool:
    """An object with `__rsgi__` need not be callable itself."""
    return hasattr(app, "__rsgi__") and not isinstance(app, type)


def _positional(app: Callable[..., Any]) -> list[str] | None:
    """Names of the arguments that must be given by position; None: it takes whatever it is given, or doesn't tell.

    What a wrapper says itself goes before what it wraps: a decorator may have changed the signature. One that passes on
    whatever it is given (`*arguments`) has the signature of what it wraps (`functools.wraps`).
    """
    for through in (False, True):
        try:
            parameters = inspect.signature(app, follow_wrapped=through).parameters.values()
        except (TypeError, ValueError):
            return None
        names = [
            each.name
            for each in parameters
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) and each.default is each.empty
        ]
        if names or not any(each.kind is each.VAR_POSITIONAL for each in parameters):
            return names
    return None


def _label(app: object) -> str:
    call = app.call if isinstance(app, Declared) else app
    return str(getattr(call, "__qualname__", type(call).__qualname__))
