"""The responses of ECV, the health check of load balancers, and the rules for requests that switch traffic.

The name, the body, the headers and the format of the time are those of the Node.js cluster2 of 2012, so that clients of that one
can read them. This module uses no sockets and no clock. Workers (`processes.worker.health.endpoint`) and the monitor
(`processes.monitor.app`) send its responses.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

Header = tuple[bytes, bytes]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Health(Enum):
    """A state of health: its word in the body, whether load balancers should send traffic, and the status of the response."""

    FINE = ("AVAILABLE", True, 200)
    WARNING = ("WARNING", False, 500)
    DISABLED = ("DISABLED", False, 400)

    def __init__(self, word: str, serve: bool, code: int) -> None:
        self.word = word
        self.serve = serve
        self.code = code


def health(*, traffic: bool, leaving: bool, able: bool) -> Health:
    """Return the state of health of a cluster.

    Args:
        traffic: traffic is enabled.
        leaving: the cluster is about to shut down.
        able: the cluster could serve: the app's own check has passed, or a worker is ready.
    """
    if leaving or not traffic:
        return Health.DISABLED
    return Health.FINE if able else Health.WARNING


def stamp(seconds: float) -> str:
    """Return a wall time in the local zone, as JavaScript formats it: `Fri May 18 2012 09:49:49 GMT-0700 (PDT)`.

    Names of days and months are English in every locale.
    """
    when = datetime.fromtimestamp(seconds).astimezone()
    day = f"{_DAYS[when.weekday()]} {_MONTHS[when.month - 1]} {when.day:02d} {when.year}"
    return f"{day} {when:%H:%M:%S} GMT{when:%z} ({when.tzname()})"


@dataclass(frozen=True, slots=True)
class HealthResponse:
    """A response, in the form of ASGI: names of headers are in lower case."""

    status: int
    headers: tuple[Header, ...]
    body: bytes = b""

    def closing(self) -> HealthResponse:
        """Return this response with `Connection: close`."""
        close = (b"connection", b"close")
        return self if close in self.headers else HealthResponse(self.status, (*self.headers, close), self.body)


_OF_PROXIES = frozenset({b"x-forwarded-for", b"forwarded", b"via"})


@dataclass(frozen=True, slots=True)
class Asked:
    """The parts of a request that decide about its response.

    Attributes:
        peer: the address at the other end of the socket; headers don't change it. "": a Unix socket. None: not known.
        authorization: the header, or None.
        browser: a browser sent the request for a page: it has `Origin` or `Sec-Fetch-Mode`.
        forwarded: a proxy forwarded the request: it has `X-Forwarded-For`, `Forwarded` or `Via`.
    """

    method: str
    path: str
    peer: str | None
    authorization: str | None = None
    browser: bool = False
    forwarded: bool = False

    @classmethod
    def from_headers(cls, method: str, path: str, peer: str | None, headers: Iterable[Header]) -> Asked:
        """Make one from a request's headers, whose names are in lower case."""
        found = dict(headers)
        authorization = found.get(b"authorization")
        browser = b"origin" in found or b"sec-fetch-mode" in found
        forwarded = not _OF_PROXIES.isdisjoint(found)
        bearer = None if authorization is None else authorization.decode("latin-1")
        return cls(method, path, peer, bearer, browser, forwarded)


