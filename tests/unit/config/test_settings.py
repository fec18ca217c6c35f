"""Options: what their values may be, what is derived from a declaration, and what contradicts what."""

from __future__ import annotations

import dataclasses
import ipaddress
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster2.config import value_types
from cluster2.config.settings import OPTIONS, Settings, option, options_of, validate, without_master
from cluster2.config.value_types import Address, FdAddress, TcpAddress, UnixAddress, ValueType, parse_address
from cluster2.errors import ConfigError

HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.text(string.ascii_lowercase + string.digits + "-.", min_size=1),
)
ADDRESSES = st.one_of(
    st.builds(TcpAddress, HOSTS, st.integers(0, 65535)),
    st.builds(UnixAddress, st.text(min_size=1).filter(lambda path: "\0" not in path)),
    st.builds(FdAddress, st.integers(0, 999_999_999)),
)


@given(ADDRESSES)
def test_an_address_is_the_inverse_of_its_text(address: Address) -> None:
    """Whatever an address is, its text means that address."""
    assert parse_address(str(address)) == address


@given(st.text())
def test_a_text_that_is_an_address_comes_back(text: str) -> None:
    """A text either is refused with what is allowed, or means an address whose text means the same."""
    message = ""
    try:
        address = parse_address(text)
    except ValueError as error:
        message = str(error)
    else:
        assert parse_address(str(address)) == address
    assert not message or "host:port" in message


def test_no_host_is_every_address() -> None:
    """`:8000` is all IPv4 addresses, as with gunicorn and as `host` is unless told otherwise."""
    assert parse_address(":8000") == TcpAddress(Settings().host, 8000)


