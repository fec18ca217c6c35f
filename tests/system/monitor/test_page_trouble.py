"""The monitor's page in Chromium when something is wrong or the tab is hidden: it never shows old figures as new."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Request, Route, expect

from cluster2.config.settings import Settings
from cluster2.processes.monitor.data.cluster_view import ClusterView
from cluster2.processes.monitor.data.report import ClusterInfo
from tests.system import boards
from tests.system.browser import Cluster, Sight, give_token, in_tabs, started
from tests.system.clients import Load
from tests.system.harness import ROOT, stop, wait_until

pytestmark = pytest.mark.slow
See = Callable[..., Sight]

HEARD = """
(selector) => {
  window.heard = [];
  const note = () => {
    const said = [...document.querySelectorAll(selector)].map((each) => each.textContent);
    for (const each of said) if (each && each !== heard.at(-1)) heard.push(each);
  };
  note();
  new MutationObserver(note).observe(document.body, { subtree: true, childList: true, characterData: true });
}
"""
"""A function that keeps all texts that elements have had."""

CRASHING = """
import os, pathlib
from tests.system.apps.sample_apps import answer

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        if pathlib.Path("broken").exists():
            os._exit(9)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await answer(send, b"hello")
"""
"""An app that can't start while the file `broken` exists."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a cluster of three workers. Each test leaves three."""
    cluster = started(tmp_path_factory.mktemp("page"), workers=3)
    yield cluster
    cluster.running.close()
    cluster.running.assert_gone()


def test_recycle_all(see: See, cluster: Cluster) -> None:
    """All workers are replaced within the generation, the page counts them, and no request fails."""
    sight = see(cluster.url).live(3)
    before, generation = cluster.pids(), cluster.running.status()["generation"]
    sight.evaluate(HEARD, ".activity .what")
    with Load(cluster.running.address, clients=4) as load:
        wait_until(lambda: load.counts.answered, "requests are answered")
        sight.get_by_role("button", name="Recycle all").click()
        give_token(sight)
        expect(sight.locator(".activity.done .what")).to_have_text("✓ 3 workers are replaced")
        served = load.counts.answered
        wait_until(lambda: load.counts.answered > served, "the new ones serve")
    assert (load.counts.failed, load.counts.refused, load.counts.closed) == ([], [], 0)
    counted = [int(each[1]) for said in sight.evaluate("heard") if (each := re.match(r"Recycle all: (\d) of 3 ", said))]
    assert counted == sorted(counted)
    assert {1, 2} <= set(counted)
    sight.until(lambda: sight.pids() == cluster.pids(), "the pids that there are")
    assert sight.pids().keys() == before.keys()
    assert not set(sight.pids().values()) & set(before.values())
    assert set(sight.column("generation")) == {generation}
    expect(sight.locator("#glance-generation b")).to_have_text(str(generation))


def test_degraded(see: See, tmp_path: Path) -> None:
    """A degraded cluster shows an alarm across the page, also for a later viewer, and so does its recovery."""
    (tmp_path / "crashing.py").write_text(CRASHING)
    options = ("--restart-limit", "2", "--restart-window", "4s")
    cluster = started(tmp_path, *options, app="crashing:app", env={"PYTHONPATH": str(ROOT)})
    try:
        sight = see(cluster.url).live(2)
        alarm, state = sight.locator("#alarm"), sight.locator("#state")
        expect(state).to_have_text("● Serving")
        expect(alarm).to_be_hidden()
        (tmp_path / "broken").touch()
        os.kill(cluster.pids()[0], signal.SIGKILL)
        expect(alarm).to_contain_text(
            "Degraded: workers crash faster than restart_limit allows, so restarts back off. 1 of 2"
        )
        expect(alarm).to_be_in_viewport()
        expect(state).to_have_text("▲ Degraded")
        expect(sight.locator("#event-list b", has_text="degraded")).to_have_count(1)
        assert sight.title().startswith("▲ 1/2")
        later = see(cluster.url, color_scheme="dark").live()
        expect(later.locator("#alarm")).to_contain_text("Degraded")
        sight.screenshot("degraded", full=False)
        (tmp_path / "broken").unlink()
        for each in (sight, later):
            expect(each.locator("#alarm")).to_contain_text(
                re.compile(r"● Recovered at \d\d:\d\d:\d\d: 2 of 2 workers serve")
            )
            expect(each.locator("#state")).to_have_text("● Serving")
            expect(each.locator("#event-list b", has_text="recovered")).to_have_count(1)
        assert sight.title().startswith("2/2")
        later.screenshot("recovered", full=False)
        sight.close()
        later.close()
    finally:
        cluster.running.close()
        cluster.running.assert_gone()


