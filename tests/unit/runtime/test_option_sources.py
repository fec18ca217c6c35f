"""Where values come from, which one counts, and what the messages say."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster2.config.settings import OPTIONS, Settings
from cluster2.errors import ConfigError
from cluster2.linux.processes import usable_cpus
from cluster2.runtime import option_sources
from cluster2.runtime.option_sources import Config, check_files, flatten, line_of, lookup, working_directory


def load(directory: Path, given: dict[str, Any] | None = None, **more: Any) -> Config:
    return option_sources.load(given or {}, **{"environ": {}, "directory": directory, **more})


def test_defaults(tmp_path: Path) -> None:
    """With nothing given each option has its default; workers are the usable CPUs, paths are absolute."""
    found = load(tmp_path)
    assert found.settings.workers == usable_cpus()
    assert found.settings.pids == str(tmp_path / "pids")
    assert found.settings.chdir == str(tmp_path)
    assert found.settings.port == 3000
    assert set(found.sources.values()) == {"default"}
    assert not found.explicit("port")
    assert found.warnings == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {}, optional={"code": st.integers(1, 99), "variable": st.integers(1, 99), "file": st.integers(1, 99)}
    )
)
def test_precedence(tmp_path: Path, values: dict[str, int]) -> None:
    """Code counts before the environment, that before the file, that before the default; the source says so."""
    (tmp_path / "cluster2.toml").write_text(f"backlog = {values['file']}\n" if "file" in values else "")
    found = load(
        tmp_path,
        {"backlog": values["code"]} if "code" in values else {},
        environ={"CLUSTER2_BACKLOG": str(values["variable"])} if "variable" in values else {},
    )
    ranked = [("code", "code"), ("variable", "CLUSTER2_BACKLOG"), ("file", "cluster2.toml:1")]
    value, source = next(((values[key], source) for key, source in ranked if key in values), (2048, "default"))
    assert found.settings.backlog == value
    assert found.sources["backlog"] == source
    assert found.explicit("backlog") == bool(values)


@pytest.mark.parametrize(
    ("variable", "name", "file", "own"),
    [("PORT", "port", "port = 2", "CLUSTER2_PORT"), ("WEB_CONCURRENCY", "workers", "workers = 2", "CLUSTER2_WORKERS")],
)
def test_variables_of_hosting_platforms(tmp_path: Path, variable: str, name: str, file: str, own: str) -> None:
    """They count before the default, and give way to whatever is said to cluster2 itself. An empty one says nothing."""

    def found(environ: dict[str, str], given: dict[str, Any] | None = None) -> tuple[Any, str]:
        loaded = load(tmp_path, given, environ=environ)
        assert not loaded.explicit(name) or loaded.sources[name] != variable
        return getattr(loaded.settings, name), loaded.sources[name]

    assert found({variable: "1"}) == (1, variable)
    assert found({variable: ""})[1] == "default"
    with pytest.raises(ConfigError, match=rf"^{name} = 'many' \({variable}\): expected a"):
        load(tmp_path, environ={variable: "many"})
    (tmp_path / "cluster2.toml").write_text(file)
    assert found({variable: "1"}) == (2, "cluster2.toml:1")
    assert found({variable: "1", own: "3"}) == (3, own)
    assert found({variable: "1", own: "3"}, {name: 4}) == (4, "code")


def test_the_platforms_port_and_bind(tmp_path: Path) -> None:
    """Addresses that were asked for count, and the platform's port doesn't clash with them, nor with the monitor's."""
    assert load(tmp_path, {"bind": ":1"}, environ={"PORT": "2"}).settings.bind == ("0.0.0.0:1",)
    assert load(tmp_path, {"host": "::1"}, environ={"PORT": "2"}).settings.port == 2
    assert load(tmp_path, environ={"PORT": "3001"}).settings.port == 3001


def test_an_empty_list_of_addresses(tmp_path: Path) -> None:
    """An empty `bind` or `apps` names no address: the platform's port counts, and so do sockets of systemd."""
    (tmp_path / "cluster2.toml").write_text("bind = []\napps = []\n")
    found = load(tmp_path, environ={"PORT": "2"})
    assert found.settings.port == 2
    assert not found.explicit("bind")
    assert not found.explicit("apps")
    (tmp_path / "cluster2.toml").write_text("bind = [':1']\n")
    assert load(tmp_path, environ={"PORT": "2", "CLUSTER2_BIND": ""}).settings.targets()[0][1][0].port == 2


