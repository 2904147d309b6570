"""Unidiomatic words and phrases stay out of pages, help texts, docstrings, messages and comments."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

# What to avoid, and what to write instead.
AVOID = {
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\btells? of\b": "report, show",
    r"\b(is|are|be) passed over\b|; passed over\b": "skip",
    r"\bfor those who\b": "if you",
    r"\bwhoever\b": "if you, people who",
    r"\banew\b": "again, a new …",
    r"\bunder way\b": "in progress, current",
    r"\bbef(a|e)ll(s|en)?\b": "happen to",
    r"\bwherever it may\b": "anywhere",
    r"\bso many\b(?!.* that\b)|\b(of|to|in|on|only|are|at most) so many\b": "this many, the number of",
    r"\bas it was to the (byte|bit|letter)\b": "unchanged",
    r"\b(put|set) right\b": "fix",
    r"\bwhat stands\b|\bstands? (above|beside|behind|twice|in|here|there)\b": "is, precedes, follows, duplicate",
    r"\b(see|sees) to (it|that)\b|(^|[.;] |\"\"\")See that\b": "make sure, check that",
    r"\bnobody (can tell|knows)\b": "it is unknown",
    r"\b(is|are|was) gone on with\b|\bgo(es)? on with\b": "continue, resume",
    r"(^|\.) Of (an|the|several|equal|two|what)\b[^.,;:]{0,40},": "the subject first",
    r"\b(can|could|cannot|to) be had\b": "possible, available",
    r"\bfrom which on\b": "from which",
    r"\blikeliest\b": "most likely",
    r"\bcome(s)? along\b": "is included",
    r"\b(is|are|was|were|be) told\b": "report",
    r"\btold (along|apart|as)\b": "report, distinguish",
    r"\basked back\b": "an error says what is ambiguous",
    r"\bgravest\b": "most serious",
    r"\bgone again\b": "left, removed",
    r"\bto be had of\b": "to gain from",
    r"\bstands? there twice\b": "duplicate",
    r"\b(is|are) said (on|in|once|beside)\b": "print, report",
    r"\bwithout a word\b": "silently",
    r"\bwarned of\b": "there is a warning",
    r"\bwho is hurt\b": "who is affected",
    r"(^|[.;] )(quoted|reported|shown) (is|are)\b": "the subject first",
    r"\bunless it has been done\b": "unless already done",
    r"\b(lie|lies|lay) (apart|beside|too close)\b": "differ, be next to",
    r"\bheld against\b": "compared with",
    r"\bmeets (both|all)\b": "affects",
    r"\b(a|an|each|any|every) \w+( \w+)? of ours\b": "our, one of our",
    r"\bbrings? (nothing|more|anything|as much)\b|\bwhat \w+ (can )?brings?\b": "gain",
    r"\b(is|are|was|were) wanted\b": "the target is, requested",
    r"\bstood still\b": "level off, stall",
    r"\bwhat tells\b|\btells? (them apart|it from|them from)\b": "distinguish, identify",
    r"\bhalf-way\b": "halfway",
    r"\bdrawn (pictures|numbers)\b": "random",
    r"\bleverage[sd]?\b|\butili[sz]e[sd]?\b": "use",
    r"\bseamless(ly)?\b|\beffortless(ly)?\b|\bblazing": "say what it does",
}


def wrong(text: str) -> list[str]:
    """Return each line with a phrase to avoid, with what to write instead."""
    return [
        f"{number}: {line.strip()[:120]}  ({instead})"
        for number, line in enumerate(text.splitlines(), 1)
        for phrase, instead in AVOID.items()
        if re.search(phrase, line, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_in_plain_words(page: Path) -> None:
    assert not wrong(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", ["src/nextdetr", "examples"])
def test_texts_of_web_pages_reports_and_notebooks_are_in_plain_words(folder: str) -> None:
    files = [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in {".html", ".js", ".ipynb"}]
    assert files
    assert not {str(path.relative_to(ROOT)): found for path in files if (found := wrong(path.read_text(encoding="utf-8")))}


PACKAGES = {path.parent.name for path in (ROOT / "src/nextdetr").glob("*/__init__.py")}
ROOMS = ["", *sorted(PACKAGES)]  # "": modules outside of packages


def words_of(path: Path) -> str:
    """Return the strings and comments of a Python file, by line; names of variables and keys are not words."""
    source = path.read_text(encoding="utf-8")
    lines = [""] * (source.count("\n") + 1)
    tree = ast.parse(source)
    keys = {node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    keys |= {key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node in keys and node.value.isidentifier():
                continue
            for number, text in enumerate(node.value.split("\n")):
                lines[min(node.lineno + number, len(lines)) - 1] += f" {text.strip()}"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] += f" {token.string}"
    return "\n".join(line.strip() for line in lines)


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_messages_and_comments_are_in_plain_words(room: str) -> None:
    folder = ROOT / "src/nextdetr" / room
    files = sorted(folder.rglob("*.py") if room else folder.glob("*.py"))
    assert not {str(path.relative_to(ROOT)): found for path in files if (found := wrong(words_of(path)))}


def test_benchmarks_and_findings_are_in_plain_words() -> None:
    texts = {path: words_of(path) for path in sorted((ROOT / "benchmarks").glob("*.py"))}
    texts |= {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "findings").iterdir())}
    assert {path.suffix for path in texts} == {".py", ".sh", ".md"}
    assert not {str(path.relative_to(ROOT)): found for path, text in texts.items() if (found := wrong(text))}


def test_the_help_of_commands_is_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    from command_pages import command_pages

    pages = command_pages()
    assert {"index.md", "train.md"} <= pages.keys()
    found = [f"{name} {line}" for name, text in pages.items() for line in wrong(text)]
    assert not found
    sys.modules.pop("command_pages")


def test_a_phrase_to_avoid_is_found() -> None:
    assert wrong("fine\nWhat is passed over is counted.") == ["2: What is passed over is counted.  (skip)"]


def test_only_words_of_a_file_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    code = 'anew = f"no {1} way"  # under way\na["anew"] = {"anew": "anew"}\n\nb["anew"]\n'
    file.write_text(f'"""One.\n\nTwo, begun anew.\n"""\n{code}', encoding="utf-8")
    assert [line.split(":")[0] for line in wrong(words_of(file))] == ["3", "5", "6"]
