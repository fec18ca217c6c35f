"""Requests at the edges of HTTP/1.1 as bytes, each with the answers that are expected of us (RFC 9110, RFC 9112).

A case is sent over one connection, with a last request (`LAST`) behind it that ends the connection. Where a server takes the
end of a message differently than meant, that shows up as an answer too many, or too few.

An answer is a status, and for 200 what the app was asked ("200 POST /a 5 hello"). An error that doesn't announce the end of the
connection is named "400 and no close". At the end, `cut` means that the connection
ended in the middle of an answer, `reset` that it was reset, and `waits` that the server says nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass

LAST = b"GET /last HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
"""Is sent behind each case, unless the client ends its side instead."""
THEN = "200 GET /last 0 "


@dataclass(frozen=True)
class Case:
    """One conversation.

    Attributes:
        segments: what is sent, each after a moment in which the one before can be read.
        answers: that are expected of us.
        half_close: the client ends its side instead of sending `LAST`.
    """

    name: str
    segments: tuple[bytes, ...]
    answers: tuple[str, ...]
    half_close: bool = False

    @property
    def data(self) -> bytes:
        """All bytes."""
        return b"".join(self.segments) + (b"" if self.half_close else LAST)


def head(line: str, *headers: str, host: str | None = "test") -> bytes:
    """The head of a request."""
    fields = ([] if host is None else [f"Host: {host}"]) + list(headers)
    return "\r\n".join([f"{line} HTTP/1.1", *fields, "", ""]).encode("latin-1")


def get(*headers: str) -> bytes:
    return head("GET /a", *headers)


def post(*headers: str, body: bytes = b"hello") -> bytes:
    return head("POST /a", *headers) + body


def chunks(body: bytes, *headers: str) -> bytes:
    return post("Transfer-Encoding: chunked", *headers, body=body)


def fine(name: str, data: bytes | tuple[bytes, ...], *answers: str) -> Case:
    """A case after which the connection goes on."""
    return Case(name, data if isinstance(data, tuple) else (data,), (*answers, THEN))


def refused(name: str, data: bytes, status: int = 400) -> Case:
    """A case that is answered with an error, and ends the connection."""
    return Case(name, (data,), (str(status),))


def over(name: str, data: bytes | tuple[bytes, ...], *answers: str) -> Case:
    """A case that ends the connection with its last answer."""
    return Case(name, data if isinstance(data, tuple) else (data,), answers)


def closed(name: str, data: bytes | tuple[bytes, ...], *answers: str) -> Case:
    """A case in which the client ends its side."""
    return Case(name, data if isinstance(data, tuple) else (data,), answers, half_close=True)


GET, POST = "200 GET /a 0 ", "200 POST /a 5 hello"
EMPTY = "200 POST /a 0 "
SMUGGLED = f"200 POST /a {len(LAST)} {LAST[:40].decode()}"
CL = "Content-Length: 5"
TE = "Transfer-Encoding: chunked"
HELLO = b"5\r\nhello\r\n"
END = b"0\r\n\r\n"

LENGTHS = [
    fine("a length", post(CL), POST),
    fine("no body", post(body=b""), EMPTY),
    fine("a length of 0", post("Content-Length: 0", body=b""), EMPTY),
    fine("leading zeros", post("Content-Length: 0000005"), POST),
    fine("spaces around a length", post("Content-Length: \t 5 \t "), POST),
    fine("the body of a GET", get(CL) + b"hello", "200 GET /a 5 hello"),
    fine("the body of an OPTIONS", head("OPTIONS /a", CL) + b"hello", "200 OPTIONS /a 5 hello"),
    refused("two lengths", post(CL, "Content-Length: 6")),
    refused("the same length twice", post(CL, CL)),
    refused("lengths in a list", post("Content-Length: 5, 5")),
    refused("a length with a sign", post("Content-Length: +5")),
    refused("a negative length", post("Content-Length: -5")),
    refused("a hexadecimal length", post("Content-Length: 0x5")),
    refused("a length with a space", post("Content-Length: 5 5")),
    refused("a length with an underscore", post("Content-Length: 1_0")),
    refused("a fractional length", post("Content-Length: 5.0")),
    refused("a length with a letter", post("Content-Length: 5a")),
    refused("an empty length", post("Content-Length:", body=b"")),
    refused("a length above 64 bits", post("Content-Length: 18446744073709551621")),
    refused("a length of many digits", post("Content-Length: " + "9" * 300)),
]
CODINGS = [
    fine("chunks", chunks(HELLO + END), POST),
    fine("two chunks", chunks(b"2\r\nhe\r\n3\r\nllo\r\n" + END), POST),
    fine("no chunks", chunks(END), EMPTY),
    fine("a coding in capitals", post("TRANSFER-ENCODING: CHUNKED", body=HELLO + END), POST),
    fine("spaces around a coding", post("Transfer-Encoding: \t chunked  ", body=HELLO + END), POST),
    refused("a tab behind a coding", post("Transfer-Encoding: chunked\t", body=HELLO + END)),  # llhttp refuses it
    fine("the chunks of a GET", get(TE) + HELLO + END, "200 GET /a 5 hello"),
    refused("a length and chunks", post("Content-Length: 4", TE, body=END)),
    refused("chunks and a length", post(TE, "Content-Length: 4", body=END)),
    refused("chunks and a length of 0", post(TE, "Content-Length: 0", body=END)),
    refused("chunked twice", post("Transfer-Encoding: chunked, chunked", body=END)),
    refused("two codings in two lines", post(TE, TE, body=END)),
    refused("chunked isn't last", post("Transfer-Encoding: chunked, gzip", body=END)),
    refused("identity", post("Transfer-Encoding: identity", CL)),
    refused("identity alone", post("Transfer-Encoding: identity")),
    refused("an unknown coding", post("Transfer-Encoding: xchunked", body=END)),
    refused("chunked and more", post("Transfer-Encoding: chunkedx", body=END)),
    refused("chunked with a parameter", post("Transfer-Encoding: chunked;q=1", body=END)),
    refused("chunked in quotes", post('Transfer-Encoding: "chunked"', body=END)),
    refused("a vertical tab before chunked", post("Transfer-Encoding: \x0bchunked", body=END)),
    refused("an empty coding", post("Transfer-Encoding:", body=b"")),
    refused("an empty coding and a length", post("Transfer-Encoding:", CL)),
    refused("another coding before chunked", post("Transfer-Encoding: gzip, chunked", body=END), 501),
    refused("chunks over HTTP/1.0", b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO + END),
    refused(
        "chunks and a length over HTTP/1.0", b"POST /a HTTP/1.0\r\n" + f"{TE}\r\n{CL}\r\n\r\n".encode() + HELLO + END
    ),
]
CHUNKS = [
    fine("a size in capitals", chunks(b"0A\r\n0123456789\r\n" + END), "200 POST /a 10 0123456789"),
    fine("zeros before a size", chunks(b"0005\r\nhello\r\n000\r\n\r\n"), POST),
    fine("an extension", chunks(b"5;a=b\r\nhello\r\n0;c\r\n\r\n"), POST),
    fine("an extension in quotes", chunks(b'5;a="b c;d"\r\nhello\r\n' + END), POST),
    fine("a trailer", chunks(HELLO + b"0\r\nX-Trailer: 1\r\n\r\n"), POST),
    fine("a trailer that poses as Host", chunks(HELLO + b"0\r\nX-Length: 5\r\nHost: other\r\n\r\n"), POST),
    refused("a size with 0x", chunks(b"0x5\r\nhello\r\n" + END)),
    refused("a size with a sign", chunks(b"+5\r\nhello\r\n" + END)),
    refused("a negative size", chunks(b"-5\r\nhello\r\n" + END)),
    refused("a size with an underscore", chunks(b"1_0\r\nhello\r\n" + END)),
    refused("no size", chunks(b"\r\nhello\r\n" + END)),
    refused("no size but an extension", chunks(b";a\r\nhello\r\n" + END)),
    refused("a space before a size", chunks(b" 5\r\nhello\r\n" + END)),
    refused("a space behind a size", chunks(b"5 \r\nhello\r\n" + END)),
    refused("a size above 64 bits", chunks(b"10000000000000005\r\nhello\r\n" + END)),
    refused("a size that ends in LF", chunks(b"5\nhello\r\n" + END)),
    refused("a size that ends in CR", chunks(b"5\rhello\r\n" + END)),
    refused("a chunk that ends in LF", chunks(b"5\r\nhello\n" + END)),
    refused("a chunk without an end", chunks(b"5\r\nhello" + END)),
    refused("a chunk that is longer", chunks(b"5\r\nhello!\r\n" + END)),
    refused("a chunk that ends in other bytes", chunks(b"5\r\nhelloXX" + END)),
    refused("an extension that ends in LF", chunks(b"5;\nhello\r\n" + END)),
    refused("an extension with a CR", chunks(b"5;a\rb\r\nhello\r\n" + END)),
    refused("a last chunk that ends in LF", chunks(HELLO + b"0\n\r\n")),
    refused("trailers that end in LF", chunks(HELLO + b"0\r\n\n")),
    refused("a trailer that is folded", chunks(HELLO + b"0\r\nX: 1\r\n 2\r\n\r\n")),
    refused("a trailer without a name", chunks(HELLO + b"0\r\n: 1\r\n\r\n")),
    refused("a trailer without a colon", chunks(HELLO + b"0\r\nX\r\n\r\n")),
    refused("a trailer that is a length", chunks(HELLO + b"0\r\nContent-Length: 5\r\n\r\n")),
    refused("long extensions", chunks(b"1;" + b"x" * 200_000 + b"\r\na\r\n" + END)),
    fine("extensions of small chunks", chunks((b"1;" + b"x" * 50_000 + b"\r\na\r\n") * 3 + END), "200 POST /a 3 aaa"),
    refused("many trailers", chunks(HELLO + b"0\r\n" + b"X: y\r\n" * 50_000 + b"\r\n")),
]
FIELDS = [
    fine("an empty value", get("X:"), GET),
    fine("bytes above 127 in a value", get("X: \xfc"), GET),
    fine("all characters of a name", get("!#$%&'*+-.^_`|~0aZ: x"), GET),
    fine("a tab in a value", get("X: a\tb"), GET),
    refused("a folded value", get("X: a\r\n b")),
    refused("a folded length", post("Content-Length:\r\n 5")),
    refused("a folded coding", post("Transfer-Encoding:\r\n chunked", body=END)),
    refused("a first line that is folded", b"GET /a HTTP/1.1\r\n X: a\r\nHost: test\r\n\r\n"),
    refused("a space before the colon", get("X : a")),
    refused("a space before the colon of a length", post("Content-Length : 5")),
    refused("a tab before the colon", get("X\t: a")),
    refused("a space in a name", get("X Y: a")),
    refused("no name", get(": a")),
    refused("no colon", get("X")),
    refused("a parenthesis in a name", get("X(: a")),
    refused("a byte above 127 in a name", get("X\xfc: a")),
    refused("a NUL in a name", get("X\0: a")),
    refused("a NUL in a value", get("X: a\0b")),
    refused("a control character in a value", get("X: a\x01b")),
    refused("a DEL in a value", get("X: a\x7fb")),
    refused("a CR in a value", get("X: a\rb")),
    refused("a CR before the line's end", get("X: a\r")),
    refused("a CR in front of a name", get("\rX: a")),
    refused("a line that ends in LF", b"GET /a HTTP/1.1\r\nHost: test\nX: a\r\n\r\n"),
    refused("a line that ends in CR", b"GET /a HTTP/1.1\r\nHost: test\rX: a\r\n\r\n"),
    refused("a first line that ends in LF", b"GET /a HTTP/1.1\nHost: test\r\n\r\n"),
    refused("a head that ends in LF", b"GET /a HTTP/1.1\r\nHost: test\r\n\n"),
    refused("only LF", b"GET /a HTTP/1.1\nHost: test\n\n"),
    refused("many fields", get(*["X: a"] * 1000), 431),
    refused("a long field", get("X: " + "a" * 200_000), 431),
    refused("a long name", get("X" * 200_000 + ": a"), 431),
]
LINES = [
    fine("an empty line before", b"\r\n" + get(), GET),
    fine("empty lines before", b"\r\n\r\n" + get(), GET),
    fine("a query", head("GET /a?b=c"), "200 GET /a?b=c 0 "),
    fine("an escaped path", head("GET /a%20b"), "200 GET /a b 0 "),
    fine("two slashes", head("GET //a/b"), "200 GET //a/b 0 "),
    fine("dots", head("GET /a/../b"), "200 GET /a/../b 0 "),
    fine("an absolute target", head("GET http://test/a?b"), "200 GET /a?b 0 "),
    fine("an absolute target of another host", head("GET http://other:81/a"), GET),
    fine("an absolute target without a path", head("GET http://test"), "200 GET / 0 "),
    fine("OPTIONS *", head("OPTIONS *"), "200 OPTIONS * 0 "),
    fine("a method of WebDAV", head("PROPFIND /a"), "200 PROPFIND /a 0 "),
    refused("GET *", head("GET *")),
    refused("CONNECT", head("CONNECT test:443"), 501),
    refused("a target without a slash", head("GET a")),
    refused("no target", b"GET  HTTP/1.1\r\nHost: test\r\n\r\n"),
    refused("no version", b"GET /a\r\nHost: test\r\n\r\n", 505),
    refused("HTTP/0.9", b"GET /a\r\n\r\n", 505),
    fine("two spaces", b"GET  /a HTTP/1.1\r\nHost: test\r\n\r\n", GET),  # a server may take them (RFC 9112, 3)
    refused("a tab", b"GET\t/a\tHTTP/1.1\r\nHost: test\r\n\r\n"),
    # The parser stops at the first byte that no method has, so these can't be told from unknown methods.
    refused("a space before", b" GET /a HTTP/1.1\r\nHost: test\r\n\r\n", 501),
    refused("a TLS client", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 501),
    refused("a method that is no token", head("G{T /a"), 501),
    refused("a space behind", b"GET /a HTTP/1.1 \r\nHost: test\r\n\r\n"),
    refused("a space in the target", head("GET /a b")),
    refused("a NUL in the target", head("GET /a\0b")),
    refused("a CR in the target", head("GET /a\rb")),
    refused("a byte above 127 in the target", head("GET /\xfc")),
    refused("a small method", head("get /a"), 501),
    refused("an unknown method", head("FOO /a"), 501),
    refused("a long method", head("A" * 100_000 + " /a"), 501),
    refused("HTTP/1.2", b"GET /a HTTP/1.2\r\nHost: test\r\n\r\n", 505),
    refused("HTTP/2.0", b"GET /a HTTP/2.0\r\nHost: test\r\n\r\n", 505),
    refused("HTTP/3.7", b"GET /a HTTP/3.7\r\nHost: test\r\n\r\n", 505),
    refused("HTTP/11", b"GET /a HTTP/11\r\nHost: test\r\n\r\n"),
    refused("HTTP/1.", b"GET /a HTTP/1.\r\nHost: test\r\n\r\n"),
    refused("HTTP/1.1x", b"GET /a HTTP/1.1x\r\nHost: test\r\n\r\n"),
    refused("small http", b"GET /a http/1.1\r\nHost: test\r\n\r\n"),
    fine("GET over RTSP", b"GET /a RTSP/1.1\r\nHost: test\r\n\r\n", GET),  # llhttp doesn't tell it from HTTP
    refused("a word that is no protocol", b"GET /a ABCD/1.1\r\nHost: test\r\n\r\n"),
    refused("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused("a long target", head("GET /" + "a" * 100_000), 414),
]
HOSTS = [
    fine("an empty host", head("GET /a", host=""), GET),
    fine("a host with a port", head("GET /a", host="test:80"), GET),
    fine("an IPv6 host", head("GET /a", host="[::1]:80"), GET),
    refused("no host", head("GET /a", host=None)),
    refused("two hosts", get("Host: other")),
    refused("the same host twice", get("Host: test")),
    refused("hosts in one line", head("GET /a", host="a, b")),
    refused("a host with a slash", head("GET /a", host="a/b")),
    refused("a host with a space", head("GET /a", host="a b")),
    refused("a host with a user", head("GET /a", host="a@b")),
]
ENDINGS = [
    over("Connection: close", get("Connection: close"), GET),
    over("Connection: Close", get("Connection: Close"), GET),
    over("close in a list", get("Connection: keep-alive, close"), GET),
    over("close in a second line", get("Connection: x", "Connection: close"), GET),
    fine("keep-alive", get("Connection: keep-alive"), GET),
    over("HTTP/1.0", b"GET /a HTTP/1.0\r\n\r\n", GET),
    over("HTTP/1.0 with a body", b"POST /a HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello", POST),
    fine("HTTP/1.0, kept alive", b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", GET),
    fine("three in a row", get() + post(CL) + chunks(HELLO + END), GET, POST, POST),
    fine("in two segments", (post(CL)[:-3], b"llo"), POST),
    fine("a body and more in a segment", (post(CL, body=b""), b"hello" + get()), POST, GET),
    closed("the client ends its side", get(), GET),
    closed("it ends its side after a body", post(CL), POST),
    closed("it ends its side after three", get() + post(CL) + get(), GET, POST, GET),
    closed("it ends its side, HTTP/1.0", b"GET /a HTTP/1.0\r\n\r\n", GET),
    closed("it ends its side in a body", post("Content-Length: 10"), "400"),
    closed("it ends its side in chunks", chunks(HELLO), "400"),
    closed("it ends its side in a head", b"GET /a HTTP/1.1\r\nHost: te", "400"),
    closed("it ends its side without a word", b""),
    closed("it ends its side after an empty line", b"\r\n"),
]
EXPECTATIONS = [
    fine("a body that doesn't wait", post(CL, "Expect: 100-continue"), POST),
    fine("a body that waits", (post(CL, "Expect: 100-continue", body=b""), b"hello"), "100", POST),
    fine("chunks that wait", (chunks(b"", "Expect: 100-Continue"), HELLO + END), "100", POST),
    refused("another expectation", post(CL, "Expect: tea"), 417),
    refused("two expectations", post(CL, "Expect: 100-continue, tea"), 417),
    over(
        "an expectation of HTTP/1.0",
        b"POST /a HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        POST,
    ),
]
_UPGRADES = {
    "h2c": ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
    "an unknown protocol": ("Connection: upgrade", "Upgrade: foo/2"),
    "websocket and another": ("Connection: upgrade", "Upgrade: h2c, websocket"),
    "TLS": ("Connection: Upgrade", "Upgrade: TLS/1.0"),
}
UPGRADES = [
    *(
        case
        for name, more in _UPGRADES.items()
        for case in (
            fine(f"{name}, no body", get(*more), GET),
            fine(f"{name}, a length", post(CL, *more), POST),
            fine(f"{name}, chunks", chunks(HELLO + END, *more), POST),
            fine(f"{name}, a body in a second segment", (post(CL, *more, body=b""), b"hello"), POST),
            fine(f"{name}, chunks in more segments", (chunks(b"5\r\nhe", *more), b"llo\r\n", END), POST),
            fine(
                f"{name}, one behind the other",
                post(CL, *more) + chunks(HELLO + END, *more) + get(*more),
                POST,
                POST,
                GET,
            ),
            fine(f"{name}, behind others", get() + post(CL, *more) + get(), GET, POST, GET),
            fine(
                f"{name}, another request as the body", post(f"Content-Length: {len(LAST)}", *more, body=LAST), SMUGGLED
            ),
            refused(f"{name}, a length and chunks", post(CL, TE, *more)),
            refused(f"{name}, two lengths", post(CL, CL, *more)),
            closed(f"{name}, the client ends its side", post(CL, *more), POST),
        )
    ),
    fine("an upgrade without Connection", post(CL, "Upgrade: h2c"), POST),
    fine("Connection: upgrade without Upgrade", post(CL, "Connection: upgrade"), POST),
    over("an upgrade and close", post(CL, "Connection: upgrade, close", "Upgrade: h2c"), POST),
    over(
        "an upgrade of HTTP/1.0",
        b"POST /a HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
        POST,
    ),
    over(
        "an upgrade to websocket of HTTP/1.0",
        b"GET /a HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        GET,
    ),
]
GROUPS = {
    "lengths": LENGTHS,
    "codings": CODINGS,
    "chunks": CHUNKS,
    "fields": FIELDS,
    "lines": LINES,
    "hosts": HOSTS,
    "endings": ENDINGS,
    "expectations": EXPECTATIONS,
    "upgrades": UPGRADES,
}
CASES = {f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases}
