"""The client of a request that came through trusted proxies."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.config.value_types import PROXIES, parse_proxies
from cluster2.engines.http.proxy_headers import MAX_FORWARDED_HOPS, UNIX_PEER, TrustedProxies, websocket_scheme

PEER = ("10.0.0.1", 5000)


def trusting(trusted: str) -> TrustedProxies:
    """Return the proxies of a value of the option."""
    return TrustedProxies(parse_proxies(PROXIES.parse(trusted)))


def resolve(trusted: str, *lines: str, peer: tuple[str, int] | None = PEER) -> tuple[str, int] | None:
    """Return the client, for these lines of X-Forwarded-For."""
    headers = [(b"x-forwarded-for", line.encode("latin-1")) for line in lines]
    return trusting(trusted).resolve(peer, headers)[0]


@pytest.mark.parametrize(
    ("trusted", "lines", "client"),
    [
        ("10.0.0.1", ["192.0.2.7"], ("192.0.2.7", 0)),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.7"], ("192.0.2.7", 0)),
        ("10.0.0.1", ["6.6.6.6", "192.0.2.7"], ("192.0.2.7", 0)),
        ("10.0.0.1", ["192.0.2.7", "", ",, "], ("192.0.2.7", 0)),
        ("10.0.0.0/8", ["6.6.6.6, 192.0.2.7, 10.2.3.4,10.9.9.9"], ("192.0.2.7", 0)),
        ("10.0.0.0/8", ["10.1.1.1, 10.2.2.2"], ("10.1.1.1", 0)),
        ("10.0.0.0/8", [""], PEER),
        ("10.0.0.0/8", [], PEER),
        ("*", ["192.0.2.7, 10.2.3.4"], ("192.0.2.7", 0)),
        ("", ["192.0.2.7"], PEER),
        ("unix:", ["192.0.2.7"], PEER),
        ("127.0.0.1", ["192.0.2.7"], PEER),
        ("10.0.0.1", ["192.0.2.7:4711"], ("192.0.2.7", 4711)),
        ("10.0.0.1", ["[2001:DB8::1]:4711"], ("2001:db8::1", 4711)),
        ("10.0.0.1", ["[2001:db8::1]"], ("2001:db8::1", 0)),
        ("10.0.0.1", ["2001:db8:0:0::1"], ("2001:db8::1", 0)),
        ("10.0.0.0/8, 2001:db8::/32", ["192.0.2.7, [2001:db8::2]:9, 10.3.3.3:80"], ("192.0.2.7", 0)),
        ("10.0.0.0/8", ["192.0.2.7, ::ffff:10.1.2.3"], ("192.0.2.7", 0)),
        ("10.0.0.1", ["::ffff:192.0.2.7"], ("192.0.2.7", 0)),
    ],
)
def test_the_client(trusted: str, lines: list[str], client: tuple[str, int]) -> None:
    """The client is the rightmost address that isn't a trusted proxy, or the leftmost if all are."""
    assert resolve(trusted, *lines) == client


@pytest.mark.parametrize(
    "garbage",
    [
        *("unknown", "_hidden", "<script>", "é", '"192.0.2.7"', "192.0.2.7/32", "192.0.2.07", "1.2.3", "fe80::1%eth0"),
        *("192.0.2.7:", "192.0.2.7:x", "192.0.2.7:99999", "192.0.2.7:²", "[192.0.2.7x]", "[::1", "::1]:8", "[::1]8"),
        *("x" * 70, "::1:" + "0" * 70),
    ],
)
def test_garbage_ends_the_search(garbage: str) -> None:
    """An entry that is no address hides what stands to the left of it, which may be the client's own invention."""
    assert resolve("10.0.0.0/8", f"6.6.6.6, {garbage}") == PEER
    assert resolve("10.0.0.0/8", f"6.6.6.6, {garbage}, 10.7.7.7") == ("10.7.7.7", 0)
    assert resolve("10.0.0.0/8", f"{garbage}, 192.0.2.7") == ("192.0.2.7", 0)


