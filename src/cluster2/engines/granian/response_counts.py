"""With which status granian's requests were answered (`outcomes`).

- ASGI: granian itself knows it, and says 500 for what wasn't answered.
- WSGI: granian's own layer returns it.
- RSGI: its protocol objects are Rust's and forget it. A wrapper of each would be paid for by each request, so the methods that
  answer are replaced in their classes (`granian_internals.replace_methods`): a call and a store in a dictionary.
- Websockets: seen when the app accepts. One that isn't accepted is answered by granian, with 403 or what an RSGI app says.

All of it happens on the loop, so that plain dictionaries do. What granian refuses by itself (a request that can't be parsed)
can't be seen from here, nor whether a client was still there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from ..outcomes import CLIENT_CLOSED_STATUS, STATUS_CLASSES, Outcomes, reading
from .internals import RESPONSE_METHODS, module, replace_methods

WEBSOCKET_ACCEPTED_STATUS = 101
UNANSWERED_STATUS = 500
"""The status that granian answers with if a request's app doesn't."""
_WEBSOCKET_REFUSED_STATUS = 403
"""The same for a websocket."""


class ResponseCounts:
    """The answers to requests whose app is awaited.

    Attributes:
        outcomes: how requests have ended.
    """

    # By id of a protocol object, which lives until its request has ended. In common to all engines of a process, as the
    # classes are whose methods note them.
    _statuses: ClassVar[dict[int, int]] = {}
    _accepted: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        """Nothing was answered yet."""
        self.outcomes = Outcomes(sees_clients=False)

    def accept(self, protocol: Any) -> None:
        """Count a websocket that is accepted: its request has ended."""
        if id(protocol) not in self._accepted:
            self._accepted.add(id(protocol))
            self.outcomes.by_status[WEBSOCKET_ACCEPTED_STATUS] += 1

    def watch_rsgi(self, stream: Callable[[Any, Any], Any]) -> None:
        """Note from now on what RSGI apps answer, in this process.

        Args:
            stream: makes of a protocol object and of granian's transport of a stream what the app gets.
        """
        accepted = self._accepted

        def accepting(original: Callable[..., Any]) -> Callable[..., Any]:
            def accept(protocol: Any) -> Any:
                self.accept(protocol)
                return original(protocol)

            return accept

        def closing(original: Callable[..., Any]) -> Callable[..., Any]:
            def close(protocol: Any, status: int | None = None) -> Any:
                if status is not None and id(protocol) not in accepted:
                    self._statuses[id(protocol)] = status
                return original(protocol, status)

            return close

        inside = module("_granian")
        replace_methods(inside.RSGIHTTPProtocol, _responding(self._statuses, stream))
        replace_methods(inside.RSGIWebsocketProtocol, {"accept": accepting, "close": closing})

    def ended_asgi(self, protocol: Any, failed: bool, cancelled: bool) -> None:
        """Count a request whose app has ended.

        Args:
            failed: its app has raised.
            cancelled: it was cancelled.
        """
        try:
            status = protocol.sent_response_code
        except AttributeError:
            self._ended(self._of_websocket(protocol), failed, cancelled)
            return
        if failed or cancelled:
            self._ended(status, failed, cancelled)
        else:
            self.outcomes.by_status[status] += 1

    def ended_rsgi(self, protocol: Any, failed: bool, cancelled: bool) -> None:
        """Do the same for RSGI."""
        status = self._statuses.pop(id(protocol), 0)
        if status and not failed:
            self.outcomes.by_status[status] += 1
        elif status or hasattr(protocol, "response_empty"):
            self._ended(status or UNANSWERED_STATUS, failed, cancelled)
        else:
            self._ended(self._of_websocket(protocol), failed, cancelled)

    def _of_websocket(self, protocol: Any) -> int:
        """Return the status that a websocket was answered with; 0: it was accepted, and counted then."""
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
    """Return what makes RSGI's methods that answer note the status. With granian's parameters, since `*args` cost more."""

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
    """The answers to requests that run in threads of granian's. A step of a counter is one under the GIL."""

    def __init__(self) -> None:
        """Nothing was answered yet."""
        self._classes = [itertools.count() for _ in range(STATUS_CLASSES + 1)]
        self._failures = itertools.count()

    def set_trap(self, trap: Any) -> None:
        """Have the next `count_response` use this in place of its counters."""
        self._classes = trap

    def count_response(self, status: int) -> None:
        """Count a request that was answered with this status."""
        next(self._classes[min(status // 100, STATUS_CLASSES)])

    def bodies(self, app: Callable[..., Any]) -> Callable[..., Any]:
        """Return a WSGI app that counts the bodies that fail: granian iterates over them, and only logs what they raise."""

        def called(environ: Any, start_response: Any) -> Any:
            body = app(environ, start_response)
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
    """A WSGI body that counts if it fails."""

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
