"""The report and the comparison of trained detectors, from Python and from the command line."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file

import nextdetr
from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.confidence import THRESHOLDS, read_thresholds, thresholds_metadata
from nextdetr.config import TrainConfig
from nextdetr.data.sources import load_data
from nextdetr.engine.report import training_report
from nextdetr.errors import ConfigError, DataError
from nextdetr.weights.checkpoint import open_model, save_opened
from tests.helpers import TINY_MODEL, squares, tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    data = squares(folder / "data")
    detector = Detector(tiny_model(folder))
    detector.train(
        data=data, epochs=2, image_size=64, batch_size=2, workers=0, output=folder / "run", quiet=True, learning_rate=2e-3
    )
    return folder / "run", what_it_finds(detector, data, folder / "easy")


def what_it_finds(detector, data, target):
    """The same images with some of what the detector finds for boxes, so that it has an AP after so few steps."""
    for split in ("train", "val"):
        content = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
        rows = []
        for image in content["images"][:-1]:
            found = detector.predict(data / "images" / split / image["file_name"], confidence=0.0)[0]
            for place in (0, 1, 3, 8):
                x1, y1, x2, y2 = found.xyxy[place].tolist()
                rows.append(
                    {"id": len(rows) + 1, "image_id": image["id"], "category_id": int(found.class_id[place]) + 1,
                     "iscrowd": 0,
                     "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                )  # fmt: skip
        (target / "images").mkdir(parents=True, exist_ok=True)
        (target / "images" / split).symlink_to(data / "images" / split)
        (target / "annotations").mkdir(exist_ok=True)
        text = json.dumps({**content, "annotations": rows})
        (target / "annotations" / f"instances_{split}.json").write_text(text)
    return target


class Page(HTMLParser):
    """Tags that are open, addresses that are named, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses, self.ids, self.tables, self.captions, self.text = [], [], 0, 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "href", "xlink:href") if values.get(name)]
        self.ids += [values["id"]] if values.get("id") else []
        self.tables += tag == "table"
        self.captions += tag == "caption"

    def handle_data(self, data):
        self.text += data


def check(path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    outside = [name for name in page.addresses if not name.startswith(("#", "data:"))]
    assert outside in ([], ["https://arxiv.org/abs/2008.08115"])  # a link to read, not to load
    assert not re.search(r"<script|@import|url\((?!['\"]?#)", text)
    assert len(set(page.ids)) == len(page.ids)
    assert page.tables == page.captions
    assert {name.removeprefix("#") for name in page.addresses if name.startswith("#")} <= set(page.ids)
    return page


def test_training_leaves_a_report(trained):
    folder, _ = trained
    page = check(folder / "report.html")
    assert "Validation, averaged weights" in page.text
    metrics = json.loads(open_model(folder / "best.safetensors").metadata["metrics"])
    assert f"{metrics['AP']:.3f}" in page.text


def test_an_image_that_is_gone_at_the_end_of_a_training_costs_the_report_alone(trained, monkeypatch, caplog):
    """As after a resumed run without a better epoch, whose best weights are scored again for it."""
    folder, data = trained

    def gone(*arguments, **options):
        raise DataError("5.png cannot be read.")

    monkeypatch.setattr("nextdetr.engine.report.examine", gone)
    val, config = load_data(data, "val"), TrainConfig(data=str(data))
    assert training_report(folder / "best.safetensors", val, None, config, torch.device("cpu")) is None
    assert "5.png cannot be read. The run ends without a report." in caplog.text


def test_ap_of_the_report_is_vals(trained, tmp_path):
    folder, data = trained
    detector = Detector(folder)
    result = detector.report(data, output=tmp_path / "page.html", quiet=True)
    scored = detector.val(data, quiet=True)
    assert result.metrics == scored.metrics  # to the last digit
    for name, row in scored.per_class.items():
        assert {key: result.per_class[name][key] for key in row} == row
    page = check(tmp_path / "page.html")
    assert "1 image has no object" in page.text
    assert result.metrics["AP50"] > 0.1
    assert sum(row["boxes"] for row in result.per_class.values()) == 20
    assert sum(map(sum, result.confusion["counts"][:2])) == 20


def test_the_command(trained, tmp_path, capsys):
    folder, data = trained
    assert run(["report", str(folder), "--data", str(data), "--output", str(tmp_path / "a.html"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) >= {"command", "model", "data", "split", "images", "metrics", "thresholds", "errors", "output"}
    assert (tmp_path / "a.html").is_file()
    assert run(["report", str(folder)]) == 2
    assert "--data" in capsys.readouterr().err


def test_names_of_classes_and_files_are_escaped(trained, tmp_path):
    folder, data = trained
    opened = open_model(folder / "best.safetensors")
    wild = ["<script>alert(1)</script>", 'a"b&c']
    content = json.loads((data / "annotations" / "instances_val.json").read_text())
    for category, name in zip(content["categories"], wild, strict=True):
        category["name"] = name
    for split in ("train", "val"):
        (tmp_path / "data" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "images" / split).symlink_to(data / "images" / split)
        (tmp_path / "data" / "annotations").mkdir(exist_ok=True)
        (tmp_path / "data" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    checkpoint = save_opened(tmp_path / "wild.safetensors", opened, classes=wild)
    Detector(checkpoint).report(tmp_path / "data", quiet=True)
    assert wild[0] in check(tmp_path / "report.html").text


def test_thresholds_can_be_stored(trained, tmp_path):
    folder, data = trained
    opened = open_model(folder / "best.safetensors")
    copy = save_opened(tmp_path / "copy.safetensors", opened, extra={"speed_of": "x"} | thresholds_metadata([0.9, 0.9]))
    result = Detector(copy).report(data, store=True, quiet=True)
    assert set(result.confidence.values()) == {0.9}
    again = open_model(copy)
    assert read_thresholds(again.metadata, 2) == pytest.approx(list(result.thresholds.values()))
    assert again.metadata["speed_of"] == "x"
    assert THRESHOLDS in again.metadata


def test_thresholds_of_other_weights_or_settings_are_not_stored(trained, tmp_path, capsys):
    folder, data = trained
    copy = tmp_path / "best.safetensors"
    before = shutil.copy(folder / "best.safetensors", copy).read_bytes()
    command = ["report", str(copy), "--data", str(data), "--store"]
    refused = {
        ("--weights", str(folder / "last.safetensors")): "other weights were given beside it: save it first",
        ("--image-size", "96"): "--image-size shifts its scores", ("--queries", "5"): "--queries shifts its scores",
        ("--bits", "12"): "--bits shifts its scores",
    }  # fmt: skip
    for options, said in refused.items():
        assert run([*command, *options]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="save it first"):
        Detector(copy, backbone_weights=folder / "last.safetensors").report(data, store=True, quiet=True)
    assert copy.read_bytes() == before
    assert not (tmp_path / "report.html").exists()
    assert run([*command, "--image-size", "64"]) == 0  # its own


def test_a_model_for_more_classes_than_the_data_set_has(trained, tmp_path, capsys):
    """As shipped ones, which are for 80 classes until they are trained."""
    folder, data = trained
    many = tmp_path / "many.yaml"
    many.write_text(TINY_MODEL.replace("nc: 2", "nc: 9"))
    assert run(["report", str(many), "--data", str(data), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["confidence"]) == {"square", "bar"}
    assert len(result["confusion"]["counts"]) == 3
    compare = ["--data", str(data), "--resamples", "100", "--json"]
    assert run(["compare", str(many), str(folder), *compare]) == 0
    assert set(json.loads(capsys.readouterr().out)["per_class"]) == {"square", "bar"}
    other = save_opened(tmp_path / "other.safetensors", open_model(folder / "best.safetensors"), classes=["square", "cat"])
    for pair in ((many, other), (other, many)):
        assert run(["compare", *map(str, pair), *compare]) == 2
        assert "only one would be scored on 'bar'" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_weights_without_class_names_are_not_called_random(trained, tmp_path, capsys):
    folder, data = trained
    torch.save(load_file(folder / "best.safetensors"), tmp_path / "nameless.pt")
    command = ["val", str(tiny_model(tmp_path)), "--weights", str(tmp_path / "nameless.pt"), "--data", str(data), "--json"]
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["metrics"] == Detector(folder).val(data, quiet=True).metrics
    assert "random weights" not in err
    assert "its weights name no classes, so those of the data set are used, in its order." in " ".join(err.split())


def test_pages_go_into_a_folder_that_is_named(trained, tmp_path, capsys):
    folder, data = trained
    assert Detector(folder).report(data, output=tmp_path, quiet=True).output == str(tmp_path / "report.html")
    command = ["compare", str(folder), str(folder), "--data", str(data), "--resamples", "100"]
    assert run([*command, "--output", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(tmp_path / "compare.html")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "compare.html"}
    assert run([*command, "--runtime", "openvino"]) == 2
    assert "openvino opens exported files" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="openvino opens exported files"):
        nextdetr.compare(folder, folder, data, runtime="openvino")


def unused(*_, **__):
    raise AssertionError("it was scored first")


@pytest.mark.parametrize(
    "command", ["report RUN", "report RUN --store", "compare RUN RUN --output page.html", "calibrate RUN"]
)
def test_what_cannot_be_written_is_reported_before_anything_is_scored(command, trained, tmp_path, monkeypatch, capsys):
    folder, data = trained
    monkeypatch.chdir(tmp_path)
    for module in ("report", "compare", "calibrate"):
        monkeypatch.setattr(f"nextdetr.engine.{module}.examine", unused)
    opened = os.open

    def refuse(path, *rest):
        if ".partial" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    words = [str(folder) if word == "RUN" else word for word in command.split()]
    assert run([*words, "--data", str(data)]) == 1
    assert f"cannot be written ({os.strerror(errno.EACCES)})" in capsys.readouterr().err


def test_a_report_of_other_weights_names_them_and_shows_no_curves_of_the_run(trained, tmp_path):
    folder, data = trained
    weights = shutil.copy(folder / "last.safetensors", tmp_path / "other.safetensors")
    Detector(folder, weights=weights).report(data, output=tmp_path, quiet=True)
    page = check(tmp_path / "report.html")
    assert f"model {folder / 'best.safetensors'}, weights {weights}" in page.text
    assert "Validation, averaged weights" not in page.text


def test_a_page_without_pictures_does_not_say_that_there_are_no_errors(trained, tmp_path):
    folder, data = trained
    Detector(folder).report(data, output=tmp_path, pictures=0, quiet=True)
    text = check(tmp_path / "report.html").text
    assert "No image is shown." in text
    assert "No image has an error" not in text


def test_a_handful_of_images_shows_nothing(trained, tmp_path, capsys):
    folder, data = trained
    worse = save_opened(tmp_path / "worse.safetensors", open_model(folder / "last.safetensors"), image_size=96)
    command = ["compare", str(folder), str(worse), "--data", str(data), "--resamples", "100"]
    for options, enough in ([], True), (["--level", "0.99"], False):  # of six images
        assert run([*command, *options, "--output", str(tmp_path / "page.html"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["enough_images"] is enough
        assert ("They are too few for this interval" in check(tmp_path / "page.html").text) is not enough
        assert run([*command, *options]) == 0
        assert ("6 images: too few to show that one is better" in capsys.readouterr().out) is not enough


def test_two_detectors_on_the_same_images(trained, tmp_path, capsys):
    folder, data = trained
    worse = save_opened(tmp_path / "worse.safetensors", open_model(folder / "last.safetensors"), image_size=96)
    command = ["compare", str(folder), str(worse), "--data", str(data), "--resamples", "100"]
    assert run([*command, "--output", str(tmp_path / "page.html"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"command", "a", "b", "difference"} <= set(result)
    difference = result["difference"]
    assert difference["AP"] == pytest.approx(result["metrics"]["b"]["AP"] - result["metrics"]["a"]["AP"], abs=1e-9)
    assert difference["low"] <= difference["AP"] <= difference["high"]
    check(tmp_path / "page.html")
    other = save_opened(tmp_path / "other.safetensors", open_model(worse), classes=["square", "cat"])
    assert run(["compare", str(folder), str(other), "--data", str(data)]) == 2
    assert "'bar'" in capsys.readouterr().err


def test_training_keeps_the_thresholds_and_can_leave_the_report_out(trained, tmp_path):
    folder, data = trained
    detector = Detector(folder)
    result = detector.train(
        data=data, epochs=1, image_size=64, batch_size=6, workers=0, output=tmp_path / "run", quiet=True, report=False,
        learning_rate=1e-7,
    )  # fmt: skip
    assert result.best["metrics"]["AP50"] > 0
    assert not (tmp_path / "run" / "report.html").exists()
    expected = list(detector.report(data, quiet=True).thresholds.values())
    for name in ("best", "last"):
        stored = read_thresholds(open_model(tmp_path / "run" / f"{name}.safetensors").metadata, 2)
        assert stored == pytest.approx(expected)