def test_mapped_peers() -> None:
    """The peer of a dual-stack listener is trusted by its IPv4 address."""
    assert resolve("10.0.0.0/8", "192.0.2.7", peer=("::ffff:10.0.0.1", 5000)) == ("192.0.2.7", 0)
    for mapped in ("::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "::ffff:0:0/96"):
        for peer in (PEER, ("::ffff:10.0.0.1", 5000)):
            assert resolve(mapped, "::ffff:192.0.2.7, 10.0.0.1", peer=peer) == ("192.0.2.7", 0)


@pytest.mark.parametrize(
    ("trusted", "believed"), [("unix:", True), ("*", True), ("", False), ("127.0.0.1, ::1", False)]
)
def test_unix_sockets(trusted: str, believed: bool) -> None:
    """The peer of a Unix socket is believed if `unix:` or `*` says so; it has no address of its own."""
    proxies = trusting(trusted)
    assert proxies.trusts(UNIX_PEER) is believed
    assert resolve(trusted, "192.0.2.7", peer=UNIX_PEER) == (("192.0.2.7", 0) if believed else None)
    assert resolve(trusted, peer=UNIX_PEER) is None


def test_link_local_peers() -> None:
    """A peer's zone doesn't count when its address is compared."""
    assert resolve("fe80::/10", "192.0.2.7", peer=("fe80::1%eth0", 5000)) == ("192.0.2.7", 0)


def test_a_peer_that_is_not_known() -> None:
    """A peer whose address the kernel no longer knows is believed by no rule."""
    assert resolve("*", "192.0.2.7", peer=None) is None


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        ([b"https"], "https"),
        ([b"http"], "http"),
        ([b" HTTPS "], "https"),
        ([b"wss"], "https"),
        ([b"ws"], "http"),
        ([b"https", b"http"], "http"),
        ([b"https, http"], "http"),
        ([b"https,javascript"], None),
        ([b"gopher"], None),
        ([b""], None),
        ([], None),
    ],
)
def test_the_scheme(values: list[bytes], scheme: str | None) -> None:
    """The nearest proxy's word counts, if it is a scheme of HTTP or of websockets; only trusted proxies are believed."""
    headers = [(b"x-forwarded-proto", value) for value in values]
    assert trusting("10.0.0.1").resolve(PEER, headers) == (PEER, scheme)
    assert trusting("10.0.0.2").resolve(PEER, headers) == (PEER, None)


def test_the_scheme_of_websockets() -> None:
    """A websocket's scheme is ws or wss."""
    assert (websocket_scheme("http"), websocket_scheme("https")) == ("ws", "wss")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("localhost", "does not appear to be"),
        ("10.0.0.0/33", "'10.0.0.0/33' does not appear to be"),
        ("10.0.0.1/8", "has host bits set"),
        ("2001:db8::/129", "does not appear to be"),
        ("unix:/run/x", "write `unix:`"),
        ("1.2.3", "does not appear to be"),
        ("**", "does not appear to be"),
        ("10.0.0.0/x", "does not appear to be"),
    ],
)
def test_bad_items(bad: str, reason: str) -> None:
    """The message names the item that can't be understood, what is wrong with it, and what is allowed."""
    with pytest.raises(ValueError, match="expected addresses and networks such as") as error:
        PROXIES.parse(f"127.0.0.1, {bad} ,::1")
    assert bad in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("", ""),
        (" , ", ""),
        ([], ""),
        ("10.0.0.1 , unix:,*", "10.0.0.1,unix:,*"),
        (["10.0.0.0/8", "::1"], "10.0.0.0/8,::1"),
    ],
)
def test_values(raw: object, value: str) -> None:
    """A list is as good as a text; nothing in it means that no peer is trusted."""
    assert PROXIES.parse(raw) == value


def test_long_lists_are_bounded() -> None:
    """Only the last entries of an endless list are examined."""
    assert resolve("*", ", ".join(["192.0.2.7", *["10.0.0.9"] * MAX_FORWARDED_HOPS])) == ("10.0.0.9", 0)
    assert resolve("*", ", ".join(["192.0.2.7", *["10.0.0.9"] * (MAX_FORWARDED_HOPS - 1)])) == ("192.0.2.7", 0)


addresses = st.ip_addresses()
proxies = st.integers(0, 2**24 - 1).map(lambda low: str(ipaddress.ip_address((10 << 24) + low)))
ports = st.integers(0, 0xFFFF)


def written(ip: ipaddress.IPv4Address | ipaddress.IPv6Address | str, port: int) -> str:
    """Draw an address as proxies write it."""
    host = str(ip)
    return (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")


@given(
    st.text("0123456789abcdef.:,[] unkow\t", max_size=60),
    st.ip_addresses(v=4).filter(lambda ip: ip not in ipaddress.ip_network("10.0.0.0/8")),
    ports,
    st.lists(st.tuples(proxies, ports), max_size=5),
    st.data(),
)
def test_what_a_client_sends_changes_nothing(
    sent: str, client: ipaddress.IPv4Address, port: int, chain: list[tuple[str, int]], data: st.DataObject
) -> None:
    """A client can put anything into the header: its own address is found behind any chain of trusted proxies."""
    entries = [sent, written(client, port), *(written(*hop) for hop in chain)]
    cut = data.draw(st.integers(0, len(entries)))
    lines = [", ".join(part) for part in (entries[:cut], entries[cut:]) if part]
    assert resolve("10.0.0.0/8", *lines) == (str(client), port)


@given(st.binary(max_size=80), st.binary(max_size=20))
def test_any_bytes(forwarded: bytes, scheme: bytes) -> None:
    """Any bytes give an address and a scheme, never an error."""
    headers = [(b"x-forwarded-for", forwarded), (b"x-forwarded-proto", scheme)]
    client, told = trusting("*").resolve(PEER, headers)
    assert client is not None
    ipaddress.ip_address(client[0])
    assert 0 <= client[1] <= 0xFFFF
    assert told in (None, "http", "https")


@given(addresses, ports)
def test_addresses_of_all_kinds(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    """An address is found as written, with or without its port."""
    client = resolve("10.0.0.1", written(ip, port))
    assert client is not None
    mapped = getattr(ip, "ipv4_mapped", None)
    assert client == (str(mapped or ip), port)
