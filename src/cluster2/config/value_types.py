"""Addresses, and the kinds of values that options may have.

A kind reads a value from a text (of a flag, a variable, a file) or from a native one, says what is allowed, and shows a value
as the text that would be read as that value. Which option is of which kind stands in `settings`.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from urllib.parse import quote, unquote

Read = Callable[[object], Any]
_ANY_HOST = "0.0.0.0"
"""The host of an address without one, such as `:8000`: all IPv4 addresses of this machine."""

# Addresses


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name, IPv4 or IPv6 address without brackets) and a port; port 0 lets the kernel pick one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class FdAddress:
    """A listening socket of the parent process, by its descriptor."""

    fd: int

    def __str__(self) -> str:
        return f"fd://{self.fd}"


Address = TcpAddress | UnixAddress | FdAddress


def parse_address(text: str) -> Address:
    """Parse an address: `host:port`, `:port`, `[::]:port`, `unix:path` or `fd://3`. The inverse of `str`.

    Raises:
        ValueError: the text is none of these.
    """
    if text.startswith("unix:") and len(text) > 5 and "\0" not in text:
        return UnixAddress(text[5:])
    if match := re.fullmatch(r"fd://([0-9]{1,9})", text):
        return FdAddress(int(match[1]))
    if match := re.fullmatch(r"(?:\[([^][]+)]|([^][:/\s]*)):([0-9]{1,5})", text):
        port = int(match[3])
        if port <= 65535 and (match[1] is None or _is_ipv6(match[1])):
            return TcpAddress(match[1] or match[2] or _ANY_HOST, port)
    raise ValueError(f"expected {ADDRESS.describe}")


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


# Kinds of values


class _HintError(ValueError):
    """A value is invalid, for a reason that the list of allowed values doesn't show."""


@dataclass(frozen=True, slots=True)
class ValueType:
    """A kind of option values.

    Attributes:
        label: one word for a column, or for a flag's argument.
        describe: the allowed values, to follow "expected".
        read: converts a text or a native value; raises ValueError or TypeError.
        show: converts a value to the text from which `read` makes it.
        annotation: the type of keywords, for type checkers (`keywords`).
    """

    label: str
    describe: str
    read: Read
    show: Callable[[Any], str] = str
    annotation: str = "str"

    def parse(self, raw: object) -> Any:
        """Convert a raw value: a text of a flag or of the environment, or a native value.

        Raises:
            ValueError: the value is invalid; the text has the values that are allowed.
        """
        try:
            return self.read(raw)
        except _HintError as error:
            raise ValueError(f"{error}; expected {self.describe}") from None
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"expected {self.describe}") from None


def _flag(raw: object) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.strip().lower() in words:
        return words[raw.strip().lower()]
    raise ValueError


def _whole(raw: object, least: int = 0, most: float = math.inf, base: int = 10) -> int:
    if isinstance(raw, str) and re.fullmatch(r"[0-9a-z]+", raw.strip().lower()):
        raw = int(raw.strip(), base)
    if not isinstance(raw, int) or isinstance(raw, bool) or not least <= raw <= most:
        raise ValueError
    return raw


_FOREVER = 1e9
"""Seconds, 31 years. Timers of the kernel overflow not far above."""

_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}


def _duration(raw: object) -> float:
    if isinstance(raw, str):
        match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z]*)", raw.strip().lower())
        if match is None:
            raise ValueError
        if match[2] not in _SECONDS and match[2]:
            raise _HintError(f"unknown unit {match[2]!r}")
        # In decimal arithmetic until the last step, so that 5ms is the float 0.005 exactly.
        raw = float(Decimal(match[1]) * _SECONDS[match[2] or "s"])
    # bool is an int in Python, and NaN fails the comparison.
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw <= _FOREVER:
        raise ValueError
    return float(raw)


def _positive(raw: object) -> float:
    if not (seconds := _duration(raw)):
        raise ValueError
    return seconds


def _show_duration(seconds: float) -> str:
    exact = Decimal(repr(seconds))
    for unit, scale, least in (("h", 3600, 3600), ("m", 60, 61), ("s", 1, 0)):  # 60s reads better than 1m
        if exact >= least and exact % scale == 0:
            return f"{exact / scale:.0f}{unit}"
    return f"{exact * 1000:.0f}ms" if exact * 1000 % 1 == 0 else f"{exact:f}s"


_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def _size(raw: object) -> int:
    if isinstance(raw, str):
        match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z]*)", raw.strip().lower())
        if match is None:
            raise ValueError
        number = Decimal(match[1])
        if match[2] not in _BYTES and (match[2] or number):  # 0 needs no unit
            raise _HintError(f"unknown unit {match[2]!r}" if match[2] else "unit missing")
        raw = int(number * _BYTES.get(match[2], 1))
    return _whole(raw)


