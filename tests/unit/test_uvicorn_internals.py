"""What we use of uvicorn that it promises nobody. If one fails, read `engines.uvicorn_http` before you allow that release."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httptools
import pytest
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from cluster2.engines import uvicorn_http
from cluster2.engines.access import AccessLog, logged, noted
from cluster2.engines.uvicorn_answer import answer
from cluster2.engines.uvicorn_http import TESTED, HttpConnection, check, template_of
from cluster2.engines.wsgi import Bridge
from cluster2.errors import ConfigError

pytestmark = pytest.mark.anyio
GET = b"GET /%d HTTP/1.1\r\nHost: t\r\n\r\n"


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.closed = False
        self.paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.written += data
        self.writes += 1

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def get_write_buffer_size(self) -> int:
        return 0


class App:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await self.gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def connection(app: Any, kind: type[HttpToolsProtocol] = HttpToolsProtocol) -> tuple[Any, Transport]:
    """A protocol object with a transport that is none."""
    config = Config(app, interface="asgi3", lifespan="off", log_config=None)
    config.load()
    protocol = _made(kind, config)
    transport = Transport()
    protocol.connection_made(transport)
    return protocol, transport


def _made(kind: type[HttpToolsProtocol], config: Config) -> HttpToolsProtocol:
    if issubclass(kind, HttpConnection):
        template = template_of(config, ServerState(), {})
        return type(kind.__name__, (kind,), {"template": template})()  # type: ignore[call-arg]
    return kind(config, ServerState(), {}, asyncio.get_running_loop())


async def settle(protocol: Any) -> None:
    while protocol.tasks:
        await asyncio.sleep(0)


async def test_before_the_first_request() -> None:
    """A new connection has no scope and no cycle, an empty pipeline, a flow that isn't paused, and is among the connections."""
    protocol, _ = connection(App())
    assert protocol.scope is None
    assert protocol.cycle is None
    assert not protocol.pipeline
    assert protocol.flow.read_paused is False
    assert protocol.scheme == "http"
    assert protocol.server_state.connections == {protocol}


async def test_a_message_begins_with_its_first_byte() -> None:
    """The first byte of a head puts a new scope on the protocol; stray CRLFs don't, before the first request or a later one."""
    protocol, _ = connection(App())
    protocol.data_received(b"\r\n\r\n")
    assert protocol.scope is None
    protocol.data_received(b"G")
    first = protocol.scope
    assert first is not None
    assert protocol.cycle is None
    protocol.data_received(GET[1:] % 1)
    await settle(protocol)
    assert protocol.scope is first
    protocol.data_received(b"\r\n")
    assert protocol.scope is first
    protocol.data_received(b"G")
    assert protocol.scope is not first
    assert protocol.cycle.scope is first


async def test_the_end_of_a_head_makes_a_cycle() -> None:
    """A cycle is of the message's own scope; it is a new one for each request; its fields tell how far it is."""
    app = App()
    app.gate.clear()
    protocol, _ = connection(app)
    protocol.data_received(GET % 1)
    cycle = protocol.cycle
    assert cycle.scope is protocol.scope
    assert (cycle.response_started, cycle.response_complete, cycle.more_body, cycle.keep_alive) == (
        False,
        False,
        False,
        True,
    )
    app.gate.set()
    await settle(protocol)
    assert (cycle.response_started, cycle.response_complete) == (True, True)
    assert app.scopes[0] is cycle.scope
    protocol.data_received(GET % 2)
    assert protocol.cycle is not cycle
    await settle(protocol)


async def test_more_body() -> None:
    """`more_body` holds until the end of the body has come; if the response was faster, for ever."""
    app = App()
    app.gate.clear()
    protocol, _ = connection(app)
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nab")
    assert protocol.cycle.more_body is True
    protocol.data_received(b"cd")
    assert protocol.cycle.more_body is False
    app.gate.set()
    await settle(protocol)


async def test_keep_alive_of_a_cycle() -> None:
    """Taking a cycle's `keep_alive` away before its response has begun makes that announce and be the end."""
    app = App()
    app.gate.clear()
    protocol, transport = connection(app)
    protocol.data_received(GET % 1)
    protocol.cycle.keep_alive = False
    app.gate.set()
    await settle(protocol)
    assert b"\r\nconnection: close\r\n" in transport.written
    assert transport.closed


async def test_the_pipeline() -> None:
    """A request behind one that isn't answered waits in the pipeline, and nothing more is read; both are answered in order."""
    app = App()
    app.gate.clear()
    protocol, transport = connection(app)
    protocol.data_received(GET % 1 + GET % 2)
    assert len(protocol.pipeline) == 1
    assert protocol.flow.read_paused
    assert transport.paused
    app.gate.set()
    await settle(protocol)
    assert [scope["path"] for scope in app.scopes] == ["/1", "/2"]
    assert not protocol.pipeline
    assert transport.written.count(b"HTTP/1.1 200 ") == 2


