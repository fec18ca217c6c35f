"""Events are values: named, frozen, complete."""

from __future__ import annotations

import msgspec
import pytest

from cluster2 import events
from cluster2.events import EVENTS, Event

MADE = [
    events.Forked(time=1.0, pid=2, slot=3, generation=4),
    events.Listening(time=1.0, pid=2, slot=3, generation=4, boot=0.5),
    events.Died(
        time=1.0, pid=2, slot=3, generation=4, code=None, signal="SIGKILL", uptime=5.0, reason="crash", stacks=None
    ),
    events.Warned(time=1.0, text="look"),
    events.Signalled(time=1.0, signal="SIGTERM", action="shutdown"),
    events.ShuttingDown(time=1.0, graceful=True),
    events.Stopped(time=1.0, code=0),
]


def test_every_event_has_a_name_of_its_own() -> None:
    """All classes are found by name, and no name is used twice."""
    assert set(EVENTS.values()) == set(Event.__subclasses__())
    assert all(kind.name == name for name, kind in EVENTS.items())
    assert {"forked", "listening", "died", "warning", "degraded", "recovered", "shutdown", "stopped"} <= set(EVENTS)


@pytest.mark.parametrize("event", MADE, ids=lambda event: event.name)
def test_an_event_can_not_be_changed(event: Event) -> None:
    """A handler can't spoil an event for the next one."""
    with pytest.raises(AttributeError):
        event.time = 2.0


@pytest.mark.parametrize("event", MADE, ids=lambda event: event.name)
def test_an_event_becomes_json_and_back(event: Event) -> None:
    """Each travels as JSON and comes back equal: plain data throughout."""
    assert msgspec.json.decode(msgspec.json.encode(event), type=type(event)) == event


def test_a_signal_is_heard_by_its_own_name() -> None:
    """Listeners name the signal; all other events are heard by the name of their class."""
    assert [events.name_of(event) for event in MADE] == [
        "forked", "listening", "died", "warning", "SIGTERM", "shutdown", "stopped",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("died", None),
        ("*", None),
        ("SIGTERM", None),
        ("order-paid", None),
        ("dyed", "did you mean 'died'?"),
        ("Died", "did you mean 'died'?"),
        ("reload_failed", "did you mean 'reload-failed'?"),
        ("SIGTREM", "did you mean 'SIGTERM'?"),
        ("sigterm", "did you mean 'SIGTERM'?"),
        ("SIGWINCH", "it handles SIGTERM, SIGHUP"),
    ],
)
def test_a_misspelt_event(name: str, meant: str | None) -> None:
    """A name that is close to one of the master's is taken for a mistake; any other may be an event of the app's own."""
    assert events.meant_by(name, ["SIGTERM", "SIGHUP"]) == meant