def test_ipv6_stands_in_brackets() -> None:
    """Only brackets tell an IPv6 address from its port."""
    assert str(TcpAddress("::", 3000)) == "[::]:3000"
    assert parse_address("[::1]:3000") == TcpAddress("::1", 3000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3000",
        ":",
        "host",
        "host:",
        "host:port",
        "host:65536",
        "::1:3000",
        "[host]:1",
        "unix:",
        "unix:a\0",
        "fd://",
        "fd://x",
    ],
)
def test_what_is_no_address(text: str) -> None:
    """Each near miss is refused."""
    with pytest.raises(ValueError, match="expected host:port"):
        parse_address(text)


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (value_types.FLAG, "yes", True),
        (value_types.FLAG, " OFF ", False),
        (value_types.FLAG, True, True),
        (value_types.COUNT, "12", 12),
        (value_types.COUNT, 0, 0),
        (value_types.PORT, "65535", 65535),
        (value_types.PORTS, "3000,3001", (3000, 3001)),
        (value_types.PORTS, ["3000"], 3000),
        (value_types.WORKERS, "auto", 0),
        (value_types.DURATION, "30s", 30.0),
        (value_types.DURATION, "5m", 300.0),
        (value_types.DURATION, "24h", 86400.0),
        (value_types.DURATION, "250ms", 0.25),
        (value_types.DURATION, "5ms", 0.005),
        (value_types.DURATION, "1.5", 1.5),
        (value_types.DURATION, 30, 30.0),
        (value_types.SIZE, "512MiB", 512 * 2**20),
        (value_types.SIZE, "1GiB", 2**30),
        (value_types.SIZE, "100MB", 100_000_000),
        (value_types.SIZE, "1.5kib", 1536),
        (value_types.SIZE, 4096, 4096),
        (value_types.SIZE, "0", 0),
        (value_types.RATIO, "0.5", 0.5),
        (value_types.UMASK, "022", 0o22),
        (value_types.UMASK, 0o27, 0o27),
        (value_types.PATH, Path("a/b"), "a/b"),
        (value_types.ACCOUNT, 1000, "1000"),
        (value_types.HOST, "[::]", "::"),
        (value_types.ADDRESSES, "a:1, unix:b", ("a:1", "unix:b")),
        (value_types.ADDRESSES, ":1", ("0.0.0.0:1",)),
        (value_types.ADDRESSES, [TcpAddress("a", 1)], ("a:1",)),
        (value_types.REFERENCE, "pkg.module:function", "pkg.module:function"),
        (value_types.REFERENCE, len, len),
        (value_types.APPS, [["a:app", 3000], ("b:app", "unix:b")], (("a:app", (3000,)), ("b:app", ("unix:b",)))),
        (value_types.choice("text", "json"), "JSON", "json"),
        (value_types.ROOT_PATH, "", ""),
        (value_types.ROOT_PATH, "/", ""),
        (value_types.ROOT_PATH, "/p", "/p"),
        (value_types.ROOT_PATH, "/p/", "/p"),
        (value_types.ROOT_PATH, "p", "/p"),
        (value_types.ROOT_PATH, "//p//", "/p"),
        (value_types.ROOT_PATH, "/p/q/", "/p/q"),
        (value_types.ROOT_PATH, "/a%20b", "/a b"),
        (value_types.ROOT_PATH, "/café", "/café"),
        (value_types.ROOT_PATH, "/caf%C3%A9", "/café"),
        (value_types.ROOT_PATH, "/100%25", "/100%"),
    ],
)
def test_what_a_value_means(kind: ValueType, raw: object, value: object) -> None:
    """Texts and native values mean what the documentation says."""
    found = kind.parse(raw)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "raw", "message"),
    [
        (value_types.FLAG, "maybe", "true or false"),
        (value_types.FLAG, 1, "true or false"),
        (value_types.COUNT, "many", "a whole number of at least 0"),
        (value_types.COUNT, "-1", "a whole number"),
        (value_types.COUNT, 1.5, "a whole number"),
        (value_types.COUNT, True, "a whole number"),
        (value_types.WORKERS, "many", "expected a whole number from 1 to 450"),
        (value_types.WORKERS, "0", "expected a whole number from 1 to 450, or auto"),
        (value_types.WORKERS, 0, "expected a whole number from 1 to 450, or auto"),
        (value_types.PORT, 65536, "0 to 65535"),
        (value_types.PORTS, [], "a port"),
        (value_types.DURATION, "5 parsecs", "unknown unit 'parsecs'; expected a duration"),
        (value_types.DURATION, "-1s", "a duration"),
        (value_types.DURATION, float("nan"), "a duration"),
        (value_types.DURATION, True, "a duration"),
        (value_types.DURATION, "9" * 400, "a duration"),
        (value_types.POSITIVE, "0s", "above zero"),
        (value_types.SIZE, "512", "unit missing; expected a size such as 512MiB"),
        (value_types.SIZE, "512 apples", "unknown unit 'apples'"),
        (value_types.RATIO, "1.1", "from 0 to 1"),
        (value_types.UMASK, "8", "octal"),
        (value_types.TEXT, 5, "a text"),
        (value_types.PATH, "", "a path"),
        (value_types.REFERENCE, "module.function", "module:function"),
        (value_types.APPS, "a:app", "a list of pairs"),
        (value_types.APPS, [["a:app"]], "a list of pairs"),
        (value_types.HOST, "a b", "a host name"),
        (value_types.choice("text", "json"), "xml", "one of text, json"),
        (value_types.ROOT_PATH, "/a b", "a path such as /shop"),
        (value_types.ROOT_PATH, "/a?b", "without a query"),
        (value_types.ROOT_PATH, "/a#b", "without a query"),
        (value_types.ROOT_PATH, "/a%2", "two hexadecimal digits must follow each %; expected a path such as"),
        (value_types.ROOT_PATH, "/a%00", "a path"),
        (value_types.ROOT_PATH, "/a\nb", "a path"),
        (value_types.ROOT_PATH, "/caf%E9", "a path"),
        (value_types.ROOT_PATH, "/a//b", "an empty segment"),
        (value_types.ROOT_PATH, "/a/../b", "an empty segment, or one that clients resolve"),
        (value_types.ROOT_PATH, "/%2e%2E", "an empty segment, or one that clients resolve"),
        (value_types.ROOT_PATH, 3, "a path"),
    ],
)
def test_what_a_value_cannot_be(kind: ValueType, raw: object, message: str) -> None:
    """A bad value is refused with what is allowed."""
    with pytest.raises(ValueError, match=message):
        kind.parse(raw)