async def test_hooks_are_looked_up_for_each_request() -> None:
    """`on_response_complete` and `_start_asgi_task` put into the class count from the next request on, out of it no more."""
    called: list[str] = []
    kind: Any = type("Hooked", (HttpToolsProtocol,), {})
    protocol, _ = connection(App(), kind)

    def on_response_complete(self: Any) -> None:
        called.append("complete")
        HttpToolsProtocol.on_response_complete(self)

    def _start_asgi_task(self: Any, cycle: Any, app: Any) -> None:
        called.append("start")
        HttpToolsProtocol._start_asgi_task(self, cycle, app)

    for hooks, expected in ((True, ["start", "complete"]), (False, [])):
        called.clear()
        if hooks:
            kind.on_response_complete, kind._start_asgi_task = on_response_complete, _start_asgi_task
        else:
            del kind.on_response_complete, kind._start_asgi_task
        protocol.data_received(GET % 1)
        await settle(protocol)
        assert called == expected
    protocol._unset_keepalive_if_required()


async def test_parser_callbacks_are_captured() -> None:
    """The parser's callbacks are those that the class had when the protocol was made: a hook there needs a class of its own."""
    kind: Any = type("Hooked", (HttpToolsProtocol,), {})
    protocol, _ = connection(App(), kind)
    called: list[int] = []
    kind.on_headers_complete = lambda self: called.append(1)
    protocol.data_received(GET % 1)
    await settle(protocol)
    assert not called
    protocol._unset_keepalive_if_required()


async def test_what_a_response_counts() -> None:
    """A response adds one to the state's requests, whichever of the two methods ran; the bare one starts a timer, ours none."""
    bare, _ = connection(App())
    ours, _ = connection(App(), HttpConnection)
    for protocol in (bare, ours):
        protocol.data_received(GET % 1)
        await settle(protocol)
        assert protocol.server_state.total_requests == 1
    assert bare.timeout_keep_alive_task is not None
    assert ours.timeout_keep_alive_task is None
    bare._unset_keepalive_if_required()
    assert bare.timeout_keep_alive_task is None


@pytest.mark.parametrize("kind", [HttpToolsProtocol, HttpConnection])
async def test_the_two_agree(kind: type[HttpToolsProtocol]) -> None:
    """Our `data_received` does what uvicorn's does: requests in a pipeline, garbage, an upgrade that nobody knows."""
    protocol, transport = connection(App(), kind)
    protocol.data_received(GET % 1 + GET % 2 + GET % 3)
    await settle(protocol)
    assert transport.written.count(b"HTTP/1.1 200 ") == 3
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: steam\r\n\r\n")
    await settle(protocol)
    assert transport.written.count(b"HTTP/1.1 200 ") == 4
    protocol._unset_keepalive_if_required()
    protocol, transport = connection(App(), kind)
    protocol.data_received(b"\x00garbage\r\n\r\n")
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert transport.closed


