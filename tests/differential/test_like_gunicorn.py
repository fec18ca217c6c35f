"""Flask, Django and plain WSGI answer under cluster2 what they answer under gunicorn: the same raw requests, the same bytes.

What may differ is what is the server's own (Date, Server, Connection, the reason phrase, how a body is framed), and what stands
in `DIFFERENT` with its reason.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.differential.exchange import Answer, chunked, exchange, form, request
from tests.system.harness import Running, clean_environment, command, wait_until

SITES = Path(__file__).with_name("sites.py")
NAMES = ("flask", "django", "plain", "proxied")
TARGETS = {"flask": "flask_site", "django": "django_site", "plain": "plain_site", "proxied": "behind_a_proxy"}
SEED = {"PYTHONHASHSEED": "0"}  # sets, such as the methods that Flask allows, are told in the same order
Addresses = dict[str, tuple[str, int]]


@pytest.fixture(scope="module", params=[8, 0], ids=["threads", "inline"])
def ours(
    request: pytest.FixtureRequest, theirs: Addresses, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Addresses]:
    """All sites in one worker of cluster2, in threads or inline. Comes after gunicorn, which else it would miss at its end."""
    directory = tmp_path_factory.mktemp("cluster2")
    apps = ", ".join(f'["{SITES}:{TARGETS[name]}", "127.0.0.1:0"]' for name in NAMES)
    (directory / "cluster2.toml").write_text(
        f"apps = [{apps}]\nmonitor_port = 0\nworkers = 1\nthreads = {request.param}\n"
    )
    running = Running(command("run"), directory, env=SEED)
    try:
        running.ready(1)
        yield dict(zip(NAMES, running.tcp_addresses(), strict=True))
    finally:
        running.close()
    running.assert_gone()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A gunicorn for each site, with threads."""
    directory = tmp_path_factory.mktemp("gunicorn")
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        for name in NAMES:
            log = stack.enter_context((directory / name).open("wb"))
            options = [
                "--threads",
                "4",
                "--bind",
                "127.0.0.1:0",
                "--pythonpath",
                str(SITES.parent),
                "--no-control-socket",
            ]
            argv = [sys.executable, "-m", "gunicorn", *options, f"sites:{TARGETS[name]}"]
            processes.append(subprocess.Popen(argv, cwd=directory, stderr=log, env=clean_environment(SEED)))
            stack.callback(_end, processes[-1])
        yield {name: _address(directory / name) for name in NAMES}


