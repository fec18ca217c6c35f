"""What a line of an environment file means."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster2.errors import ConfigError
from cluster2.runtime.env_files import read


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"),
        ("  export  A = two words  ", "two words"),
        ("A=", ""),
        ("A=x=y", "x=y"),
        ("A=it's", "it's"),
        ("A=1 # one", "1"),
        ("A=#1", "#1"),
        ("A=a#b", "a#b"),
        ("A= # nothing", ""),
        ("A='a # b'", "a # b"),
        ("A='a \\n b' # c", "a \\n b"),
        ('A="a # b"', "a # b"),
        ('A="a\\nb\\t\\"c\\" \\$d \\\\n"', 'a\nb\t"c" $d \\n'),
        ('A="C:\\dir"', "C:\\dir"),
        ("A=$HOME ${HOME}", "$HOME ${HOME}"),
        ('A={"a": 1}', '{"a": 1}'),
        ("A=''", ""),
        ("A=a\u2028b\x0cc", "a\u2028b\x0cc"),
        ("A=é", "é"),
    ],
)
@pytest.mark.parametrize("frame", ["{}", "\ufeff{}\n", "# A=0\n\n{}\r\nB=2\r\n", "\t# c\n{}\rB=2"])
def test_a_value(tmp_path: Path, line: str, value: str, frame: str) -> None:
    """As in the table on top of the module, whatever ends lines, and behind a byte order mark."""
    path = tmp_path / "app.env"
    path.write_bytes(frame.format(line).encode())
    assert read(path)["A"] == value


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("A", "expected NAME=value"),
        ("=1", "expected NAME=value"),
        ("2A=1", "expected NAME=value"),
        ("é=1", "expected NAME=value"),
        ("A-B=1", "expected NAME=value"),
        ("A=\0", "expected NAME=value"),
        ("A='b", "expected a closing ', and nothing but a comment behind it"),
        ('A="b', 'expected a closing ", and'),
        ('A="b\\"', 'expected a closing "'),
        ("A='b' c", "nothing but a comment behind it"),
        ("A='b'#c", "nothing but a comment behind it"),
        ("A='it's'", "nothing but a comment behind it"),
    ],
)
def test_what_means_nothing(tmp_path: Path, line: str, says: str) -> None:
    """The line is named."""
    path = tmp_path / "app.env"
    path.write_text(f"B=1\n{line}\n")
    with pytest.raises(ConfigError) as raised:
        read(path)
    assert raised.value.message.startswith(f"{path}:2: ")
    assert says in raised.value.message


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """A file that isn't there, and one that isn't UTF-8."""
    path = tmp_path / "app.env"
    with pytest.raises(ConfigError, match=r"app\.env can't be read: No such file"):
        read(path)
    path.write_bytes(b"A=\xff\n")
    with pytest.raises(ConfigError, match=r"app\.env can't be read: 'utf-8' codec"):
        read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.text(st.characters(exclude_characters="\0\r\n'", exclude_categories=["Cs"]), max_size=20))
def test_what_a_shell_quotes_is_kept(tmp_path: Path, value: str) -> None:
    """A value in single quotes is that value, as in a shell."""
    path = tmp_path / "app.env"
    path.write_text(f"A='{value}'\n", encoding="utf-8", newline="")
    assert read(path) == {"A": value}
    assert shlex.split(f"'{value}'") == [value]
