"""Which threads of the import make forking unsafe, and what is said of them and of connections."""

from __future__ import annotations

import threading

import pytest

from cluster2.linux.native_threads import NativeThread
from cluster2.processes.zygote import inheritance


@pytest.mark.parametrize(
    ("thread", "told"),
    [
        (NativeThread("python", "libscipy_openblas64_-32a4b2a6.so"), None),
        (NativeThread("python", "libomp.so"), None),
        (NativeThread("python", "libgomp-a34b3233.so.1.0.0"), "OpenMP, libgomp-a34b3233.so.1.0.0"),
        (NativeThread("python", "libvendor.so"), "a thread of libvendor.so"),
        (NativeThread("python", ""), "a native thread"),
        (NativeThread("poller", "libvendor.so"), "poller"),
        (NativeThread("python", None), None),
        (NativeThread("poller", None), "poller"),
    ],
    ids=str,
)
def test_native_threads(monkeypatch: pytest.MonkeyPatch, thread: NativeThread, told: str | None) -> None:
    """Threads that their library replaces are harmless; where the kernel doesn't tell the library, unnamed ones are."""
    monkeypatch.setattr(inheritance, "native_threads", lambda: [thread])
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    assert inheritance.threads("python") == ([] if told is None else [told])


def test_warnings() -> None:
    """With threads nothing is forked, so connections aren't shared; of many names the first are told, each once."""
    assert inheritance.warnings([], []) == []
    (warned,) = inheritance.warnings(["a", "a", "b"], ["db:1"])
    assert "started threads (a, b)" in warned
    (warned,) = inheritance.warnings([], [f"db:{number}" for number in range(6)])
    assert "opened connections (db:0, db:1, db:2, db:3 and 2 more)" in warned