class HealthPage:
    """The health responses of one cluster.

    Args:
        path: the path of ECV.
        since: when the cluster started, wall time in seconds.
        hostname: the name of this machine.
    """

    def __init__(self, path: str, since: float, hostname: str) -> None:
        self.path = path
        self._hostname = hostname
        self._common: tuple[Header, ...] = (
            (b"x-powered-by", b"Cluster2"),
            (b"since", stamp(since).encode()),
            (b"cache-control", b"no-cache"),
        )
        self._second = 0
        self._made: dict[tuple[Health, str, int], HealthResponse] = {}

    def state(self, found: Health, ip: str, port: int, now: float) -> HealthResponse:
        """Return the response to GET.

        Args:
            ip: the local address of the connection; "": a Unix socket.
            port: the local port; 0: a Unix socket.
            now: wall time in seconds.
        """
        # The body has a time in seconds, so one response serves all checks of a second. Load balancers check often.
        second = int(now)
        if second != self._second:
            self._second = second
            self._made.clear()
        key = (found, ip, port)
        if (answer := self._made.get(key)) is None:
            answer = self._made[key] = self._state(found, ip, port, now)
        return answer

    def _state(self, found: Health, ip: str, port: int, now: float) -> HealthResponse:
        serve = str(found.serve).lower()
        where = f"ip={ip}&hostname={self._hostname}&port={port or ''}"
        body = f"status={found.word}&ServeTraffic={serve}&{where}&time={stamp(now)}".encode()
        answer = self._response(found.code, body)
        # The client connects again for its next check, and so doesn't keep a connection to a cluster that wants none.
        return answer if found is not Health.DISABLED else answer.closing()

    def _response(self, status: int, body: bytes = b"", *more: Header) -> HealthResponse:
        """Return a response with the headers that all of them have."""
        if status == 204:  # RFC 9110, 8.6: no Content-Length in a 204
            return HealthResponse(status, (*self._common, *more))
        size = (b"content-length", str(len(body)).encode())
        return HealthResponse(status, ((b"content-type", b"text/plain"), size, *self._common, *more), body)

    def wrong_method(self, *allowed: str) -> HealthResponse:
        """Return 405 with the methods that are allowed."""
        return self._response(405, b"method not allowed\n", (b"allow", ", ".join(allowed).encode()))

    def refused(self, status: int) -> HealthResponse:
        """Return the response to a request that may not switch traffic: 401 or 403."""
        if status == 401:
            return self._response(401, b"a valid bearer token is needed\n", (b"www-authenticate", b"Bearer"))
        return self._response(403, b"only from this machine, and neither from a browser's page nor through a proxy\n")

    def master_silent(self) -> HealthResponse:
        """Return 503: traffic can't be switched, because the master doesn't answer."""
        return self._response(503, b"the master doesn't answer\n").closing()

    def switched(self, enabled: bool) -> HealthResponse:
        """Return 204: traffic is switched, in all workers."""
        answer = self._response(204)
        return answer if enabled else answer.closing()


def switches(path: str) -> dict[str, bool]:
    """Return the paths that switch traffic, each with whether it enables traffic."""
    base = path.rstrip("/")
    return {f"{base}/enable": True, f"{base}/disable": False}


def objection(page: HealthPage, asked: Asked, switches: Mapping[str, bool], token: str | None) -> HealthResponse | None:
    """Return the response that refuses a request to switch traffic; None: the request is valid and allowed."""
    if asked.path not in switches:
        return page.wrong_method("GET", "HEAD")
    if asked.method != "POST":
        return page.wrong_method("POST")
    status = refusal(asked, token)
    return None if status is None else page.refused(status)


def refusal(asked: Asked, token: str | None) -> int | None:
    """Return the status that refuses a request to switch traffic: 401 or 403; None: it is allowed.

    If a token is set, the token alone decides. Otherwise the request must come from this machine, and neither from a page in a
    browser here nor through a proxy here: both carry the request of a stranger, though their peer address is loopback or a Unix
    socket. Headers can only take the permission away, never grant it.
    """
    if token is not None:
        return None if bears(asked.authorization, token) else 401
    return None if is_local(asked.peer) and not (asked.browser or asked.forwarded) else 403


def bears(authorization: str | None, token: str) -> bool:
    """Return whether the header `Authorization` has that token. The time that this takes reveals nothing about the token."""
    scheme, _, given = (authorization or "").partition(" ")
    # Encoded, since compare_digest takes texts only if they are ASCII.
    same = hmac.compare_digest(given.strip().encode(errors="replace"), token.encode(errors="replace"))
    return same and scheme.lower() == "bearer"


def is_local(peer: str | None) -> bool:
    """Return whether a peer is certain to be on this machine: it has a loopback address, or "" for a Unix socket."""
    if not peer:
        return peer == ""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])  # without the zone of a link-local address
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
