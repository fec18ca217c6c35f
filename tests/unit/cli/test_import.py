"""The command `import`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster2.cli import cli
from cluster2.runtime import env_files


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a configuration of gunicorn."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gunicorn.conf.py").write_text(
        "workers = 3\nraw_env = ['A=1']\npidfile = 'x.pid'\nwsgi_app = 'shop:app'\n"
    )
    return tmp_path


def invoke(*words: str) -> Result:
    """Run the command; errors of ours become exit codes, as in the shell."""
    return CliRunner().invoke(cli, ["import", *words])


def test_a_file_is_written(directory: Path) -> None:
    """The options and the variables are written, and what has no counterpart is said."""
    result = invoke("gunicorn")
    assert result.exit_code == 0, result.output
    assert "workers = 3" in (directory / "cluster2.toml").read_text()
    assert 'env_file = "cluster2.env"' in (directory / "cluster2.toml").read_text()
    assert (directory / "cluster2.env").read_text() == "A=1\n"
    assert "no counterpart: pidfile = 'x.pid': the directory pids has a file" in result.output
    assert "next: cluster2 check\n" in result.output


@pytest.mark.parametrize("value", ["two words", " x ", '"q" # x', "a\nb\\n", "a #b", "'", "", "\\"])
def test_variables_keep_their_values(directory: Path, value: str) -> None:
    """cluster2 reads from the file what gunicorn would have set."""
    (directory / "gunicorn.conf.py").write_text(f"raw_env = [{'A=' + value!r}]\n")
    assert invoke("gunicorn").exit_code == 0
    assert env_files.read(directory / "cluster2.env") == {"A": value}


def test_a_module_that_python_runs(directory: Path) -> None:
    """`python -m gunicorn` is gunicorn."""
    assert invoke("gunicorn", "--", "python3", "-m", "gunicorn", "-w", "5", "shop:app").exit_code == 0
    assert "workers = 5" in (directory / "cluster2.toml").read_text()


def test_nothing_is_overwritten(directory: Path) -> None:
    """A file that is there stays as it is, unless --force says otherwise."""
    (directory / "cluster2.toml").write_text("# mine\n")
    result = invoke("gunicorn", "gunicorn.conf.py")
    assert result.exit_code == 5
    assert "cluster2.toml is there already: --force overwrites it" in result.output
    assert (directory / "cluster2.toml").read_text() == "# mine\n"
    assert invoke("--force", "gunicorn").exit_code == 0
    assert "workers = 3" in (directory / "cluster2.toml").read_text()


def test_on_standard_output(directory: Path) -> None:
    """With --output - nothing is written."""
    result = invoke("-o", "-", "uvicorn", "--", "uvicorn", "shop:app", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("# Made by `cluster2 import` from `uvicorn shop:app --workers 2`.\n")
    assert not (directory / "cluster2.toml").exists()


def test_a_procfile(directory: Path) -> None:
    """A Procfile's line of another process."""
    (directory / "Procfile").write_text("api: uvicorn api:app --port $PORT\n")
    result = invoke("--process", "api", "procfile")
    assert result.exit_code == 0, result.output
    assert 'app = "api:app"' in (directory / "cluster2.toml").read_text()


def test_a_wrong_setting() -> None:
    """An error is one line, with the exit code of bad configuration."""
    result = invoke("gunicorn", "--", "gunicorn", "--nope", "a:b")
    assert (result.exit_code, result.output) == (5, "cluster2: error: gunicorn has no argument '--nope'\n")
