"""The command line: what it prints, and what it returns to the shell."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cluster2 import reference
from cluster2.cli import cli
from cluster2.cli.table import Rates, describe
from cluster2.config.settings import OPTIONS
from cluster2.errors import AddressInUse, AppError, ClusterError, NotRunning
from cluster2.runtime.control_client import ControlClient
from cluster2.runtime.option_sources import Config, load

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has an empty working directory, and an environment without options."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("CLUSTER2_", "FORWARDED_ALLOW_IPS"))]:
        monkeypatch.delenv(name)


def runner(**options: Any) -> CliRunner:
    """One that keeps the two outputs apart, as it does by itself since click 8.2."""
    try:
        return CliRunner(mix_stderr=False, **options)  # type: ignore[call-arg]
    except TypeError:
        return CliRunner(**options)


def call(*arguments: str) -> Result:
    return runner().invoke(cli, arguments)


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cluster2", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Fake(ModuleType):
    """Stands in for the master: remembers what it was started with."""

    def __init__(self) -> None:
        super().__init__("cluster2.cluster")
        self.config: Config | None = None
        self.failure: BaseException | None = None

    def run(self, config: Config, *, on_ready: Any = None) -> int:
        self.config = config
        if self.failure is not None:
            raise self.failure
        if on_ready is not None:
            on_ready()
        return 0


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = Fake()
    monkeypatch.setitem(sys.modules, "cluster2.cluster", module)
    monkeypatch.setattr("cluster2.cluster", module, raising=False)
    return module


def test_run_passes_all_flags_on(master: Fake) -> None:
    """Flags become settings, and their sources are the flags as written."""
    result = call("run", "a:app", "-w", "3", "-b", "a:1", "-b", "unix:b", "--no-keeper", "--drain-timeout", "5m")
    assert result.exit_code == 0, result.output
    assert master.config is not None
    settings, sources = master.config.settings, master.config.sources
    assert (settings.app, settings.workers, settings.bind) == ("a:app", 3, ("a:1", "unix:b"))
    assert (settings.keeper, settings.drain_timeout) == (False, 300.0)
    assert (sources["app"], sources["workers"], sources["keeper"]) == (
        "argument TARGET",
        "flag --workers",
        "flag --no-keeper",
    )
    assert not master.config.explicit("timeout")


def test_run_says_when_it_is_ready(master: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe of `start` gets one line and is closed; its name is out of the environment."""
    reader, writer = os.pipe()
    monkeypatch.setenv("_CLUSTER2_READY_FD", str(writer))
    assert call("run", "a:app").exit_code == 0
    with os.fdopen(reader, "rb") as ready:
        assert ready.read() == b"ready\n"
    assert "_CLUSTER2_READY_FD" not in os.environ


