"""Development mode: edits are served, errors are shown, the terminal belongs to the debugger."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.harness import Running, clean_environment, command, descendants, free_port, wait_until

Start = Callable[..., Running]
APP = """
import asyncio
VALUE = "one"

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": VALUE.encode()})
"""


class Developed:
    """An app in a folder that a developer edits."""

    def __init__(self, start: Start, directory: Path, *options: str, how: str = "dev", text: str = APP) -> None:
        self.path = directory / "app.py"
        self.path.write_text(text)
        self.port = free_port()
        words = ["dev"] if how == "dev" else ["run", "--reload"]
        argv = command(*words, "app:app", "--bind", f"127.0.0.1:{self.port}", *options)
        self.running = start(argv, directory=directory)

    def get(self, path: str = "/") -> str:
        """The body of a response; "" while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    def edit(self, before: str, after: str, path: Path | None = None) -> None:
        """Replace a text of a file, in one write."""
        path = path or self.path
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    def serves(self, value: str) -> None:
        """Wait until this is served."""
        wait_until(lambda: self.get() == value, lambda: f"{value!r} is served:\n{self.running.stderr}")

    def says(self, text: str) -> None:
        """Wait until the terminal shows this."""
        wait_until(lambda: text in self.running.stderr, lambda: f"{text!r} is said:\n{self.running.stderr}")


@pytest.mark.parametrize("how", ["dev", "run --reload"])
def test_an_edit(start: Start, tmp_path: Path, how: str) -> None:
    """An edit is served, though it follows within the same second; requests under way finish on the old code."""
    site = Developed(start, tmp_path, how=how)
    site.serves("one")
    slow: list[str] = []
    client = threading.Thread(target=lambda: slow.append(site.get("/slow")))
    client.start()
    wait_until(lambda: site.running.workers()[0]["in_flight"], "it is under way")
    site.edit('"one"', '"two"')
    site.serves("two")
    site.edit('"two"', '"six"')
    site.serves("six")
    client.join()
    assert slow == ["one"]
    site.says("app.py changed: reloaded in ")
    site.running.signal(signal.SIGTERM)
    assert site.running.wait() == 0
    site.running.assert_gone()


