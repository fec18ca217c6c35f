"""Tests of scripts/prose.py: each rule with a text that it objects to and one that it accepts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from scripts import prose

CONFIG = dataclasses.replace(prose.read_config(), messages=["/"], exclude=[], not_yet_clean=[])
LONG = " ".join(["word"] * 41)

# Rule, kind of text, the text that breaks it, the text that keeps it.
RULES = [
    ("person", "comment", "the client who waits", "the client that waits"),
    ("person", "comment", "users who wait", "users wait"),
    ("person", "docstring", "Return a count that everyone needs.", "Return a count that every client needs."),
    ("person", "docstring", "Close it if nobody reads.", "Close it if no process reads."),
    ("person", "docs", "A worker who is idle, or Whoever asks.", "Operators who need `who`, and anyone who asks."),
    ("person", "message", "nobody listens on the socket", "no process listens on the socket"),
    ("opening", "docstring", "What the workers need.", "Return what the workers need."),
    ("opening", "docstring", "Whether the worker is ready.", "Return whether the worker is ready."),
    ("opening", "docstring", "The same for a worker.", "Return a worker's counterpart. The same holds for a helper."),
    ("semicolons", "docs", "One; two; three.", "One; two.\n\nThree; four, `;; ;`."),
    ("semicolons", "docstring", "One; two; three.", "One; two.\n\n- Three; four.\n- Five; six."),
    ("semicolons", "comment", "one; two; three", "one; two"),
    ("long-sentence", "docs", LONG, LONG.replace("word word", "word. Word", 1)),
    ("long-sentence", "comment", LONG, LONG.removesuffix(" word")),
    ("long-sentence", "docstring", LONG, LONG.removesuffix(" word")),
    ("inversion", "docs", "First. Of uvicorn, these internals are used.", "Of course, it uses uvicorn's internals."),
    ("inversion", "docs", "What is idle is closed.", "What is idle? The keeper closes idle connections."),
    ("inversion", "docs", "Never does the keeper read.", "The keeper never reads."),
    ("space", "docs", "A word , and another.", "A word, and `a ,  b`."),
    ("retired-word", "docs", "The watchman ends the worker.", "The health monitor ends the worker."),
    ("retired-word", "message", "told the worker to end", "asked the worker to end"),
    ("retired-name", "docs", "A `Watchman` ends it.", "Watchman, as a word, is another rule's."),
    ("retired-name", "docstring", "Start a `Nursery`.", "Start a `WorkerFactory`."),
]


def found(path: Path, text: str) -> set[str]:
    """Return the rules that a file with this text breaks."""
    path.write_text(text)
    return {name for _, _, name, _ in prose.check(path, CONFIG)}


def written(kind: str, text: str, allow: str = "") -> str:
    """Return a file with the text as prose of that kind, and with an exception."""
    mark = f"  # prose: allow {allow} (tested)" if allow else ""
    match kind:
        case "docs":
            return f"<!-- prose: allow {allow} (tested) -->\n{text}\n" if allow else f"{text}\n"
        case "docstring":
            return f'def f():\n    """{text}\n    """{mark}\n'.replace("\n\n", "\n\n    ").replace("\n- ", "\n    - ")
        case "comment":
            return f"x = 1\n# {text}\n" + (f"#{mark}\n" if mark else "")
    return f"x = {text!r}{mark}\n"


@pytest.mark.parametrize(("rule", "kind", "bad", "good"), RULES)
def test_rule(tmp_path: Path, rule: str, kind: str, bad: str, good: str) -> None:
    """Each rule objects to the one text and accepts the other, and an exception silences it."""
    path = tmp_path / ("text.md" if kind == "docs" else "text.py")
    assert rule in found(path, written(kind, bad))
    assert rule not in found(path, written(kind, good))
    assert rule not in found(path, written(kind, bad, rule))


def test_each_rule_is_tested() -> None:
    """The table above has a row for each rule and kind of text."""
    tested = {(rule, kind) for rule, kind, _, _ in RULES}
    assert {rule.name for rule in CONFIG.rules} == {rule for rule, _ in tested}
    assert {("person", kind) for kind in ("docs", "docstring", "comment", "message")} <= tested


def test_code_is_not_prose(tmp_path: Path) -> None:
    """Code blocks, code spans and addresses of links aren't checked."""
    text = "Run `who; who`:\n\n```sh\nwho; who; who\n```\n\n    who\n\n[text](who.md)\n\n| `who` |\n|---|\n| `he` |\n"
    assert found(tmp_path / "text.md", text) == set()


