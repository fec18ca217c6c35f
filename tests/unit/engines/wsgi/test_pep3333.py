"""The rules of PEP 3333 for environ and response, without a server."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.config.value_types import encoded_path
from cluster2.engines.wsgi.pep3333 import (
    ClientGone,
    EnvironBuilder,
    FileWrapper,
    Response,
    WsgiViolation,
    body_length,
    body_of,
)


def environ_of(root_path: str = "", **changes: Any) -> dict[str, Any]:
    scope = {
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "headers": [(b"host", b"example.org")],
        "client": ("192.0.2.1", 4711),
        "server": ("192.0.2.2", 8000),
    }
    environs = EnvironBuilder(root_path=root_path, multithread=True, multiprocess=False)
    return environs.of_scope({**scope, **changes})


class Collected:
    """A response, and what it gave away."""

    def __init__(self, method: str = "GET") -> None:
        self.parts: list[bytes] = []
        self.response = Response(method, self.parts.append)


def started(*headers: tuple[str, str], status: str = "200 OK", method: str = "GET") -> Collected:
    found = Collected(method)
    found.response.start_response(status, list(headers))
    return found


def test_environ() -> None:
    """A plain request has all that the PEP requires, with the right flags."""
    environ = environ_of()
    said = {key: value for key, value in environ.items() if not key.startswith("wsgi.")}
    assert said == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "REQUEST_URI": "/",
        "RAW_URI": "/",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "cluster2",
        "SERVER_NAME": "192.0.2.2",
        "SERVER_PORT": "8000",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "4711",
        "HTTP_HOST": "example.org",
    }
    assert environ["wsgi.version"] == (1, 0)
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.errors"] is sys.stderr
    assert environ["wsgi.multithread"] is True
    assert environ["wsgi.multiprocess"] is False
    assert environ["wsgi.run_once"] is False
    assert environ["wsgi.input_terminated"] is True


def test_paths_are_bytes() -> None:
    """PATH_INFO has the path's bytes, percent-decoded, one character each, whatever encoding they are in."""
    environ = environ_of(path="/caf�/é/ü", raw_path=b"/caf%E9/%C3%A9/%c3%bc", query_string=b"q=%C3%A9")
    assert environ["PATH_INFO"].encode("latin-1") == b"/caf\xe9/\xc3\xa9/\xc3\xbc"
    assert environ["QUERY_STRING"] == "q=%C3%A9"
    assert environ["REQUEST_URI"] == environ["RAW_URI"] == "/caf%E9/%C3%A9/%c3%bc?q=%C3%A9"


@pytest.mark.parametrize("escaped", [False, True])
def test_root_path(escaped: bool) -> None:
    """The part of the path that `root_path` names is SCRIPT_NAME, and no part of PATH_INFO."""
    raw = b"/mount/a%20b" if escaped else b"/mount/ab"
    environ = environ_of("/mount", path="/mount/a b" if escaped else "/mount/ab", raw_path=raw)
    assert environ["SCRIPT_NAME"] == "/mount"
    assert environ["PATH_INFO"] == ("/a b" if escaped else "/ab")


@pytest.mark.parametrize("root", ["/mount", "/a b", "/café", "/100%"])
def test_any_root_path(root: str) -> None:
    """SCRIPT_NAME has the path's bytes as PATH_INFO has them, and PATH_INFO begins behind it."""
    for rest, raw in (("/x", b"/x"), ("/é", b"/%C3%A9")):
        environ = environ_of(root, path=root + rest, raw_path=encoded_path(root).encode() + raw)
        assert environ["SCRIPT_NAME"].encode("latin-1").decode() == root
        assert environ["PATH_INFO"].encode("latin-1").decode() == rest


def test_headers() -> None:
    """Headers come several times or with underscores; the latter could pose as others, and are dropped."""
    sent = [
        (b"host", b"h"),
        (b"x-forwarded-for", b"1"),
        (b"x_forwarded_for", b"2"),
        (b"x-forwarded-for", b"3"),
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
        (b"content-type", b"text/plain"),
        (b"content-length", b"3"),
        (b"x-text", b"\xe9"),
    ]
    environ = environ_of(headers=sent)
    assert environ["HTTP_X_FORWARDED_FOR"] == "1,3"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert (environ["CONTENT_TYPE"], environ["CONTENT_LENGTH"]) == ("text/plain", "3")
    assert environ["HTTP_X_TEXT"] == "é"
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & environ.keys()


def test_headers_are_remembered_up_to_a_bound() -> None:
    """A client that invents names of headers takes no memory for good."""
    environs = EnvironBuilder(root_path="", multithread=False, multiprocess=False)
    for number in range(2000):
        environs._key(b"x-%d" % number)
    assert len(environs._keys) <= 1000
    assert environs._key(b"x-1999") == "HTTP_X_1999"


