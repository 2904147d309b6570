"""What readers report for images without annotations."""

from __future__ import annotations

from pathlib import Path

from nextdetr.data.objects import unannotated


def test_one_sentence_for_all_of_them():
    others = [Path("images/b.jpg"), Path("images/c.jpg")]
    (problem,) = unannotated(Path("images"), others, "without a label file")
    assert problem.file == "images"
    assert problem.kind == "image without annotations"
    assert problem.message == "2 images without a label file, such as b.jpg: left out"
    (problem,) = unannotated(Path("a.csv"), others[:1], "without a row", "taken as background")
    assert problem.message == "1 image without a row, such as b.jpg: taken as background"
    assert unannotated(Path("images"), [], "without a label file") == []
