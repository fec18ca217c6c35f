#!/usr/bin/env python3
"""Check prose against the rules in `prose.toml`: docs, docstrings, comments and the messages for users.

Usage: python scripts/prose.py [--statistics] [PATH ...]

Without paths, check the paths that `prose.toml` names, except those listed there as not yet clean. A path that is given is
checked in any case. Each finding is one line, as ruff prints them: `path:line:column: rule message`. The exit code is 1 if
there is one.

An exception names the rule, or several with commas, and a reason. In Python it ends a line: `# prose: allow person (reason)`,
in the comment itself or on the last line of the docstring or string. In Markdown it is `<!-- prose: allow person (reason) -->`
in the paragraph or on the line above it.

Published linters that were tried in November 2026 don't fit. Vale's package downloads its program at run time. harper's carries
one of 60 MB, whose custom rules match sequences of words, not paragraphs or openings. proselint reads neither Markdown nor
Python, skips everything in quotation marks, and has no rule about sentences or paragraphs.
"""

from __future__ import annotations

import argparse
import ast
import collections
import functools
import io
import re
import sys
import textwrap
import tokenize
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
RULES = Path(__file__).with_name("prose.toml")
# Each character of a code span becomes this one in the text: it is no letter, so no rule about words sees it, and no space,
# so the span counts as one word.
CODE = "\ue000"

_RULES = r"prose: allow ([a-z-]+(?:, [a-z-]+)*)"
_ALLOW = re.compile(rf"(?<![`'\"])(?:<!-- {_RULES}.*?-->|# {_RULES}(?: \(.*\))?$)")
# Comments for tools. Text before one on the same line is prose.
_PRAGMA = re.compile(r"#\s*(?:noqa|type:|pragma:|fmt:|ruff:|mypy:|prose:).*|^#!.*")
_SENTENCE = re.compile(r"\S.*?(?:(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)[.!?…]['\")\]*_]*(?=\s)|\Z)", re.DOTALL)
_MARKDOWN = MarkdownIt("commonmark").enable("table")

