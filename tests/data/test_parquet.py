"""Parquet files of Hugging Face's ``datasets``: images in bytes, objects in columns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nextdetr.data import parquet
from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import ConfigError, DataError
from nextdetr.installation import install_command

from .files import kinds, make_image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FEATURES = {
    "image": {"_type": "Image"},
    "objects": {"feature": {"bbox": {"feature": {"dtype": "float32"}, "length": 4},
                            "category": {"names": ["cat", "dog"], "_type": "ClassLabel"}}, "_type": "Sequence"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NEXTDETR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parquet"


def image_bytes(folder: Path, name: str, size=(60, 40)) -> bytes:
    return make_image(folder / "source" / name, size).read_bytes()


def write_table(path: Path, images, objects, *, features=FEATURES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": images, "objects": objects})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def make_set(root: Path) -> Path:
    a, b, c = image_bytes(root, "a.jpg"), image_bytes(root, "b.png", (50, 30)), image_bytes(root, "c.jpg")
    write_table(
        root / "set" / "data" / "train-00000-of-00001.parquet",
        [{"bytes": a, "path": "a.jpg"}, {"bytes": b, "path": None}],
        [{"bbox": [[24.0, 12.0, 12.0, 16.0], [12.0, 16.0, 6.0, 8.0]], "category": [1, 0]}, {"bbox": [], "category": []}],
    )
    objects = [{"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [0]}]
    write_table(root / "set" / "data" / "test-00000-of-00001.parquet", [{"bytes": c, "path": "c.jpg"}], objects)
    return root / "set"


def test_images_come_out_of_the_file_once_and_unchanged(tmp_path, cache, monkeypatch):
    root = make_set(tmp_path)
    data = load_data(root, "train")
    assert data.recognised == "parquet: data/test-00000-of-00001.parquet"
    assert (data.classes, available_splits(root), kinds(data)) == (["cat", "dog"], ["train", "test"], [])
    assert [record.labels.tolist() for record in data.records] == [[1, 0], []]
    assert data.records[0].boxes.tolist() == [[24, 12, 36, 28], [12, 16, 18, 24]]
    assert [(record.width, record.height) for record in data.records] == [(60, 40), (50, 30)]
    assert [record.path.name for record in data.records] == ["000000.jpg", "000001.png"]
    for record, name in zip(data.records, ("a.jpg", "b.png"), strict=True):
        assert cache in record.path.parents
        assert record.path.read_bytes() == (tmp_path / "source" / name).read_bytes()
    monkeypatch.setattr(parquet._Table, "_write", lambda *_: pytest.fail("written again"))
    again = load_data(root / "data" / "train-00000-of-00001.parquet", "train")
    assert [record.path for record in again.records] == [record.path for record in data.records]


def test_extraction_that_broke_off_is_done_again(tmp_path, cache, monkeypatch):
    root = make_set(tmp_path)
    write = parquet._Table._write

    def fail(folder, number, value):
        if number:
            raise KeyboardInterrupt
        return write(folder, number, value)

    with monkeypatch.context() as patch:
        patch.setattr(parquet._Table, "_write", staticmethod(fail))
        with pytest.raises(KeyboardInterrupt):
            load_data(root, "train")
    (folder,) = cache.iterdir()
    (folder / "000000.jpg").write_bytes(b"half")
    assert kinds(load_data(root, "train")) == []


def test_numbers_without_names_paths_and_rows_without_an_image(tmp_path):
    make_image(tmp_path / "set" / "pictures" / "a.jpg")
    images = [{"bytes": None, "path": "pictures/a.jpg"}, {"bytes": None, "path": None}]
    objects = [{"bbox": [[24.0, 12.0, 12.0, 16.0]], "category": [7]}, {"bbox": [[1.0, 1.0, 5.0]], "category": [7]}]
    path = write_table(tmp_path / "set" / "all.parquet", images, objects, features=None)
    data = load_data(path, "train")
    assert [record.path for record in data.records] == [tmp_path / "set" / "pictures" / "a.jpg"]
    assert (data.classes, data.category_ids) == (["7"], [7])
    assert kinds(data) == ["malformed box", "missing image", "class without a name"]
    assert [problem.where for problem in data.problems] == ["row 2", "row 2", ""]


def test_classes_of_objects_are_not_those_of_the_image(tmp_path):
    scenes = {"label": {"names": ["day", "night", "dusk"], "_type": "ClassLabel"}, **FEATURES}
    image = [{"bytes": image_bytes(tmp_path, "a.jpg"), "path": "a.jpg"}]
    objects = [{"bbox": [[24.0, 12.0, 12.0, 16.0]], "category": [1]}]
    data = load_data(write_table(tmp_path / "named" / "train.parquet", image, objects, features=scenes).parent, "train")
    assert (data.classes, [record.labels.tolist() for record in data.records]) == (["cat", "dog"], [[1]])
    scenes["objects"] = {"feature": {"bbox": {}, "category": {"dtype": "int64", "_type": "Value"}}}
    data = load_data(write_table(tmp_path / "bare" / "train.parquet", image, objects, features=scenes).parent, "train")
    assert (data.classes, kinds(data)) == (["1"], ["class without a name"])


def test_what_is_no_data_set(tmp_path):
    table = tmp_path / "set" / "other.parquet"
    table.parent.mkdir()
    pq.write_table(pa.table({"path": ["image.jpg"], "bbox": [[1.0]]}), table)
    with pytest.raises(DataError, match="it has no column of images"):
        load_data(table, "train")
    pq.write_table(pa.table({"path": ["a.jpg"], "score": [1.0]}), table)  # a table of predictions, for one
    with pytest.raises(DataError, match="not recognised as a data set"):
        load_data(table.parent, "train")
    make_set(tmp_path)
    table = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    table.write_bytes(table.read_bytes()[:-400] + b"\0" * 396 + b"PAR1")
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet cannot be read as Parquet"):
        load_data(table, "train")


def test_names_that_are_no_text_are_told(tmp_path):
    root = make_set(tmp_path)
    table = root / "data" / "train-00000-of-00001.parquet"
    content, told = table.read_bytes(), 0
    places = [match.start() for match in re.finditer(b"category", content)]
    assert places
    for place in places:
        table.write_bytes(content[:place] + b"cat\x97gory" + content[place + 8 :])
        try:
            load_data(root, "train")
        except DataError as error:
            assert str(table) in str(error)  # noqa: PT017 - what is no DataError is to be seen as it is
            told += 1
    assert told


def test_missing_package_is_named(tmp_path, monkeypatch):
    root = make_set(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=re.escape(install_command("parquet"))):
        load_data(root, "train")
