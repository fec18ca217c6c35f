"""The pin of granian's inside: it is what was tested, and another is refused with the way out."""

from __future__ import annotations

import importlib
import importlib.metadata

import pytest

from cluster2.engines import granian_internals
from cluster2.errors import ConfigError


def test_the_installed_one_is_known() -> None:
    """All that the engine uses of the installed granian is there; a new release that breaks it fails here."""
    granian_internals.check()


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name, parts in granian_internals._PARTS.items() for part in parts]
)
def test_a_part_that_is_missing(monkeypatch: pytest.MonkeyPatch, name: str, part: str) -> None:
    """Each part is looked for, and named if it is gone."""
    module = importlib.import_module(name)
    monkeypatch.delattr(module, part)
    with pytest.raises(ConfigError, match=part):
        granian_internals.check()


@pytest.mark.parametrize("found", ["2.7.9", "2.9.0", "3.0.1"])
def test_another_version(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """A version out of the tested range is refused, naming both."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    with pytest.raises(ConfigError, match=rf"granian {found} is installed; cluster2 is made for granian from 2.8 on"):
        granian_internals.check()


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is missing, the message says how to get it."""

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ConfigError, match=r"granian isn't installed; pip install 'cluster2\[granian\]'"):
        granian_internals.check()