def test_pragmas_are_not_prose(tmp_path: Path) -> None:
    """Comments for tools aren't checked."""
    assert found(tmp_path / "text.py", "#!/usr/bin/env who\nx = 1  # noqa: who\ny = 2  # type: ignore[who]\n") == set()


def test_finding_has_line_and_column(tmp_path: Path) -> None:
    """A finding points at the word in the file, in all kinds of text."""
    python = tmp_path / "text.py"
    python.write_text(
        'def f():\n    """Return.\n\n    Args:\n        a: one\n            who is.\n    """\n    x = 1  # nobody\n'
    )
    docs = tmp_path / "text.md"
    docs.write_text("# Title\n\n- `code` and\n  **one** who\n\n| a | b |\n|---|---|\n| a | nobody |\n")
    assert [(line, column) for line, column, _, _ in prose.check(python, CONFIG)] == [(6, 13), (8, 14)]
    assert [(line, column) for line, column, _, _ in prose.check(docs, CONFIG)] == [(4, 11), (8, 7)]


def test_entries_of_a_docstring_are_paragraphs(tmp_path: Path) -> None:
    """Each entry below `Args:` and the like may have a semicolon."""
    docstring = (
        "Return.\n\n    Attributes:\n        a: one; two\n            and on.\n        b: three; four\n\n    Five; six."
    )
    assert found(tmp_path / "text.py", f'def f():\n    """{docstring}\n    """\n') == set()


def test_comment_is_one_text_over_lines(tmp_path: Path) -> None:
    """Comment lines below each other are one paragraph; comments behind code are one each."""
    assert "semicolons" in found(tmp_path / "text.py", "# one; two\n# three; four\n")
    assert found(tmp_path / "text.py", "x = 1  # one; two\ny = 2  # three; four\n# five; six\n") == set()


def test_other_files_have_comments(tmp_path: Path) -> None:
    """In files that are neither Markdown nor Python, lines that begin with # are checked."""
    assert found(tmp_path / "script", "echo nobody # nobody\n    # nobody\n") == {"person"}


def test_unused_exception_is_a_finding(tmp_path: Path) -> None:
    """An exception for which there is no finding must go."""
    assert found(tmp_path / "text.md", "<!-- prose: allow person -->\nText.\n") == {"unused-allow"}
    assert found(tmp_path / "text.md", "<!-- prose: allow person -->\nText.\n\nA client who waits.\n") == {
        "person",
        "unused-allow",
    }


def test_paths_not_yet_clean(tmp_path: Path) -> None:
    """Files not yet clean are left out of a run without arguments, and checked when they are given."""
    (tmp_path / "docs").mkdir()
    old, new, generated = (tmp_path / "docs" / name for name in ("old.md", "new.md", "generated.md"))
    for path in (old, new, generated):
        path.write_text("Text.\n")
    config = dataclasses.replace(
        CONFIG, paths=[str(tmp_path / "docs")], not_yet_clean=[str(old)], exclude=[str(generated)]
    )
    assert prose.files(config) == [new]
    assert prose.files(config, [str(tmp_path)]) == [new, old]


def test_configured_paths_exist() -> None:
    """Each path in prose.toml exists, so that none is left unchecked by a rename."""
    config = prose.read_config()
    named = [*config.paths, *config.exclude, *config.messages, *config.not_yet_clean]
    assert [name for name in named if not (prose.ROOT / name).exists()] == []


def test_main_prints_findings_and_returns_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Findings are printed as ruff prints them, and the exit code is 1; without one it is 0, and nothing is printed."""
    path = tmp_path / "text.md"
    path.write_text("A client who waits.\n")
    assert prose.main([str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"{path}:1:10: person 'who': ")
    assert prose.main(["--statistics", str(path)]) == 1
    assert capsys.readouterr().out == "     1 person\n"
    path.write_text("A client that waits.\n")
    assert prose.main([str(path)]) == 0
    assert capsys.readouterr().out == ""
