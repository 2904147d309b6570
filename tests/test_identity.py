"""The ids of a data set's own files come out of prediction: through checkpoint, export and results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nextdetr import Detector
from nextdetr.data import identity as described
from nextdetr.data.identity import coco_identity, describe_identity
from nextdetr.data.sources import load_data
from nextdetr.errors import ConfigError, DataError
from nextdetr.identity import LONGEST_MAP, Identity
from tests.data.files import make_yolo
from tests.helpers import squares, tiny_model

KNOWN = Identity((7, 90), {"val/a.png": 31, "cam1/b.png": 32, "cam2/b.png": 33, "c.png": "x"})


@pytest.mark.parametrize(
    ("paths", "ids"),
    [
        (["/data/val/a.png"], [31]),
        (["a.png"], [31]),  # the folder was renamed, say
        (["new/a.png", "/data/val/a.png"], ["new/a.png", 31]),
        (["a.png", "a.png"], [31, 31]),
        (["x/cam1/b.png", "x/cam2/b.png", "c.png"], [32, 33, "x"]),
        (["b.png", "a.png"], ["b.png", 31]),  # which of the two it is nobody can tell
        (["x/val/a.png", "y/val/a.png"], ["x/val/a.png", "y/val/a.png"]),  # one of them may be of another set
        (["val/a.png", "./val/../val/a.png"], [31, 31]),
        (["a.png", "1.png"], [31, "1.png"]),  # not 1, which may be another image's id
        (["12.jpg", "0013.jpg"], [12, 13]),
        (["12.jpg", "012.jpg"], [1, 2]),
        (["new.jpg", "13.jpg"], [1, 2]),
        ([], []),
    ],
)
def test_images_are_named_as_the_data_set_names_them(paths, ids):
    assert KNOWN.images(paths) == ids


def test_metadata_there_and_back():
    again = Identity.from_metadata(KNOWN.to_metadata())
    assert (again.category_ids, dict(again.image_ids)) == (KNOWN.category_ids, dict(KNOWN.image_ids))
    assert [again.category_id(label) for label in (0, 1, 2)] == [7, 90, 2]
    assert Identity().to_metadata() == {}
    odd = Identity((), {"m\udcfcnze.jpg": 4})
    assert Identity.from_metadata(odd.to_metadata()).image_ids == odd.image_ids
    json.dumps(odd.to_metadata()).encode()


@pytest.mark.parametrize(
    "metadata", [{"category_ids": "{"}, {"category_ids": "[1.5]"}, {"image_ids": "[1]"}, {"image_ids": '{"a": [1]}'}]
)
def test_damaged_metadata_say_nothing(metadata):
    assert Identity.from_metadata(metadata) == Identity()


def test_a_map_too_long_is_not_carried():
    many = Identity((1,), {f"{number:0100d}.jpg": -number for number in range(LONGEST_MAP // 100)})
    assert list(many.to_metadata()) == ["category_ids"]


def with_own_ids(folder: Path) -> Path:
    """A set whose category and image ids can be guessed from nothing."""
    squares(folder, size=64)
    for split in ("train", "val"):
        path = folder / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        first = {"train": 500, "val": 700}[split]
        for entry in content["images"]:
            old = folder / "images" / split / entry["file_name"]
            entry["file_name"] = f"{split}-{entry['id']}.png"
            old.rename(old.with_name(entry["file_name"]))
            entry["id"] = first - 3 * entry["id"]
        for row in content["annotations"]:
            row["image_id"], row["category_id"] = first - 3 * row["image_id"], {1: 40, 2: 7}[row["category_id"]]
        content["categories"] = [{"id": 40, "name": "square"}, {"id": 7, "name": "bar"}]
        path.write_text(json.dumps(content))
    (folder / "annotations" / "instances_val.json").with_name("instances_test.json").write_text(
        path.read_text().replace('"file_name": "val-1.png"', '"file_name": "test-1.png"').replace('"id": 697', '"id": 897')
    )
    return folder


def test_all_splits_are_described(tmp_path, monkeypatch):
    data = with_own_ids(tmp_path)
    splits = [load_data(data, split) for split in ("train", "val")]
    identity = describe_identity(data, splits)
    assert identity.category_ids == (40, 7)
    assert len(identity.image_ids) == 18
    assert identity.image_ids["images/train/train-2.png"] == 494
    assert identity.images(["test-1.png"]) == [897]
    told = []
    (data / "annotations" / "instances_test.json").write_text("[")
    monkeypatch.setattr(described, "LONGEST_MAP", 1)
    monkeypatch.setattr("nextdetr.identity.LONGEST_MAP", 1)
    assert len(describe_identity(data, splits, told.append).image_ids) == 12
    assert ["the split test are not known" in told[0], "--annotations FILE" in told[1]] == [True, True]


def test_numbers_in_the_names_are_not_carried(tmp_path):
    data = squares(tmp_path)
    assert describe_identity(data, [load_data(data, "train")]).to_metadata() == {"category_ids": "[1, 2]"}


def test_several_sets_are_described_each_by_its_own_file(tmp_path):
    sets = [with_own_ids(tmp_path / "first"), with_own_ids(tmp_path / "second")]
    file = sets[1] / "annotations" / "instances_train.json"
    file.write_text(file.read_text().replace('"name": "bar"', '"name": "ball"'))
    told = []
    identity = describe_identity(sets, [load_data(sets, "train")], told.append)
    assert identity.category_ids == (40, 7, 41)  # as in the first set; 7 is bar there
    assert [("will not have the category ids of" in line, str(sets[1]) in line) for line in told] == [(True, True)]
    first, second = (str(folder / "images" / "val" / "val-1.png") for folder in sets)
    assert identity.images([first]) == identity.images([second]) == [697]
    assert identity.images([first, second]) == [first, second]  # two images have this id
    assert identity.images([first, str(sets[1] / "images" / "val" / "val-2.png")]) == [697, 694]
    again = Identity.from_metadata(identity.to_metadata())
    assert again.images([second]) == [697]


def test_ids_are_those_of_the_set_that_has_some(tmp_path):
    """Classes of a YOLO set have numbers that no results file knows."""
    coco = with_own_ids(tmp_path / "coco")
    make_yolo(tmp_path / "yolo", {"x": "0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.2 0.2\n"}, yaml="names: [ball, bar]\n")
    for sets in ([coco, tmp_path / "yolo"], [tmp_path / "yolo", coco]):
        data = load_data(sets, "train")
        identity = describe_identity(sets, [data])
        ids = dict(zip(data.classes, identity.category_ids, strict=True))
        assert ids == {"square": 40, "bar": 7, "ball": 0}
        assert identity.images([str(coco / "images" / "val" / "val-1.png")]) == [697]
    assert describe_identity([tmp_path / "yolo", squares(tmp_path / "plain")], [data]).image_ids == {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity")
    data = with_own_ids(folder / "data")
    detector = Detector(tiny_model(folder))
    detector.train(data=data, epochs=1, image_size=64, batch_size=2, workers=0, output=folder / "run", quiet=True)
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"] = list(found_by(detector, data, content["images"]))
    path.write_text(json.dumps(content))
    return detector, data


def found_by(detector, data: Path, images):
    """Annotate what a detector that has learnt nothing finds, so that it scores: 0 equals 0 whatever the ids are."""
    for number, entry in enumerate(images):
        found = detector.predict(data / "images" / "val" / entry["file_name"], confidence=0.0, max_detections=9)[0]
        for row in range(number % 3, 9, 3):
            x1, y1, x2, y2 = (float(value) for value in found.xyxy[row])
            yield {
                "id": 10 * number + row + 1, "image_id": entry["id"], "category_id": (40, 7)[int(found.class_id[row])],
                "bbox": [x1, y1, (x2 - x1) * 0.93, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
            }  # fmt: skip


def scored(truth: Path, results: Path) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO(str(truth))
    scorer = COCOeval(coco, coco.loadRes(str(results)), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    return float(scorer.stats[0])


def test_exports_carry_them(trained):
    from nextdetr.config import ExportConfig
    from nextdetr.export.run import _contract
    from nextdetr.inference.contract import Contract

    opened = trained[0].opened
    carried = Contract.from_metadata(_contract(opened, ExportConfig()).to_metadata(), "model.onnx").to_metadata()
    identity = Identity.from_metadata(carried)
    assert identity == Identity.from_metadata(opened.metadata)
    assert (identity.category_ids, identity.images(["test-1.png"])) == ((40, 7), [897])


@pytest.mark.parametrize("way", ["checkpoint", "annotations", "folder with annotations"])
def test_results_score_as_val_does_against_the_users_own_file(trained, tmp_path, way):
    pytest.importorskip("pycocotools")
    detector, data = trained
    truth = data / "annotations" / "instances_val.json"
    expected = detector.val(data=data, quiet=True).metrics["AP"]
    assert expected > 0
    options = {}
    if way != "checkpoint":
        options["annotations"] = truth
    if way == "folder with annotations":
        detector = Detector.from_pretrained(detector.save_pretrained(tmp_path / "shared"))
        assert "image_ids" not in detector.opened.metadata
    source = data / "images" / "val"
    for _ in detector.stream(source, predict_config(tmp_path / "out", **options)):
        pass
    assert scored(truth, tmp_path / "out" / "predictions.json") == pytest.approx(expected, abs=1e-6)
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {row["category_id"] for row in rows} <= {7, 40}
    assert {row["image_id"] for row in rows} == {700 - 3 * number for number in range(1, 7)}


def predict_config(output: Path, **options):
    from nextdetr.config import PredictConfig, build_config

    return build_config(PredictConfig, {"confidence": 0, "save": ("json",), "output": output, **options})


def test_wrong_annotations_are_refused(trained, tmp_path):
    truth = trained[1] / "annotations" / "instances_val.json"
    with pytest.raises(ConfigError, match="--annotations gives ids to the results that --save json writes"):
        predict_config(tmp_path, save=("yolo",), annotations=truth)
    with pytest.raises(DataError, match=r"none of the classes asked for \(hen\)"):
        coco_identity(truth, ["hen"])
    assert coco_identity(truth, ["bar", "hen"]).category_ids == (7, -1)
    assert np.shape(list(coco_identity(truth, ["bar"]).image_ids)) == (6,)