Row = tuple[int, str]  # the number of a line in its file, and the text on it


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A piece of prose without markup.

    Attributes:
        kind: `docs`, `docstring`, `comment` or `message`.
        text: the prose. Code spans are masked with `CODE`.
        code: as long as `text`, with everything but the code spans masked.
        places: line and column of each character.
        opening: true for the first paragraph of a docstring.
        allowed: line and rule of each exception that covers the paragraph.
    """

    kind: str
    text: str
    code: str
    places: Sequence[tuple[int, int]]
    opening: bool = False
    allowed: frozenset[tuple[int, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of `prose.toml`, which explains the fields."""

    name: str
    message: str
    pattern: str = ""
    unless: str = ""
    where: Sequence[str] = ("docs", "docstring", "comment", "message")
    unit: str = "paragraph"
    most: int = 0
    code: bool = False
    case: bool = False
    words: dict[str, str] = field(default_factory=dict)

    def findings(self, paragraph: Paragraph) -> Iterator[tuple[int, str]]:
        """Yield the offset of each violation in the paragraph, and what to say about it."""
        if paragraph.kind not in self.where or (self.unit == "opening" and not paragraph.opening):
            return
        text = paragraph.code if self.code else paragraph.text
        whole = [(0, text)]
        units = whole if self.unit == "paragraph" else [(s.start(), s[0]) for s in _SENTENCE.finditer(text)]
        for start, unit in units[:1] if self.unit == "opening" else units:
            exempt = [match.span() for match in self._compiled(self.unless).finditer(unit)] if self.unless else []
            matches = [
                match
                for match in self._compiled(self.pattern or self._any_word()).finditer(unit)
                if not any(first <= match.start() and match.end() <= last for first, last in exempt)
            ]
            for match in matches[self.most :]:
                found = " ".join(match[0].split())
                better = self.words.get(found) or self.words.get(found.lower(), "")
                yield start + match.start(), self.message.format(found=found, better=better)

    def _any_word(self) -> str:
        return rf"\b(?:{'|'.join(map(re.escape, self.words))})\b"

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        return re.compile(pattern, re.DOTALL if self.case else re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Config:
    """The contents of `prose.toml`.

    Attributes:
        paths: files and directories that are checked without arguments.
        exclude: paths of generated files.
        messages: directories whose string literals are checked as messages.
        not_yet_clean: paths that are checked only if given as arguments.
    """

    paths: Sequence[str]
    exclude: Sequence[str]
    messages: Sequence[str]
    not_yet_clean: Sequence[str]
    rules: Sequence[Rule]


def read_config(path: Path = RULES) -> Config:
    """Return the rules and paths of a TOML file."""
    data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    return Config(**(data | {"rules": [Rule(**rule) for rule in data["rules"]]}))


# ------------------------------------------------------------------------------------------------------------ extraction


def paragraphs(path: Path, *, messages: bool = False) -> Iterator[Paragraph]:
    """Yield the prose of a file: Markdown, Python, or any other whose comments start with `#`.

    Args:
        messages: whether string literals of several words in Python are yielded too.
    """
    source = path.read_text(encoding="utf-8")
    lines = source.split("\n")
    if path.suffix == ".md":
        yield from _markdown("docs", lines, list(enumerate(lines, 1)))
    elif path.suffix == ".py":
        yield from _python(source, lines, messages)
    else:
        yield from _comments(
            lines, [(n, 0, line.strip()) for n, line in enumerate(lines, 1) if line.strip()[:1] == "#"]
        )


def _markdown(kind: str, lines: Sequence[str], rows: Sequence[Row]) -> Iterator[Paragraph]:
    tokens = _MARKDOWN.parse("\n".join(text for _, text in rows))
    for token in tokens:
        if token.type == "inline" and token.map:
            inside = rows[token.map[0] : token.map[1]]
            first, last = inside[0][0], inside[-1][0]
            above = first > 1 and lines[first - 2].lstrip().startswith("<!--")
            yield _shown(kind, lines, inside, token, _allowed(lines, range(first - above, last + 1)))


def _shown(
    kind: str, lines: Sequence[str], rows: Sequence[Row], inline: Token, allowed: frozenset[tuple[int, str]]
) -> Paragraph:
    """Return what a reader of the rendered text sees of an inline token."""
    places: list[tuple[int, int]] = []
    for (number, _), shown in zip(rows, inline.content.split("\n"), strict=False):
        first = max(lines[number - 1].find(shown.strip()), 0) + 1
        places += [(number, first + i) for i in range(len(shown) + 1)]
    text, at, code, where = "", 0, "", []
    for child in inline.children or ():
        content = "\n" if child.type in {"softbreak", "hardbreak"} else child.content
        if child.type not in {"softbreak", "hardbreak", "text", "code_inline"}:
            continue
        # markdown-it gives no position inside a paragraph. A decoded character (`&lt;`, `\*`) makes the search fail.
        at = max(inline.content.find(content, at), at)
        is_code = child.type == "code_inline"
        text += CODE * len(content) if is_code else content
        code += content if is_code else re.sub(r"\S", CODE, content)
        where += [places[min(i, len(places) - 1)] for i in range(at, at + len(content))]
        at += len(content)
    return Paragraph(kind, text, code, where, allowed=allowed)


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the docstrings of a module, its classes and functions, and the strings below attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as string):
                yield string


def _python(source: str, lines: Sequence[str], messages: bool) -> Iterator[Paragraph]:
    tree = ast.parse(source)
    of_objects = set(docstrings(tree))
    for docstring in of_objects:
        yield from _docstring(lines, docstring)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield from _comments(lines, ((*token.start, token.string) for token in tokens if token.type == tokenize.COMMENT))
    for node in ast.walk(tree) if messages else ():
        match node:
            case ast.Constant(value=str(text)) if " " in text.strip() and node not in of_objects:
                allowed = _allowed(lines, range(node.lineno, (node.end_lineno or node.lineno) + 1))
                place = (node.lineno, node.col_offset + 1)
                yield Paragraph("message", text, re.sub(r"\S", CODE, text), [place] * len(text), allowed=allowed)


def _docstring(lines: Sequence[str], node: ast.Constant) -> Iterator[Paragraph]:
    first, _, rest = str(node.value).expandtabs().partition("\n")
    last = node.end_lineno or node.lineno
    texts = [first.strip(), *textwrap.dedent(rest).split("\n")]
    rows = [(min(node.lineno + i, last), text) for i, text in enumerate(texts)]
    allowed = _allowed(lines, range(last, last + 1))
    opening = True
    for block in _entries(rows):
        for paragraph in _markdown("docstring", lines, block):
            yield replace(paragraph, opening=opening, allowed=paragraph.allowed | allowed)
            opening = False