def hurry(route: Route) -> None:
    """Serve the script with 0.3 s instead of the minute after which a hidden tab closes its stream."""
    script = route.fetch()
    assert "const HIDDEN = 60000;" in script.text()
    route.fulfill(response=script, body=script.text().replace("const HIDDEN = 60000;", "const HIDDEN = 300;"))


def of_events(request: Request) -> bool:
    return request.url.endswith("/events")


def test_a_hidden_tab_catches_up(browser: Browser, cluster: Cluster) -> None:
    """A hidden tab closes its stream after a while; when visible again it shows the current state and the missed events."""
    with in_tabs(browser) as window:
        window.route("**/static/stream.js", hurry)
        sight = Sight(browser, cluster.url, context=window).live(3)
        sight.evaluate("window.same = true")
        before = cluster.pids()
        with sight.expect_event("requestfailed", of_events):
            other = window.new_page()
        os.kill(before[1], signal.SIGKILL)
        wait_until(lambda: cluster.pids().get(1, before[1]) != before[1], "a successor")
        assert sight.evaluate("document.hidden") is True
        assert sight.pids() == before
        sight.bring_to_front()
        sight.until(lambda: sight.pids() == cluster.pids(), "the pids that there are")
        missed = sight.locator("#event-list li", has_text=f"worker 1 (pid {before[1]}) crashed: SIGKILL")
        expect(missed).to_have_count(1)
        assert sight.evaluate("[links, window.same, document.hidden]") == [
            ["connecting", "live", "connecting", "live"],
            True,
            False,
        ]
        assert sum("history?" in url for url in sight.requests) >= 2  # the charts have no gap
        other.close()
        sight.close()


def test_a_tab_that_was_never_in_front(browser: Browser, cluster: Cluster) -> None:
    """A tab that is opened behind another closes its stream as well, and is live when it comes to the front."""
    with in_tabs(browser) as window:
        window.route("**/static/stream.js", hurry)
        window.new_page()
        assert window.browser is not None
        session = window.browser.new_browser_cdp_session()
        with window.expect_page() as opened:
            session.send("Target.createTarget", {"url": "about:blank", "background": True})
        behind = opened.value
        with behind.expect_event("requestfailed", of_events):
            behind.goto(cluster.url)
        assert behind.evaluate("document.hidden") is True
        behind.bring_to_front()
        expect(behind.locator("body")).to_have_attribute("data-link", "live")
        expect(behind.locator("#workers tbody tr")).to_have_count(3)


def test_a_monitor_that_is_silent(see: See, cluster: Cluster) -> None:
    """When the monitor is stopped, the page says how old its figures are, and goes on when the monitor does."""
    sight = see(cluster.url).live(3)
    age = sight.locator("tbody [data-column=age]").first
    pid = cluster.running.status()["monitor"]["pid"]
    stop(pid)
    try:
        banner = sight.locator("#banner-text")
        expect(banner).to_contain_text("Connection lost: the monitor doesn't respond. The figures are from ")
        expect(sight.locator("#link")).to_have_text("✕ Lost")
        expect(sight.get_by_role("button", name="Recycle all")).to_be_disabled()
        old = age.inner_text()
    finally:
        os.kill(pid, signal.SIGCONT)
    sight.live(3)
    expect(sight.locator("#banner")).to_be_hidden()
    expect(age).not_to_have_text(old)
    assert sight.evaluate("links")[:4] == ["connecting", "live", "lost", "live"]


def test_a_monitor_without_reports(see: See, monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor that sends comments but no reports counts as lost."""
    with boards.monitor(2, Settings(), ClusterInfo(master=boards.NOBODY - 1)) as url:
        sight = see(url).live(2)
        sight.expected = ("Failed to load resource: the server responded with a status of 500",)
        with monkeypatch.context() as broken:
            broken.setattr(ClusterView, "not_alive", lambda facts: 1 / 0)
            expect(sight.locator("#banner-text")).to_contain_text("Connection lost")
        sight.live(2)
        sight.close()