@given(st.floats(0, 1e9))
def test_a_duration_survives_its_text(seconds: float) -> None:
    """What is shown of a duration means exactly that duration."""
    assert value_types.DURATION.parse(value_types.DURATION.show(seconds)) == seconds


@given(st.integers(0, 10_000), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_a_duration_scales_with_its_unit(number: int, unit: tuple[str, float]) -> None:
    """A number with a unit is that many of the unit."""
    assert value_types.DURATION.parse(f"{number}{unit[0]}") == pytest.approx(number * unit[1])


@given(st.text(max_size=20))
def test_a_root_path_survives_its_text(path: str) -> None:
    """What is shown is read as the same path."""
    try:
        value = value_types.ROOT_PATH.parse(f"/{value_types.encoded_path(path)}")
    except ValueError:
        return
    assert value_types.ROOT_PATH.parse(value_types.ROOT_PATH.show(value)) == value


@given(st.integers(0, 2**63))
def test_a_size_survives_its_text(size: int) -> None:
    """What is shown of a size means that size."""
    assert value_types.SIZE.parse(value_types.SIZE.show(size)) == size


@given(st.text())
def test_no_text_breaks_a_kind(text: str) -> None:
    """Any text is either a value or refused with a ValueError that says what is allowed."""
    for each in OPTIONS.values():
        message = ""
        try:
            each.parse(text)
        except ValueError as error:
            message = str(error)
        assert not message or "expected" in message


@pytest.mark.parametrize("name", [name for name, each in OPTIONS.items() if not each.code_only])
def test_a_default_survives_its_text(name: str) -> None:
    """The text of each default, as the reference page shows it, means the default."""
    assert OPTIONS[name].parse(OPTIONS[name].show(OPTIONS[name].default)) == OPTIONS[name].default


def test_flags_and_variables_are_unique() -> None:
    """No two options share a name in any form."""
    for names in ([each.flag for each in OPTIONS.values()], [each.short for each in OPTIONS.values()]):
        given_names = [name for name in names if name]
        assert len(given_names) == len(set(given_names))


def test_a_nested_option_is_derived_from_its_field() -> None:
    """The field `ecv_control` within `ecv` has a dotted name, a flag and a variable."""

    @dataclass(frozen=True)
    class Toy:
        ecv_control: bool = option(False, value_types.FLAG, "…", "ECV", within="ecv")

    found = options_of(Toy)["ecv.control"]
    assert (found.field, found.flag, found.variable) == ("ecv_control", "--ecv-control", "CLUSTER2_ECV_CONTROL")


def test_settings_cross_a_wire() -> None:
    """Plain values come back from MessagePack as they were; callables and app objects become None."""
    settings = Settings(workers=4, bind=("a:1", "unix:b"), timeout=1.5, warm_up=len, apps=((object(), (3000,)),))
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(settings.to_wire()))
    back = Settings.from_wire(wire)
    assert back.bind == ("a:1", "unix:b")
    assert back.timeout == 1.5
    assert back.warm_up is None
    assert back.apps == ((None, (3000,)),)
    assert Settings.from_wire(Settings(workers=4).to_wire()) == Settings(workers=4)


def test_a_wire_of_another_version_is_read() -> None:
    """Unknown fields are ignored and missing ones have their default: a reload may meet a newer version."""
    assert Settings.from_wire({"workers": 3, "of_tomorrow": 1}) == Settings(workers=3)


@pytest.mark.parametrize(
    ("values", "addresses"),
    [
        ({}, ["0.0.0.0:3000"]),
        ({"host": "::1", "port": (1, 2)}, ["[::1]:1", "[::1]:2"]),
        ({"bind": ("unix:a", "fd://3")}, ["unix:a", "fd://3"]),
        ({"apps": (("a:app", (4000,)), ("b:app", ("unix:b",)))}, ["0.0.0.0:4000", "unix:b"]),
    ],
)
def test_addresses(values: dict[str, Any], addresses: list[str]) -> None:
    """`apps` with its places, else `bind`, else `host` with each port."""
    assert [str(each) for each in Settings(**values).addresses()] == addresses


