"""The monitor's page in Chromium, as operators use it."""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from cluster2.config.settings import Settings
from cluster2.processes.monitor.data.report import ClusterInfo
from tests.system import boards
from tests.system.apps.page_app import INHERITED, MARKUP
from tests.system.browser import TOKEN, Cluster, Sight, give_token, started
from tests.system.clients import get, wrk
from tests.system.harness import wait_until

pytestmark = pytest.mark.slow
See = Callable[..., Sight]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield a cluster of two workers. Each test leaves two."""
    options = ("--proc-name", "<b>shop</b>", "--log-to", "files")
    cluster = started(tmp_path_factory.mktemp("page"), *options)
    yield cluster
    cluster.running.close()
    cluster.running.assert_gone()


@pytest.fixture(scope="module")
def many_workers() -> Iterator[str]:
    """Yield the address of a monitor that shows 64 workers."""
    subject = ClusterInfo(title="many", master=boards.NOBODY - 1, addresses=["127.0.0.1:3000"], actions=True)
    with boards.monitor(64, Settings(monitor_token=TOKEN), subject) as url:
        yield url


# ------------------------------------------------------------------------------------------------------------- viewing


def test_a_killed_worker_is_replaced(see: See, cluster: Cluster) -> None:
    """When a worker is killed, the page shows its successor in the same row, the event and a mark, without being loaded again."""
    sight = see(cluster.url).live(2)
    before = cluster.pids()
    assert sight.pids() == before
    sight.until(lambda: sight.cell(sight.rows().first, "state") == "● ready", "a worker that is ready")
    expect(sight.locator("#glance-workers b")).to_have_text("2 / 2")
    expect(sight.locator("#glance-requests small")).to_have_text(re.compile(r"\d+ in flight"))
    expect(sight.locator("#title")).to_have_text("<b>shop</b>")
    sight.evaluate("window.same = true")
    sight.rows().last.get_by_role("button", name="Stacks").focus()
    os.kill(before[0], signal.SIGKILL)
    sight.until(lambda: sight.pids().get(0) not in (None, before[0]), "another pid in the row")
    sight.until(lambda: sight.pids() == cluster.pids(), "the pids that there are")
    assert sight.pids()[1] == before[1]
    assert sight.evaluate("document.activeElement.closest('tr').dataset.slot") == "1"
    assert sight.evaluate("window.same") is True
    said = sight.locator("#event-list li", has_text=f"worker 0 (pid {before[0]}) crashed: SIGKILL")
    expect(said).to_have_count(1)
    expect(said.locator("b")).to_have_text("crashed")
    sight.get_by_role("radio", name="1 h").check()
    plot = sight.locator("[data-chart=requests] .u-over")
    box = plot.bounding_box()
    pointed = sight.locator("#pointed")

    def marked() -> bool:
        sight.mouse.move(box["x"] + box["width"] - next(jitter), box["y"] + 40)
        return "worker 0 ended (crash)" in pointed.inner_text()

    jitter = itertools.cycle((2, 3))
    sight.until(marked, "the mark on the time line")


def test_charts_move(see: See, cluster: Cluster) -> None:
    """Under load the figures rise, and the charts are redrawn."""
    sight = see(cluster.url).live(2)
    canvas = sight.locator("[data-chart=requests] canvas")
    before = canvas.screenshot()
    assert wrk(cluster.running.url(), "-t1", "-c8", seconds=2)["requests"] > 0
    expect(sight.locator("[data-chart=latency] .value").last).to_contain_text("ms")
    assert canvas.screenshot() != before
    spoken = sight.locator("[data-chart=requests] .plot")
    most = re.compile(r"Requests per second, last 5 minutes: requests now [\d.,]+, at most [1-9]")
    expect(spoken).to_have_attribute("aria-label", most)


def test_the_history_is_there_at_once(see: See, many_workers: str) -> None:
    """The charts have data from before the page was opened; another range is requested when it is chosen."""
    sight = see(many_workers).live(64)
    sight.until(lambda: any("history?seconds=900" in url for url in sight.requests), "15 minutes")
    with sight.expect_response(re.compile("seconds=300&")) as answer:
        sight.get_by_role("radio", name="5 min", exact=True).check()
    assert len(answer.value.json()["rows"]) > 0
    with sight.expect_response(re.compile("seconds=3600&")):
        sight.get_by_role("radio", name="1 h").check()


def test_markup_stays_text(see: See, cluster: Cluster) -> None:
    """Names, values and events from workers are shown as text, and never become elements."""
    sight = see(cluster.url).live(2)
    assert get(cluster.running.address, "/say").status == 200
    expect(sight.locator("#event-list b", has_text=MARKUP)).to_have_count(1)
    # The data of the event is only for clients with the token.
    said = sight.locator("#event-list .said", has_text=MARKUP.partition("=x")[0])
    assert said.count() == 0
    sight.get_by_role("button", name="Stacks").first.click()
    give_token(sight)
    expect(sight.locator("#stacks-text")).to_contain_text("File")
    sight.locator("#stacks-close").click()
    expect(said).to_have_count(1)
    expect(sight.locator("#event-list b", has_text=MARKUP)).to_have_count(1)
    sight.get_by_role("tab", name="Components").click()
    sight.get_by_role("button", name=MARKUP).click()
    expect(sight.locator("#component-status h3")).to_have_text(MARKUP)
    expect(sight.locator("#component-status .value")).to_contain_text("<script>pwned = 1</script>")
    sight.get_by_role("button", name="pool").click()
    expect(sight.locator("#component-status .value")).to_have_text("6")
    rows = sight.locator("#component-status tbody tr")
    told = [rows.nth(at).inner_text().split() for at in range(rows.count())]
    assert sorted(told) == sorted([str(pid), "3"] for pid in cluster.pids().values())


def test_names_that_each_object_has(see: See, cluster: Cluster) -> None:
    """Events with names such as `constructor` are shown as any other, and later events, too."""
    sight = see(cluster.url).live(2)
    assert get(cluster.running.address, "/inherited").status == 200
    for name in INHERITED:
        expect(sight.locator("#event-list b").get_by_text(name, exact=True)).to_have_count(1)
    assert get(cluster.running.address, "/say").status == 200
    expect(sight.locator("#event-list li").first.locator("b")).to_have_text(MARKUP)
    assert set(sight.evaluate("window.links")) <= {"connecting", "live"}
    again = see(cluster.url).live(2)  # gets the kept events
    expect(again.locator("#event-list b").get_by_text(INHERITED[0], exact=True)).to_have_count(1)


def test_dependencies(see: See, cluster: Cluster) -> None:
    """The tree of dependencies is requested when its tab is opened, and its branches open."""
    sight = see(cluster.url).live(2)
    assert not any(url.endswith("/deps") for url in sight.requests)
    sight.get_by_role("tab", name="Dependencies").click()
    expect(sight.locator("#dependencies-note")).to_contain_text("distributions are installed")
    branch = sight.locator("#dependency-tree > li > details").first
    branch.locator("summary").first.click()
    expect(branch.locator("ul > li").first).to_be_visible()


def test_logs(see: See, cluster: Cluster) -> None:
    """A log shows its end, then added lines, as text, and the next file of that name after a rotation."""
    logs = cluster.running.directory / "logs"
    assert get(cluster.running.address, "/say").status == 200
    log = wait_until(
        lambda: next((each for each in logs.iterdir() if MARKUP in each.read_text()), None), "a line in one"
    )
    sight = see(cluster.url).live(2)
    sight.get_by_role("tab", name="Logs").click()
    expect(sight.locator("#logs-note")).to_have_text("Logs need the token: “Refresh list” asks for it.")
    sight.locator("#log-refresh").click()
    give_token(sight)
    sight.get_by_role("button", name=log.name).click()
    text = sight.locator("#log-text")
    expect(text).to_contain_text(MARKUP)
    written = log.stat().st_size
    log.rename(log.with_name("aside"))
    log.write_text("x" * written + "\n")  # longer than the one before
    expect(text).to_contain_text("— new file —")
    expect(text).to_contain_text("x" * 100)
    with log.open("a") as more:
        more.write("added ☃ line\n")
    expect(text).to_contain_text("added ☃ line")
    sight.screenshot("logs", full=False)


CONTRAST = r"""
() => {
  const rgb = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((each, at) => each * a + under[at] * (1 - a));
  const light = (color) => {
    const [r, g, b] = color.map((each) => (each / 255 <= 0.04045 ? each / 255 / 12.92 : ((each / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) layers.push(rgb(getComputedStyle(each).backgroundColor));
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const poor = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
    seen++;
    const under = ground(element);
    const [a, b] = [light(over(rgb(getComputedStyle(element).color), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.tagName}.${element.className} ${walker.currentNode.data}`);
  }
  return { seen, poor };
}
"""
DRAWN = """
(canvas, color) => {
  const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  copy.canvas.width = canvas.width;
  copy.canvas.height = canvas.height;
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const wanted = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] === 255 && wanted.every((each, band) => Math.abs(each - data[at + band]) < 3)) return true;
  }
  return false;
}
"""
"""A function: does a canvas have a pixel of that colour?"""


SOUND = """
(tone) => {
  document.getElementById("alarm-text").textContent = "Look!";
  Object.assign(document.getElementById("alarm"), { hidden: false }).dataset.tone = tone;
}
"""
"""A function that shows the alarm."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(see: See, cluster: Cluster, scheme: str) -> None:
    """In both colour schemes each visible text has a contrast of 4.5 at least, in dialogs and when it is greyed, too."""
    sight = see(cluster.url, color_scheme=scheme, viewport={"width": 1440, "height": 1000}).live(2)
    ground = sight.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(int(each) for each in re.findall(r"\d+", ground)) < 64) == (scheme == "dark")
    wait_until(lambda: sight.locator("#event-list li").count() > 0, "events")
    sight.screenshot(scheme)
    found = []
    for tab in ("Components", "Logs", "Dependencies", "Events"):
        sight.get_by_role("tab", name=tab).click()
        found.append(sight.evaluate(CONTRAST))
    sight.get_by_role("button", name="Shut down…").click()
    expect(sight.locator("#question")).to_be_visible()
    found.append(sight.evaluate(CONTRAST))
    sight.screenshot(f"{scheme}-question", full=False)
    sight.keyboard.press("Escape")
    for tone in ("bad", "good"):
        sight.evaluate(SOUND, tone)
        found.append(sight.evaluate(CONTRAST))
    sight.evaluate("document.body.dataset.link = 'lost'; document.getElementById('banner').hidden = false")
    found.append(sight.evaluate(CONTRAST))
    assert [each["poor"] for each in found] == [[]] * 8
    assert all(each["seen"] > 60 for each in found)


def test_dark_while_it_is_shown(see: See, many_workers: str) -> None:
    """When the system changes to dark, the page and its charts follow."""
    sight = see(many_workers, color_scheme="light").live(64)
    drawn = sight.locator("[data-chart=requests] canvas").evaluate
    assert drawn(DRAWN, "#0b5cad")
    assert not drawn(DRAWN, "#6cb0f5")
    sight.emulate_media(color_scheme="dark")
    sight.until(lambda: drawn(DRAWN, "#6cb0f5"), "a line in the accent of the dark scheme")
    assert not drawn(DRAWN, "#0b5cad")


# ----------------------------------------------------------------------------------------------------- sizes, keyboard


def test_phone(see: See, cluster: Cluster) -> None:
    """At 360 pixels nothing makes the page wider; the table scrolls in its box, and the slot stays visible."""
    size = {"width": 360, "height": 740}
    sight = see(cluster.url, viewport=size, device_scale_factor=2, has_touch=True, is_mobile=True).live(2)

    def width() -> int:
        return int(sight.evaluate("document.documentElement.scrollWidth"))

    assert width() == 360
    for tab in ("Components", "Logs", "Dependencies", "Events"):
        sight.get_by_role("tab", name=tab).tap()
        assert width() == 360
    box = sight.locator(".scroll")
    assert box.evaluate("(box) => box.scrollWidth > box.clientWidth")
    box.evaluate("(box) => box.scrollTo(400, 0)")
    assert sight.rows().first.locator("[data-column=slot]").bounding_box()["x"] == box.bounding_box()["x"]
    sight.get_by_role("button", name="Scale…").tap()
    dialog = sight.locator("#question").bounding_box()
    assert dialog["x"] >= 0
    assert dialog["x"] + dialog["width"] <= 360
    sight.get_by_role("button", name="Cancel").tap()
    sight.screenshot("phone")


SECONDS = """
(seconds) => new Promise((done) => {
  const age = document.querySelector("tbody [data-column=age]");
  new MutationObserver(() => --seconds || done()).observe(age, { characterData: true, subtree: true });
})
"""
"""A function that waits until the page was updated so many times, without polling it."""


def test_sixty_four_workers(see: See, many_workers: str) -> None:
    """All 64 rows are shown and updated each second in place, with little script time and few layouts."""
    sight = see(many_workers, viewport={"width": 1440, "height": 1000}).live(64)
    sight.evaluate("window.rows = [...document.querySelectorAll('#workers tbody tr')]")

    def shown() -> list[str]:
        texts: list[str] = sight.evaluate("rows.map((row) => row.isConnected && row.textContent)")
        return texts

    before = shown()
    sight.until(lambda: all(now and now != then for now, then in zip(shown(), before, strict=True)), "new figures")
    expect(sight.rows()).to_have_count(64)
    session = sight.context.new_cdp_session(sight.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> tuple[float, float]:
        found = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        return found["ScriptDuration"], found["LayoutCount"]

    before_all = spent()
    sight.evaluate(SECONDS, 4)
    script, layouts = (after - then for after, then in zip(spent(), before_all, strict=True))
    assert script / 4 < 0.05  # seconds of CPU time; it is a millisecond on a machine that has nothing else to do
    assert layouts <= 12  # for four updates: nothing reads a layout that it has just changed
    sight.screenshot("sixty-four")


def test_sorting(see: See, many_workers: str) -> None:
    """A click on a head sorts, with `aria-sort`, and a second one reverses the order."""
    sight = see(many_workers).live(64)
    head = sight.locator("thead [data-column=connections]")
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    sight.locator("thead [data-column=pid] button").click()
    assert sight.column("pid") == sorted(sight.column("pid"))
    sight.locator("thead [data-column=pid] button").click()
    assert sight.column("pid") == sorted(sight.column("pid"), reverse=True)
    expect(head).not_to_have_attribute("aria-sort", re.compile(".*"))
    assert sight.locator("[aria-sort]").count() == 1


def test_keyboard(see: See, cluster: Cluster) -> None:
    """All controls can be reached and used by keyboard, and the focus is visible."""
    sight = see(cluster.url).live(2)
    focused = "document.activeElement.id || document.activeElement.textContent"
    sight.keyboard.press("Tab")
    assert sight.evaluate("document.activeElement.className") == "skip"
    assert sight.locator(".skip").bounding_box()["y"] >= 0
    walked = []
    for _ in range(60):
        sight.keyboard.press("Tab")
        walked.append(sight.evaluate(focused))
        outline = "(({ outlineStyle, outlineWidth }) => outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1)"
        visible = f"{outline}(getComputedStyle(document.activeElement.closest('.choice') ?? document.activeElement))"
        assert sight.evaluate(visible), walked
        if walked[-1] == "tab-events":
            break
    assert {"do-reload", "do-shutdown", "PID", "Stacks", "tab-events"} <= set(walked)
    for key, name in (("ArrowRight", "components"), ("End", "dependencies"), ("Home", "events")):
        sight.keyboard.press(key)
        assert sight.evaluate("document.activeElement.id") == f"tab-{name}"
        expect(sight.locator(f"#{name}")).to_be_visible()
        assert sight.locator("[role=tabpanel]:visible").count() == 1
    sight.locator("#do-shutdown").focus()
    sight.keyboard.press("Enter")
    expect(sight.locator("#question-title")).to_have_text("Shut down")
    assert sight.evaluate("document.activeElement.closest('dialog').id") == "question"
    sight.keyboard.press("Escape")
    expect(sight.locator("#question")).not_to_be_visible()
    assert sight.evaluate("document.activeElement.id") == "do-shutdown"
    assert cluster.running.status()["master"]["state"] == "serving"


# ------------------------------------------------------------------------------------------------------------- actions


def test_reload_from_the_button(see: See, cluster: Cluster) -> None:
    """A wrong token is refused; with the right one the page reloads the cluster, and doesn't ask again."""
    sight = see(cluster.url).live(2)
    sight.expected = ("Failed to load resource: the server responded with a status of 401",)
    generation = cluster.running.status()["generation"]
    sight.get_by_role("button", name="Reload").click()
    give_token(sight, "not-the-token")
    expect(sight.locator("#question-error")).to_have_text("That token isn't valid.")
    assert cluster.running.status()["generation"] == generation
    give_token(sight)
    expect(sight.locator(".activity .what")).to_have_text(f"✓ Generation {generation + 1} serves")
    expect(sight.locator("#glance-generation b")).to_have_text(str(generation + 1))
    sight.until(lambda: set(sight.column("generation")) == {generation + 1}, "nothing but new workers")
    assert sight.pids() == cluster.pids()
    assert sight.evaluate("sessionStorage.length") == 1
    sight.reload()
    sight.live(2).locator("#workers tbody tr[data-slot='0']").get_by_role("button", name="Stacks").click()
    expect(sight.locator("#stacks-text")).to_contain_text("File")
    sight.locator("#stacks-close").click()


def test_scale_and_recycle(see: See, cluster: Cluster) -> None:
    """Scaling up and down and recycling a worker need the token once, and their results are shown."""
    sight = see(cluster.url).live(2)
    done = sight.locator(".activity.done .what")
    for workers in (3, 2):
        sight.get_by_role("button", name="Scale…").click()
        sight.locator("#question-number").fill(str(workers))
        if workers == 3:
            give_token(sight)
        else:
            sight.locator("#question-confirm").click()
        expect(done.last).to_have_text(f"✓ {workers} workers are ready")
        sight.live(workers)
    # A worker that leaves as it was asked to is no trouble: neither "died", nor in the colour of a warning.
    left = sight.locator("#event-list li", has_text="retired: scale, exit code 0")
    expect(left.locator("b")).to_have_text("retired")
    expect(left.locator(".glyph")).to_have_text("·")
    before = sight.pids()
    row = sight.locator("#workers tbody tr[data-slot='0']")
    row.get_by_role("button", name="Recycle").click()
    expect(done.last).to_have_text("✓ The worker is replaced")
    sight.until(lambda: sight.pids() == cluster.pids() and sight.pids()[0] != before[0], "another one in slot 0")
    assert sight.pids()[1] == before[1]


def test_traffic(see: See, cluster: Cluster) -> None:
    """Disabling traffic needs a confirmation, enabling doesn't."""
    sight = see(cluster.url).live(2)
    traffic = sight.locator("#glance-traffic b")
    sight.get_by_role("button", name="Disable traffic…").click()
    sight.locator("#question-cancel").click()
    assert cluster.running.status()["traffic"] == "enabled"
    sight.get_by_role("button", name="Disable traffic…").click()
    give_token(sight)
    expect(traffic).to_have_text("✕ disabled")
    sight.get_by_role("button", name="Enable traffic").click()
    expect(traffic).to_have_text("enabled")
    assert cluster.running.status()["traffic"] == "enabled"


def test_an_action_that_fails(see: See, cluster: Cluster) -> None:
    """An action that the master refuses shows the master's error."""
    sight = see(cluster.url).live(2)
    sight.route("**/control/scale*", lambda route: route.continue_(url=route.request.url.replace("=3", "=0")))
    sight.get_by_role("button", name="Scale…").click()
    sight.locator("#question-number").fill("3")
    give_token(sight)
    expect(sight.locator(".activity.failed .what")).to_contain_text("✕ Scale: workers = 0: expected a whole number")
    sight.get_by_role("button", name="Dismiss").click()
    expect(sight.locator(".activity")).to_have_count(0)


def test_without_a_token_there_are_no_actions(see: See) -> None:
    """Without a token there are no actions for the cluster or for a worker."""
    with boards.monitor(2, Settings(), ClusterInfo(master=boards.NOBODY - 1)) as url:
        sight = see(url).live(2)
        assert sight.get_by_role("button", name=re.compile("Reload|Scale|Recycle|traffic|Shut down")).count() == 0
        assert sight.get_by_role("button", name="Stacks").count() == 2
        sight.close()


def test_sign_in(see: See) -> None:
    """On an address that isn't loopback the page asks for the token once a tab, and shows no data before."""
    with boards.monitor(3, Settings(monitor_host="192.0.2.1", monitor_token=TOKEN), ClusterInfo(title="far")) as url:
        sight = see(url)
        sight.expected = ("Failed to load resource: the server responded with a status of 401",)
        expect(sight.get_by_role("heading", name="Sign in")).to_be_visible()
        assert sight.locator("#main").is_hidden()
        assert "far" not in sight.content()
        sight.locator("#signin-token").fill("not-the-token")
        sight.keyboard.press("Enter")
        expect(sight.locator("#signin-error")).to_have_text("That token isn't valid.")
        sight.screenshot("sign-in")
        sight.locator("#signin-token").fill(TOKEN)
        sight.keyboard.press("Enter")
        sight.live(3)
        expect(sight.locator("#title")).to_have_text("far")
        sight.reload()
        sight.live(3)
        sight.close()


def test_lost_and_found(see: See, cluster: Cluster) -> None:
    """When the monitor is killed the page says so, and goes on by itself with the next one."""
    sight = see(cluster.url).live(2)
    sight.expected = ("Failed to load resource: net::ERR_",)
    pid = cluster.running.status()["monitor"]["pid"]
    os.kill(pid, signal.SIGKILL)
    sight.until(lambda: sight.evaluate("links").count("live") == 2, "it is live again")
    assert sight.evaluate("links") == ["connecting", "live", "lost", "live"]
    expect(sight.locator("#banner")).to_be_hidden()
    sight.until(lambda: sight.pids() == cluster.pids(), "the workers")


def test_shutdown(see: See, tmp_path: Any) -> None:
    """A confirmed shutdown ends the cluster; the last figures are marked as old."""
    cluster = started(tmp_path)
    try:
        sight = see(cluster.url).live(2)
        sight.expected = ("Failed to load resource: net::ERR_",)
        sight.get_by_role("button", name="Shut down…").click()
        give_token(sight)
        assert cluster.running.wait() == 0
        expect(sight.locator("#banner-text")).to_contain_text("The cluster has shut down, and the monitor with it.")
        expect(sight.locator("body")).to_have_attribute("data-link", "lost")
        sight.screenshot("gone", full=False)
    finally:
        cluster.running.close()
        cluster.running.assert_gone()
