"""Load an app and find out its interface: ASGI, WSGI, RSGI or TCP.

A target is a text (`targets`) or the app itself as an object. The interface follows from the signature. If it doesn't, the
wrappers `asgi`, `wsgi`, `rsgi` and `tcp` declare it.
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
        call: the callable.
        label: the name of the app in messages.
    """

    call: Callable[..., Any]
    interface: Interface
    label: str


@dataclass(frozen=True, slots=True)
class Declared:
    """An app whose author has declared its interface."""

    call: Callable[..., Any]
    interface: Interface


def asgi(app: Callable[..., Any]) -> Declared:
    """Declare an ASGI 3 app: `await app(scope, receive, send)`."""
    return Declared(app, Interface.ASGI)


def wsgi(app: Callable[..., Any]) -> Declared:
    """Declare a WSGI app: `app(environ, start_response)` (PEP 3333)."""
    return Declared(app, Interface.WSGI)


def rsgi(app: Callable[..., Any]) -> Declared:
    """Declare an RSGI app: `await app(scope, protocol)`, or an object with `__rsgi__`."""
    return Declared(app, Interface.RSGI)


class _Tcp:
    """The type of `cluster2.tcp`: a decorator that declares a TCP app, with `boundary` as an attribute."""

    boundary: Final = boundary

    def __call__(self, app: Callable[..., Any]) -> Declared:
        """Declare a TCP app: `async def handler(reader, writer)`, or a callable that returns an asyncio.Protocol."""
        return Declared(app, Interface.TCP)


tcp: Final = _Tcp()
"""Declares an app that serves raw TCP. `tcp.boundary` declares where its connections may change their worker (`engines.tcp.boundary`)."""


def load(target: str | object, *, factory: bool = False) -> App:
    """Load the app that a target names.

    Raises:
        AppError: the app can't be imported (`detail` has its own traceback), or the object isn't an app.
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
    """Return an app's interface, by its signature. Raises AppError, which names `label`: the signature is none of a known interface."""
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
    """Return the end of the message about a callable that is no app: the reason and the way out."""
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
    """Return whether this is a class of asyncio protocols, a partial of one, or a function with one as its return annotation."""
    made: object = app
    while isinstance(made, functools.partial):
        made = made.func
    if inspect.isroutine(made):
        try:
            # eval_str: with `from __future__ import annotations` the annotation is a text.
            made = inspect.signature(made, eval_str=True).return_annotation
        except Exception:  # annotations are evaluated and may raise anything; then the annotation is unknown
            return False
    return isinstance(made, type) and issubclass(made, asyncio.BaseProtocol)


def _is_rsgi(app: object) -> bool:
    """Return whether this is an object with `__rsgi__`, which need not be callable itself."""
    return hasattr(app, "__rsgi__") and not isinstance(app, type)


def _positional(app: Callable[..., Any]) -> list[str] | None:
    """Return the names of the arguments that must be given by position; None: the signature isn't known or takes anything.

    A wrapper's own signature precedes that of the function that it wraps, since a decorator may change the signature. A wrapper
    that takes `*arguments` has the signature of the wrapped function (`functools.wraps`).
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
