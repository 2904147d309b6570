"""Blocks of code in the pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md"))
BLOCK = re.compile(
    r"(?:^[ \t]*<!-- not run: (?P<reason>.+?) -->\n)?^[ \t]*```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^[ \t]*```",
    re.MULTILINE | re.DOTALL,
)
SHELLS = ("bash", "console", "sh", "shell")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language and text, and why it is not run, if a comment above it says so."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages in these languages."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match["language"] in languages:
                line = text.count("\n", 0, match.start("language")) + 1
                found.append(Block(str(path.relative_to(ROOT)), line, match["language"], match["text"], match["reason"]))
    return found


def commands(text: str) -> list[list[str]]:
    """Return the commands of a shell block, each as its words, without comments, redirections and assignments before it."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#" if line.lstrip().startswith("#") or " #" in line else ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";|&"):
                found.append(_bare(words))
                words = []
            else:
                words.append(word)
    return [words for words in found if words]


def _bare(words: list[str]) -> list[str]:
    kept = words[: next((at for at, word in enumerate(words) if word in (">", ">>", "<", "2>")), len(words))]
    while kept and re.fullmatch(r"[A-Z_]+=.*", kept[0]):
        kept = kept[1:]
    return kept