@pytest.mark.parametrize(
    ("host", "scheme", "name", "port"),
    [
        (b"example.org", "http", "example.org", "80"),
        (b"example.org:81", "http", "example.org", "81"),
        (b"example.org", "https", "example.org", "443"),
        (b"", "http", "localhost", "80"),
        (b"[::1]:8000", "http", "[::1]", "8000"),
    ],
)
def test_unix_sockets_have_no_name(host: bytes, scheme: str, name: str, port: str) -> None:
    """Over a Unix socket the server is called as the client calls it, and REMOTE_ADDR is empty."""
    environ = environ_of(server=("/run/app.sock", None), client=None, scheme=scheme, headers=[(b"host", host)])
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"], environ["REMOTE_ADDR"]) == (name, port, "")
    assert environ.get("HTTPS") == ("on" if scheme == "https" else None)


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 0),
        ({"headers": [(b"content-length", b"0")]}, 0),
        ({"headers": [(b"content-length", b"17")]}, 17),
        ({"headers": [(b"transfer-encoding", b"chunked")]}, None),
        ({"http_version": "2"}, None),
    ],
)
def test_length_of_a_body(changes: dict[str, Any], length: int | None) -> None:
    """The head shows whether a request has a body; in HTTP/2 it may have one without saying so."""
    assert body_length(environ_of(**changes)) == length


def test_a_whole_body_gets_its_length() -> None:
    """A list of parts is joined, and its length declared."""
    found = started(("Content-Type", "text/plain"))
    assert found.response.whole([b"ab", b"", b"c"]) == b"abc"
    assert found.response.headers == [(b"content-type", b"text/plain"), (b"content-length", b"3")]


@pytest.mark.parametrize("parts", [[b"abcdef"], [b"ab", b"c"], []])
def test_a_whole_body_with_another_length(parts: list[bytes]) -> None:
    """A list that is longer or shorter than declared is refused as a whole."""
    with pytest.raises(WsgiViolation, match="(longer|shorter) than its Content-Length, 4"):
        started(("Content-Length", "4")).response.whole(parts)


def test_parts_up_to_the_length() -> None:
    """Parts are given away until the declared length is reached; one beyond it is refused and not given away."""
    found = started(("content-length", "5"))
    found.response.write(b"abc")
    assert not found.response.complete
    found.response.write(b"de")
    assert found.response.complete
    with pytest.raises(WsgiViolation, match="longer"):
        found.response.write(b"f")
    assert found.parts == [b"abc", b"de"]
    found.response.finish()


def test_parts_short_of_the_length() -> None:
    """An end before the declared length is refused."""
    found = started(("content-length", "5"))
    found.response.write(b"abc")
    with pytest.raises(WsgiViolation, match="shorter"):
        found.response.finish()


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")]
)
def test_answers_without_a_body(method: str, status: str) -> None:
    """HEAD, 204 and 304 have no body, whatever the app yields and declares; only a 204 has no length either (RFC 9110, 8.6)."""
    found = started(("Content-Length", "5"), ("ETag", "x"), status=status, method=method)
    found.response.write(b"ab")
    found.response.finish()
    assert found.parts == []
    assert found.response.whole([b"ab"]) == b""
    kept = [(b"content-length", b"5")] if not status.startswith("204") else []
    assert found.response.headers == [*kept, (b"etag", b"x")]


def test_no_body_after_a_second_start() -> None:
    """An error's response may have a body where the first one had none."""
    found = started(status="204 No Content")
    try:
        raise ValueError("late")
    except ValueError:
        found.response.start_response("500 Oops", [("Content-Length", "2")], sys.exc_info())  # type: ignore[arg-type]
    found.response.write(b"ab")
    assert (found.response.status, found.parts) == (500, [b"ab"])


def test_start_twice() -> None:
    """Without exc_info the second call is an error."""
    with pytest.raises(WsgiViolation, match="twice"):
        started().response.start_response("200 OK", [])


def test_exc_info() -> None:
    """With exc_info the head is replaced as long as nothing was given away; then the app's exception goes on."""
    found = started(("X-First", "1"))
    try:
        raise ValueError("late")
    except ValueError:
        info: Any = sys.exc_info()
    write = found.response.start_response("500 Oops", [("X-Second", "2")], info)
    assert found.response.headers == [(b"x-second", b"2")]
    write(b"x")
    with pytest.raises(ValueError, match="late"):
        found.response.start_response("500 Oops", [], info)


def test_a_second_start_forgets_the_first_length() -> None:
    """The declarations of the first start don't bind an error page that takes its place."""
    found = started(("Content-Length", "100"))
    try:
        raise LookupError("no such thing")
    except LookupError:
        found.response.start_response("500 Sorry", [("Content-Type", "text/plain")], sys.exc_info())  # type: ignore[arg-type]
    found.response.write(b"sorry")
    found.response.finish()
    assert found.parts == [b"sorry"]


def test_nothing_started() -> None:
    """A part or an end before start_response is an error; an empty part isn't."""
    found = Collected()
    found.response.write(b"")
    for what in (lambda: found.response.write(b"x"), found.response.finish, lambda: found.response.whole([b"x"])):
        with pytest.raises(WsgiViolation, match="start_response"):
            what()


