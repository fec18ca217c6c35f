"""What ECV answers, and who may steer it."""

from __future__ import annotations

import time

import pytest

from cluster2.core import health_page
from cluster2.core.health_page import Asked, Health, HealthPage

START, NOW = 1337359772.0, 1337359789.0


@pytest.fixture(autouse=True)
def _pacific(monkeypatch: pytest.MonkeyPatch) -> None:
    """Live in the seed's time zone."""
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    time.tzset()
    yield  # type: ignore[misc]
    monkeypatch.undo()
    time.tzset()


def page() -> HealthPage:
    return HealthPage("/ecv", START, "somehost")


def headers(answer: health_page.HealthResponse) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in answer.headers}


def test_stamp() -> None:
    """Times are written as JavaScript writes them, in winter, too."""
    assert health_page.stamp(NOW) == "Fri May 18 2012 09:49:49 GMT-0700 (PDT)"
    assert health_page.stamp(1325404800.0) == "Sun Jan 01 2012 00:00:00 GMT-0800 (PST)"


@pytest.mark.parametrize(
    ("found", "status", "start"),
    [
        (Health.FINE, 200, "status=AVAILABLE&ServeTraffic=true&"),
        (Health.WARNING, 500, "status=WARNING&ServeTraffic=false&"),
        (Health.DISABLED, 400, "status=DISABLED&ServeTraffic=false&"),
    ],
)
def test_state(found: Health, status: int, start: str) -> None:
    """Code, headers and body are the contract's, byte for byte; a disabled cluster ends the connection."""
    answer = page().state(found, "127.0.0.1", 3000, NOW)
    where = "ip=127.0.0.1&hostname=somehost&port=3000&time=Fri May 18 2012 09:49:49 GMT-0700 (PDT)"
    assert (answer.status, answer.body.decode()) == (status, start + where)
    expected = {
        "x-powered-by": "Cluster2",
        "content-type": "text/plain",
        "content-length": str(len(answer.body)),
        "since": "Fri May 18 2012 09:49:32 GMT-0700 (PDT)",
        "cache-control": "no-cache",
    }
    assert headers(answer) == expected | ({"connection": "close"} if found is Health.DISABLED else {})


def test_state_is_made_once_a_second() -> None:
    """Within a second an answer is the same object; the next second tells its own time; addresses aren't mixed up."""
    made = page()
    first = made.state(Health.FINE, "127.0.0.1", 3000, NOW)
    assert made.state(Health.FINE, "127.0.0.1", 3000, NOW + 0.9) is first
    assert b"ip=10.0.0.1&" in made.state(Health.FINE, "10.0.0.1", 3000, NOW).body
    assert b"status=WARNING" in made.state(Health.WARNING, "127.0.0.1", 3000, NOW).body
    assert b"09:49:50" in made.state(Health.FINE, "127.0.0.1", 3000, NOW + 1).body
    assert b"ip=&" in made.state(Health.FINE, "", 0, NOW).body
    assert b"port=&" in made.state(Health.FINE, "", 0, NOW).body


def test_switched() -> None:
    """204 without a body or its headers; after `disable` the connection ends."""
    for enabled in (True, False):
        answer = page().switched(enabled)
        assert (answer.status, answer.body) == (204, b"")
        assert set(headers(answer)) == {"x-powered-by", "since", "cache-control"} | (
            {"connection"} - {enabled and "connection"}
        )


def test_wrong_method() -> None:
    """405 says what is allowed."""
    assert headers(page().wrong_method("GET", "HEAD"))["allow"] == "GET, HEAD"


@pytest.mark.parametrize("traffic", [True, False])
@pytest.mark.parametrize("leaving", [True, False])
@pytest.mark.parametrize("able", [True, False])
def test_health(traffic: bool, leaving: bool, able: bool) -> None:
    """Who is disabled or leaves says so, whatever the app says."""
    found = health_page.health(traffic=traffic, leaving=leaving, able=able)
    assert found is (Health.DISABLED if leaving or not traffic else Health.FINE if able else Health.WARNING)


def test_switches() -> None:
    """They stand below the path, wherever that is."""
    assert health_page.switches("/ecv") == {"/ecv/enable": True, "/ecv/disable": False}
    assert health_page.switches("/") == {"/enable": True, "/disable": False}


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("", True),
        (None, False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("localhost", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_is_local(peer: str | None, local: bool) -> None:
    """Loopback addresses and Unix sockets are this machine; names and whatever isn't known aren't."""
    assert health_page.is_local(peer) is local


@pytest.mark.parametrize(
    ("authorization", "peer", "token", "refused"),
    [
        (None, "127.0.0.1", None, None),
        (None, "10.0.0.1", None, 403),
        ("Bearer secret-token", "10.0.0.1", None, 403),
        (None, "127.0.0.1", "secret-token", 401),
        ("Bearer secret-token", "10.0.0.1", "secret-token", None),
        ("bearer  secret-token ", "10.0.0.1", "secret-token", None),
        ("Bearer secret-toke", "127.0.0.1", "secret-token", 401),
        ("Basic secret-token", "127.0.0.1", "secret-token", 401),
        ("secret-token", "127.0.0.1", "secret-token", 401),
        ("Bearer", "127.0.0.1", "secret-token", 401),
        ("Bearer \u00e9\udcff", "127.0.0.1", "secret-token", 401),
    ],
)
def test_refusal(authorization: str | None, peer: str, token: str | None, refused: int | None) -> None:
    """Without a token loopback counts, with one only the token."""
    assert health_page.refusal(Asked("POST", "/ecv/disable", peer, authorization), token) == refused


def test_refusal_of_a_page() -> None:
    """A page in a browser on this machine may not, unless it has the token."""
    for name in (b"origin", b"sec-fetch-mode"):
        asked = Asked.from_headers(
            "POST", "/ecv/disable", "127.0.0.1", [(name, b"x"), (b"authorization", b"Bearer secret-token")]
        )
        assert health_page.refusal(asked, None) == 403
        assert health_page.refusal(asked, "secret-token") is None