def _address(log: Path) -> tuple[str, int]:
    pattern = r"Listening at: http://127\.0\.0\.1:(\d+)(?s:.*)Booting worker"
    found = wait_until(lambda: re.search(pattern, log.read_text()), lambda: f"gunicorn listens: {log.read_text()}")
    return "127.0.0.1", int(found[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)


def get(path: str, *headers: str) -> bytes:
    return request(f"GET {path}", *headers)


def post(path: str, body: bytes, *headers: str) -> bytes:
    return request(f"POST {path}", *headers, body=body)


def everywhere(raw: bytes) -> dict[str, bytes]:
    return {"flask": raw, "django": raw}


MULTIPART, UPLOAD = form(
    ("name", "", "", b"J\xc3\xbcrgen"),
    ("name", "", "", b"second"),
    ("file", "bytes.bin", "application/octet-stream", bytes(range(256)) * 20_000),
    ("file", "zürich.txt", "text/plain", b"hello\r\n"),
)
_, SMALL = form(("name", "", "", b"second"), ("file", "bytes.bin", "application/octet-stream", bytes(range(256)) * 8))
URLENCODED = "Content-Type: application/x-www-form-urlencoded"
CHUNKED = "Transfer-Encoding: chunked"

FRAMEWORKS = {
    "plain": get("/echo"),
    "query": get("/echo?a=1&a=2&b=%20%2B+&%C3%BC=%E2%82%AC&empty=&flag&bad=%zz"),
    "question marks": get("/echo??a=?"),
    "encoded path": get("/echo/a%20b/%C3%BC/%2F/%252F/+;x=1,y"),
    "path of wrong encoding": get("/echo/%FF%FE"),
    "raw bytes in the path": get("/echo/z\xfcrich"),
    "dots in the path": get("/echo/./a/../b//c"),
    "slashes first": get("//echo"),
    "duplicate headers": get("/echo", "X-One: 1", "X-Two: a", "X-One: 2", "Accept: a", "Accept: b"),
    "cookies": get("/echo", 'Cookie: a=1; b="x y"; a=2; c=%20; d; =e', "Cookie: f=g"),
    "latin-1 header": get("/echo", "X-Name: J\xfcrgen"),
    "empty header": get("/echo", "X-Empty:", "X-Spaces:    "),
    "spaces around a value": get("/echo", "X-Spaced:  \t a  b \t "),
    "underscores": get("/echo", "X_Forwarded_For: 6.6.6.6", "Remote_User: root", "X-Fine: yes", "Content_Length: 7"),
    "proxy header": get("/echo", "Proxy: http://evil.example", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https"),
    "odd names": get("/echo", "X-!#$%&'*+.^`|~: odd"),
    "absolute form": get("http://test/echo?x=1"),
    "absolute form of another host": get("http://elsewhere.example/echo?x=1"),
    "empty host": request("GET /echo", host=""),
    "host of another site": request("GET /echo", host="nobody.example"),
    "host with port": request("GET /echo", host="test:81"),
    "no host, HTTP/1.0": b"GET /echo HTTP/1.0\r\n\r\n",
    "HTTP/1.0": b"GET /stream HTTP/1.0\r\nHost: test\r\n\r\n",
    "HTTP/1.0, kept alive": b"GET /stream HTTP/1.0\r\nHost: test\r\nConnection: keep-alive\r\n\r\n",
    "HTTP/1.0, head": b"HEAD /stream HTTP/1.0\r\nHost: test\r\n\r\n",
    "HTTP/1.0, with a length": b"GET /echo HTTP/1.0\r\nHost: test\r\n\r\n",
    "HTTP/1.0, nothing": b"GET /status/204 HTTP/1.0\r\nHost: test\r\n\r\n",
    "form": post("/echo", b"a=1&b=%C3%BC+x&a=2", URLENCODED),
    "json": post("/echo", b'{"a": 1}', "Content-Type: application/json"),
    "no type": post("/echo", b"\0\xff" * 500),
    "empty body": post("/echo", b"", "Content-Length: 0"),
    "no length": request("POST /echo"),
    "body of a GET": request("GET /echo", body=b"hello"),
    "delete": request("DELETE /echo?x=1"),
    "patch": request("PATCH /echo", "Content-Type: text/plain", body=b"x" * 100),
    "chunks": request("POST /echo", CHUNKED, URLENCODED, body=chunked(b"a=1", b"&b=", b"2")),
    "chunks with a trailer": request("POST /echo", CHUNKED, body=chunked(b"abc", trailer=b"X-Trailer: 1\r\n")),
    "no chunks": request("POST /echo", CHUNKED, body=chunked()),
    "big chunks": request("PUT /echo", CHUNKED, body=chunked(*[b"y" * 70_000] * 30)),
    "multipart": post("/echo", UPLOAD, MULTIPART),
    "multipart in chunks": request("POST /echo", CHUNKED, MULTIPART, body=chunked(SMALL[:100], SMALL[100:])),
    "body read while answering": post("/reads", b"line\n" * 100_000),
    "body that nobody reads": post("/unread", b"x" * 3_000_000),
    "chunks that nobody reads": request("POST /unread", CHUNKED, body=chunked(b"x" * 1000)),
    "head": request("HEAD /echo"),
    "head of a stream": request("HEAD /stream"),
    "head of an error": request("HEAD /error"),
    "options": request("OPTIONS /echo"),
    "204": get("/status/204"),
    "304": get("/status/304"),
    "404": get("/no-such-page"),
    "405": request("PUT /redirect"),
    "418": get("/status/418"),
    "condition": get("/status/200", 'If-None-Match: "x"'),
    "redirect": get("/redirect"),
    "slash": get("/slashed?x=1"),
    "set cookies": get("/cookies"),
    "stream": get("/stream"),
    "error": get("/error"),
    "error in the middle": get("/interrupted"),
    "file": get("/file"),
    "range": get("/file", "Range: bytes=10-19"),
    "range of the end": get("/file", "Range: bytes=-5"),
    "long query": get("/echo?" + "x" * 3000),
}
PLAIN = {
    "environ": get("/environ?x=%20", "X-Header: 1", "Cookie: a=1", "Content-Type: text/x"),
    "environ of a POST": post("/environ", b"hello", "Content-Type: text/plain"),
    "environ of chunks": request("POST /environ", CHUNKED, body=chunked(b"hello")),
    "environ of HTTP/1.0": b"GET /environ HTTP/1.0\r\n\r\n",
    "environ of an escaped path": get("/environ/%C3%BC/%2F/a+b;c?%C3%BC"),
    "environ of the absolute form": get("http://elsewhere.example:80/environ?x"),
    "read in all ways": post("/read", b"0123456789\nsecond line\nthird\nfourth\nfifth\nsixth\nlast"),
    "read chunks in all ways": request(
        "POST /read", CHUNKED, body=chunked(b"01234567", b"89\nsecond line\nthird\nfou", b"rth\nfifth\nsixth\nlast")
    ),
    "read nothing": get("/read"),
    "a large body": post("/all", bytes(range(256)) * 10_000),
    "a large body in chunks": request("POST /all", CHUNKED, body=chunked(*[bytes(range(256)) * 100] * 50)),
    "write": get("/write"),
    "write, HEAD": request("HEAD /write"),
    "one piece": get("/once"),
    "one piece, HEAD": request("HEAD /once"),
    "nothing": get("/nothing"),
    "headers": get("/headers"),
    "replaced": get("/replaced"),
    "replaced too late": get("/late"),
    "lazy": get("/lazy"),
    "silent": get("/silent"),
    "twice": get("/twice"),
    "text": get("/text"),
    "short": get("/short"),
    "long": get("/long"),
    "raises": get("/raises"),
    "halfway": get("/halfway"),
    "wrapped file": get("/wrapped"),
    "wrapped file, HEAD": request("HEAD /wrapped"),
}
PROXIED = {
    "forwarded": get(
        "/echo",
        "X-Forwarded-For: 6.6.6.6, 1.2.3.4",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: site.example",
        "X-Forwarded-Prefix: /app",
    ),
    "not forwarded": get("/echo"),
}
CASES = [
    *((site, name, raw) for name, raw in FRAMEWORKS.items() for site in ("flask", "django")),
    *(("plain", name, raw) for name, raw in PLAIN.items()),
    *(("proxied", name, raw) for name, raw in PROXIED.items()),
]


@dataclass(frozen=True)
class Difference:
    """An answer that isn't gunicorn's, on purpose.

    Attributes:
        why: it differs.
        code: ours.
        whole: whether ours comes to its end.
    """

    why: str
    code: int
    whole: bool = True


OWN_PAGE = "an error that the app doesn't handle is told by the server, in its own words"
BROKEN = (
    "what an app does wrong is noticed before the first byte is out: a clean 500, where gunicorn cuts off or passes on"
)
AUTHORITY = "the authority in a target counts, whatever Host says (RFC 9112, 3.2.2)"
COOKIES = "several Cookie headers are joined by semicolons (RFC 9113, 8.2.3), so that their cookies are found; gunicorn: commas"
DIFFERENT = {
    ("flask", "raw bytes in the path"): Difference(OWN_PAGE, 400),
    ("django", "raw bytes in the path"): Difference(OWN_PAGE, 400),
    ("plain", "raises"): Difference(OWN_PAGE, 500),
    ("plain", "twice"): Difference(OWN_PAGE, 500),
    ("plain", "silent"): Difference(BROKEN, 500),
    ("plain", "text"): Difference(BROKEN, 500),
    ("plain", "short"): Difference(BROKEN, 500),
    ("plain", "long"): Difference(BROKEN, 500),
    ("plain", "replaced"): Difference("headers that were replaced are gone (PEP 3333); gunicorn keeps them", 503),
    ("flask", "proxy header"): Difference("X-Forwarded-For is believed, too, from the loopback", 200),
    ("flask", "cookies"): Difference(COOKIES, 200),
    ("django", "cookies"): Difference(COOKIES, 200),
    ("flask", "absolute form of another host"): Difference(AUTHORITY, 200),
    ("django", "absolute form of another host"): Difference(AUTHORITY, 200),
    ("plain", "environ of the absolute form"): Difference(AUTHORITY, 200),
}


@pytest.mark.parametrize(("site", "name", "raw"), CASES, ids=[f"{site}: {name}" for site, name, _ in CASES])
def test_the_same_answer(ours: Addresses, theirs: Addresses, site: str, name: str, raw: bytes) -> None:
    """The same raw request has the same answer: status, headers, body, and whether it came to its end."""
    mine, other = exchange(ours[site], raw), asked_again(theirs[site], raw)
    different = DIFFERENT.get((site, name))
    if different is None:
        assert framed_alike(mine, other) == other
    else:
        assert mine != other, "the same by now: it needn't stand in DIFFERENT"
        assert (mine.code, mine.whole) == (different.code, different.whole), different.why


def asked_again(address: tuple[str, int], raw: bytes) -> Answer:
    """gunicorn's answer: where an app leaves part of a body unread, its end is a reset, which may overtake the answer."""
    answers = (exchange(address, raw) for _ in range(20))
    return next((each for each in answers if each.code), Answer(0, [], b"", False))


def framed_alike(mine: Answer, other: Answer) -> Answer:
    """Ours as gunicorn frames it: what is all there has its length told by us; there it is chunked, or has none."""
    chunked, told = (b"transfer-encoding", b"chunked"), (b"content-length", b"%d" % len(mine.body))
    if chunked in other.headers and told in mine.headers:
        return replace(mine, headers=sorted([*(each for each in mine.headers if each != told), chunked]))
    if told in mine.headers and not any(name == b"content-length" for name, _ in other.headers):
        return replace(mine, headers=[each for each in mine.headers if each != told])
    return mine


def test_expect(ours: Addresses, theirs: Addresses) -> None:
    """A client that waits for `100 Continue` gets it, and then the same answer."""
    for site in ("flask", "django"):
        raw = request("POST /echo", "Expect: 100-continue", "Content-Length: 5", URLENCODED)
        mine, other = (exchange(where[site], raw, b"a=1&b") for where in (ours, theirs))
        assert mine == other
        assert mine.interim == other.interim == [b"HTTP/1.1 100 Continue"]


def test_answers_are_closed(ours: Addresses, theirs: Addresses) -> None:
    """`close()` of what an app returned is called, once, also for HEAD."""
    for where in (ours, theirs):
        first, head, last = (
            exchange(where["plain"], raw).body for raw in (get("/closes"), request("HEAD /closes"), get("/closes"))
        )
        assert head == b""
        assert int(last) == int(first) + 2
