"""The corpus of edge cases (`tests/differential/corpus.py`) over a connection in memory: however the bytes are split."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from cluster2.engines.base import Interface
from cluster2.engines.http.http_engine import HttpEngine
from tests.differential.conversation import answers
from tests.differential.corpus import CASES, Case
from tests.differential.echo_site import asgi, wsgi
from tests.unit.http_exchange import exchange, serving

pytestmark = pytest.mark.anyio
MAX_SINGLE_BYTES = 400
"""Up to so many bytes a conversation is also sent byte by byte."""
RANDOM_SPLITS = 8


async def answered(engine: HttpEngine, case: Case, pieces: Sequence[bytes]) -> list[str]:
    """Return the responses without those that depend on timing: 100 Continue is only sent if a body hasn't come yet."""
    found = answers(await exchange(engine, pieces, half_close=case.half_close))
    return [each for each in found if each != "100"]


def splits(data: bytes) -> list[list[bytes]]:
    """Ways to split data: not at all, at random, and in single bytes."""
    size, chance = len(data), random.Random(data[:40])
    cuts = [sorted(chance.sample(range(1, size), min(size - 1, chance.randrange(1, 6)))) for _ in range(RANDOM_SPLITS)]
    if size <= MAX_SINGLE_BYTES:
        cuts.append(list(range(1, size)))
    return [[data[start:end] for start, end in zip([0, *each], [*each, size], strict=True)] for each in ([], *cuts)]


@pytest.mark.parametrize("interface", [Interface.ASGI, Interface.WSGI], ids=str)
@pytest.mark.parametrize("name", CASES)
async def test_however_split(name: str, interface: Interface) -> None:
    """Equal bytes get equal responses, however they are split."""
    case = CASES[name]
    expected = [each for each in case.answers if each != "100"]
    app = asgi if interface is Interface.ASGI else wsgi
    async with serving(app, interface, threads=0) as engine:
        ways = splits(case.data) if len(case.data) > 1 else [[case.data]]
        found = [(pieces, await answered(engine, case, pieces)) for pieces in ways]
    assert [each for each in found if each[1] != expected] == []