@pytest.mark.parametrize("part", ["text", bytearray(b"x"), None, 5])
def test_parts_are_bytes(part: Any) -> None:
    """A part that isn't bytes is refused, by its type's name."""
    for what in (started().response.write, lambda part: started().response.whole([part])):
        with pytest.raises(WsgiViolation, match=type(part).__name__):
            what(part)


@pytest.mark.parametrize(
    "status", ["100 Continue", "101 Switching", "99 Low", "600 High", "abc", "", b"200 OK", 200, "2000", "20 "]
)
def test_bad_status(status: Any) -> None:
    """A status that ends no request, or is none, is refused."""
    with pytest.raises(WsgiViolation, match="status"):
        Collected().response.start_response(status, [])


@pytest.mark.parametrize(
    "headers",
    [
        [("X-A", "line\nbreak")],
        [("X-A", "nul\0")],
        [("X A", "1")],
        [("X:", "1")],
        [("", "1")],
        [("X-Ä", "1")],
        [("X-A", 1)],
        [(b"X-A", "1")],
        [("X-A", "\u20ac")],
        [("X-A",)],
        ["ab:c"],
        None,
        [("Content-Length", "-1")],
        [("Content-Length", "five")],
        [("Content-Length", "1"), ("Content-Length", "2")],
    ],
)
def test_bad_headers(headers: Any) -> None:
    """Headers that HTTP doesn't allow are refused when the app gives them, so that it can still answer otherwise."""
    found = Collected()
    with pytest.raises(WsgiViolation, match="header|Content-Length"):
        found.response.start_response("200 OK", headers)
    assert found.response.status == 0


def test_hop_by_hop_headers() -> None:
    """Framing is the server's business; an app may end the connection."""
    sent = [("Transfer-Encoding", "chunked"), ("Connection", "keep-alive"), ("connection", "Close"), ("Upgrade", "h2c")]
    assert started(*sent).response.headers == [(b"connection", b"close")]


def test_file_wrapper() -> None:
    """A file is read in blocks, and closed if it can be."""
    file = io.BytesIO(b"abcde")
    wrapped = FileWrapper(file, 2)
    assert list(wrapped) == [b"ab", b"cd", b"e"]
    wrapped.close()
    assert file.closed

    class Bare:
        def read(self, size: int) -> bytes:
            return b""

    assert not hasattr(FileWrapper(Bare()), "close")


CHUNKS = st.lists(st.binary(min_size=1, max_size=20), max_size=20)


@given(chunks=CHUNKS, sizes=st.lists(st.integers(1, 30), min_size=1, max_size=50))
def test_input_in_any_chunks(chunks: list[bytes], sizes: list[int]) -> None:
    """However the client cuts its body, reads give what was asked for, and an end that stays."""
    left = iter([*chunks, b""])
    body = body_of(lambda: next(left))
    got = b""
    for size in sizes:
        part = body.read(size)
        whole = b"".join(chunks)
        assert part == whole[len(got) : len(got) + size]
        got += part
    got += body.read()
    assert got == b"".join(chunks)
    assert (body.read(), body.read(5), body.readline(), body.readlines()) == (b"", b"", b"", [])


@given(chunks=CHUNKS, size=st.integers(1, 10))
def test_lines_in_any_chunks(chunks: list[bytes], size: int) -> None:
    """Lines are those of the whole body, however it was cut."""
    whole = io.BytesIO(b"".join(chunks).replace(b"\x00", b"\n"))
    left = iter([*(chunk.replace(b"\x00", b"\n") for chunk in chunks), b""])
    body = body_of(lambda: next(left))
    assert body.readline(size) == whole.readline(size)
    assert body.readline() == whole.readline()
    lines = whole.readlines()
    some = body.readlines(size)  # how many is up to the file; the size is a hint
    assert some == lines[: len(some)]
    assert bool(some) == bool(lines)
    assert list(body) == lines[len(some) :]


@given(parts=st.lists(st.binary(max_size=9), max_size=9), lie=st.integers(-3, 3), whole=st.booleans())
def test_no_lie_passes(parts: list[bytes], lie: int, whole: bool) -> None:
    """The emitted body is never longer than declared, and complete exactly if it is as long."""
    length = len(b"".join(parts))
    declared = max(0, length + lie)
    found = started(("Content-Length", str(declared)))
    try:
        if whole:
            found.parts.append(found.response.whole(parts))
        else:
            for part in parts:
                found.response.write(part)
            found.response.finish()
        honest = True
    except WsgiViolation:
        honest = False
    assert honest == (declared == length)
    assert len(b"".join(found.parts)) <= declared


def test_input_of_a_client_that_left() -> None:
    """A reader sees an OSError, as frameworks expect."""

    def more() -> bytes:
        raise ClientGone("left")

    with pytest.raises(OSError, match="left"):
        body_of(more).read()
