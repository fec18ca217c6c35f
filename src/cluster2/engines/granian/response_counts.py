"""Count the statuses that granian's requests were answered with (`outcomes`).

- ASGI: granian itself knows the status, and has 500 for a request that the app didn't answer.
- WSGI: granian's own layer returns it.
- RSGI: granian's protocol objects are written in Rust and don't keep it. A wrapper of each object would cost every request, so
  the methods that answer are replaced in their classes (`internals.replace_methods`). That costs a call and a store in a
  dictionary.
- Websockets: they count when the app accepts. granian answers one that isn't accepted, with 403 or an RSGI app's own status.

All of it happens on the loop, so plain dictionaries do. Requests that granian refuses by itself (it can't parse them) can't be
seen from here, nor can whether a client was still connected.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from ..outcomes import CLIENT_CLOSED_STATUS, STATUS_CLASSES, Outcomes, reading
from .internals import RESPONSE_METHODS, module, replace_methods

_WEBSOCKET_ACCEPTED_STATUS = 101
UNANSWERED_STATUS = 500
"""The status of granian's own response if a request's app doesn't answer."""
_WEBSOCKET_REFUSED_STATUS = 403
"""The status of granian's own response if a websocket's app neither accepts nor refuses."""


class ResponseCounts:
    """The statuses of requests whose app is awaited.

    Attributes:
        outcomes: how requests have ended.
    """

    # The keys are ids of protocol objects, which live until their request has ended. All engines of a process share these, as
    # they share the classes whose methods are replaced.
    _statuses: ClassVar[dict[int, int]] = {}
    _accepted: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        """Start at zero."""
        self.outcomes = Outcomes(sees_clients=False)

    def accept(self, protocol: Any) -> None:
        """Count a websocket that is accepted. That ends its request."""
        if id(protocol) not in self._accepted:  # an app may call `accept` twice, but its request counts once
            self._accepted.add(id(protocol))
            self.outcomes.by_status[_WEBSOCKET_ACCEPTED_STATUS] += 1

    def watch_rsgi(self, stream: Callable[[Any, Any], Any]) -> None:
        """Record from now on the statuses of RSGI apps in this process.

        Args:
            stream: returns the transport that the app gets, given a protocol object and granian's transport of a stream.
        """
        accepted = self._accepted

        def accept_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            def accept(protocol: Any) -> Any:
                self.accept(protocol)
                return original(protocol)

            return accept

        def close_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
            def close(protocol: Any, status: int | None = None) -> Any:
                if status is not None and id(protocol) not in accepted:
                    self._statuses[id(protocol)] = status
                return original(protocol, status)

            return close

        inside = module("_granian")
        replace_methods(inside.RSGIHTTPProtocol, _responding(self._statuses, stream))
        replace_methods(inside.RSGIWebsocketProtocol, {"accept": accept_wrapper, "close": close_wrapper})

    def ended_asgi(self, protocol: Any, failed: bool, cancelled: bool) -> None:
        """Count a request whose app has ended.

        Args:
            protocol: granian's protocol object of the request.
            failed: the app has raised.
            cancelled: the request was cancelled.
        """
        try:
            status = protocol.sent_response_code
        except AttributeError:  # only protocol objects of HTTP have the attribute
            self._ended(self._of_websocket(protocol), failed, cancelled)
            return
        if failed or cancelled:
            self._ended(status, failed, cancelled)
        else:
            self.outcomes.by_status[status] += 1

    def ended_rsgi(self, protocol: Any, failed: bool, cancelled: bool) -> None:
        """Count an RSGI request whose app has ended. The arguments are those of `ended_asgi`."""
        status = self._statuses.pop(id(protocol), 0)  # popped, since another object may get this id later
        if status and not failed:
            self.outcomes.by_status[status] += 1
        elif status or hasattr(protocol, "response_empty"):  # a protocol object of HTTP has this method
            self._ended(status or UNANSWERED_STATUS, failed, cancelled)
        else:
            self._ended(self._of_websocket(protocol), failed, cancelled)

    def _of_websocket(self, protocol: Any) -> int:
        """Return the status that a websocket was refused with. 0: it was accepted, and counted then."""
        key = id(protocol)
        if key in self._accepted:
            self._accepted.discard(key)
            return 0
        return _WEBSOCKET_REFUSED_STATUS

    def _ended(self, status: int, failed: bool, cancelled: bool) -> None:
        outcomes = self.outcomes
        if status:
            outcomes.by_status[CLIENT_CLOSED_STATUS if cancelled and status == UNANSWERED_STATUS else status] += 1
        if failed and status < UNANSWERED_STATUS:
            outcomes.failed += 1


