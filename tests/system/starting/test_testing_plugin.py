"""The plug-in for pytest, in a project as a user has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.harness import clean_environment, descendants, wait_until

APP = """
import os
VALUE = "one"

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{VALUE} {os.getpid()}".encode()})
"""
TESTS = """
from pathlib import Path

import pytest

import cluster2


def test_it_serves(cluster):
    assert cluster.get("/").startswith(b"one ")
    assert cluster.client.get("/").text.startswith("one ")
    assert len(cluster.workers()) == 2


@pytest.mark.anyio
async def test_async(cluster):
    async with cluster.async_client as client:
        assert (await client.get("/")).text.startswith("one ")


def test_a_reload(cluster):
    path = Path(__file__).with_name("shop.py")
    text = path.read_text()
    path.write_text(text.replace('"one"', '"two"'))
    cluster.reload()
    assert cluster.get("/").startswith(b"two ")
    path.write_text("1 / 0")
    with pytest.raises(cluster2.ClusterError, match="ZeroDivisionError"):
        cluster.reload()
    assert cluster.get("/").startswith(b"two ")
    path.write_text(text)


@pytest.mark.cluster(workers=1)
def test_a_worker_that_dies(cluster):
    pid = cluster.workers()[0]["pid"]
    assert cluster.kill_worker() != pid
    assert cluster.get("/").startswith(b"one ")
    with pytest.raises(ValueError, match="no worker is ready in slot 7"):
        cluster.kill_worker(slot=7)
    assert cluster.shutdown() == 0
    assert "stopped" in cluster.output or "gone" in cluster.output


class TestShared:
    pytestmark = pytest.mark.cluster("shop:app", scope="module", workers=1)
    seen = set()

    @pytest.mark.cluster(monitor_port=None, ecv={"path": "/alive"}, scope="function")
    def test_a_marker_adds_options(self, cluster):
        assert len(cluster.workers()) == 1
        assert cluster.get("/alive")

    @pytest.mark.parametrize("number", [1, 2])
    def test_it_is_the_same(self, cluster, number):
        self.seen.add(cluster.url)
        assert len(self.seen) == 1
"""
WRONG = """
import pytest

@pytest.mark.cluster("nothing:app")
def test_no_such_app(cluster): ...

@pytest.mark.cluster("shop:app", scope="planet")
def test_no_such_scope(cluster): ...

@pytest.mark.cluster("shop:app", wrokers=2)
def test_no_such_option(cluster): ...

def test_no_app(cluster): ...
"""


def pytest_in(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as a user does, in a project of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers", *arguments]
    return subprocess.run(command, cwd=directory, env=clean_environment(), capture_output=True, text=True, timeout=110)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with an app."""
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def test_a_project(project: Path) -> None:
    """The fixture serves the app on a free port, with clients, reload and a killed worker; nothing is left."""
    before = descendants()
    (project / "pytest.ini").write_text("[pytest]\ncluster2_target = shop:app\n")
    (project / "conftest.py").write_text("import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
    (project / "test_shop.py").write_text(TESTS)
    done = pytest_in(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout
    wait_until(lambda: descendants() <= before, "nothing is left")


def test_what_is_wrong(project: Path) -> None:
    """Each error names what is wrong and the way out."""
    (project / "test_shop.py").write_text(WRONG)
    done = pytest_in(project, "--tb=short")
    assert done.returncode == 1
    assert "4 errors" in done.stdout
    for said in (
        "there is no module 'nothing'",
        "scope='planet' of the marker cluster: expected 'function' or 'module'",
        "--wrokers",
        "the fixture cluster needs an app: @pytest.mark.cluster('module:app')",
    ):
        assert said in done.stdout, done.stdout


def test_a_run_that_is_killed(project: Path) -> None:
    """The cluster ends with the test run."""
    before = descendants()
    (project / "test_shop.py").write_text(
        "import pytest, time\n@pytest.mark.cluster('shop:app')\ndef test_long(cluster):\n"
        "    open('ready', 'w').close()\n    time.sleep(100)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with subprocess.Popen(command, cwd=project, env=clean_environment(), stdout=subprocess.DEVNULL) as running:
        try:
            wait_until((project / "ready").exists, "the test runs")
        finally:
            running.kill()
    wait_until(lambda: descendants() <= before, "nothing is left")
