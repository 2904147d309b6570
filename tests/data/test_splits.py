"""What the two splits of a training need, and what they must not share silently."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from nextdetr.data.leak import shared_images
from nextdetr.data.sources import load_data, require_splits
from nextdetr.errors import DataError

from .files import write_text

YAML = "train: images\nnames: [cat, dog]\n"


def test_images_in_two_splits_are_told(tmp_path):
    for number, name in enumerate(("1/a.png", "1/b.png", "2/b.png", "2/c.png", "2/d.png")):
        write_text(tmp_path / name.replace("png", "txt"), "0 0.5 0.5 0.2 0.4")
        Image.new("RGB", (60, 40), (number, 0, 0)).save(tmp_path / name, compress_level=0)
    (tmp_path / "2" / "c.png").write_bytes((tmp_path / "1" / "a.png").read_bytes())
    path = write_text(tmp_path / "data.yaml", "train: '1'\nval: '2'\nnames: [cat]\n")
    train, val = (load_data(path, split) for split in ("train", "val"))
    assert len({record.path.stat().st_size for record in (*train.records, *val.records)}) == 1  # only the bytes tell
    (problem,) = shared_images(train, val)
    assert Path(problem.file) == tmp_path / "2" / "c.png"
    other = tmp_path / "1" / "a.png"
    assert f"1 of the 3 images of the split val is in the split train too, there as {other}" in problem.message
    assert "3 of the 3 images of the split val are in the split val too, so" in shared_images(val, val)[0].message
    (tmp_path / "2" / "c.png").unlink()
    assert shared_images(train, load_data(path, "val")) == []


def test_training_needs_a_split_to_learn_from(tmp_path):
    path = write_text(tmp_path / "data.yaml", YAML + "valid: images\n")
    assert require_splits(path)
    path.write_text(YAML)
    assert not require_splits(path)  # a part of train is set aside
    path.write_text(YAML.replace("train", "test"))
    with pytest.raises(
        DataError, match=r"needs the split train, to learn from; there is none, but test\. Name one of them"
    ):
        require_splits(path)
    path.write_text("nc: 1\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"data\.yaml: no split is named, .* Write where the images of each are\.$"):
        require_splits(path)