@pytest.mark.parametrize("number", ["many", "9999"])
def test_a_stray_ready_variable_is_ignored(master: Fake, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """What names no descriptor does no harm."""
    monkeypatch.setenv("_CLUSTER2_READY_FD", number)
    assert call("run", "a:app").exit_code == 0


def test_a_reader_that_left_is_no_error(master: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited may have gone: we serve all the same."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setenv("_CLUSTER2_READY_FD", str(writer))
    assert call("run", "a:app").exit_code == 0


def test_run_takes_its_target_from_the_file(master: Fake, tmp_path: Path) -> None:
    """A file that names the app makes TARGET superfluous; `run` leaves warnings to the master, `config` says them."""
    (tmp_path / "cluster2.toml").write_text("app = 'a:app'\n")
    (tmp_path / "pyproject.toml").write_text("[tool.cluster2]\napp = 'b:app'\n")
    result = call("run")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert call("config").stderr.startswith("cluster2: warning: cluster2.toml is used;")
    assert master.config is not None
    assert master.config.settings.app == "a:app"


def test_errors_are_said_with_their_exit_code(master: Fake) -> None:
    """An error is one line, with its detail below it, and never a traceback."""
    master.failure = AppError("app raised", detail="Traceback: theirs")
    result = call("run", "a:app")
    assert result.exit_code == 3
    assert result.stderr == "cluster2: error: app raised\nTraceback: theirs\n"


def test_ctrl_c(master: Fake) -> None:
    """Ctrl-C leaves with 130 and no traceback."""
    master.failure = KeyboardInterrupt()
    result = call("run", "a:app")
    assert result.exit_code == 130
    assert result.output.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["bogus"], 2, "No such command 'bogus'.\n"),
        (["stauts"], 2, "No such command 'stauts'. Did you mean 'status'?"),
        (["serve"], 2, "No such command 'serve'. Did you mean 'run'?"),
        (["site:app"], 2, "No such command 'site:app'. To serve an app: cluster2 run site:app"),
        (["site.py"], 2, "To serve an app: cluster2 run site.py"),
        (["run", "--wrokers", "2"], 2, "--workers"),
        (["status", "--jsno"], 2, "Did you mean"),
        (
            ["run", "a:app", "-w", "0"],
            5,
            "workers = '0' (flag --workers): expected a whole number from 1 to 450, or auto",
        ),
        (["run", "--bogus"], 2, "No such option"),
        (
            ["run", "a:app", "--reload-dir", "lib"],
            2,
            "--reload-dir needs --reload.",
        ),
        (["run", "a:app", "-D"], 2, "No such option: -D; `cluster2 start` serves in the background."),
        (["run", "a:app", "--max-requests=5"], 2, "No such option: --max-requests; that is --request-threshold"),
        (["run"], 2, "name the app"),
        (["check"], 2, "name the app"),
        (["start"], 2, "name the app"),
        (["run", "a:app", "b:app"], 2, "unexpected extra argument"),
        (
            ["run", "a:app", "-w", "many"],
            5,
            "cluster2: error: workers = 'many' (flag --workers): expected a whole number",
        ),
        (
            ["start", "a:app", "--timeout", "3x"],
            5,
            "timeout = '3x' (flag --timeout): unknown unit 'x'; expected a duration",
        ),
        (
            ["run", "a:app", "--port", "9", "--monitor-port", "9"],
            5,
            "monitor_port = 9 (flag --monitor-port) is the app's port too (0.0.0.0:9)",
        ),
        (["run", "a:app", "--port", "1", "-b", "a:2"], 5, "port (flag --port) and bind (flag --bind) are both set"),
        (["run", "a:app", "-c", "none.toml"], 5, "none.toml can't be read"),
        (["status"], 6, "no master is running on"),
        (["stop", "--pids", "there"], 6, "no master is running on"),
        (["shutdown"], 6, "no master is running on"),
    ],
)
def test_what_the_user_did_wrong(arguments: list[str], code: int, said: str) -> None:
    """Each mistake has its exit code and a line that says what it was."""
    result = call(*arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_mistakes_as_processes() -> None:
    """The same from a real shell: usage 2, configuration 5, standard output clean."""
    for arguments, code in ((["run", "--bogus"], 2), (["config", "-w", "x"], 5), (["status"], 6)):
        result = shell(*arguments)
        assert (result.returncode, result.stdout) == (code, "")
        assert "Traceback" not in result.stderr


def test_version_and_help() -> None:
    """--version and --help answer, and help shows every flag under its heading."""
    assert shell("--version").stdout.startswith("cluster2 ")
    shown = call("run", "--help").output
    for option in OPTIONS.values():
        assert option.flag is None or option.flag in shown
        assert option.code_only or f"{option.group}:" in shown
    assert "Commands" in call("--help").output


def test_status_is_light() -> None:
    """`status` needs no TLS, no asyncio and no message library: it must answer at once."""
    program = "import sys; from cluster2.cli import control_commands; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "cluster2.runtime.control_client" in loaded
    assert not {
        "ssl",
        "asyncio",
        "msgspec",
        "uvicorn",
        "cluster2.processes.launch",
        "cluster2.cluster",
        "cluster2.processes.master",
    } & set(loaded)


def test_config_shows_sources(tmp_path: Path) -> None:
    """Each option stands there with its value and where that comes from; a password does not."""
    (tmp_path / "cluster2.toml").write_text("\nbacklog = 5\n")
    flags = ["--timeout", "90s", "--ssl-certfile", "c.pem", "--ssl-keyfile-password", "hush"]
    result = shell("config", *flags, CLUSTER2_WORKERS="3")
    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.splitlines()}
    assert list(rows) == [option.name for option in OPTIONS.values()]
    assert rows["backlog"].split() == ["5", "cluster2.toml:2"]
    assert rows["workers"].split() == ["3", "CLUSTER2_WORKERS"]
    assert rows["timeout"].split() == ["90s", "flag", "--timeout"]
    assert "hush" not in result.stdout


