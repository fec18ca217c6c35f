"""ECV, the health check that load balancers ask: what it answers and who may steer it.

The name, the body, the headers and the form of the time are those of the Node.js cluster2 of 2012, so that what was written for
that one reads this one. Nothing here knows a socket or a clock: workers (`worker.ecv`) and the monitor (`monitor.app`) ask.
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
    """What a load balancer is told: a word, whether to send traffic, and the code of the answer."""

    FINE = ("AVAILABLE", True, 200)
    WARNING = ("WARNING", False, 500)
    DISABLED = ("DISABLED", False, 400)

    def __init__(self, word: str, serve: bool, code: int) -> None:
        self.word = word
        self.serve = serve
        self.code = code


def health(*, traffic: bool, leaving: bool, able: bool) -> Health:
    """What holds for a cluster.

    Args:
        traffic: nobody has disabled it.
        leaving: it is about to shut down.
        able: it could answer: the app's own check has passed, or a worker is ready.
    """
    if leaving or not traffic:
        return Health.DISABLED
    return Health.FINE if able else Health.WARNING


def stamp(seconds: float) -> str:
    """A wall time in the local zone, as JavaScript writes it: `Fri May 18 2012 09:49:49 GMT-0700 (PDT)`.

    The names are English whatever the locale is.
    """
    when = datetime.fromtimestamp(seconds).astimezone()
    day = f"{_DAYS[when.weekday()]} {_MONTHS[when.month - 1]} {when.day:02d} {when.year}"
    return f"{day} {when:%H:%M:%S} GMT{when:%z} ({when.tzname()})"


@dataclass(frozen=True, slots=True)
class HealthResponse:
    """A response, as ASGI has it."""

    status: int
    headers: tuple[Header, ...]
    body: bytes = b""

    def closing(self) -> HealthResponse:
        """The same, as the last one on its connection."""
        close = (b"connection", b"close")
        return self if close in self.headers else HealthResponse(self.status, (*self.headers, close), self.body)


_OF_PROXIES = frozenset({b"x-forwarded-for", b"forwarded", b"via"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What counts of a request.

    Attributes:
        peer: the address at the other end of the socket, whatever headers say; "" for a Unix socket, None if it isn't known.
        authorization: the header, or None.
        browser: whether a browser sent it for a page (`Origin`, `Sec-Fetch-Mode`).
        forwarded: whether a proxy says that it speaks for another (`X-Forwarded-For`, `Forwarded`, `Via`).
    """

    method: str
    path: str
    peer: str | None
    authorization: str | None = None
    browser: bool = False
    forwarded: bool = False

    @classmethod
    def from_headers(cls, method: str, path: str, peer: str | None, headers: Iterable[Header]) -> Asked:
        """Read what counts off the headers, whose names are in lower case."""
        found = dict(headers)
        authorization = found.get(b"authorization")
        browser = b"origin" in found or b"sec-fetch-mode" in found
        forwarded = not _OF_PROXIES.isdisjoint(found)
        bearer = None if authorization is None else authorization.decode("latin-1")
        return cls(method, path, peer, bearer, browser, forwarded)


class HealthPage:
    """Makes the answers of one cluster.

    Args:
        path: where ECV is asked for.
        since: when the cluster started, wall time in seconds.
        hostname: this machine's.
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
        """What GET gets; made once a second. `ip` and `port` are ours; "" and 0 where there are none (Unix sockets)."""
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
        return answer if found is not Health.DISABLED else answer.closing()

    def _response(self, status: int, body: bytes = b"", *more: Header) -> HealthResponse:
        """An answer with the headers that all have."""
        if status == 204:
            return HealthResponse(status, (*self._common, *more))
        size = (b"content-length", str(len(body)).encode())
        return HealthResponse(status, ((b"content-type", b"text/plain"), size, *self._common, *more), body)

    def wrong_method(self, *allowed: str) -> HealthResponse:
        """405, with what is allowed."""
        return self._response(405, b"method not allowed\n", (b"allow", ", ".join(allowed).encode()))

    def refused(self, status: int) -> HealthResponse:
        """401 or 403."""
        if status == 401:
            return self._response(401, b"a valid bearer token is needed\n", (b"www-authenticate", b"Bearer"))
        return self._response(403, b"only from this machine, and neither from a browser's page nor through a proxy\n")

    def master_silent(self) -> HealthResponse:
        """503: the master, whose word it takes, doesn't answer."""
        return self._response(503, b"the master doesn't answer\n").closing()

    def switched(self, enabled: bool) -> HealthResponse:
        """It is done, in all workers."""
        answer = self._response(204)
        return answer if enabled else answer.closing()


def switches(path: str) -> dict[str, bool]:
    """The paths that steer traffic, and whether they enable it."""
    base = path.rstrip("/")
    return {f"{base}/enable": True, f"{base}/disable": False}


def objection(page: HealthPage, asked: Asked, switches: Mapping[str, bool], token: str | None) -> HealthResponse | None:
    """The answer to a request that isn't for the health if it is wrong or not allowed; None: traffic shall be switched."""
    if asked.path not in switches:
        return page.wrong_method("GET", "HEAD")
    if asked.method != "POST":
        return page.wrong_method("POST")
    status = refusal(asked, token)
    return None if status is None else page.refused(status)


def refusal(asked: Asked, token: str | None) -> int | None:
    """Why a request may not steer traffic: 401 or 403, or None if it may.

    With a token it is the token alone that counts. Without one only this machine may; but not for a page in a browser that
    runs here, nor through a proxy that does: both are a stranger's word from a loopback address or a Unix socket. No header
    can grant anything; these deny.
    """
    if token is not None:
        return None if bears(asked.authorization, token) else 401
    return None if is_local(asked.peer) and not (asked.browser or asked.forwarded) else 403


def bears(authorization: str | None, token: str) -> bool:
    """Whether the header `Authorization` bears that token. How long this takes tells nothing of the token."""
    scheme, _, given = (authorization or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(errors="replace"), token.encode(errors="replace"))
    return same and scheme.lower() == "bearer"


def is_local(peer: str | None) -> bool:
    """Whether a peer is on this machine for certain: a loopback address, or "" for a Unix socket."""
    if not peer:
        return peer == ""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