@pytest.mark.parametrize(
    ("given", "environ", "file", "value", "source"),
    [
        ({}, {}, "", "127.0.0.1,::1,unix:", "default"),
        ({}, {"FORWARDED_ALLOW_IPS": "10.0.0.1"}, "", "10.0.0.1", "FORWARDED_ALLOW_IPS"),
        ({}, {"FORWARDED_ALLOW_IPS": ""}, "", "", "FORWARDED_ALLOW_IPS"),
        ({}, {"FORWARDED_ALLOW_IPS": "*"}, "forwarded_allow_ips = ''", "", "cluster2.toml:1"),
        ({}, {"FORWARDED_ALLOW_IPS": "*", "CLUSTER2_FORWARDED_ALLOW_IPS": ""}, "", "", "CLUSTER2_FORWARDED_ALLOW_IPS"),
        ({"forwarded_allow_ips": ["::1", "unix:"]}, {"FORWARDED_ALLOW_IPS": "*"}, "", "::1,unix:", "code"),
    ],
)
def test_proxies_that_are_believed(
    tmp_path: Path, given: dict[str, Any], environ: dict[str, str], file: str, value: str, source: str
) -> None:
    """The variable of other servers counts, but for less than each way of our own, and isn't taken for the user's wish."""
    (tmp_path / "cluster2.toml").write_text(file)
    found = load(tmp_path, given, environ=environ)
    assert (found.settings.forwarded_allow_ips, found.sources["forwarded_allow_ips"]) == (value, source)
    assert found.explicit("forwarded_allow_ips") == (source not in ("default", "FORWARDED_ALLOW_IPS"))


@pytest.mark.parametrize("form", ["file", "variable", "shared"])
def test_proxies_that_cannot_be(tmp_path: Path, form: str) -> None:
    """A network that is none is refused with its source, also if other servers' variable has it."""
    (tmp_path / "cluster2.toml").write_text("\nforwarded_allow_ips = ['10.0.0.0/33']" if form == "file" else "")
    environ = {"variable": "CLUSTER2_FORWARDED_ALLOW_IPS", "shared": "FORWARDED_ALLOW_IPS"}
    source = {**environ, "file": "cluster2.toml:2"}[form]
    with pytest.raises(ConfigError) as error:
        load(tmp_path, environ={environ[form]: "::1,10.0.0.0/33"} if form in environ else {})
    assert error.value.message.startswith("forwarded_allow_ips = ")
    assert f"({source}): '10.0.0.0/33' does not appear to be an IPv4 or IPv6 network; expected" in error.value.message


def test_all_of_an_options_forms(tmp_path: Path) -> None:
    """Text and native values of the four sources become the same types."""
    (tmp_path / "cluster2.toml").write_text(
        'bind = ["127.0.0.1:4000", "unix:app.sock"]\ndrain_idle = 3\nkeeper = false\n'
    )
    found = load(
        tmp_path, {"handoff_idle_after": "5m", "workers": 3}, environ={"CLUSTER2_BACKLOG": "7", "CLUSTER2_APP": "a:app"}
    )
    assert found.settings.bind == ("127.0.0.1:4000", "unix:app.sock")
    assert (found.settings.drain_idle, found.settings.keeper) == (3.0, False)
    assert (found.settings.handoff_idle_after, found.settings.workers) == (300.0, 3)
    assert (found.settings.backlog, found.settings.app) == (7, "a:app")


def test_pyproject(tmp_path: Path) -> None:
    """The table [tool.cluster2] of pyproject.toml is as good as a file of our own."""
    (tmp_path / "pyproject.toml").write_text("[project]\nworkers = 1\n\n[tool.cluster2]\nworkers = 5\n")
    found = load(tmp_path)
    assert found.settings.workers == 5
    assert found.sources["workers"] == "pyproject.toml:5"


def test_our_own_file_comes_first(tmp_path: Path) -> None:
    """Of two files cluster2.toml is read, and a warning says that the other isn't."""
    (tmp_path / "pyproject.toml").write_text("[tool.cluster2]\nworkers = 5\n")
    (tmp_path / "cluster2.toml").write_text("workers = 6\n")
    found = load(tmp_path)
    assert found.settings.workers == 6
    assert found.warnings == ("cluster2.toml is used; [tool.cluster2] in pyproject.toml is ignored",)


