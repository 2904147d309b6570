"""Random weights are reported once in a command, however often it scores."""

from __future__ import annotations

import pytest

from nextdetr import measures
from nextdetr.cli.main import run
from nextdetr.weights.checkpoint import open_model, save_opened
from tests.helpers import squares, tiny_model

SAID = "random weights, so the scores mean nothing"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set and a model."""
    folder = tmp_path_factory.mktemp("random")
    squares(folder / "data")
    tiny_model(folder)
    return folder


def test_an_export_or_benchmark_says_it_once_for_all_its_scores(place, capsys):
    score = measures.scorer(str(place / "data"), "val")
    for _ in range(2):  # as of the detector, and of each export
        score(open_model(place / "tiny.yaml"), None)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(SAID) == said.count("Data set read as") == 1


@pytest.mark.parametrize("split", ["val", "train"])
def test_compare_says_it_of_the_one_that_has_them(place, tmp_path, capsys, split):
    trained = save_opened(tmp_path / "a.safetensors", open_model(place / "tiny.yaml"), classes=["square", "bar"], extra={})
    for pair in ((trained, place / "tiny.yaml"), (place / "tiny.yaml", trained)):
        command = ["compare", *map(str, pair), "--data", str(place / "data"), "--resamples", "100", "--split", split]
        assert run(command) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert said.count(f"{place / 'tiny.yaml'}: {SAID}") == said.count(SAID) == 1
        assert said.count("Data set read as") == 1