def test_config_shows_which_proxies_are_believed() -> None:
    """The default is shown as it is, an empty value as one, and the source is also named if it is other servers' variable."""
    for environment, shown in (
        ({}, "127.0.0.1,::1,unix: default"),
        ({"FORWARDED_ALLOW_IPS": "10.0.0.1"}, "10.0.0.1 FORWARDED_ALLOW_IPS"),
        ({"CLUSTER2_FORWARDED_ALLOW_IPS": ""}, '"" CLUSTER2_FORWARDED_ALLOW_IPS'),
    ):
        lines = runner(env=environment).invoke(cli, ["config"]).stdout.splitlines()
        assert [" ".join(line.split()[1:]) for line in lines if line.startswith("forwarded_allow_ips ")] == [shown]


def test_config_as_json(tmp_path: Path) -> None:
    """The same for programs: native values."""
    found = json.loads(
        call("config", "a:app", "-b", "a:1", "--ssl-keyfile-password", "hush", "--ssl-certfile", "c", "--json").stdout
    )
    assert found["app"] == {"value": "a:app", "source": "argument TARGET"}
    assert found["bind"] == {"value": ["a:1"], "source": "flag --bind"}
    assert found["ssl_keyfile_password"] == {"value": "***", "source": "flag --ssl-keyfile-password"}
    assert found["timeout"] == {"value": 30.0, "source": "default"}
    assert found["logs"]["value"] == str(tmp_path / "logs")


def test_check(tmp_path: Path) -> None:
    """`check` imports the app from `chdir`, with the environment that the app will have, and says what it is."""
    app = "import os\nassert os.environ['SECRET'] == 'x y'\nasync def app(scope, receive, send): ...\n"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "shop.py").write_text(app)
    (tmp_path / "app.env").write_text("SECRET='x y'\n")
    result = shell("check", "shop:app", "--chdir", "code", "--env-file", "app.env")
    assert (result.returncode, result.stdout) == (0, "ok: asgi app shop:app on 0.0.0.0:3000\n"), result.stderr
    assert not (tmp_path / "pids").exists()