def test_a_file_by_name(tmp_path: Path) -> None:
    """A file that is named is read instead; one that isn't there is an error."""
    (tmp_path / "cluster2.toml").write_text("workers = 6\n")
    (tmp_path / "other.toml").write_text("\nworkers = 7\n")
    assert load(tmp_path, file=Path("other.toml")).sources["workers"] == "other.toml:2"
    with pytest.raises(ConfigError, match=r"none\.toml can't be read: No such file"):
        load(tmp_path, file=Path("none.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nwokers = 3\n", r"cluster2\.toml:2: unknown option 'wokers'; did you mean 'workers'\?"),
        ("drain-timeout = 3\n", r"cluster2\.toml:1: unknown option 'drain-timeout'; did you mean 'drain_timeout'\?"),
        ("[workers]\nmany = true\n", r"cluster2\.toml:2: unknown option 'workers\.many'"),
        ("workers = 'many'\n", r"workers = 'many' \(cluster2\.toml:1\): expected a whole number from 1 to 450"),
        ("timeout = [3]\n", r"timeout = \[3\] \(cluster2\.toml:1\): expected a duration"),
        ("workers = \n", r"cluster2\.toml is no valid TOML: .*line 1"),
        ("ssl_keyfile_password = 5\n", r"ssl_keyfile_password = \*\*\* \(cluster2\.toml:1\): expected a text"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, message: str) -> None:
    """What is wrong in the file is named with its line."""
    (tmp_path / "cluster2.toml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path)
    assert caught.value.exit_code == 5
    assert "\n" not in caught.value.message


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are an error, not a traceback."""
    (tmp_path / "cluster2.toml").write_bytes(b"workers = '\xff'\n")
    with pytest.raises(ConfigError, match="no valid TOML"):
        load(tmp_path)


def test_tool_cluster2_must_be_a_table(tmp_path: Path) -> None:
    """A value where the table belongs is an error."""
    (tmp_path / "pyproject.toml").write_text("[tool]\ncluster2 = 3\n")
    with pytest.raises(ConfigError, match="must be a table"):
        load(tmp_path)


def test_a_bad_variable(tmp_path: Path) -> None:
    """A bad value in the environment is named with its variable."""
    expected = r"^workers = 'many' \(CLUSTER2_WORKERS\): expected a whole number from 1 to 450"
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path, environ={"CLUSTER2_WORKERS": "many"})


def test_unknown_variables_are_warnings(tmp_path: Path) -> None:
    """Kubernetes makes variables of a service's name: they must not stop us, even where they look like an option."""
    environ = {
        "CLUSTER2_PORT": "tcp://10.0.0.1:3000",
        "CLUSTER2_SERVICE_HOST": "10.0.0.1",
        "CLUSTER2_WORKER": "3",
        "_CLUSTER2_READY_FD": "5",
        "PATH": "/bin",
    }
    found = load(tmp_path, environ=environ)
    assert found.settings.port == 3000
    assert len(found.warnings) == 3
    assert "CLUSTER2_PORT is no option" in found.warnings[0]
    assert found.warnings[2].endswith("did you mean CLUSTER2_WORKERS?")


def test_an_unknown_keyword(tmp_path: Path) -> None:
    """A keyword that is no option is refused with the closest one."""
    with pytest.raises(ConfigError, match=r"unknown option 'time_out'; did you mean 'timeout'\? \(code\)"):
        load(tmp_path, {"time_out": 3})


def test_the_origin_is_in_the_message(tmp_path: Path) -> None:
    """Who gathered the values says how the user wrote them."""
    with pytest.raises(ConfigError, match=r"port = '99999' \(flag --port\): expected a port"):
        load(tmp_path, {"port": "99999"}, origin=lambda name: f"flag --{name}")


def test_none_is_not_given(tmp_path: Path) -> None:
    """A keyword that is None leaves the value to the other sources."""
    assert load(tmp_path, {"port": None}, environ={"CLUSTER2_PORT": "5"}).settings.port == 5


def test_an_empty_variable_unsets(tmp_path: Path) -> None:
    """Of an option that may be unset, the empty text means just that."""
    (tmp_path / "cluster2.toml").write_text("user = 'www-data'\n")
    assert load(tmp_path, environ={"CLUSTER2_USER": ""}).settings.user is None


def test_bind_and_port_clash(tmp_path: Path) -> None:
    """From the same source, bind and port contradict each other."""
    with pytest.raises(ConfigError, match=r"port \(code\) and bind \(code\) are both set"):
        load(tmp_path, {"port": 1, "bind": ["a:2"]})
    with pytest.raises(ConfigError, match=r"app \(code\) and apps \(code\) are both set"):
        load(tmp_path, {"app": "a:a", "apps": [("b:b", 1)]})


def test_of_bind_and_port_the_nearer_counts(tmp_path: Path) -> None:
    """A flag wins over what a file or the environment says in other words."""
    (tmp_path / "cluster2.toml").write_text("bind = ['unix:app.sock']\n")
    assert [str(each) for each in load(tmp_path, {"port": 5}).settings.addresses()] == ["0.0.0.0:5"]
    found = load(tmp_path, {"bind": ["a:1"]}, environ={"CLUSTER2_PORT": "5"})
    assert [str(each) for each in found.settings.addresses()] == ["a:1"]
    assert not found.explicit("port")


def test_contradictions_name_sources(tmp_path: Path) -> None:
    """The monitor on the app's port is refused, as in the seed."""
    with pytest.raises(ConfigError, match=r"monitor_port = 3000 \(CLUSTER2_MONITOR_PORT\) is the app's port too"):
        load(tmp_path, environ={"CLUSTER2_MONITOR_PORT": "3000"})


def test_apps_in_a_file(tmp_path: Path) -> None:
    """Several apps are an array of pairs."""
    (tmp_path / "cluster2.toml").write_text('apps = [["a:app", 4000], ["b:app", ["unix:b", 4001]]]\n')
    assert load(tmp_path).settings.apps == (("a:app", (4000,)), ("b:app", ("unix:b", 4001)))


def test_app_objects_in_code(tmp_path: Path) -> None:
    """From code the apps may be objects."""
    assert load(tmp_path, {"apps": [(load, 4000)]}).settings.apps == ((load, (4000,)),)


@pytest.mark.parametrize(
    ("text", "name", "line"),
    [
        ("a = 1\nb = 2\n", "b", 2),
        ("[ecv]\ncontrol = true\n", "ecv.control", 2),
        ("[ecv] # health\n'control' = true\n", "ecv.control", 2),
        ("x = 1\necv.control = true\n", "ecv.control", 2),
        ("x = 1\necv = { control = true }\n", "ecv.control", 2),
        ("[tool.cluster2]\nx = 1\n[tool.cluster2.ecv]\ncontrol = true\n", "tool.cluster2.ecv.control", 4),
        ("# workers = 1\nworkers = 2", "workers", 2),
        ("a = 1\n", "b", None),
    ],
)
def test_the_line_of_a_key(text: str, name: str, line: int | None) -> None:
    """A key is found in each of the ways to write it."""
    assert line_of(text, name) == line


def test_nested_tables_are_flattened() -> None:
    """Nested keywords and dotted ones are the same."""
    assert dict(flatten({"ecv": {"control": True, "path": "/"}, "ecv.token": "x"})) == {
        "ecv.control": True,
        "ecv.path": "/",
        "ecv.token": "x",
    }


def test_lookup_of_one_option(tmp_path: Path) -> None:
    """One option is found whatever may be wrong with the others."""
    (tmp_path / "cluster2.toml").write_text("wokers = 3\npids = 'run'\n")
    environ = {"CLUSTER2_WORKERS": "many"}
    assert lookup("pids", environ=environ, directory=tmp_path) == str(tmp_path / "run")
    assert lookup("pids", environ=environ | {"CLUSTER2_PIDS": "here"}, directory=tmp_path) == str(tmp_path / "here")
    assert lookup("pids", "/there", environ=environ, directory=tmp_path) == "/there"
    (tmp_path / "cluster2.toml").unlink()
    assert lookup("pids", environ={}, directory=tmp_path) == str(tmp_path / "pids")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.pem with a.key, b.key of another, a.all with both, and locked.key, which needs the password "open"."""
    made = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    for name in "ab":
        pair = authority.issue_cert("localhost")
        pair.cert_chain_pems[0].write_to_path(made / f"{name}.pem")
        pair.private_key_pem.write_to_path(made / f"{name}.key")
        pair.private_key_and_cert_chain_pem.write_to_path(made / f"{name}.all")
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((made / "a.key").read_bytes(), None)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    sealed = serialization.BestAvailableEncryption(b"open")
    (made / "locked.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, sealed))
    authority.cert_pem.write_to_path(made / "ca.pem")
    return made


@pytest.mark.parametrize(
    "names",
    [
        {"ssl_certfile": "a.pem", "ssl_keyfile": "a.key"},
        {"ssl_certfile": "a.all", "ssl_ca_certs": "ca.pem"},
        {"ssl_certfile": "a.pem", "ssl_keyfile": "locked.key", "ssl_keyfile_password": "open"},
    ],
)
def test_good_certificates(certificates: Path, names: dict[str, str]) -> None:
    """Certificate with key, in one file or two, encrypted or not."""
    assert load(certificates, names).explicit("ssl_certfile")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"ssl_certfile": "none.pem"}, r"ssl_certfile = '.*none\.pem' \(code\): can't be read: No such file"),
        ({"ssl_certfile": "a.pem", "ssl_keyfile": "none.key"}, r"ssl_keyfile = '.*none\.key' \(code\): can't be read"),
        ({"ssl_certfile": "a.pem", "ssl_keyfile": "b.key"}, r"ssl_certfile = .*b\.key': key values mismatch"),
        ({"ssl_certfile": "a.pem"}, r"must hold the key too"),
        ({"ssl_certfile": "a.key", "ssl_keyfile": "a.key"}, "can't be loaded"),
        ({"ssl_certfile": "a.pem", "ssl_keyfile": "locked.key"}, "can't be loaded with ssl_keyfile"),
        ({"ssl_certfile": "a.all", "ssl_ca_certs": "a.key"}, r"ssl_ca_certs = .*: can't be loaded"),
        ({"ssl_certfile": "."}, "can't be read: Is a directory"),
        ({"env_file": "none.env"}, r"env_file = '.*none\.env' \(code\): can't be read"),
        ({"chdir": "nowhere"}, r"chdir = '.*nowhere' \(code\): there is no such directory"),
    ],
)
def test_bad_files(certificates: Path, names: dict[str, str], message: str) -> None:
    """A file that can't be used is named with option and source in one line, unless the check isn't wanted."""
    with pytest.raises(ConfigError, match=message) as caught:
        load(certificates, names)
    assert "\n" not in caught.value.message
    load(certificates, names, check=False)


def test_files_are_checked_without_sources(certificates: Path) -> None:
    """`check_files` works on bare settings, too."""
    check_files(Settings(ssl_certfile=str(certificates / "a.all")))
    assert ssl.OPENSSL_VERSION


def test_options_in_an_env_file(tmp_path: Path) -> None:
    """They are the app's, not ours: each is warned of, unless it has that value in the environment as well."""
    (tmp_path / "app.env").write_text("CLUSTER2_WORKERS=7\nPORT=77\nA=1\n")
    found = load(tmp_path, {"env_file": "app.env"})
    assert found.settings.port == 3000
    (warning,) = found.warnings
    assert warning.startswith(f"{tmp_path}/app.env sets CLUSTER2_WORKERS, but options aren't read from env_file")
    found = load(tmp_path, {"env_file": "app.env"}, environ={"CLUSTER2_WORKERS": "7"})
    assert (found.settings.workers, found.warnings) == (7, ())


def test_a_bad_env_file(tmp_path: Path) -> None:
    """It is refused when the options are gathered."""
    (tmp_path / "app.env").write_text("A=1\nB\n")
    with pytest.raises(ConfigError, match=r"app\.env:2: expected NAME=value"):
        load(tmp_path, {"env_file": "app.env"})


def test_the_process_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments the working directory and the process's environment are used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLUSTER2_BACKLOG", "9")
    found = option_sources.load()
    assert found.settings.backlog == 9
    assert found.settings.pids == os.path.abspath("pids")
    assert set(found.sources) == set(OPTIONS)


def test_the_working_directory_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PWD is used if it names the working directory: a link in it is followed anew. `pids` and `logs` stay where they are."""
    link, first, second = (tmp_path / name for name in ("current", "first", "second"))
    first.mkdir()
    second.mkdir()
    link.symlink_to(first)
    monkeypatch.chdir(link)
    for named, is_named in (
        (link, link),
        (second, first),
        ("current", first),
        (f"{link}/../current", first),
        (None, first),
    ):
        if named is None:
            monkeypatch.delenv("PWD")
        else:
            monkeypatch.setenv("PWD", str(named))
        assert working_directory() == is_named, named
    monkeypatch.setenv("PWD", str(link))
    (link / "site.env").write_text("A=1\n")
    before = option_sources.load({"env_file": "site.env"}, environ={})
    found = before.settings
    assert (found.chdir, found.env_file) == (str(link), f"{link}/site.env")
    assert (found.pids, found.logs) == (f"{first}/pids", f"{first}/logs")
    link.unlink()
    link.symlink_to(second)
    with pytest.raises(ConfigError, match=r"env_file = '.*/current/site\.env' \(code\): can't be read"):
        before.again()
    (first.parent / "above.env").write_text("A=1\n")
    assert (
        option_sources.load({"env_file": "../above.env"}, environ={}, directory=link).settings.env_file
        == f"{link}/../above.env"
    )
    assert (
        option_sources.load({"env_file": "../above.env"}, environ={}, directory=first).settings.env_file
        == f"{tmp_path}/above.env"
    )
