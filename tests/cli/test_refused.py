"""A run that is refused leaves nothing behind: no folder, and no file of its beginning."""

from __future__ import annotations

import pytest
from PIL import Image

from nextdetr.cli.main import run
from nextdetr.errors import ConfigError, ExportError
from nextdetr.weights.checkpoint import open_model, save_opened
from tests.helpers import squares, tiny_model

TRAIN = ["train", "--model", "TINY", "--data", "DATA", "--epochs", "1", "--image-size", "64"]
REFUSED = {
    "train, no data": [*TRAIN[:3], "--data", "nowhere"],
    "train, no classes": [*TRAIN[:3], "--data", "EMPTY"],
    "train, no weights": [*TRAIN, "--weights", "gone.safetensors"],
    "train, a setting that does not fit the model": [*TRAIN, "--freeze-stages", "9"],
    "train, a setting that does not fit the model, val set aside": [
        "train", "--model", "TINY", "--data", "NO_VAL", "--freeze-norms",
    ],
    "train, a teacher of other classes": [*TRAIN, "--teacher", "MODEL"],
    "pretrain, no image": ["pretrain", "EMPTY", "--epochs", "1"],
    "pretrain, weights of a detector": ["pretrain", "IMAGES", "--epochs", "1", "--weights", "MODEL"],
    "graft, no detector": ["graft", "TINY", "--backbone", "convnextv2-atto", "--images", "IMAGES"],
    "graft, no image": ["graft", "MODEL", "--backbone", "convnextv2-atto", "--images", "EMPTY"],
    "export, other classes": ["export", "MODEL", "--format", "pt2", "--data", "DATA"],
    "benchmark, other classes": ["benchmark", "MODEL", "--data", "DATA"],
    "benchmark, other classes, weights given": ["benchmark", "TINY", "--weights", "MODEL", "--data", "DATA"],
    "report, other classes": ["report", "MODEL", "--data", "DATA"],
    "report, no split": ["report", "MODEL", "--data", "DATA", "--split", "test"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    squares(folder / "DATA", 2, empty=False)
    squares(folder / "NO_VAL", 3, empty=False)
    (folder / "NO_VAL" / "annotations" / "instances_val.json").unlink()
    for name in ("EMPTY", "IMAGES"):
        (folder / name).mkdir()
    Image.new("RGB", (64, 64)).save(folder / "IMAGES" / "a.png")
    save_opened(folder / "MODEL.safetensors", open_model(tiny_model(folder)), classes=["cat", "dog"])
    return folder


def words_of(place, words):
    names = {"TINY": "tiny.yaml", "MODEL": "MODEL.safetensors"}
    return [str(place / names.get(word, word)) if word.isupper() else word for word in words]


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_left(place, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    before, words = tree(place), words_of(place, REFUSED[name])
    output = tmp_path / "new" / ("page.html" if words[0] == "report" else "out")
    for options in ([], ["--output", str(output)]):
        assert run([*words, *options]) == 2
        assert capsys.readouterr().err.count("\n") >= 1
        assert tree(tmp_path) == []
        assert tree(place) == before


def test_what_was_there_before_stays(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = words_of(place, REFUSED["train, a setting that does not fit the model"])
    (tmp_path / "empty").mkdir()
    assert run([*words, "--output", "empty"]) == 2
    assert tree(tmp_path) == ["empty"]
    (tmp_path / "used" / "sub").mkdir(parents=True)
    (tmp_path / "used" / "config.yaml").write_text("epochs: 3\n")
    assert run([*words, "--output", "used"]) == 2
    assert {"used/config.yaml", "used/sub"} <= set(tree(tmp_path))


def test_a_file_that_cannot_be_exported(place, tmp_path, monkeypatch):
    def refuse(*_):
        raise ExportError("this model cannot be written.")

    monkeypatch.setattr("nextdetr.export.run.write_program", refuse)
    words = words_of(place, ["export", "MODEL", "--format", "pt2", "--image-size", "64", "--output"])
    assert run([*words, str(tmp_path / "new" / "out")]) in (1, 2)
    assert tree(tmp_path) == []


def test_a_quickstart_without_its_photographs(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConfigError("scikit-image is not installed.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nextdetr.data.coins.make_coins", refuse)
    assert run(["quickstart"]) == 2
    assert tree(tmp_path) == []
