"""The files of `deploy/`: each is read by the program that it is for, as far as that can be had here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster2.config.settings import OPTIONS, Settings
from tests.system.balancers import DEPLOY, PATH, changed


def program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} isn't installed")
    return found


def checked(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_haproxy() -> None:
    """HAProxy takes the file as it is, without a warning."""
    said = checked(program("haproxy"), "-c", "-f", str(DEPLOY / "haproxy.cfg"))
    assert "WARNING" not in said.upper(), said


def test_nginx(tmp_path: Path) -> None:
    """Nginx takes the file; only the paths that it would write to are the test's own."""
    changes = {"/var/cache/nginx/ecv": f"{tmp_path}/ecv", "listen 80;": "listen 127.0.0.1:1024;"}
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    changes["http {\n"] = "http {\naccess_log off;\n" + "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds
    )
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\n" + changed("nginx.conf", changes))
    said = checked(program("nginx"), "-t", "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.log"))
    assert "warn" not in said, said


@pytest.mark.parametrize("name", ["cluster2.service", "cluster2.socket"])
def test_systemd(tmp_path: Path, name: str) -> None:
    """systemd has nothing to say of the units, but for a type that is newer than it may be, and a program that isn't there."""
    analyze = program("systemd-analyze")
    for each in ("cluster2.service", "cluster2.socket"):
        shutil.copy(DEPLOY / each, tmp_path)
    done = subprocess.run([analyze, "verify", str(tmp_path / name)], capture_output=True, text=True, timeout=60)
    version = int(re.findall(r"\d+", checked(analyze, "--version"))[0])
    own = [line for line in done.stderr.splitlines() if "cluster2." in line]
    said = [line for line in own if "is not executable" not in line]
    assert [line for line in said if version >= 253 or "notify-reload" not in line] == []


def option(line: str, name: str) -> str:
    found = re.search(rf"^{name}=(.*)$", line, re.MULTILINE)
    assert found is not None, name
    return found[1]


def test_times_of_the_unit() -> None:
    """systemd waits for longer than a graceful end takes, and its watchdog for longer than the master's tick."""
    unit = (DEPLOY / "cluster2.service").read_text()
    defaults = Settings()
    assert int(option(unit, "TimeoutStopSec")) > defaults.lame_duck + defaults.drain_timeout + 5
    assert int(option(unit, "TimeoutStartSec")) > defaults.boot_timeout
    assert int(option(unit, "WatchdogSec")) > 5


def test_capabilities_of_the_unit() -> None:
    """The service runs as an ordinary user without capabilities, which is what `scripts/as_ordinary_user.py` tests."""
    unit = (DEPLOY / "cluster2.service").read_text()
    assert option(unit, "CapabilityBoundingSet") == ""
    assert option(unit, "NoNewPrivileges") == "yes"
    assert option(unit, "User") != "root"


def container() -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod of the manifest, and its container."""
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    assert (
        deployment["spec"]["selector"]["matchLabels"].items()
        <= deployment["spec"]["template"]["metadata"]["labels"].items()
    )
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    (found,) = pod["containers"]
    assert service["spec"]["ports"][0]["targetPort"] in [port["name"] for port in found["ports"]]
    return pod, found


def test_kubernetes() -> None:
    """Each variable is an option; the pod has time for lame duck and drain; probes ask the monitor for paths that it has."""
    pod, found = container()
    variables = {each.variable: each for each in OPTIONS.values()}
    given = {each["name"]: each.get("value") for each in found["env"]}
    values = {name: variables[name].parse(value) for name, value in given.items() if value is not None}
    assert given.keys() <= variables.keys()
    lame_duck, drain = values["CLUSTER2_LAME_DUCK"], values["CLUSTER2_DRAIN_TIMEOUT"]
    assert pod["terminationGracePeriodSeconds"] >= lame_duck + drain + 5
    ready, alive, begun = (found[f"{each}Probe"] for each in ("readiness", "liveness", "startup"))
    assert ready["periodSeconds"] * ready["failureThreshold"] < lame_duck
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    assert ports["monitor"] == values["CLUSTER2_MONITOR_PORT"]
    assert {probe["httpGet"]["port"] for probe in (ready, alive, begun)} == {"monitor"}
    assert [probe["httpGet"]["path"] for probe in (ready, alive, begun)] == ["/readyz", "/livez", "/readyz"]
    assert "CLUSTER2_MONITOR_TOKEN" in given, "a monitor that others can reach needs it"