async def test_where_it_may_move() -> None:
    """Between two requests, yes; from the first byte of a head to the end of the response, and with a body unread, no."""
    app = App()
    protocol, _ = connection(app, HttpConnection)
    assert protocol.may_move()
    assert not protocol.kept_alive()
    protocol.data_received(b"\r\n")
    assert protocol.may_move()
    request = GET % 1
    for at in range(len(request)):
        protocol.data_received(request[at : at + 1])
        assert not protocol.may_move()
    await settle(protocol)
    assert protocol.may_move()
    assert protocol.kept_alive()
    protocol.data_received(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nab")
    await settle(protocol)
    assert protocol.cycle.response_complete
    assert not protocol.may_move(), "half of the body is still to come"
    protocol.data_received(b"cd" + request)
    assert not protocol.may_move()
    await settle(protocol)
    assert protocol.may_move()


# The check at start


def test_this_release_is_tested() -> None:
    """The release that is installed is one that these tests speak about, and has what is needed."""
    check()
    assert TESTED[0] <= tuple(map(int, uvicorn.__version__.split(".")[:2])) < TESTED[1]
    assert issubclass(HttpConnection, HttpToolsProtocol)
    assert httptools.HttpRequestParser is httptools_impl.httptools.HttpRequestParser


@pytest.mark.parametrize("version", ["0.53.9", "0.55.0", "1.0.0", "0.54"])
def test_another_release(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A release outside of the tested range is refused, with what to install."""
    monkeypatch.setattr(uvicorn, "__version__", version)
    if version == "0.54":
        check()
        return
    with pytest.raises(ConfigError, match=rf"^uvicorn {version} is installed, .*>=0\.54,<0\.55; install that$"):
        check()


@pytest.mark.parametrize("name", sorted({*uvicorn_http._METHODS, "_start_asgi_task"}))
def test_a_release_without_a_method(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A release that lacks a method that we build on is refused by name."""
    for kind in HttpToolsProtocol.__mro__:
        if name in vars(kind) and kind is not object:
            monkeypatch.delattr(kind, name)
    with pytest.raises(ConfigError, match=name):
        check()


@pytest.mark.parametrize("name", uvicorn_http._ATTRIBUTES)
def test_a_release_without_an_attribute(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A release that calls an attribute something else is refused by the old name."""
    real = uvicorn_http.inspect.getsource

    class Doctored:
        @staticmethod
        def getsource(thing: Any) -> str:
            return real(thing).replace(f"self.{name}", "self.other")

    monkeypatch.setattr(uvicorn_http, "inspect", Doctored)
    with pytest.raises(ConfigError, match=name):
        check()


def test_cycles_have_no_slots() -> None:
    """Attributes of a cycle are looked for in its constructor: it must be where they are made."""
    assert not hasattr(RequestResponseCycle, "__slots__")


@pytest.mark.anyio
async def test_what_connections_have_in_common() -> None:
    """A connection copied from the template has every attribute that uvicorn's own constructor gives it."""
    ours, _ = connection(App(), HttpConnection)
    theirs, _ = connection(App())
    assert set(vars(theirs)) <= set(vars(ours))


@pytest.mark.anyio
async def test_a_release_that_keeps_more_for_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """If uvicorn's constructor makes a thing for each connection that we don't know of, it is refused by name."""
    real = HttpToolsProtocol.__init__

    def init(self: Any, *args: Any) -> None:
        real(self, *args)
        self.novelty = []

    monkeypatch.setattr(HttpToolsProtocol, "__init__", init)
    with pytest.raises(ConfigError, match="novelty"):
        connection(App(), HttpConnection)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize(
    ("method", "status", "headers", "body"),
    [
        ("GET", 200, [(b"content-type", b"text/plain"), (b"content-length", b"5")], b"hello"),
        ("HEAD", 200, [(b"content-length", b"5")], b""),
        ("GET", 204, [], b""),
        ("GET", 304, [(b"etag", b"x")], b""),
        ("POST", 500, [(b"content-length", b"0")], b""),
    ],
)
async def test_the_short_cut(version: str, method: str, status: int, headers: Any, body: bytes) -> None:
    """What goes past `send` is what `send` would have written, and leaves the connection in the same state."""
    found = []
    for short in (True, False):

        async def app(scope: Any, receive: Any, send: Any, short: bool = short) -> None:
            if short:
                assert answer(send, status, headers, body)
            else:
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})

        protocol, transport = connection(app)
        protocol.access_log = False
        protocol.server_state.default_headers = [(b"date", b"now"), (b"server", b"us")]
        protocol.data_received(f"{method} / HTTP/{version}\r\nHost: t\r\nContent-Length: 0\r\n\r\n".encode())
        await asyncio.gather(*protocol.tasks)
        state = {
            name: getattr(protocol.cycle, name) for name in ("response_started", "response_complete", "disconnected")
        }
        told = (protocol.cycle.waiting_for_100_continue, protocol.cycle.message_event.is_set())
        found.append((transport.written, transport.closed, state, told, protocol.server_state.total_requests))
    assert found[0] == found[1]
    assert found[0][0].startswith(b"HTTP/1.1 %d " % status)


async def test_no_short_cut() -> None:
    """Where it isn't the cycle's own `send`, or the app ends the connection, nothing happens past it."""
    seen: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def wrapped(message: Any) -> None:
            await send(message)

        seen.append(answer(wrapped, 200, [], b""))
        seen.append(answer(send, 200, [(b"connection", b"close")], b""))
        send.__self__.access_log = True
        seen.append(answer(send, 200, [], b""))

    protocol, transport = connection(app)
    protocol.access_log = False
    protocol.data_received(GET % 1)
    await asyncio.gather(*protocol.tasks)
    assert seen == [False] * 3
    assert transport.written.startswith(b"HTTP/1.1 500 "), "uvicorn answers for an app that doesn't"


@pytest.mark.parametrize("threads", [0, 1])
async def test_the_short_cut_is_taken_under_the_access_log(threads: int) -> None:
    """A whole response of a WSGI app still goes out in one write, and the log has its status and size."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("203 So", [])
        return [b"hello"]

    pieces: list[bytes] = []
    log = AccessLog(0, True, pieces.append)
    bridge = Bridge(app, threads, answer=noted(answer))
    bridge.start()
    protocol, transport = connection(logged(bridge, log))
    protocol.access_log = False
    protocol.data_received(GET % 1)
    await asyncio.gather(*protocol.tasks)
    bridge.stop()
    log.flush()
    (entry,) = (json.loads(line) for line in b"".join(pieces).splitlines())
    assert (entry["status"], entry["bytes"], transport.writes) == (203, 5, 1)
    assert transport.written.endswith(b"hello")