def _entries(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Split a docstring so that each entry of `Args:` and the like is a block of its own, without its indentation."""
    block: list[Row] = []
    margin = 0  # the indentation of the entries, or 0 outside of such a section
    for number, text in rows:
        indent = len(text) - len(text.lstrip())
        after_heading = block and re.fullmatch(r"\w[\w ]*:", block[-1][1].rstrip())
        if not margin and after_heading and indent >= 4:
            margin = indent
        ends = margin and text.strip() and indent < margin
        if ends or (margin and indent == margin):
            yield block
            block = []
        if ends:
            margin = 0
        block.append((number, text.strip() if margin else text))
    yield block


def _comments(lines: Sequence[str], comments: Iterable[tuple[int, int, str]]) -> Iterator[Paragraph]:
    """Yield the paragraphs of comments, (line, column, text) each. Whole lines below each other are one text."""
    block: list[Row] = []
    before = (0, -1)
    for number, column, raw in comments:
        text = re.sub(r"^#+:?\s?(?:-{3,}\s*)?", "", _PRAGMA.sub("", raw).rstrip())
        alone = not lines[number - 1][:column].strip()
        if block and not (alone and before == (number - 1, column)):
            yield from _comment(lines, block)
            block = []
        before = (number, column if alone else -1)
        block.append((number, text))
    yield from _comment(lines, block)


def _comment(lines: Sequence[str], block: Sequence[Row]) -> Iterator[Paragraph]:
    allowed = _allowed(lines, (number for number, _ in block))
    for paragraph in _markdown("comment", lines, block):
        yield replace(paragraph, allowed=paragraph.allowed | allowed)


def _allowed(lines: Sequence[str], numbers: Iterable[int]) -> frozenset[tuple[int, str]]:
    return frozenset(
        (number, name)
        for number in numbers
        if 0 < number <= len(lines) and "prose: allow" in lines[number - 1]
        for match in _ALLOW.finditer(lines[number - 1])
        for name in (match[1] or match[2]).split(", ")
    )


# -------------------------------------------------------------------------------------------------------------- checking


def check(path: Path, config: Config) -> list[tuple[int, int, str, str]]:
    """Return line, column, rule and message of each finding in a file, in order. A place has one finding at most."""
    findings: dict[tuple[int, int], tuple[str, str]] = {}
    unused = _allowed(lines := path.read_text(encoding="utf-8").split("\n"), range(1, len(lines) + 1))
    for paragraph in paragraphs(path, messages=_within(path, config.messages)):
        for rule in config.rules:
            exceptions = {(line, name) for line, name in paragraph.allowed if name == rule.name}
            for offset, message in rule.findings(paragraph):
                unused -= exceptions
                if not exceptions:
                    findings.setdefault(paragraph.places[offset], (rule.name, message))
    for line, name in unused:
        findings[line, 1] = ("unused-allow", f"no finding of {name!r} here: delete the exception")
    return sorted((*place, *finding) for place, finding in findings.items())


def files(config: Config, paths: Sequence[str] = ()) -> list[Path]:
    """Return the files to check: those below the given paths, or those of the configuration that should be clean."""
    found = []
    for path in (Path(given) for given in paths or [str(ROOT / name) for name in config.paths]):
        found += sorted([*path.rglob("*.py"), *path.rglob("*.md")]) if path.is_dir() else [path]
    exempt = list(config.exclude) + ([] if paths else list(config.not_yet_clean))
    return [path for path in dict.fromkeys(found) if not _within(path, exempt)]


def _within(path: Path, names: Sequence[str]) -> bool:
    path = path.resolve()
    return any(path == above or above in path.parents for above in _absolute(tuple(names)))


@functools.cache
def _absolute(names: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(ROOT / name for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings, or with `--statistics` how many there are of each rule, and return the exit code."""
    parser = argparse.ArgumentParser(description="Check docs, docstrings, comments and messages against prose.toml.")
    parser.add_argument("--statistics", action="store_true", help="print how many findings there are of each rule")
    parser.add_argument("paths", nargs="*", help="files and directories (default: all that should be clean)")
    options = parser.parse_args(arguments)
    config = read_config()
    counts: collections.Counter[str] = collections.Counter()
    for path in files(config, options.paths):
        shown = path.resolve().relative_to(ROOT) if path.resolve().is_relative_to(ROOT) else path
        for line, column, name, message in check(path, config):
            counts[name] += 1
            if not options.statistics:
                print(f"{shown}:{line}:{column}: {name} {message}")
    if options.statistics:
        for name, count in counts.most_common():
            print(f"{count:6} {name}")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main())
