"""Words and turns of phrase that no engineer would use stay out of the pages and the command line's help."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

# What to avoid, and what to write instead.
AVOID = {
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\btells? of\b": "report, show",
    r"\bpassed over\b": "skip",
    r"\bfor those who\b": "if you",
    r"\bwhoever\b": "if you, people who",
    r"\b(is|are|was|were|be) told\b": "report",
    r"\btold (along|apart|as)\b": "report, distinguish",
    r"\basked back\b": "an error says what is ambiguous",
    r"\bgravest\b": "most serious",
    r"\bgone again\b": "left, removed",
    r"\bto be had of\b": "to gain from",
    r"\bstands? there twice\b": "duplicate",
    r"\b(is|are) said (on|in|once|beside)\b": "print, report",
    r"\bwithout a word\b": "silently",
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


def test_the_help_of_commands_is_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    from command_pages import command_pages

    pages = command_pages()
    assert {"index.md", "train.md"} <= pages.keys()
    assert not {name: wrong(text) for name, text in pages.items() if wrong(text)}
    sys.modules.pop("command_pages")


def test_a_phrase_to_avoid_is_found() -> None:
    assert wrong("fine\nWhat is passed over is counted.") == ["2: What is passed over is counted.  (skip)"]
