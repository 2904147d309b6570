"""``nextdetr calibrate`` from Python and the command line, and what predict and exports make of what it stores."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.confidence import CALIBRATION, Calibrated, least_scores, read_calibrated, thresholds_metadata
from nextdetr.config import ExportConfig
from nextdetr.data.seen import trained_on_metadata
from nextdetr.data.sources import load_data
from nextdetr.errors import ConfigError, DataError
from nextdetr.export import run as exporting
from nextdetr.inference.familiarity import read_familiarity
from nextdetr.inference.pytorch.embed import embed_images
from nextdetr.report.matching import match
from nextdetr.weights.checkpoint import FAMILIARITY, open_model, save_opened
from tests.helpers import squares, tiny_model

SETTINGS = {"epochs": 1, "image_size": 64, "batch_size": 4, "workers": 0, "report": False, "quiet": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run and its data, whose test split has some of what the detector finds for objects: it learned little."""
    folder = tmp_path_factory.mktemp("calibrate")
    data, more = squares(folder / "data", 16), squares(folder / "more", 20, size=90)
    detector = Detector(tiny_model(folder))
    detector.train(data=data, output=folder / "run", **SETTINGS)
    shutil.move(more / "images" / "val", data / "images" / "test")
    content = json.loads((more / "annotations" / "instances_val.json").read_text())
    rows = []
    for image in content["images"][:-1]:
        found = detector.predict(data / "images" / "test" / image["file_name"], confidence=0.0)[0]
        for place in (0, 1, 3, 8):
            x1, y1, x2, y2 = found.xyxy[place].tolist()
            rows.append(
                {"id": len(rows) + 1, "image_id": image["id"], "category_id": int(found.class_id[place]) + 1, "iscrowd": 0,
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            )  # fmt: skip
    (data / "annotations" / "instances_test.json").write_text(json.dumps({**content, "annotations": rows}))
    return folder / "run" / "best.safetensors", data


@pytest.fixture
def checkpoint(trained, tmp_path):
    return shutil.copy(trained[0], tmp_path / "best.safetensors")


def test_it_stores_the_bound_beside_everything_else(trained, checkpoint):
    before = open_model(checkpoint)
    detector = Detector(checkpoint)
    result = detector.calibrate(trained[1], 0.7, unlike=0.2, quiet=True)
    assert result.passed
    assert (result.images, result.images_without_objects, result.split) == (19, 1, "test")
    assert result.bound <= 0.3
    after = open_model(checkpoint)
    known = read_calibrated(after.metadata)
    assert (known.threshold, known.recall, known.images, known.data) == (result.threshold, 0.7, 19, "data")
    assert {key: text for key, text in after.metadata.items() if key not in (CALIBRATION, FAMILIARITY)} == before.metadata
    for name, tensor in before.model.state_dict().items():
        np.testing.assert_array_equal(tensor, after.model.state_dict()[name])
    # What predict shows with it misses what was said, and no detection is below it.
    records = load_data(trained[1], "test").records
    every = detector.predict([record.path for record in records], confidence="calibrated")
    assert all((found.confidence >= result.threshold).all() for found in every)
    boxes = {place: (found.xyxy, found.confidence, found.class_id) for place, found in enumerate(every)}
    matches = match(records, boxes, 2, ious=np.array([0.5]))
    hits = np.bincount(matches.image[matches.hit[0]], minlength=len(records))
    total = matches.boxes.sum(axis=1)
    assert np.mean(1 - hits[total > 0] / total[total > 0]) == pytest.approx(result.missed)


def test_predict_tells_unlike_images(trained, checkpoint, tmp_path, capsys):
    Detector(checkpoint).calibrate(trained[1], 0.5, unlike=0.2, quiet=True)
    opened = open_model(checkpoint)
    known = read_familiarity(opened.metadata)
    paths = sorted((trained[1] / "images" / "test").iterdir())
    expected = known.unlikeness(embed_images(opened.model, paths, image_size=64).embeddings)
    assert 0 < (expected > 1).sum() <= 0.2 * len(paths)
    command = ["predict", str(checkpoint), str(trained[1] / "images" / "test"), "--save", "json", "--output", str(tmp_path)]
    assert run([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["images"]
    by_name = {path.name: value for path, value in zip(paths, expected, strict=True)}
    for row in rows:
        value = by_name[row["path"].rsplit("/", 1)[-1]]
        assert row["unlikeness"] == pytest.approx(value, rel=1e-3)
        assert row["unlike_training"] == (value > 1)
    assert run(command) == 0
    assert capsys.readouterr().out.count("unlike the training images") == (expected > 1).sum()
    assert run([*command, "--tile", "64", "--json"]) == 0
    tiled = json.loads(capsys.readouterr().out)["images"]
    assert [row["unlikeness"] for row in tiled] == pytest.approx([row["unlikeness"] for row in rows], rel=1e-3)


def test_out_of_reach_ends_with_3_and_leaves_the_file(trained, checkpoint, capsys):
    before = checkpoint.read_bytes()
    assert run(["calibrate", str(checkpoint), "--data", str(trained[1]), "--recall", "0.97", "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert (result["threshold"], result["passed"]) == (None, False)
    assert result["highest_recall"] <= 1 - 1 / 20  # 19 images promise no more, however good the detector
    assert run(["calibrate", str(checkpoint), "--data", str(trained[1]), "--recall", "0.97"]) == 3
    assert "out of reach" in capsys.readouterr().out
    assert checkpoint.read_bytes() == before
    highest = f"{result['highest_recall'] - 1e-6:.6f}"
    assert run(["calibrate", str(checkpoint), "--data", str(trained[1]), "--recall", highest]) == 0


def test_images_that_chose_something_are_refused(trained, checkpoint, tmp_path):
    detector, data = Detector(checkpoint), trained[1]
    for split in ("train", "val"):
        with pytest.raises(ConfigError, match=f"would not hold on the split {split}"):
            detector.calibrate(data, 0.5, split, quiet=True)
    with pytest.raises(DataError, match="no split extra"):
        detector.calibrate(data, 0.5, "extra", quiet=True)
    leaky = shutil.copytree(data, tmp_path / "data")
    shutil.copy(leaky / "images" / "val" / "3.png", leaky / "images" / "test" / "5.png")
    with pytest.raises(DataError, match="1 of the 20 images of the split test are in val"):
        detector.calibrate(leaky, 0.5, quiet=True)
    opened = open_model(checkpoint)
    for split in ("test", "testing"):
        save_opened(checkpoint, opened, extra={CALIBRATION: "{}"} | thresholds_metadata([0.5, 0.5], split=split))
        with pytest.raises(ConfigError, match="the thresholds were chosen on it"):
            Detector(checkpoint).calibrate(data, 0.5, quiet=True)


def test_images_that_it_learned_from_are_recognised_in_any_data_set(trained, checkpoint, tmp_path):
    other = shutil.copytree(trained[1], tmp_path / "other")
    with pytest.raises(DataError, match="was trained on 16 of the 16 images of the split train, so the bound would not"):
        Detector(checkpoint).calibrate(other, 0.5, "train", quiet=True)
    seen = trained_on_metadata(load_data(trained[1], "test").records[:2])  # by the detector that it started from
    save_opened(checkpoint, open_model(checkpoint), extra=seen)
    for data in (other, trained[1]):
        with pytest.raises(DataError, match="or a detector that it started from, was trained on 2 of the 20 images"):
            Detector(checkpoint).calibrate(data, 0.5, quiet=True)


def test_it_follows_a_training_in_python(trained, tmp_path):
    detector = Detector(tiny_model(tmp_path))
    detector.train(data=trained[1], output=tmp_path / "run", **SETTINGS)
    result = detector.calibrate(trained[1], 0.5, quiet=True)
    assert (result.model, result.images) == (str(tmp_path / "run" / "best.safetensors"), 19)


def test_another_data_set_has_no_training_images(trained, checkpoint, tmp_path, caplog):
    other = shutil.copytree(trained[1], tmp_path / "other")
    with caplog.at_level(logging.WARNING):
        result = Detector(checkpoint).calibrate(other, 0.5, quiet=True)
    assert "was trained on data" in caplog.text
    assert result.unlike is None
    assert "not in this data set" in result.unlike_reason
    assert FAMILIARITY not in open_model(checkpoint).metadata


def test_what_is_no_checkpoint_is_refused(trained, checkpoint, tmp_path, capsys):
    for model in ("nextdetr-zepto", tiny_model(tmp_path)):
        assert run(["calibrate", str(model), "--data", str(trained[1])]) == 2
        assert "name that" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="save it first"):
        Detector(tiny_model(tmp_path), weights=checkpoint).calibrate(trained[1], quiet=True)
    assert run(["predict", str(checkpoint), str(trained[1] / "images" / "test"), "--confidence", "calibrated"]) == 2
    assert "nextdetr calibrate" in capsys.readouterr().err


@pytest.mark.slow
def test_exports_carry_the_threshold_and_say_what_is_not_checked(trained, checkpoint, tmp_path, caplog):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    result = Detector(checkpoint).calibrate(trained[1], 0.5, unlike=0.2, quiet=True)
    exporting.write_graph(open_model(checkpoint), ExportConfig(), tmp_path / "model.onnx")
    detector = Detector(tmp_path / "model.onnx")
    assert read_calibrated(detector.opened.metadata).threshold == result.threshold
    assert FAMILIARITY not in detector.opened.metadata
    image = trained[1] / "images" / "test" / "1.png"
    with caplog.at_level(logging.WARNING):
        found = detector.predict(image, confidence="calibrated")[0]
    assert "not checked in an exported file" in caplog.text
    assert len(found) == len(Detector(checkpoint).predict(image, confidence="calibrated")[0])


@pytest.mark.parametrize(
    ("config", "carried"),
    [({}, True), ({"half": True}, False), ({"image_size": 96}, False), ({"queries": 10}, False),
     ({"decoder_layers": 1}, False)],
)  # fmt: skip
def test_exports_with_other_scores_carry_no_threshold(trained, config, carried):
    known = Calibrated(0.3, 0.9, 0.09, 0.5, 19, "data", "test", 64)
    opened = open_model(trained[0])
    opened = replace(opened, metadata=opened.metadata | known.to_metadata() | {FAMILIARITY: "{}"})
    details = exporting._contract(opened, ExportConfig(**config)).to_metadata()
    assert read_calibrated(details) == (known if carried else None)
    assert FAMILIARITY not in details


def test_a_bound_of_other_settings_or_weights_is_not_claimed(trained, checkpoint, tmp_path, caplog):
    Detector(checkpoint).calibrate(trained[1], 0.5, unlike=0.2, quiet=True)
    image = trained[1] / "images" / "test" / "1.png"
    with caplog.at_level(logging.WARNING):
        Detector(checkpoint).predict(image, confidence="calibrated")
    assert "bound" not in caplog.text
    with caplog.at_level(logging.WARNING):
        Detector(checkpoint).predict(image, confidence="calibrated", image_size=96)
    assert "does not hold at 96 px instead of 64" in caplog.text
    assert "not checked at another image size" in caplog.text
    further = Detector(checkpoint)
    further.train(data=trained[1], output=tmp_path / "run", **SETTINGS)
    assert not {CALIBRATION, FAMILIARITY} & set(further.opened.metadata)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "3", '{"threshold": 0.5}', "[" * 100_000,
             '{"threshold": 2, "recall": 0, "bound": 0, "iou": 0, "images": 3, "data": "", "split": "", "image_size": 64}']
)  # fmt: skip
def test_damaged_calibrations_are_none(text):
    assert read_calibrated({CALIBRATION: text}) is None
    with pytest.raises(ConfigError, match="no calibrated confidence"):
        least_scores("calibrated", [0.5], 1)