def _responding(
    statuses: dict[int, int], stream: Callable[[Any, Any], Any]
) -> dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """Return wrappers that make RSGI's response methods record the status."""

    # The replacements spell out granian's own parameters, since `*args` cost more.
    def empty(original: Callable[..., Any]) -> Callable[..., Any]:
        def response_empty(protocol: Any, status: int = 200, headers: Any = ()) -> Any:
            result = original(protocol, status, headers)
            statuses[id(protocol)] = status
            return result

        return response_empty

    def text(original: Callable[..., Any]) -> Callable[..., Any]:
        def response_str(protocol: Any, status: int = 200, headers: Any = (), body: str = "") -> Any:
            result = original(protocol, status, headers, body)
            statuses[id(protocol)] = status
            return result

        return response_str

    def binary(original: Callable[..., Any]) -> Callable[..., Any]:
        def response_bytes(protocol: Any, status: int = 200, headers: Any = (), body: bytes = b"") -> Any:
            result = original(protocol, status, headers, body)
            statuses[id(protocol)] = status
            return result

        return response_bytes

    def file(original: Callable[..., Any]) -> Callable[..., Any]:
        def response_file(protocol: Any, status: int, headers: Any, file: str) -> Any:
            result = original(protocol, status, headers, file)
            statuses[id(protocol)] = status
            return result

        return response_file

    def file_range(original: Callable[..., Any]) -> Callable[..., Any]:
        def response_file_range(protocol: Any, status: int, headers: Any, file: str, start: int, end: int) -> Any:
            result = original(protocol, status, headers, file, start, end)
            statuses[id(protocol)] = status
            return result

        return response_file_range

    def streaming(original: Callable[..., Any]) -> Callable[..., Any]:
        def response_stream(protocol: Any, status: int = 200, headers: Any = ()) -> Any:
            transport = original(protocol, status, headers)
            statuses[id(protocol)] = status
            return stream(protocol, transport)

        return response_stream

    return dict(zip(RESPONSE_METHODS, (empty, text, binary, file, file_range, streaming), strict=True))


class ThreadResponseCounts:
    """The statuses of requests whose app runs in granian's threads.

    The counters are `itertools.count` objects, whose `next` is atomic under the GIL, so that threads need no lock.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self._classes = [itertools.count() for _ in range(STATUS_CLASSES + 1)]
        self._failures = itertools.count()

    def set_trap(self, trap: Any) -> None:
        """Have the next `count_response` use this in place of its counters."""
        self._classes = trap

    def count_response(self, status: int) -> None:
        """Count a request with this status."""
        next(self._classes[min(status // 100, STATUS_CLASSES)])

    def bodies(self, app: Callable[..., Any]) -> Callable[..., Any]:
        """Return a WSGI app that counts bodies that raise. granian iterates over a body itself, and only logs the exception."""

        def called(environ: Any, start_response: Any) -> Any:
            body = app(environ, start_response)
            # A list can't raise, and granian joins it at once only if it is a list.
            return body if isinstance(body, list) else _AppBody(body, self._failures)

        return called

    def outcomes(self) -> Outcomes:
        """Return how requests have ended."""
        found = Outcomes(sees_clients=False)
        for digit, count in enumerate(self._classes):
            found.by_status[100 * digit] += reading(count)
        found.failed = reading(self._failures)
        return found


class _AppBody:
    """A WSGI body that counts a failure when it raises."""

    __slots__ = ("_failures", "_inner", "_iterator")

    def __init__(self, inner: Any, failures: itertools.count[int]) -> None:
        self._inner = inner
        self._iterator = iter(inner)
        self._failures = failures

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            raise
        except BaseException:
            next(self._failures)
            raise

    def close(self) -> None:
        if (close := getattr(self._inner, "close", None)) is not None:
            close()