def test_code_that_cannot_be_loaded(start: Start, tmp_path: Path) -> None:
    """The traceback is shown, the old code serves, and the next edit is loaded: after a start, and instead of one."""
    site = Developed(start, tmp_path, text="VALUE = = 1\n")
    site.says("SyntaxError")
    site.says("the start has failed; after the next edit the app is loaded again")
    site.path.write_text(APP)
    site.serves("one")
    site.path.write_text("import no_such_module\n")
    site.says("No module named 'no_such_module'")
    site.says("app.py changed: it cannot be loaded; the old code serves until the next edit")
    assert site.get() == "one"
    site.path.write_text(APP.replace("one", "two"))
    site.serves("two")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_nothing_is_loaded(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """A session that waits for an edit after a failed start ends at the first signal."""
    site = Developed(start, tmp_path, text="VALUE = = 1\n")
    site.says("the start has failed; after the next edit the app is loaded again")
    site.running.signal(number)
    assert site.running.wait() == 128 + number


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_nothing_is_left_behind(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """When the terminal is closed, or SIGQUIT comes, cluster and temporary files go with the session."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    site = Developed(start, tmp_path)
    site.serves("one")
    site.running.signal(number)
    assert site.running.wait() == 0
    site.running.assert_gone()
    assert not list(temporary.glob("cluster2-dev-*"))


def test_a_file_of_options_that_is_replaced(start: Start, tmp_path: Path) -> None:
    """A file outside of the watched folders counts each time, though an editor renames a new file over it."""
    site_directory = tmp_path / "site"
    site_directory.mkdir()
    variables = tmp_path / "app.env"
    variables.write_text("VALUE=0\n")
    text = APP.replace('"one"', '__import__("os").environ["VALUE"]')
    site = Developed(start, site_directory, "--env-file", str(variables), text=text)
    for value in "0123":
        if value != "0":
            (tmp_path / "new.env").write_text(f"VALUE={value}\n")
            (tmp_path / "new.env").replace(variables)
        site.serves(value)


def test_what_is_watched(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package elsewhere that the app imports counts, and so do included files; what is excluded does not."""
    package = tmp_path / "elsewhere" / "part"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('VALUE = "one"\n')
    site_directory = tmp_path / "site"
    site_directory.mkdir()
    for name in ("page.html", "skipped.py", "notes.txt"):
        (site_directory / name).write_text("one")
    text = APP.replace('VALUE = "one"', "from part import VALUE\nVALUE += open('page.html').read()")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    options = ("--reload-include", "*.html", "--reload-exclude", "skipped.py")
    site = Developed(start, site_directory, *options, text=text)
    site.serves("oneone")
    site.edit('"one"', '"two"', package / "__init__.py")
    site.serves("twoone")
    for name in ("skipped.py", "notes.txt"):
        (site_directory / name).write_text("two")
    (site_directory / "page.html").write_text("six")
    site.serves("twosix")
    site.says("page.html changed: reloaded")
    assert "skipped.py" not in site.running.stderr


def test_an_option(start: Start, tmp_path: Path) -> None:
    """The file of options is watched: a reload takes what it says."""
    (tmp_path / "cluster2.toml").write_text('root_path = "/a"\n')
    site = Developed(start, tmp_path, text=APP.replace("VALUE.encode()", 'scope["root_path"].encode()'))
    site.serves("/a")
    (tmp_path / "cluster2.toml").write_text('root_path = "/b"\n')
    site.serves("/b")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--no-cluster",), "cluster = false (flag --no-cluster): development mode needs a master"),
        (("--reload-dir", "nowhere"), "--reload-dir 'nowhere': there is no such directory"),
    ],
)
def test_wrong_options(start: Start, tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    """An error names the option; nothing is started."""
    site = Developed(start, tmp_path, *options)
    assert site.running.wait() == 5
    assert says in site.running.stderr
    site.running.assert_gone()


def test_a_session_that_is_killed(start: Start, tmp_path: Path) -> None:
    """The cluster shuts down with it."""
    site = Developed(start, tmp_path)
    site.serves("one")
    site.running.signal(signal.SIGKILL)
    site.running.assert_gone()


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal."""
    window, other = os.openpty()
    yield window, other
    os.close(window)


def test_a_breakpoint(tmp_path: Path, terminal: tuple[int, int]) -> None:
    """The debugger of a handler has the terminal; Ctrl-C ends the cluster and the session with it."""
    window, other = terminal
    before = descendants()
    (tmp_path / "app.py").write_text(APP.replace("    await send", "    breakpoint()\n    await send", 1))
    port = free_port()
    leader = "import os, sys; os.setsid(); os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.argv[1], sys.argv[1:])"
    words = command("dev", "app:app", "--bind", f"127.0.0.1:{port}")
    process = subprocess.Popen(
        [words[0], "-c", leader, *words], stdin=other, stdout=other, stderr=other, cwd=tmp_path, env=clean_environment()
    )
    os.close(other)
    shown: list[str] = []

    def read() -> None:
        try:
            while data := os.read(window, 4096):
                shown.append(data.decode(errors="replace"))
        except OSError:
            pass  # the last process has closed the terminal

    def says(text: str, times: int = 1) -> None:
        wait_until(lambda: "".join(shown).count(text) >= times, lambda: f"{text!r}:\n{''.join(shown)}")

    reader = threading.Thread(target=read)
    reader.start()
    got: list[bytes] = []
    try:
        says("serving on")
        url = f"http://127.0.0.1:{port}/"
        client = threading.Thread(target=lambda: got.append(urllib.request.urlopen(url, timeout=60).read()))
        client.start()
        says("(Pdb)")
        os.write(window, b"p VALUE * 3\n")
        says("'oneoneone'")
        os.write(window, b"c\n")
        client.join()
        assert got == [b"one"]
        os.write(window, b"\x03")
        assert process.wait(30) == 0, "".join(shown)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(30)
    wait_until(lambda: descendants() <= before, "nothing is left")