def _ratio(raw: object) -> float:
    number = float(raw) if isinstance(raw, str) else raw
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise ValueError
    return float(number)


def _text(raw: object) -> str:
    if not isinstance(raw, str) or "\0" in raw:
        raise ValueError
    return raw


def _name(raw: object) -> str:
    if not _text(raw):
        raise ValueError
    return _text(raw)


def _path(raw: object) -> str:
    return _name(str(raw) if isinstance(raw, PurePath) else raw)


def _url_path(raw: object) -> str:
    path = _text(raw)
    if not re.fullmatch(r"/[!-~]*", path) or "#" in path:
        raise ValueError
    return path


def _token(raw: object) -> str:
    token = _text(raw)
    if not re.fullmatch(r"[!-~]{8,}", token):
        raise ValueError
    return token


def _bare_path(raw: object) -> str:
    path = _url_path(raw)
    if "?" in path or "%" in path:
        raise ValueError
    return path


def _ecv_path(raw: object) -> str:
    if _text(raw).strip().lower() in ("", "off"):
        return ""
    path = _bare_path(raw)
    if not path.strip("/"):
        raise _HintError("the app's own first page could never be served")
    return path


def _root_path(raw: object) -> str:
    """Return the decoded path with a slash before it and none after it; "" for the root itself."""
    text = _text(raw).strip("/")
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise _HintError("two hexadecimal digits must follow each %")
    path = unquote(text, errors="strict")  # UnicodeDecodeError is a ValueError: not UTF-8
    if re.search(r"[\s?#]", text) or re.search(r"[\x00-\x1f\x7f]", path):
        raise ValueError
    # RFC 3986, 5.2.4: clients remove dot segments, so the app would never see such a path.
    if text and not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise _HintError("it has an empty segment, or one that clients resolve")
    return f"/{path}" if path else ""


def encoded_path(path: str) -> str:
    """Return a path in the form of a URL: special and non-ASCII characters are percent-encoded."""
    return quote(path, safe="/!$&'()*+,;=:@")


def _account(raw: object) -> str:
    return str(_whole(raw)) if isinstance(raw, int) else _name(raw)


def _host(raw: object) -> str:
    host = _text(raw).removeprefix("[").removesuffix("]")
    return str(_tcp(TcpAddress(host, 0)).host)


def _tcp(address: TcpAddress) -> TcpAddress:
    # A host with a slash or a space can't be written as host:port, so no text could show or set it.
    if parse_address(str(address)) != address:
        raise ValueError
    return address


def _address(raw: object) -> str:
    return str(parse_address(str(raw) if isinstance(raw, TcpAddress | UnixAddress | FdAddress) else _text(raw)))


