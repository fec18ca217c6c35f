"""A hang-up distinguished from a request to reload, where the terminal has gone without a signal."""

from __future__ import annotations

import pytest

from cluster2.linux import terminal
from cluster2.linux.terminal import HANGUP_GRACE_S, Terminal


class Seen:
    """A terminal and a clock of the test's."""

    there, now = True, 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(terminal, "_is_there", lambda: seen.there)
    monkeypatch.setattr(terminal, "time", seen)
    return seen


@pytest.mark.parametrize("looks", [True, False])
def test_signals_of_a_hang_up(seen: Seen, looks: bool) -> None:
    """All that come with it, also if a look has noticed it right before; what comes later is a request."""
    found = Terminal()
    found.check_hangup()
    assert not found.hung_up()
    seen.there = False
    if looks:
        found.check_hangup()
    seen.now += HANGUP_GRACE_S / 2 if looks else 1000
    assert found.hung_up()
    seen.now += HANGUP_GRACE_S / 3
    assert found.hung_up()
    seen.now += HANGUP_GRACE_S
    assert not found.hung_up()


def test_it_has_gone_without_a_signal(seen: Seen) -> None:
    """A job in the background outlives its shell: a HUP that comes then is a request."""
    found = Terminal()
    seen.there = False
    found.check_hangup()
    seen.now += HANGUP_GRACE_S
    assert not found.hung_up()
    seen.there = True
    assert not found.hung_up()
