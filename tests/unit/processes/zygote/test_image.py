"""The image that workers are forked from: what is done before the first fork, in which order, and what is refused."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cluster2.config.settings import Settings
from cluster2.engines.http.http_engine import HttpEngine
from cluster2.errors import AppError, ClusterError, ConfigError
from cluster2.processes.zygote import image
from cluster2.processes.zygote.renewal import renew

pytestmark = pytest.mark.usefixtures("own_process")
APP = "async def app(scope, receive, send): ...\n"
Build = Callable[..., image.Image]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build the image of an app whose module has this text."""

    def build(text: str = APP, sources: dict[str, str] | None = None, **options: object) -> image.Image:
        (tmp_path / "site_of_test.py").write_text(text)
        settings = Settings(chdir=str(tmp_path), **options)  # type: ignore[arg-type]
        return image.build(settings, sources or {}, ["site_of_test:app"])

    return build


def test_an_image(build: Build, tmp_path: Path) -> None:
    """It has each app with its engine; the directory is entered and importable; the collector is off."""
    made = build()
    ((app, engine),) = made.apps
    assert (app.label, engine) == ("site_of_test:app", HttpEngine)
    beside = {"libuv-worker", "a native thread"}  # of loops that other tests ran in this process; pytest's watchdog
    assert set(made.threads) <= beside
    assert not made.connections
    assert os.getcwd() == sys.path[0] == str(tmp_path)
    assert not gc.isenabled()


def test_order(build: Build, tmp_path: Path) -> None:
    """The environment is set before the app's first line, and `warm_up` runs after its last."""
    (tmp_path / "env").write_text("SECRET_OF_TEST=xyzzy\n")
    text = APP + "import os\ndone = [os.environ['SECRET_OF_TEST'], os.getcwd()]\ndef warm():\n    done.append('warm')\n"
    build(text, env_file=str(tmp_path / "env"), warm_up="site_of_test:warm")
    assert sys.modules["site_of_test"].done == ["xyzzy", str(tmp_path), "warm"]


def test_umask(build: Build) -> None:
    """The mask is set before the app runs."""
    build(APP + "import os\nold = os.umask(0)\n", umask=0o027)
    assert sys.modules["site_of_test"].old == 0o027


def test_warm_up_as_an_object(build: Build) -> None:
    """In script mode `warm_up` is the function itself."""
    called: list[str] = []
    build(warm_up=lambda: called.append("warm"))
    assert called == ["warm"]


@pytest.mark.parametrize(
    ("text", "says", "detail"),
    [
        ("def warm():\n    raise KeyError('cache')", "warm_up = site_of_test:warm raised KeyError: 'cache'", "in warm"),
        ("def warm():\n    raise SystemExit(3)", "warm_up = site_of_test:warm raised SystemExit: 3", "in warm"),
        ("def warm():\n    raise ValueError('a\\nb')", "warm_up = site_of_test:warm raised ValueError: a", "in warm"),
        ("", "warm_up = site_of_test:warm raised AttributeError: .*'warm'", ""),
    ],
)
def test_a_warm_up_that_raises(build: Build, text: str, says: str, detail: str) -> None:
    """Its error is the app's: one line, and a traceback that starts at its own."""
    with pytest.raises(AppError, match=f"^{says}$") as raised:
        build(APP + text + "\n", warm_up="site_of_test:warm")
    assert detail in raised.value.detail
    assert "image.py" not in raised.value.detail


def test_an_async_warm_up(build: Build) -> None:
    """There is no event loop yet: an async `warm_up` is refused, and leaves no coroutine that nobody awaits."""
    with pytest.raises(ConfigError, match="warm_up = site_of_test:warm: it is async; .* make it a plain function"):
        build(APP + "async def warm(): ...\n", warm_up="site_of_test:warm")


def test_an_error_of_ours_passes(build: Build) -> None:
    """A ClusterError that the app raises on purpose is not dressed up."""
    text = "from cluster2 import ClusterError\n" + APP + "def warm():\n    raise ClusterError('on purpose')\n"
    with pytest.raises(ClusterError, match="^on purpose$"):
        build(text, warm_up="site_of_test:warm")


def test_options_of_another_engine(build: Build) -> None:
    """An option that was set on purpose and that the app's engine can't honour is refused, with its source."""
    text = "async def app(reader, writer): ...\n"
    build(text)
    with pytest.raises(ConfigError, match=r"lifespan \(cluster2\.toml:3\): engine 'tcp' has no lifespan"):
        build(text, {"workers": "flag --workers", "lifespan": "cluster2.toml:3"}, lifespan="on")


def test_a_directory_that_is_not_there(build: Build, tmp_path: Path) -> None:
    """A directory that vanished since the options were read is named."""
    with pytest.raises(ConfigError, match="chdir = '.*nowhere': No such file or directory"):
        image.build(Settings(chdir=str(tmp_path / "nowhere")), {}, [])


@contextlib.contextmanager
def thread(name: str) -> Iterator[None]:
    """A thread that lives for as long as the block."""
    end = threading.Event()
    running = threading.Thread(target=end.wait, name=name)
    running.start()
    try:
        yield
    finally:
        end.set()
        running.join()


def test_threads_are_noticed(build: Build) -> None:
    """Threads that the import left running are named: forking beside them is unsafe."""
    with thread("poller"):
        assert build().threads == ["poller"]


def test_numpy_is_seeded_anew() -> None:
    """NumPy's global generator goes on with other numbers in a worker, also if the app has put another one in its place."""
    import numpy as np

    before = np.random.get_bit_generator()
    try:
        for generator in (np.random.MT19937(7), np.random.PCG64(7)):
            np.random.set_bit_generator(generator)
            renew()
            drawn = np.random.random()
            np.random.set_bit_generator(type(generator)(7))
            assert np.random.random() != drawn
    finally:
        np.random.set_bit_generator(before)


def test_a_module_that_can_not_be_renewed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A module without what we know of it is left as it is, with a line in the log."""
    monkeypatch.setitem(sys.modules, "numpy.random", ModuleType("numpy.random"))
    renew()
    assert "numpy.random can't be renewed for this worker" in caplog.text


def test_freeze() -> None:
    """The heap of the image is out of the collector's sight."""
    image.freeze()
    assert gc.get_freeze_count() > 1000
