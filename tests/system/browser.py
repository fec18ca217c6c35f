"""The monitor's page in a real browser, with a record of all errors in it.

Chromium is Debian's; Playwright only drives it. While Playwright runs, its loop counts as the running one in this thread. So it
runs as long as one module's tests, and no coroutine is run beside it.

Without a headless shell of its own Chromium is the whole browser, with windows. After its last window was closed, it may never
open another (puppeteer's issues 11066 and 11524: "just hangs on creating a new page"), so one stays open from the beginning.

Playwright makes each page believe that it is in front and has the focus, which no later command can undo. For tests of hidden
tabs, `in_tabs` connects to the same browser through its port, and gets ordinary tabs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as TimedOut

from tests.system.harness import BESIDE, PATIENCE, ROOT, Running, command, free_port, wait_until

TOKEN = "a-secret-token"
APP = Path(__file__).parent / "apps" / "page_app.py:app"
SCREENSHOTS = ROOT / "build" / "screenshots"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-breakpad"
)
REMEMBER = """
window.violations = [];
document.addEventListener("securitypolicyviolation", ({ violatedDirective }) => window.violations.push(violatedDirective));
window.links = [];
document.addEventListener("DOMContentLoaded", () => {
  const note = () => window.links.push(document.body.dataset.link);
  note();
  new MutationObserver(note).observe(document.body, { attributeFilter: ["data-link"] });
});
"""
"""A script that runs before the page: it records violations of the policy, and the states of the connection."""

PORTS: dict[Browser, int] = {}
"""The debugging port of each browser, beside Playwright's pipe."""

expect.set_options(timeout=PATIENCE * 1000)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser."""
    found = shutil.which("chromium")
    assert found, "chromium isn't installed: `make test` installs it"
    port = free_port()
    before = {child.pid for child in psutil.Process().children()}
    with sync_playwright() as playwright:
        driver = {child.pid for child in psutil.Process().children()} - before
        BESIDE.update(driver)
        try:
            flags = [*FLAGS.split(), f"--remote-debugging-port={port}"]
            browser = playwright.chromium.launch(executable_path=found, args=flags)
            PORTS[browser] = port
            browser.new_page()  # stays open: see the module docstring
            yield browser
            del PORTS[browser]
            browser.close()
        finally:
            BESIDE.difference_update(driver)


@contextmanager
def in_tabs(browser: Browser) -> Iterator[BrowserContext]:
    """Yield the browser's own window. Its pages are tabs: one is in front, and all others are hidden."""
    address = f"http://127.0.0.1:{PORTS[browser]}"
    beside = browser.browser_type.connect_over_cdp(address, no_defaults=True)
    window = beside.contexts[0]
    before = window.pages.copy()
    try:
        yield window
    finally:
        for page in window.pages.copy():
            if page not in before:
                page.close()
        beside.close()  # disconnects only


class Sight:
    """One page in a profile of its own, with its requests, its errors and the violations of its policy.

    Attributes:
        page: Playwright's.
        expected: beginnings of errors that a test provokes.
    """

    def __init__(self, browser: Browser, url: str, *, context: BrowserContext | None = None, **options: Any) -> None:
        self.url = url
        self.context = context or browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.add_init_script(REMEMBER)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.expected: tuple[str, ...] = ()
        self._closed = False
        self._shared = context is not None
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} ({message.location['url']})")

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of Playwright's page: locator, keyboard, evaluate and the like."""
        return getattr(self.page, name)

    def live(self, workers: int | None = None) -> Sight:
        """Wait until the page shows the cluster with so many workers."""
        expect(self.page.locator("body")).to_have_attribute("data-link", "live")
        if workers is not None:
            expect(self.rows()).to_have_count(workers)
        return self

    def rows(self) -> Any:
        """Return the rows of the workers."""
        return self.page.locator("#workers tbody tr")

    def cell(self, row: Any, column: str) -> str:
        """Return the text of a cell of a row."""
        return str(row.locator(f"[data-column={column}]").inner_text()).strip()

    def column(self, name: str) -> list[int]:
        """Return the numbers of a column, from the top."""
        cells = f"[...document.querySelectorAll('tbody [data-column={name}]')]"
        numbers: list[int] = self.page.evaluate(f"{cells}.map((cell) => Number(cell.textContent))")
        return numbers

    def pids(self) -> dict[int, int]:
        """Return the pid that the page shows for each slot."""
        shown = self.page.evaluate(
            "[...document.querySelectorAll('#workers tbody tr')].map((row) => ({ ...row.dataset }))"
        )
        return {int(each["slot"]): int(each["pid"]) for each in shown}

    def until(self, predicate: Callable[[], Any], why: str) -> Any:
        """Wait for a condition of the page, and let Playwright work meanwhile."""

        def tried() -> Any:
            found = predicate()
            if not found:
                self.page.wait_for_timeout(20)
            return found

        return wait_until(tried, why)

    def screenshot(self, name: str, *, full: bool = True) -> None:
        """Save a screenshot for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        try:
            self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full, timeout=PATIENCE * 1000 / 3)
        except TimedOut:
            # A screenshot waits for a frame, which an idle page needn't make (browser-harness' issue 812; once for 30 s here).
            self.page.bring_to_front()
            self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full)

    def close(self) -> None:
        """Check that the page requested no other host, logged no unexpected error, violated no policy, and got no markup."""
        if self._closed:
            return
        self._closed = True
        violations = self.page.evaluate("window.violations")
        foreign = self.page.locator("main :is(script, img, b b, iframe, object), body > script").count()
        pwned = self.page.evaluate("typeof window.pwned")
        (self.page if self._shared else self.context).close()
        host = urlsplit(self.url).netloc
        wrong = {
            "asked of others": [url for url in self.requests if urlsplit(url).netloc != host],
            "complaints": [each for each in self.complaints if not (self.expected and each.startswith(self.expected))],
            "forbidden": violations,
            "markup": foreign or pwned != "undefined",
        }
        assert not any(wrong.values()), wrong


class Cluster:
    """A cluster with a monitor."""

    def __init__(self, running: Running, port: int) -> None:
        self.running, self.url = running, f"http://127.0.0.1:{port}/"
        running._ports.add(port)

    def pids(self) -> dict[int, int]:
        return {row["slot"]: row["pid"] for row in self.running.workers()}


def started(
    directory: Path, *options: str, app: str = str(APP), workers: int = 2, env: Mapping[str, str] | None = None
) -> Cluster:
    """Start a cluster on a free port of the loopback address."""
    port = free_port()
    words = ["--monitor-port", str(port), "--workers", str(workers), "--bind", "127.0.0.1:0", "--monitor-token", TOKEN]
    return Cluster(Running(command("run", app, *words, *options), directory, env=env).ready(workers), port)


def give_token(sight: Sight, token: str = TOKEN) -> None:
    """Enter the token in the dialog."""
    sight.locator("#question-token").fill(token)
    sight.locator("#question-confirm").click()