def _reference(raw: object) -> Any:
    if callable(raw) or (isinstance(raw, str) and re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", raw)):
        return raw
    raise ValueError


def _items(raw: object) -> Sequence[object]:
    """Return the items of a list; a text is a list with commas, any other value is a list of one."""
    if isinstance(raw, str):
        return [item.strip() for item in raw.split(",") if item.strip()]
    return raw if isinstance(raw, list | tuple) else [raw]


def _ports(raw: object) -> int | tuple[int, ...]:
    ports = tuple(PORT.read(item) for item in _items(raw))
    if not ports:
        raise ValueError
    return ports[0] if len(ports) == 1 else ports


def _place(raw: object) -> int | str:
    digits = isinstance(raw, str) and raw.isdecimal()
    return int(PORT.read(raw)) if digits or not isinstance(raw, str) else _address(raw)


def _apps(raw: object) -> Any:
    if not isinstance(raw, list | tuple):
        raise ValueError
    return tuple((target, tuple(_place(place) for place in _items(places))) for target, places in raw)


# Trusted proxies

_IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Proxies:
    """Peers whose `X-Forwarded-*` headers are trusted.

    Attributes:
        networks: networks whose addresses are trusted. IPv4 addresses in IPv6 form count as IPv4 addresses.
        all_peers: all peers are trusted.
        unix: peers of Unix sockets are trusted.
    """

    networks: tuple[_IpNetwork, ...]
    all_peers: bool
    unix: bool


def parse_proxies(text: str) -> Proxies:
    """Return the peers that a value of `forwarded_allow_ips` names; an empty text names none.

    Raises:
        ValueError: an item is neither an address, nor a network, nor `unix:`, nor `*`; the text names it.
    """
    items = _items(text)
    networks = tuple(_network(str(item)) for item in items if item not in ("*", "unix:"))
    return Proxies(networks, all_peers="*" in items, unix="*" in items or "unix:" in items)


def _network(item: str) -> _IpNetwork:
    """Return the network that an item names; for a single address, the network of that address only."""
    if item.startswith("unix:"):
        raise _HintError(f"{item!r} names one socket: write `unix:`, which stands for all Unix sockets")
    try:
        network = ipaddress.ip_network(item)
    except ValueError as error:
        raise _HintError(str(error) if repr(item) in str(error) else f"{item!r}: {error}") from None
    # Peers of a dual-stack listener are compared by their IPv4 address, so a mapped network must be an IPv4 network too.
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _proxies(raw: object) -> str:
    items = [_text(item) for item in _items(raw)]
    parse_proxies(text := ",".join(items))
    return text


def count(least: int = 0) -> ValueType:
    """Return the kind of whole numbers of at least `least`."""
    describe = f"a whole number of at least {least}"
    return ValueType("COUNT", describe, lambda raw: _whole(raw, least), annotation="int")


def choice(*values: str) -> ValueType:
    """Return the kind of these words."""

    def read(raw: object) -> str:
        return values[values.index(_text(raw).strip().lower())]

    literals = ", ".join(f'"{each}"' for each in values)
    return ValueType("|".join(values), f"one of {', '.join(values)}", read, annotation=f"Literal[{literals}]")


MAX_WORKERS = 450
"""The kernel allows 500 for a listener that all of them watch, successors of a reload included (`PollSwitch`)."""


def _auto(raw: object) -> int:
    return 0 if isinstance(raw, str) and raw.strip().lower() == "auto" else _whole(raw, 1, MAX_WORKERS)


def _joined(values: object) -> str:
    return ",".join(str(value) for value in _items(values))


FLAG = ValueType("FLAG", "true or false (also yes, no, on, off, 1, 0)", _flag, lambda value: str(value).lower(), "bool")
COUNT = count()
WORKERS = ValueType(
    "COUNT",
    f"a whole number from 1 to {MAX_WORKERS}, or auto",
    _auto,
    lambda value: str(value or "auto"),
    'int | Literal["auto"]',
)
PORT = ValueType("PORT", "a port from 0 to 65535", lambda raw: _whole(raw, 0, 65535), annotation="int")
PORTS = ValueType("PORT", "a port from 0 to 65535, or several", _ports, _joined, "int | Sequence[int]")
DURATION = ValueType(
    "DURATION", "a duration such as 30s, 5m, 24h or 250ms, or seconds", _duration, _show_duration, "float | str"
)
POSITIVE = ValueType(
    "DURATION",
    "a duration above zero such as 30s, 5m, 24h or 250ms, or seconds",
    _positive,
    _show_duration,
    "float | str",
)
SIZE = ValueType("SIZE", "a size such as 512MiB, 1GiB or 100MB", _size, lambda value: f"{value}B", "int | str")
RATIO = ValueType("RATIO", "a number from 0 to 1", _ratio, repr, "float")
TEXT = ValueType("TEXT", "a text", _text)
NAME = ValueType("NAME", "a name", _name)
PATH = ValueType("PATH", "a path", _path, annotation="str | PurePath")
URL_PATH = ValueType("/PATH", "a path such as /healthy, or /healthy?deep=1", _url_path)
BARE_PATH = ValueType("/PATH", "a path such as /ecv, without a query, and without %", _bare_path)
ECV_PATH = ValueType(
    "/PATH", "a path such as /ecv, without a query, and without %; or off", _ecv_path, lambda value: value or "off"
)
ROOT_PATH = ValueType(
    "/PATH", "a path such as /shop or /caf%C3%A9, with %20 for a space, and without a query", _root_path, encoded_path
)
TOKEN = ValueType("TOKEN", "8 or more printable ASCII characters without spaces", _token)
ACCOUNT = ValueType("NAME", "a name or a numeric id", _account, annotation="str | int")
UMASK = ValueType(
    "OCTAL",
    "an octal number from 0 to 777",
    lambda raw: _whole(raw, 0, 0o777, 8),
    lambda value: f"{value:04o}",
    "int | str",
)
HOST = ValueType("HOST", "a host name or an IP address", _host)
ADDRESS = ValueType("ADDRESS", "host:port, :port, [ipv6]:port, unix:path or fd://3", _address)
ADDRESSES = ValueType(
    "ADDRESS",
    ADDRESS.describe,
    lambda raw: tuple(_address(item) for item in _items(raw)),
    _joined,
    "str | Sequence[str]",
)
PROXIES = ValueType(
    "PROXIES",
    "addresses and networks such as 10.0.0.0/8, unix: for the peers of Unix sockets, or * for all, with commas; "
    "empty: none",
    _proxies,
)
REFERENCE = ValueType("REFERENCE", "module:function", _reference, annotation="str | Callable[..., Any]")
APPS = ValueType(
    "LIST",
    'a list of pairs such as ["module:attr", 3000], with a port, an address or several',
    _apps,
    annotation="Sequence[tuple[Any, int | str | Sequence[int | str]]]",
)


def is_loopback(host: str) -> bool:
    """Return whether a host is certain to be loopback. A name other than `localhost` may resolve to any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
