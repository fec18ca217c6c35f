"""Check the parts of a request's head and take them apart. Pure.

Most clients send the same targets, hosts and methods again and again, so the results for these are cached. The caches are
bounded, since clients can invent any number of values.
"""

from __future__ import annotations

import re
from typing import cast
from urllib.parse import unquote

import httptools

Header = tuple[bytes, bytes]
Target = tuple[str, bytes, bytes]
"""Decoded path, path and query of a request's target."""

# Headers that mean something to the connection, counted in one number while a head is parsed: 12 bits for each. Nearly every head
# has exactly one Host and no other of these, so one comparison shows that there is nothing to do.
HOST_HEADER, _TRANSFER_ENCODING_HEADER, _EXPECT_HEADER, _UPGRADE_HEADER, FORWARDED_HEADER = (
    1 << 12 * position for position in range(5)
)
SPECIAL_HEADERS = {
    b"host": HOST_HEADER,
    b"transfer-encoding": _TRANSFER_ENCODING_HEADER,
    b"expect": _EXPECT_HEADER,
    b"upgrade": _UPGRADE_HEADER,
    b"x-forwarded-for": FORWARDED_HEADER,
    b"x-forwarded-proto": FORWARDED_HEADER,
}

VALID_HOSTS_CACHE: set[bytes] = set()
METHOD_CACHE: dict[bytes, str] = {}
TARGET_CACHE: dict[bytes, Target] = {}
"""The caches. A caller that looks here first saves a call of the functions below."""
_MAX_HOSTS = 1024
_MAX_TARGETS = 1024
_MAX_KEPT_TARGET_BYTES = 128
"""The longest target that is cached: a longer one isn't likely to come again."""
_HOST_VALUE = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.v]+\])(?::[0-9]*)?")


class Refused(Exception):
    """The head is wrong.

    Attributes:
        status, text: the status and the body of the error response.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def is_valid_host(value: bytes) -> bool:
    """Return whether a Host header's value is one (RFC 9112, 3.2; RFC 3986, 3.2.2)."""
    valid = _HOST_VALUE.fullmatch(value) is not None
    if valid and len(VALID_HOSTS_CACHE) < _MAX_HOSTS:
        VALID_HOSTS_CACHE.add(value)
    return valid


def method_name(method: bytes) -> str:
    """Return a method's name as text. Raises Refused.

    CONNECT is refused whatever its target: the parser takes the bytes behind it for another protocol.
    """
    if method == b"CONNECT":
        raise Refused(501, "CONNECT isn't supported")
    METHOD_CACHE[method] = name = method.decode("ascii")  # llhttp knows some forty
    return name


def split_target(target: bytes, method: bytes) -> tuple[Target, bytes | None]:
    """Return the parts of a target, and the authority in it (None: it has none). Raises Refused."""
    raw, _, query = target.partition(b"?")
    authority = None
    usual = raw[:1] == b"/" and b"#" not in target
    if not usual:
        raw, query, authority = _split_unusual(target, method)
    path = raw.decode("ascii")
    parts = unquote(path) if "%" in path else path, raw, query
    if usual and len(target) <= _MAX_KEPT_TARGET_BYTES:
        if len(TARGET_CACHE) >= _MAX_TARGETS:
            TARGET_CACHE.clear()
        TARGET_CACHE[target] = parts
    return parts, authority


def _split_unusual(target: bytes, method: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Return path, query and authority of a target that isn't a plain path (RFC 9112, 3.2). Raises Refused."""
    if target == b"*" and method == b"OPTIONS":
        return target, b"", None
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise Refused(400, "the target is invalid") from None
    authority = None
    if target[:1] != b"/":
        host = cast(bytes | None, url.host)
        if not host:
            raise Refused(400, "the target is invalid")
        authority = b"[%b]" % host if b":" in host else host
        if url.port is not None:
            authority = b"%b:%d" % (authority, url.port)
    return url.path or b"/", url.query or b"", authority
