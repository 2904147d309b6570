"""Every command in the pages can be parsed by the program, or has a comment that says why it is not checked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from nextdetr.cli.commands import app
from nextdetr.cli.tokens import prepare
from nextdetr.errors import NextDETRError
from tests.docs.blocks import ROOT, SHELLS, Block, blocks, commands

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
HARMLESS = (["python3", "-m", "venv"], ["."], ["cd"], ["export"])  # of the shell, and of Python itself


def problem(words: list[str]) -> str | None:
    """Return what is wrong with a command, or None."""
    program, *rest = words
    if program == "nextdetr":
        return wrong_usage(rest)
    if words[:2] == ["pip", "install"]:
        named = re.findall(r"(?:nextdetr|\.)\[([\w,-]+)\]", " ".join(rest))
        missing = {extra for group in named for extra in group.split(",")} - EXTRAS.keys()
        return f"no extra is called {', '.join(sorted(missing))}" if missing else None
    if program == "make":
        return next((f"the Makefile has no target {word}" for word in rest if word not in TARGETS), None)
    if program == "python" and rest and rest[0].startswith("benchmarks/"):
        return None if (ROOT / rest[0]).exists() else f"{rest[0]} does not exist"
    if any(words[: len(known)] == known for known in HARMLESS):
        return None
    return "no check knows this program: put a line <!-- not run: REASON --> above the block"


def wrong_usage(words: list[str]) -> str | None:
    """Return the error of a command that the program refuses before it reads any file."""
    try:
        app.parse_args(prepare(words), exit_on_error=False, print_error=False)
    except (CycloptsError, NextDETRError, ValueError) as error:
        return str(error) or type(error).__name__
    return None


@pytest.mark.parametrize("block", blocks(*SHELLS), ids=str)
def test_commands_of_pages_parse(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems = {}
    for words in commands(block.text):
        for file in words[1:]:
            if re.fullmatch(r"\w+\.\w+", file):  # some options look whether their file is there
                Path(file).touch()
        if words[0] == "nextdetr" or block.reason is None:
            problems[" ".join(words)] = problem(words)
    assert not [f"{command}\n    {found}" for command, found in problems.items() if found]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("nextdetr train --data photos --minute 30", "--minute"),
        ("nextdetr train --data photos --minutes soon", "soon"),
        ("nextdetr export best.safetensors --format coreml", "coreml"),
        ("nextdetr fly", "fly"),
        ("pip install 'nextdetr[everything]'", "everything"),
        ("make coffee", "coffee"),
        ("python benchmarks/none.py", "none.py"),
        ("curl example.org", "not run"),
    ],
)
def test_a_wrong_command_is_found(command: str, expected: str) -> None:
    (words,) = commands(command)
    assert expected in (problem(words) or "")


def test_the_words_of_a_block_are_read_as_a_shell_reads_them() -> None:
    text = "nextdetr predict a.onnx 'my file.jpg' > out.json  # a comment\nKEY=1 make lint && make \\\n  test\n# nothing\n"
    assert commands(text) == [["nextdetr", "predict", "a.onnx", "my file.jpg"], ["make", "lint"], ["make", "test"]]
