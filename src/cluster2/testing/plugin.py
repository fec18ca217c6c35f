"""The plug-in for pytest: the fixture `cluster`.

A marker says what is served, for a function, a class or a module:

    pytestmark = pytest.mark.cluster("shop:app", workers=2)

    def test_it_serves(cluster):
        assert cluster.get("/") == b"hello"
        cluster.reload()
        cluster.kill_worker()

The ini option `cluster2_target` says it for all tests. Each test has a cluster of its own. With `scope="module"` in the
marker of a module, its tests share one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .running_cluster import RunningCluster


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini("cluster2_target", "the app that the fixture cluster serves: module:attr", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers", "cluster(target, *, scope='function', **options): what the fixture cluster serves (cluster2.testing)"
    )


@pytest.fixture(scope="module")
def _shared_clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Any, RunningCluster]]:
    """Keep the clusters that tests of a module share, by what they serve."""
    found: dict[Any, RunningCluster] = {}
    yield found
    for each in found.values():
        each.close()


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    _shared_clusters: dict[Any, RunningCluster],
) -> Iterator[RunningCluster]:
    """Run a cluster that serves the app of the marker `cluster`, on a free port."""
    options: dict[str, Any] = {}
    target = request.config.getini("cluster2_target")
    for marker in reversed(list(request.node.iter_markers("cluster"))):  # the closest one last: it wins
        options |= marker.kwargs
        target = marker.args[0] if marker.args else target
    scope = options.pop("scope", "function")
    if not target:
        raise pytest.UsageError(
            "the fixture cluster needs an app: @pytest.mark.cluster('module:app'), or cluster2_target in pytest's ini file"
        )
    if scope not in ("function", "module"):
        raise pytest.UsageError(f"scope={scope!r} of the marker cluster: expected 'function' or 'module'")
    options.setdefault("chdir", request.config.rootpath)
    key = (target, repr(sorted(options.items(), key=lambda item: item[0])))
    if scope == "module" and key in _shared_clusters:
        yield _shared_clusters[key]
        return
    made = RunningCluster(target, tmp_path_factory.mktemp("cluster"), **options)
    if scope == "module":
        _shared_clusters[key] = made
        yield made
        return
    with made:
        yield made
