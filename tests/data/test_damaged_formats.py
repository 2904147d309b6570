"""Damaged files of every other format end in records and problems, or in one sentence; never in another error."""

from __future__ import annotations

import random
import re

import pytest

from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import DataError

from . import test_other_formats, test_public_formats
from .cases import write
from .files import make_image, write_text

CASES = {**test_other_formats.CASES, **test_public_formats.CASES}
WRONG = (
    "nan", "1e999", "-1", "null", "[]", "{}", '""', "true", "9" * 401, "9" * 5000, "0.5", "\ud800", "\0", "[[1]]",
    "../..", "ü", '"."', '"/"', '"\\u0000"', "[1, 2, 3, 4]",
)  # fmt: skip
TOKEN = re.compile(r"-?\d+(?:\.\d+)?|\"[^\"\n]*\"|\[|\]|\{|\}|,")


def damage(text: str, chance: random.Random) -> str:
    """Change a text at one to three places."""
    for _ in range(chance.randint(1, 3)):
        tokens = list(TOKEN.finditer(text))
        if not tokens:
            return text + chance.choice(WRONG)
        token = chance.choice(tokens)
        start, end = token.span()
        kind = chance.randrange(5)
        if kind == 0:
            text = text[:start]
        elif kind == 1:
            text = text[:start] + text[end:]
        elif kind == 2:
            text = text[:start] + token[0] * 2 + text[end:]
        else:
            text = text[:start] + chance.choice(WRONG) + text[end:]
    return text


def read_damaged(root, case, chance: random.Random) -> None:
    path = write(root, case)
    names = [name for name, text in case.files.items() if text is not None]
    name = chance.choice(names)
    (root / name).write_text(damage(case.files[name], chance), encoding="utf-8", errors="surrogatepass")
    try:
        for split in available_splits(path):
            data = load_data(path, split)
            assert data.records
            assert all(problem.file and problem.message for problem in data.problems)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 - what is no DataError is to be seen as it is


@pytest.mark.parametrize("name", CASES)
def test_damaged_set_is_told_of(tmp_path, name):
    for seed in range(6):
        read_damaged(tmp_path / str(seed), CASES[name], random.Random(f"{name} {seed}"))


def test_aliases_of_aliases_in_a_readme_end(tmp_path):
    aliases = "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))
    write_text(tmp_path / "README.md", f"---\na0: &a0 [x]\n{aliases}\ndataset_info: *a59\n---\n")
    make_image(tmp_path / "a.jpg")
    row = '{"file_name": "a.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": [0]}}\n'
    write_text(tmp_path / "metadata.jsonl", row)
    assert load_data(tmp_path, "train").classes == ["0"]