def test_each_app_has_its_addresses() -> None:
    """`targets` pairs every app with where it is served."""
    settings = Settings(apps=(("a:app", (4000,)), ("b:app", ("unix:b",))))
    assert settings.targets() == (("a:app", (TcpAddress("0.0.0.0", 4000),)), ("b:app", (UnixAddress("b"),)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 3001}, r"monitor_port = 3001 is the app's port too \(0.0.0.0:3001\); choose another, or 0"),
        ({"bind": ("unix:a", "localhost:3001")}, "monitor_port"),
        ({"ssl_keyfile": "k.pem"}, "ssl_keyfile = k.pem needs ssl_certfile"),
        ({"ssl_keyfile_password": "hush"}, r"ssl_keyfile_password = \*\*\* needs ssl_certfile"),
        ({"bind": ("unix:a", "unix:a")}, "unix:a is listed twice"),
        (
            {"ecv_path": "", "ecv_monitor": "/well"},
            "ecv.monitor = /well is asked on the app's port: that needs ecv.path",
        ),
        (
            {"ecv_path": "", "ecv_control": True, "monitor_port": 0},
            "ecv.control = true needs ecv.path, which is off, or mon",
        ),
        ({"app": "a:app", "apps": (("b:app", (1,)),)}, "app = a:app and apps are both set"),
        ({"bind": ("a:1",), "apps": (("b:app", (1,)),)}, "bind = a:1 and apps are both set"),
    ],
)
def test_contradictions(values: dict[str, Any], message: str) -> None:
    """Settings that contradict each other are refused by a line that names them."""
    with pytest.raises(ConfigError, match=message):
        validate(Settings(**values))


@pytest.mark.parametrize(
    "values", [{}, {"port": 0, "monitor_port": 0}, {"port": (0, 0)}, {"port": 3001, "monitor_port": 0}]
)
def test_no_contradiction(values: dict[str, Any]) -> None:
    """Port 0 means another one each time, and a monitor that is off has no port."""
    validate(Settings(**values))


def test_a_contradiction_names_the_source() -> None:
    """Where the source is known, the message has it."""
    with pytest.raises(ConfigError, match=r"monitor_port = 3000 \(CLUSTER2_MONITOR_PORT\)"):
        validate(Settings(monitor_port=3000), {"monitor_port": "CLUSTER2_MONITOR_PORT"})


def test_a_default_gives_way() -> None:
    """A monitor's port that wasn't asked for clashes with nothing: another is taken. One that was asked for does."""
    for values in ({"port": 3001}, {"ecv_agent_port": 3001}):
        validate(Settings(**values), {"monitor_port": "default"})
        with pytest.raises(ConfigError):
            validate(Settings(**values), {"monitor_port": "flag --monitor-port"})


def test_ipv6_texts_are_kept() -> None:
    """The kind of `bind` keeps an address's spelling."""
    address = str(ipaddress.IPv6Address("2001:db8::1"))
    assert value_types.ADDRESS.parse(f"[{address}]:80") == f"[{address}]:80"


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.requires_master])
def test_options_without_a_master(name: str) -> None:
    """With `cluster = false` each option that a master carries out is named, with its source, if it asks for something."""
    option = OPTIONS[name]
    asks = {int: 7, float: 7.0, str: "x", bool: True}[str if option.default is None else type(option.default)]
    asked = Settings(cluster=False, **{option.field: asks})  # type: ignore[arg-type]
    said = without_master(asked, {name: "flag"})
    assert said is not None
    assert f"{name} = {option.show(asks)} (flag)" in said
    assert without_master(asked, {}) is None
    assert without_master(dataclasses.replace(asked, cluster=True), {name: "flag"}) is None
    for nothing in option.no_op_values:
        assert without_master(dataclasses.replace(asked, **{option.field: nothing}), {name: "flag"}) is None
