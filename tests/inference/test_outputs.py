from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextdetr.data.sources import load_data
from nextdetr.errors import ConfigError, DataError, WriteError
from nextdetr.identity import Identity
from nextdetr.inference._supervision import sv
from nextdetr.inference.outputs import coco_results, save_predictions, yolo_text
from nextdetr.inference.predictor import Prediction


def prediction(path: str = "photos/scene.png", *, found: bool = True) -> Prediction:
    detections = sv.Detections(
        xyxy=np.array([[20, 10, 80, 50], [0, 0, 200, 100]], np.float32)[: 2 * found],
        confidence=np.array([0.9, 0.4], np.float32)[: 2 * found],
        class_id=np.array([1, 2])[: 2 * found],
        data={"class_name": np.array(["dog", "Vögel"])[: 2 * found]},
    )
    return Prediction(path, 200, 100, detections, Image.new("RGB", (200, 100)))


def test_subfolders_of_the_only_folder_are_kept_and_read_again(tmp_path):
    root, output = tmp_path / "photos", tmp_path / "out"
    for name in ("a.png", "1/a.png", "2/A.png", "2/deep/a.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 100)).save(root / name)
    given = [prediction(str(path), found=path.parent.name != "2") for path in sorted(root.rglob("*.png"))]
    run(given, output, "images", "yolo", classes=["cat", "dog", "Vögel"], root=root)
    for folder, ending in (("images", "jpg"), ("labels", "txt")):
        written = sorted(path.relative_to(output / folder).as_posix() for path in (output / folder).rglob(f"*.{ending}"))
        assert written == [f"1/a.{ending}", f"2/A.{ending}", f"2/deep/a.{ending}", f"a.{ending}"]
    records = load_data(output / "predictions.yaml", "train").records
    assert {record.path.relative_to(root).as_posix(): len(record.labels) for record in records} == {
        "1/a.png": 2, "2/A.png": 0, "2/deep/a.png": 2, "a.png": 2,
    }  # fmt: skip


def unreadable() -> Prediction:
    return Prediction("bad.png", 0, 0, sv.Detections.empty(), None, "bad.png is not an image.")


def run(predictions, output, *save, **keywords) -> list[Prediction]:
    return list(save_predictions(predictions, output, save, **keywords))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_is_written_and_passed_on(tmp_path):
    given = [prediction(), prediction("photos/Übung 血.jpg", found=False)]
    assert run(given, tmp_path / "out", "images", "json", "yolo") == given
    assert names(tmp_path / "out") == ["images", "labels", "predictions.json"]
    assert names(tmp_path / "out" / "images") == ["scene.jpg", "Übung 血.jpg"]
    assert names(tmp_path / "out" / "labels") == ["scene.txt", "Übung 血.txt"]
    assert (tmp_path / "out" / "labels" / "Übung 血.txt").read_text() == ""
    with Image.open(tmp_path / "out" / "images" / "scene.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (200, 100))
        assert np.asarray(picture).max() > 100


def test_numbers_have_the_digits_of_float32_and_no_more(tmp_path):
    boxes = np.random.default_rng(0).uniform(0, 900, (50, 4)).astype(np.float32)
    scores = np.random.default_rng(1).uniform(0, 1, 50).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    found = sv.Detections(boxes, confidence=scores, class_id=np.zeros(50, int), data={"class_name": np.array(["a"] * 50)})
    given = Prediction("a.png", 2000, 2000, found, Image.new("RGB", (8, 8)))
    rows = given.to_json()["detections"]
    assert np.array_equal(np.array([row["box"] for row in rows], np.float32), boxes)
    assert np.array_equal(np.array([row["confidence"] for row in rows], np.float32), scores)
    run([given], tmp_path, "json")
    for text in (json.dumps(rows), (tmp_path / "predictions.json").read_text()):
        digits = [number.replace(".", "").strip("0") for number in re.findall(r"\d+\.\d+", text)]
        assert len(digits) == 250
        assert max(map(len, digits)) <= 9
    written = np.array([row["bbox"] for row in json.loads((tmp_path / "predictions.json").read_text())])
    np.testing.assert_allclose(written, np.hstack((boxes[:, :2], boxes[:, 2:] - boxes[:, :2])), rtol=1e-5)


def test_times_have_microseconds_and_other_numbers_the_digits_of_float32():
    given = replace(prediction(), frame=107_893, seconds=107_893 / 29.97, unlikeness=float(np.float32(1 / 3)))
    row = given.to_json()
    assert (row["seconds"], row["unlikeness"], row["unlike_training"]) == (3600.033367, 0.33333334, False)
    assert replace(given, seconds=1 / 3).to_json()["seconds"] == 0.333333
    assert replace(given, seconds=None).to_json()["seconds"] is None


def test_a_picture_too_long_for_jpeg_becomes_png(tmp_path):
    shown = replace(prediction(found=False), width=65_501, height=2, image=Image.new("RGB", (65_501, 2)))
    run([shown], tmp_path / "out", "images")
    assert names(tmp_path / "out" / "images") == ["scene.png"]
    with Image.open(tmp_path / "out" / "images" / "scene.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (65_501, 2))


def test_only_what_is_asked_for(tmp_path):
    run([prediction()], tmp_path / "a", "yolo")
    assert names(tmp_path / "a") == ["labels"]
    run([prediction()], tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_yolo_lines():
    assert yolo_text(prediction()).splitlines() == [
        "1 0.250000 0.300000 0.300000 0.400000 0.900000",
        "2 0.500000 0.500000 1.000000 1.000000 0.400000",
    ]


def test_coco_results(tmp_path):
    run(
        [prediction("a/x.png", found=False), prediction("a/y.png")],
        tmp_path,
        "json",
        identity=Identity((1, 18, 90), {"a/y.png": 77}),
    )
    results = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    assert results[0] == {
        "image_id": 77,
        "file_name": "a/y.png",
        "category_id": 18,
        "category_name": "dog",
        "bbox": [20, 10, 60, 40],
        "score": pytest.approx(0.9),
    }
    assert [row["category_id"] for row in results] == [18, 90]


def test_coco_image_ids_are_those_of_cocos_file_names():
    def ids(*paths: str) -> list[int]:
        return [row["image_id"] for row in coco_results([prediction(path) for path in paths])[::2]]

    assert ids("val/000000032773.jpg", "val/000000000042.jpg") == [32773, 42]
    assert ids("val/000000032773.jpg", "val/cat.jpg") == [1, 2]
    assert ids("a/7.jpg", "b/007.jpg") == [1, 2]
    assert [row["category_id"] for row in coco_results([prediction()])] == [1, 2]


def test_coco_results_are_pycocotools_input(tmp_path, capfd):
    coco = pytest.importorskip("pycocotools.coco").COCO()
    coco.dataset = {
        "images": [{"id": 32773}],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [],
    }
    coco.createIndex()
    run([prediction("000000032773.jpg")], tmp_path, "json")
    assert len(coco.loadRes(str(tmp_path / "predictions.json")).anns) == 2


def test_equal_stems_never_overwrite_each_other(tmp_path):
    paths = ["a/x.jpg", "b/x.jpg", "b/x-2.jpg", "a/X.png"]
    run([prediction(path) for path in paths], tmp_path, "yolo", "images")
    assert names(tmp_path / "labels") == ["X-3.txt", "x-2-2.txt", "x-2.txt", "x.txt"]
    assert len(names(tmp_path / "images")) == 4


def test_unreadable_images_leave_no_file_but_keep_their_place(tmp_path):
    assert [item.problem is None for item in run([unreadable(), prediction()], tmp_path, "images", "json")] == [False, True]
    assert names(tmp_path / "images") == ["scene.jpg"]
    assert {row["image_id"] for row in json.loads((tmp_path / "predictions.json").read_text())} == {2}


def test_a_run_broken_off_keeps_its_results_as_a_part(tmp_path):
    def broken():
        yield prediction()
        raise RuntimeError("out of power")

    with pytest.raises(RuntimeError, match="power"):
        run(broken(), tmp_path, "json", "images")
    assert len(json.loads((tmp_path / "predictions.part.json").read_text())) == 2
    assert names(tmp_path) == ["images", "predictions.part.json"]
    run([prediction()], tmp_path, "json")
    assert names(tmp_path) == ["images", "predictions.json"]


def test_unknown_kinds_are_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"xml.*images, json, yolo"):
        save_predictions([], tmp_path, ["xml"])


def test_a_failed_write_leaves_nothing_half_done(tmp_path, monkeypatch):
    def full(*_args: object, **_keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(WriteError, match="space"):
        run([prediction()], tmp_path, "images")
    assert names(tmp_path / "images") == []


def test_label_files_are_read_back(tmp_path):
    """Labels that predict has written train the next model: six columns, and an image in which nothing was found."""
    given = [prediction("a/x.png"), prediction("a/y.png", found=False)]
    run(given, tmp_path, "yolo")
    (tmp_path / "images").mkdir()
    for item in given:
        item.image.save(tmp_path / "images" / Path(item.path).name)
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog, bird]\n")
    data = load_data(tmp_path / "data.yaml", "train")
    boxes = {Path(record.path).name: record for record in data.records}
    assert len(boxes["y.png"].boxes) == 0
    np.testing.assert_allclose(boxes["x.png"].boxes, [[20, 10, 80, 50], [0, 0, 200, 100]], atol=1e-3)
    assert list(boxes["x.png"].labels) == [1, 2]


@pytest.mark.parametrize("kind", ["yolo", "json"])
def test_what_was_found_is_a_data_set(tmp_path, monkeypatch, kind):
    """The folder that predict wrote is read as it is: images, classes, boxes, confidence; no annotated picture."""
    given = [prediction("a/scene 1.png"), prediction("a/y.png", found=False)]
    (tmp_path / "a").mkdir()
    for item in given:
        item.image.save(tmp_path / item.path)
    monkeypatch.chdir(tmp_path)
    run([*given, unreadable()], tmp_path / "out", "images", kind, classes=["cat", "dog", "Vögel"])
    data = load_data("out", "train", on_bad_data="error")
    record = data.records[0]
    assert record.path.resolve() == (tmp_path / "a" / "scene 1.png").resolve()
    np.testing.assert_allclose(record.boxes, [[20, 10, 80, 50], [0, 0, 200, 100]], atol=1e-3)
    np.testing.assert_allclose(record.confidence, [0.9, 0.4], atol=1e-6)
    assert [data.classes[label] for label in record.labels] == ["dog", "Vögel"]
    assert [other.path.name for other in data.records[1:]] == (["y.png"] if kind == "yolo" else [])
    assert "2 of 2 boxes have a confidence (0.4 to 0.9)" in data.problems[0].message
    path = "out" if kind == "yolo" else "out/predictions.json"
    assert len(load_data(path, "train", min_confidence=0.5).records[0].boxes) == 1
    if kind == "json":
        monkeypatch.chdir(tmp_path / "out")
        with pytest.raises(DataError, match=r"no image of the split train can be used: .*there is no such image file"):
            load_data(".", "train")


@pytest.mark.parametrize("one_folder", [True, False])
def test_images_of_one_name_never_get_the_labels_of_each_other(tmp_path, caplog, one_folder):
    """Label files hold one image of a name and folder: here the first, in which something was found."""
    root, output = tmp_path / "photos", tmp_path / "out"
    (root / "1").mkdir(parents=True)
    twin = "1/a.bmp" if one_folder else "a.png"
    for name in ("1/a.png", twin, "1/b.png"):
        Image.new("RGB", (200, 100)).save(root / name)
    given = [prediction(str(root / name), found=name == "1/a.png") for name in ("1/a.png", twin, "1/b.png")]
    run(given, output, "yolo", classes=["cat", "dog", "Vögel"], root=root if one_folder else None)
    records = load_data(output / "predictions.yaml", "train", on_bad_data="error").records
    assert {record.path.name: len(record.labels) for record in records} == {"a.png": 2, "b.png": 0}
    assert [f"predictions.yaml leaves out {root / twin}: " in message for message in caplog.messages] == [True]
    run(given[:1], tmp_path / "other", "yolo", classes=["cat"])
    assert len(caplog.messages) == 1


def test_what_is_found_twice_is_written_twice(tmp_path):
    item = prediction()
    twice = replace(item, found=sv.Detections.merge([item.detections, item.detections]))
    run([twice], tmp_path, "json", "yolo")
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 4
    assert len((tmp_path / "labels" / "scene.txt").read_text().splitlines()) == 4
