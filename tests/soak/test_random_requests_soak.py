"""Minutes of random requests while connections are handed off: no wrong byte, no lost response."""

from __future__ import annotations

import os

import pytest

from tests.system.conftest import Serve, run, start  # noqa: F401 - fixtures
from tests.system.connections.test_random_requests import WAYS, soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("way", WAYS)
def test_ten_minutes(run: Serve, way: str) -> None:  # noqa: F811
    """Hand-offs, reloads, scaling, half-closes and resets all the time."""
    soak(run, way, clients=24, seconds=SECONDS)
