"""Completion of commands and flags in shells."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster2.cli import cli
from tests.system.harness import clean_environment


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(shell: str) -> None:
    """Each shell has a script that asks cluster2."""
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0, result.output
    assert "_CLUSTER2_COMPLETE" in result.output


@pytest.mark.parametrize(
    ("words", "found"), [("cluster2 rel", {"reload"}), ("cluster2 run --drain-", {"--drain-timeout", "--drain-idle"})]
)
def test_in_bash(tmp_path: Path, words: str, found: set[str]) -> None:
    """A shell that has read the script completes commands and flags."""
    bash = shutil.which("bash")
    assert bash is not None
    program = tmp_path / "cluster2"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cluster2 "$@"\n')
    program.chmod(0o755)
    script = f"""
eval "$(cluster2 completion bash)"
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_cluster2_completion cluster2
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    env = clean_environment({"PATH": f"{tmp_path}:/usr/bin:/bin"})
    done = subprocess.run([bash, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == found, done.stderr
