"""The layer between granian and a WSGI app: checks of the response, and the parts of PEP 3333 that granian leaves out."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from cluster2.engines.granian.wsgi_conformance import conforming
from cluster2.engines.wsgi.pep3333 import WsgiViolation

Started = list[tuple[str, list[tuple[str, str]]]]


def call(app: Callable[..., Iterable[bytes]], method: str = "GET") -> tuple[Started, Any]:
    """Call an app as granian does. Return the arguments of its `start_response` calls, and its body."""
    started: Started = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": "/p\n", "wsgi.input": io.BytesIO()}
    start: Any = lambda status, headers: started.append((status, headers))  # noqa: E731
    body = conforming(app)(environ, start)
    return started, body


def app_of(body: Iterable[bytes], *headers: tuple[str, str]) -> Callable[..., Iterable[bytes]]:
    """Return an app with this response."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", list(headers))
        return body

    return app


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_body_in_one_piece(kind: Callable[[Any], Any]) -> None:
    """A list or a tuple is handed over as a list, as granian needs it, with the app's own headers."""
    headers = ("Content-Length", "5"), ("X-Name", "value")
    started, body = call(app_of(kind([b"hel", b"lo"]), *headers))
    assert started == [("200 OK", list(headers))]
    assert type(body) is list
    assert b"".join(body) == b"hello"


def test_written_parts_count() -> None:
    """Written and returned parts together must have the declared length."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", length)])(b"hel")
        return [b"lo"]

    length = "5"
    assert call(app)[1] == [b"hel", b"lo"]
    length = "4"
    with pytest.raises(WsgiViolation, match="longer than its Content-Length, 4"):
        call(app)


def test_a_violation_names_its_request() -> None:
    """The message has method and path before the reason, in a form fit for a log."""
    with pytest.raises(WsgiViolation, match=r"^GET /p\\n: the app's body is shorter than its Content-Length, 9$"):
        call(app_of([b"hello"], ("Content-Length", "9")))


def test_a_body_that_ends_early() -> None:
    """A body that comes in parts raises where it should have gone on, so that granian cuts it off."""
    _, body = call(app_of(iter([b"hel", b"lo"]), ("Content-Length", "9")))
    assert [next(body), next(body)] == [b"hel", b"lo"]
    with pytest.raises(WsgiViolation, match="GET .*shorter"):
        next(body)


@pytest.mark.parametrize("body", [[b"hel", b"lo"], iter([b"", b"hello"])])
def test_head(body: Iterable[bytes]) -> None:
    """The response to HEAD keeps its body, from which hyper computes the Content-Length. A declared length may differ."""
    _, found = call(app_of(body, ("Content-Length", "9")), "HEAD")
    assert b"".join(found) == b"hello"


def test_head_of_an_endless_body() -> None:
    """The layer reads only the first part of a body that isn't sent."""
    _, body = call(app_of(itertools.repeat(b"x")), "HEAD")
    assert next(body) == b"x"


def test_too_late_to_start_anew() -> None:
    """When granian has status and headers, an app that starts its response anew gets its own exception back."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"first"
        start_response("500 Broken", [], (LookupError, LookupError("of the app"), None))

    _, body = call(app)
    assert next(body) == b"first"
    with pytest.raises(LookupError, match="of the app"):
        next(body)