@pytest.mark.parametrize(
    ("options", "warns"),
    [((), True), (("--no-preload",), False), (("--no-cluster",), False)],
    ids=["preload", "no preload", "no cluster"],
)
@pytest.mark.parametrize("made", ["connection", "thread"])
def test_check_of_what_can_not_be_inherited(tmp_path: Path, made: str, options: tuple[str, ...], warns: bool) -> None:
    """`check` warns of connections and threads of the import, unless each process imports the app for itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        text, shown = {
            "connection": (
                f"import socket\nupstream = socket.create_connection({address})\n",
                f"127.0.0.1:{address[1]}",
            ),
            "thread": (
                "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n",
                "Thread-1",
            ),
        }[made]
        (tmp_path / "shop.py").write_text(f"{text}async def app(scope, receive, send): ...\n")
        result = shell("check", "shop:app", *options)
    assert result.returncode == 0, result.stderr
    assert (
        f"warning: importing the app {'opened' if made == 'connection' else 'started'} {made}s ({shown}"
        in result.stdout
    ) == warns
    assert ("warning" in result.stdout) == warns


@pytest.mark.parametrize(
    ("rest", "code"), [("async def app(scope, receive, send): ...\n", 0), ("1 / 0\n", AppError.exit_code)]
)
def test_check_ends_despite_threads(tmp_path: Path, rest: str, code: int) -> None:
    """`check` doesn't wait for a thread of the import that isn't a daemon, but names it; it ends what the import has started."""
    (tmp_path / "shop.py").write_text(
        "import subprocess, threading\n"
        "helper = subprocess.Popen(['sleep', '100'])\n"  # it has our pipe open: while it runs, `shell` waits
        "threading.Thread(target=threading.Event().wait, name='poller').start()\n" + rest
    )
    result = shell("check", "shop:app", "--no-preload")
    assert result.returncode == code, result.stderr
    assert "warning: the import left threads running that aren't daemons (poller)" in result.stdout
    assert ("ZeroDivisionError" in result.stderr) == bool(code)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "no attribute 'app'"),
        ("app = 3\n", "can't be called"),
        ("1 / 0\n", "ZeroDivisionError"),
        (None, "no module"),
    ],
)
def test_check_of_a_broken_app(tmp_path: Path, source: str | None, said: str) -> None:
    """What is wrong with the app is exit code 3, a line, and at most the app's own traceback."""
    if source is not None:
        (tmp_path / "shop.py").write_text(source)
    result = shell("check", "shop:app")
    assert result.returncode == 3
    first = result.stderr.splitlines()[0]
    assert first.startswith("cluster2: error: ")
    assert said in first
    assert "src/cluster2" not in result.stderr


STATUS: dict[str, Any] = {
    "master": {"pid": 10, "uptime": 93784.2, "version": "0.1.0", "state": "serving"},
    "generation": 7,
    "wanted": 2,
    "traffic": "enabled",
    "addresses": ["0.0.0.0:3000"],
    "workers": [
        {"pid": 11, "slot": 0, "generation": 7, "state": "ready", "requests": 123456, "connections": 12}
        | {"in_flight": 3, "uptime": 65.0, "memory": 50 * 2**20, "mode": "one_by_one"},
        {"pid": 12, "slot": 1, "generation": 7, "state": "booting", "requests": 0, "connections": None}
        | {"in_flight": 0, "uptime": None, "memory": None},
    ],
}


def test_status_for_people() -> None:
    """The table is aligned, and what isn't known is a dash."""
    assert describe(STATUS) == [
        "master 10  serving, up 1d02h, cluster2 0.1.0",
        "generation 7  1 of 2 workers ready, traffic enabled",
        "listening  0.0.0.0:3000; 3 requests under way",
        "",
        "PID  SLOT  GEN  STATE    MODE           UP  REQUESTS  ERRORS  OPEN  BUSY  MEMORY",
        " 11     0    7  ready    one_by_one  1m05s    123456       -    12     3  50 MiB",
        " 12     1    7  booting  -               -         0       -     -     0       -",
    ]
    assert describe(STATUS | {"workers": []})[1:] == [
        "generation 7  0 of 2 workers ready, traffic enabled",
        "listening  0.0.0.0:3000; 0 requests under way",
    ]


def test_rates_of_workers() -> None:
    """Requests a second and CPU time follow from two answers; of who is new, or can't count, they aren't known."""
    one, two = STATUS["workers"]
    before = STATUS | {"workers": [one | {"requests": 123056, "cpu": 1.0}]}
    now = STATUS | {"workers": [one | {"cpu": 1.5}, two]}
    rates = Rates(before, now, 2.0)
    assert (rates.rate_of(11, "requests"), rates.rate_of(11, "cpu"), rates.rate_of(12, "requests")) == (
        200.0,
        0.25,
        None,
    )
    assert rates.rate_of(12, "connections") is None
    first, second = describe(now, rates)[-2:]
    assert first.split()[-2:] == ["200", "25%"]
    assert second.split()[-2:] == ["-", "-"]
    assert "200 requests/s" in describe(now, rates)[1]


