"""Find the client behind trusted proxies, from `X-Forwarded-For` and `X-Forwarded-Proto`.

Each proxy appends the address of its peer to `X-Forwarded-For`, so the list is trusted from its right end. An entry is reliable
if the socket's peer and all entries to the right of it are trusted proxies. The client is the rightmost address that isn't
trusted, or the leftmost one if all are trusted. nginx's realip module (`real_ip_recursive on`) decides the same way.

- Several header lines are one list, in the order of the lines (RFC 9110, 5.3).
- An entry may carry a port (`192.0.2.1:4711`, `[2001:db8::1]:4711`), as Azure's and AWS's balancers write it.
- An entry that is no address ("unknown", RFC 7239's "_hidden") ends the search. The entries to the left of it may be the
  client's own invention, so they must not be used. The proxy that wrote it counts as the client, since nothing better is known.
- Addresses are compared as numbers. An IPv4 address in IPv6 form (`::ffff:10.0.0.1`, the peer of a dual-stack listener) matches
  IPv4 networks.
- The last of several values of `X-Forwarded-Proto` counts, since the nearest proxy has written it. A value that is neither `http`
  nor `https` (nor `ws`, `wss`) is ignored.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ...config.value_types import Proxies

_Address = tuple[str, int]
"""A host and a port. A port that isn't known is 0."""
UNIX_PEER: _Address = ("unix:", 0)
"""A stand-in for the peer of a Unix socket, which has no address."""

MAX_FORWARDED_HOPS = 100
"""Entries of `X-Forwarded-For` that are examined, so that a long list can't hold the loop."""
_MAX_ENTRY_CHARS = 64
"""The longest entry that is examined: no address with its port is longer, and long entries would fill the cache."""
_CACHED_ENTRIES = 1024
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
_V4_PORT = re.compile(r"([0-9.]+):([0-9]{1,5})")
_V6_BRACKETS = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?")

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Hop(NamedTuple):
    """One valid entry of `X-Forwarded-For`."""

    address: _Address
    trusted: bool


class TrustedProxies:
    """Decide which peers are proxies, and take the client and the scheme from the headers of these."""

    def __init__(self, proxies: Proxies) -> None:
        """Trust these peers."""
        self._networks = proxies.networks
        self._all_peers = proxies.all_peers
        self._unix = proxies.unix
        # A proxy has few addresses, and a client sends many requests. Parsing takes 2 µs, a look into the cache 0.1.
        self._hop: Callable[[str], _Hop | None] = functools.lru_cache(_CACHED_ENTRIES)(self._examine)

    def trusts(self, peer: _Address | None) -> bool:
        """Return whether a peer's headers are trusted. This doesn't change while a connection is open.

        Args:
            peer: the socket's peer; `UNIX_PEER` for that of a Unix socket, None if it isn't known.
        """
        if peer is None:
            return False
        if peer == UNIX_PEER:
            return self._unix
        hop = self._hop(peer[0].partition("%")[0])  # without the zone of a link-local address
        return self._all_peers if hop is None else hop.trusted

    def resolve(
        self, peer: _Address | None, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[_Address | None, str | None]:
        """Return the client of a request, and the scheme by which it reached the first proxy.

        Args:
            peer: see `trusts`.
            headers: the request's headers, with names in lower case.

        Returns:
            The client's address, or None for the peer of a Unix socket if no header has an address. And "http" or "https", or
            None if no trusted header has a scheme, so that the socket's own scheme counts.
        """
        own = None if peer == UNIX_PEER else peer
        if not self.trusts(peer):
            return own, None
        forwarded: list[bytes] = []
        scheme = None
        for name, value in headers:
            if name == b"x-forwarded-for":
                forwarded.append(value)
            elif name == b"x-forwarded-proto":
                scheme = _SCHEMES.get(value.rpartition(b",")[2].strip().lower())
        return (self._client(forwarded) or own) if forwarded else own, scheme

    def _client(self, lines: list[bytes]) -> _Address | None:
        """Return the rightmost address that isn't a trusted proxy; None if there is no valid entry."""
        found = None
        entries = b",".join(lines).decode("latin-1").rsplit(",", MAX_FORWARDED_HOPS)
        for entry in reversed(entries[-MAX_FORWARDED_HOPS:]):
            text = entry.strip(" \t")
            if not text:
                continue  # an empty element of a list is ignored (RFC 9110, 5.6.1.2)
            hop = self._hop(text) if len(text) <= _MAX_ENTRY_CHARS else None
            if hop is None:
                break
            found = hop.address
            if not hop.trusted:
                break
        return found

    def _examine(self, text: str) -> _Hop | None:
        """Return the address of an entry, and whether it is trusted; None if it is no address."""
        host, port = _host_and_port(text)
        try:
            ip = _plain(ipaddress.ip_address(host))
        except ValueError:
            return None
        # A zone (`fe80::1%eth0`) has a meaning only on the machine that wrote it, and may be any text.
        if port > 0xFFFF or "%" in host:
            return None
        return _Hop((str(ip), port), self._all_peers or any(ip in network for network in self._networks))


def websocket_scheme(scheme: str) -> str:
    """Return the scheme of a websocket that comes over `http` or `https`."""
    return "wss" if scheme == "https" else "ws"


def _host_and_port(text: str) -> tuple[str, int]:
    """Split an entry. The port is 0 if there is none. An entry without a known form is returned as the host."""
    if match := _V6_BRACKETS.fullmatch(text) or _V4_PORT.fullmatch(text):
        return match[1], int(match[2] or 0)
    return text, 0


def _plain(ip: _IP) -> _IP:
    """Return the IPv4 address that an IPv6 address maps (`::ffff:10.0.0.1`), else the address itself."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip
