"""The small inputs of public bug reports in ../shared/cases/reports come out as their README says.

Scripts on two processes and signals to a group of processes are tested in engine/test_ddp.py and engine/test_stopping.py.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.data.sources import load_data
from nextdetr.data.unlabelled import find_unlabelled
from nextdetr.inference import fonts
from tests.conftest import SHARED
from tests.helpers import tiny_model

REPORTS = SHARED / "cases" / "reports"

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not REPORTS.is_dir(), reason=f"the reports are not in {REPORTS}"),
]


def copied(name: str, folder: Path) -> Path:
    """Copy the files of a report to where they may be changed."""
    for file in (path for path in (REPORTS / name).rglob("*") if path.is_file()):
        target = folder / file.relative_to(REPORTS / name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def case(request, tmp_path, monkeypatch) -> Path:
    """A copy of the report that the test is named after; it is the current folder."""
    folder = copied(request.node.originalname.removeprefix("test_"), tmp_path / "case")
    monkeypatch.chdir(folder)
    return folder


def train(data, output, *options, code: int = 0) -> None:
    length = () if "--epochs" in options else ("--epochs", 1)
    start = () if "--resume" in options else ("--model", tiny_model(Path(output).parent), "--batch-size", 4)
    size = () if "--resume" in options else ("--image-size", 64, "--output", output, "--accelerator", "cpu")
    given = () if data is None else ("--data", data)
    command = ["train", *given, *start, *size, "--workers", 0, *length, *options]
    assert run([str(part) for part in command]) == code


@pytest.fixture(scope="module")
def coins(tmp_path_factory) -> Path:
    """A checkpoint of one class, coin, whose id is 7, trained for a step on the set of coco_result_ids."""
    if not REPORTS.is_dir():
        pytest.skip("no reports")
    folder = copied("coco_result_ids", tmp_path_factory.mktemp("coins"))
    shutil.copytree(folder / "set" / "val", folder / "set" / "train")
    annotations = folder / "set" / "annotations"
    shutil.copy(annotations / "instances_val.json", annotations / "instances_train.json")
    train(folder / "set", folder / "run")
    return folder / "run" / "best.safetensors"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A folder with the set of resume_other_classes and a finished run on it."""
    if not REPORTS.is_dir():
        pytest.skip("no reports")
    folder = copied("resume_other_classes", tmp_path_factory.mktemp("shapes"))
    train(folder / "set", folder / "run")
    return folder


def boxes(data) -> dict[str, list[list[float]]]:
    return {record.path.name: record.boxes.round().tolist() for record in data.records}


def test_coco_result_ids(case, coins):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert run(["predict", str(coins), "set/val", "--confidence", "0", "--save", "json", "--output", "out"]) == 0
    rows = json.loads(Path("out/predictions.json").read_text())
    assert {row["category_id"] for row in rows} == {7}
    assert {row["image_id"] for row in rows} == {857, 870, 883}
    truth = COCO("set/annotations/instances_val.json")
    scorer = COCOeval(truth, truth.loadRes("out/predictions.json"), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    expected = Detector(coins).val(data="set", quiet=True).metrics
    assert scorer.stats[0] == pytest.approx(expected["AP"], abs=1e-6)
    assert scorer.stats[8] == pytest.approx(expected["AR100"], abs=1e-6)


def test_data_moved(shapes, tmp_path, monkeypatch):
    for name in ("set", "run"):
        shutil.copytree(shapes / name, tmp_path / name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(shapes / "set"), str(tmp_path / "set")))
    (tmp_path / "set").rename(tmp_path / "new place")
    train(None, tmp_path, "--resume", tmp_path / "run", "--epochs", 2, code=2)
    new = tmp_path / "new place"
    train(new, tmp_path, "--resume", tmp_path / "run", "--epochs", 2, "--on-bad-data", "error")
    assert str(new) in config.read_text()
    assert Detector(tmp_path / "run").classes == ["square", "circle", "triangle"]


def test_duplicate_boxes(case):
    data = load_data(case, "val")
    assert [len(record.boxes) for record in data.records] == [2, 2, 2, 2]
    assert [problem.kind for problem in data.problems] == ["box given twice"] * 8
    data = load_data(case / "yolo", "train")
    assert [len(record.boxes) for record in data.records] == [2]
    assert [(problem.where, problem.kind) for problem in data.problems] == [("line 2", "box given twice")]


@pytest.mark.parametrize("path", ["data.yaml", "."])
def test_images_folder_above(case, path):
    data = load_data(case / "images" / "set" / path, "train")
    assert (boxes(data), data.problems) == ({"a.jpg": [[40, 40, 60, 60]]}, [])


def test_keypoint_labels(case):
    data = load_data("data.yaml", "train")
    assert data.problems == []
    assert boxes(data)["0.jpg"] == [[57, 74, 89, 106]]
    for split in ("train", "val"):
        for record in load_data("data.yaml", split).records:
            row = (case / "labels" / split / f"{record.path.stem}.txt").read_text().split()
            assert len(row) == 13
            x, y, width, height = (float(value) for value in row[1:5])
            expected = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2]) * (160, 120, 160, 120)
            np.testing.assert_allclose(record.boxes, [expected], atol=0.01)


@pytest.mark.slow
def test_large_picture_in_tiles(case, coins, capsys):
    model = str(coins)
    assert run(["predict", model, "big.png"]) == 2
    assert "--tile 640" in capsys.readouterr().err
    command = ["predict", model, "big.png", "--tile", "6750", "--save", "json", "--confidence", "0", "--output", "out"]
    assert run([*command, "--json"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert (image["width"], image["height"]) == (13_500, 13_500)
    corners = np.array([found["box"] for found in image["detections"]]).max(0)
    assert (corners[2:] > 6750).all()  # not only of the first tile


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_linked_folders(case):
    for split in ("train", "val"):
        link = case / "set" / "images" / split / "cam1"
        shutil.rmtree(link)
        link.symlink_to("../../../store/cam1")
        data = load_data("set", split)
        assert len(data.records) == 10
        assert [len(record.boxes) for record in data.records] == [2] * 10
        assert data.problems == []
    shutil.rmtree("photos/link")
    Path("photos/link").symlink_to("../store/one")
    assert {record.path.name for record in find_unlabelled(["photos"]).records} == {"plain.jpg", "linked.jpg"}


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_name_not_utf8(case, coins, capsysbinary):
    subprocess.run([sys.executable, "make.py"], check=True)
    command = ["predict", str(coins), "bad", "--confidence", "0", "--max-detections", "1"]
    escaped = ["bad/m\\xfcnze.jpg", "bad/other.jpg"]
    assert run([*command, "--json", "--save", "images", "json", "yolo", "--output", "out"]) == 0
    told = json.loads(capsysbinary.readouterr().out.decode("utf-8"))
    assert [image["path"] for image in told["images"]] == escaped
    assert {row["file_name"] for row in json.loads(Path("out/predictions.json").read_text("utf-8"))} == set(escaped)
    assert [len(list(Path("out", kind).iterdir())) for kind in ("images", "labels")] == [2, 2]
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    assert run([*command, "--output", "t.parquet"]) == 0
    assert parquet.read_table("t.parquet")["path"].to_pylist() == escaped
    assert run(["embed", str(coins), "bad", "--output", "v.csv"]) == 0
    lines = Path("v.csv").read_text("utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["path", *escaped]


def test_names_in_chinese(case, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fonts, "_told", [])
    train(".", tmp_path / "run")
    model = str(tmp_path / "run" / "best.safetensors")
    assert run(["predict", model, "test", "--confidence", "0", "--output", str(tmp_path / "out")]) == 0
    hint = "no installed font has all letters of 汽车" in capsys.readouterr().err
    assert hint == (fonts.legible("汽车", "class 0") == "class 0")
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    assert run(["val", model, "--data", ".", "--split", "test"]) == 0
    out.flush()
    table = out.buffer.getvalue().decode("cp1252")
    assert "Schlüssel" in table
    assert "\n  ??  " in table.replace("\r", "")


def test_no_box_left(case, tmp_path, capsys):
    data = load_data("data.yaml", "train")
    assert [len(record.boxes) for record in data.records] == [7, 16]
    assert [problem.kind for problem in data.problems] == ["confidence in labels"]
    for file in (case / "labels" / "train").iterdir():
        file.write_text("".join(f"{row} 0.5 0.5\n" for row in file.read_text().splitlines()))
    train("data.yaml", tmp_path / "run", code=2)
    assert "has no box to learn from" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("later", ["later", "later4"])
def test_resume_other_classes(shapes, tmp_path, later, capsys):
    for name in ("set", "run"):
        shutil.copytree(shapes / name, tmp_path / name)
    shutil.copy(shapes / later / "a_new.jpg", tmp_path / "set" / "JPEGImages")
    shutil.copy(shapes / later / "a_new.xml", tmp_path / "set" / "Annotations")
    listed = tmp_path / "set" / "ImageSets" / "Main" / "train.txt"
    listed.write_text("a_new\n" + listed.read_text())
    new = load_data(tmp_path / "set", "train").classes
    assert new != ["square", "circle", "triangle"]
    train(tmp_path / "set", None, "--resume", tmp_path / "run", "--epochs", 2, code=0 if later == "later" else 2)
    assert Detector(tmp_path / "run").classes == ["square", "circle", "triangle"]
    if later == "later4":
        (name,) = set(new) - {"square", "circle", "triangle"}
        assert name in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_roboflow_root_class(case, split):
    data = load_data(".", split)
    assert (data.classes, data.category_ids, data.problems) == (["square", "circle", "triangle"], [1, 2, 3], [])


@pytest.mark.parametrize("name", ["turn1", "turn2"])
def test_rotated_video(case, coins, name, capsys):
    av = pytest.importorskip("av")
    command = ["predict", str(coins), f"{name}.mp4", "--save", "images", "json", "--output", "out", "--json"]
    assert run([*command, "--confidence", "0", "--max-detections", "1"]) == 0
    frames = json.loads(capsys.readouterr().out)["images"]
    assert [(frame["width"], frame["height"]) for frame in frames] == [(240, 320)] * 5
    with av.open(f"out/videos/{name}.mp4") as video:
        shown = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    upright = np.asarray(Image.open("upright.png").convert("RGB"), dtype=np.float32)
    assert [frame.shape for frame in shown] == [upright.shape] * 5
    assert np.abs(shown[0][160:] - upright[160:]).mean() < 10  # below the drawn box
    found = Detector(coins).predict("upright.png", confidence=0.0, max_detections=1)[0]
    np.testing.assert_allclose(frames[0]["detections"][0]["box"], found.xyxy[0], atol=2)
