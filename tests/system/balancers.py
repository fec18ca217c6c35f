"""Real load balancers, run with the configurations of `deploy/`: only addresses and times are the test's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from tests.system.harness import ROOT, free_port, wait_until

DEPLOY = ROOT / "deploy"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def changed(name: str, changes: dict[str, str]) -> str:
    """A file of `deploy/` with some texts replaced, each of which must be in it."""
    text = (DEPLOY / name).read_text()
    for before, after in changes.items():
        assert before in text, f"{before!r} isn't in deploy/{name}"
        text = text.replace(before, after)
    return text


class Balancer:
    """A balancer that runs.

    Attributes:
        address: where its clients connect.
    """

    def __init__(self, directory: Path, argv: list[str], port: int) -> None:
        self.address = ("127.0.0.1", port)
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._listens, "it listens")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            socket.create_connection(self.address, 5).close()
        except ConnectionRefusedError:
            return False
        return True

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def haproxy(directory: Path, ports: list[int], agents: list[int], check: str) -> Balancer:
    """HAProxy before two clusters that uses one kind of check: `httpchk` or `agent`."""
    program, own = shutil.which("haproxy", path=PATH), free_port()
    assert program is not None
    changes = {
        "bind :80": f"bind 127.0.0.1:{own}",
        "inter 1s fall 2 rise 1": "inter 100ms fall 2 rise 1",
        "agent-inter 1s": "agent-inter 100ms",
        " agent-port 3002": "",
    }
    for number, (port, agent) in enumerate(zip(ports, agents, strict=True), 1):
        how = "check" if check == "httpchk" else f"agent-check agent-port {agent}"
        changes[f"192.0.2.{number}:3000 check agent-check"] = f"127.0.0.1:{port} {how}"
    (directory / "haproxy.cfg").write_text(changed("haproxy.cfg", changes))
    return Balancer(directory, [program, "-db", "-f", str(directory / "haproxy.cfg")], own)


def nginx(directory: Path, ports: list[int]) -> Balancer:
    """The open nginx before two clusters."""
    program, own = shutil.which("nginx", path=PATH), free_port()
    assert program is not None
    changes = {"listen 80": f"listen 127.0.0.1:{own}", "/var/cache/nginx/ecv": f"{directory}/ecv"}
    changes |= {f"192.0.2.{number}:3000": f"127.0.0.1:{port}" for number, port in enumerate(ports, 1)}
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in kinds)
    changes["http {\n"] = f"http {{\naccess_log off;\n{temporary}"
    text = f"daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log {directory}/error.log;\n"
    (directory / "nginx.conf").write_text(text + changed("nginx.conf", changes))
    argv = [program, "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", str(directory / "error.log")]
    return Balancer(directory, argv, own)