def test_control_commands_ask_the_master(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`status` prints what the master answers, `stop` and `shutdown` wait for its end; all find it by --pids."""
    asked: list[tuple[str, str]] = []

    def answer(self: ControlClient, verb: str, **more: Any) -> dict[str, Any]:
        asked.append((verb, str(self.pids)))
        return STATUS

    monkeypatch.setattr(ControlClient, "call", answer)
    monkeypatch.setattr(ControlClient, "send_and_wait_for_exit", answer)
    (tmp_path / "cluster2.toml").write_text("pids = 'by-file'\n")
    assert json.loads(call("status", "--json").stdout) == STATUS
    assert call("status", "--pids", "by-flag").stdout.splitlines() == describe(STATUS)
    assert (call("stop").output, call("shutdown").output) == ("", "")
    places = [str(tmp_path / each) for each in ("by-file", "by-flag", "by-file", "by-file")]
    assert asked == list(zip(["status", "status", "stop", "shutdown"], places, strict=True))


def test_a_refusal_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the master ends the command with its exit code."""

    def refuse(self: ControlClient, verb: str, **more: Any) -> dict[str, Any]:
        raise ClusterError("not now", detail="busy")

    monkeypatch.setattr(ControlClient, "send_and_wait_for_exit", refuse)
    result = call("stop")
    assert (result.exit_code, result.stderr) == (1, "cluster2: error: not now\nbusy\n")


FAKE = """
import os, signal, sys, types
from cluster2.errors import AddressInUse

def run(config, *, on_ready=None):
    print("booting", flush=True)
    if config.settings.app == "busy:app":
        raise AddressInUse("port 3000 is taken")
    if config.settings.app == "killed:app":
        os.kill(os.getpid(), signal.SIGKILL)
    with open("pid", "w") as file:
        print(os.getpid(), os.getsid(0), os.path.realpath("/proc/self/fd/0"), file=file)
    if config.settings.app == "slow:app":
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
    on_ready()
    signal.pause()

sys.modules["cluster2.cluster"] = fake = types.ModuleType("cluster2.cluster")
fake.run = run
"""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment whose processes have a master that does little; what still runs in the end is ended."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(FAKE)
    yield {"PYTHONPATH": os.pathsep.join([str(place), str(ROOT / "src")])}
    if (tmp_path / "pid").exists():
        end(int((tmp_path / "pid").read_text().split()[0]))


def end(pid: int) -> None:
    """Kill a process that we adopted, and reap it."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return  # it ended, and was reaped, before


def test_start_returns_when_ready(fake: dict[str, str], tmp_path: Path) -> None:
    """`start` leaves a process behind, detached and logging, as soon as that says that it is ready."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "master.log").write_text("before\n")
    result = shell("start", "a:app", **fake)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    pid, session, stdin = (tmp_path / "pid").read_text().split()
    assert pid == session
    assert stdin == "/dev/null"
    os.kill(int(pid), 0)
    assert (tmp_path / "logs" / "master.log").read_text() == "before\nbooting\n"


@pytest.mark.parametrize("where", ["stderr", "both", "files"])
def test_start_says_where_standard_error_is(fake: dict[str, str], tmp_path: Path, where: str) -> None:
    """A wish for standard error, which is no terminal in the background, is answered with the file that it is."""
    result = shell("start", "a:app", "--log-to", where, **fake)
    says = f"cluster2: note: log_to = {where} (flag --log-to): in the background standard error is {tmp_path}/logs/master.log\n"
    assert (result.returncode, result.stderr) == (0, "" if where == "files" else says)


def test_start_fails_as_run_does(fake: dict[str, str], tmp_path: Path) -> None:
    """If it doesn't become ready, `start` says what it wrote, and returns its exit code."""
    result = shell("start", "busy:app", "--logs", "l", **fake)
    assert result.returncode == AddressInUse.exit_code
    assert result.stderr == "booting\ncluster2: error: port 3000 is taken\n"
    assert (tmp_path / "l" / "master.log").read_text() == result.stderr


def test_start_of_a_process_that_is_killed(fake: dict[str, str]) -> None:
    """A signal becomes an exit code as in the shell."""
    assert shell("start", "killed:app", **fake).returncode == 128 + signal.SIGKILL


def test_start_interrupted(fake: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C while it starts ends what was begun, and leaves with 130."""
    result = shell("start", "slow:app", **fake)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr
    pid = int((tmp_path / "pid").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_start_without_a_place_for_its_log(tmp_path: Path) -> None:
    """A directory of logs that can't be made is one line."""
    (tmp_path / "file").touch()
    result = call("start", "a:app", "--logs", "file/logs")
    assert result.exit_code == 5
    assert f"can't write the log {tmp_path}/file/logs/master.log (logs, flag --logs)" in result.stderr


def test_the_sample_file_is_valid(tmp_path: Path) -> None:
    """With each option uncommented in turn the sample is a file that is read without an error."""
    lines = reference.sample().splitlines()
    assert tomllib.loads("\n".join(lines)) == {}
    table, assignments = "", {}
    for line in (each.removeprefix("# ") for each in lines):
        if line.startswith("["):
            table = line.strip("[]") + "."
        elif " = " in line:
            key, _, value = line.partition(" = ")
            assignments[table + key] = value
    assert list(assignments) == sorted(OPTIONS, key=lambda name: "." in name)
    needed = {"ssl_": "ssl_certfile = 'x'", "ecv.validator": "ecv.monitor = '/x'", "ecv.token": "ecv.control = true"}
    for name, value in assignments.items():
        more = [line for start, line in needed.items() if name.startswith(start) and not line.startswith(name)]
        (tmp_path / "cluster2.toml").write_text("\n".join([f"{name} = {value}", *more]))
        found = load(directory=tmp_path, environ={}, check=False)
        default = getattr(load(directory=tmp_path / "none", environ={}, check=False).settings, OPTIONS[name].field)
        if OPTIONS[name].default not in (None, ()) and OPTIONS[name].kind.label != "PATH":
            assert getattr(found.settings, OPTIONS[name].field) == default


def test_the_reference_command() -> None:
    """`python -m cluster2.reference` prints a page, and says how it is used."""
    command = [sys.executable, "-m", "cluster2.reference"]
    printed = subprocess.run([*command, "sample"], capture_output=True, text=True, check=True).stdout
    assert printed == reference.sample()
    wrong = subprocess.run([*command, "poem"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "usage: python -m cluster2.reference options|events|commands|engines|answers|gunicorn|uvicorn|sample|keywords|modules\n",
    )


def test_exit_codes_are_the_contracts() -> None:
    """No master is 6, wherever that is found out."""
    assert NotRunning.exit_code == 6


ESCAPES = "\x1b]0;mine\x07\x9b31m\r\u202e"


def test_what_apps_say_does_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control characters in events, stacks and refusals are shown, not obeyed; an event stays a line."""
    told = {"event": f"my\n{ESCAPES}", "time": 0.0, "data": f"text {ESCAPES}", f"field{ESCAPES}": {"a": ESCAPES}}
    monkeypatch.setattr(ControlClient, "follow", lambda self, verb, show: show(told))
    events = call("events").output
    assert events.count("\n") == 1
    stacks = {"workers": [{"pid": 1, "slot": 0, "stacks": f"File\t1\n  {ESCAPES}"}]}
    monkeypatch.setattr(ControlClient, "call", lambda self, verb, params=None, **_: stacks)
    shown = call("stacks").output
    assert "File\t1\n" in shown

    def refuse(self: ControlClient, verb: str, **_: object) -> None:
        raise AppError(f"refused {ESCAPES}", detail=f"Traceback\n  {ESCAPES}")

    monkeypatch.setattr(ControlClient, "call", refuse)
    refused = call("enable").stderr
    assert "Traceback\n" in refused
    for said in (events, shown, refused):
        assert r"\x1b]0;mine\x07\x9b31m\x0d\x202e" in said
        assert all(each.isprintable() or each in "\t\n" for each in said)
