"""An exported file as it is opened: by the runtime it passed in, checked against its terms, from several threads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from nextdetr import ConfigError, Detector
from nextdetr.cli.main import run
from nextdetr.errors import ModelFileError
from nextdetr.export.stamp import stamp_passed
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import open_export
from nextdetr.inference.header import read_metadata
from tests.export.handmade import CLASSES, SIDE, handmade, terms
from tests.export.helpers import needs_runtimes
from tests.helpers import tiny_model

needs_runtimes()

WAYS = [("model.onnx", "onnxruntime"), ("model.onnx", "openvino"), ("model.xml", "openvino")]


@pytest.mark.parametrize(("name", "runtime"), WAYS)
def test_four_threads_find_what_one_finds(name, runtime, tmp_path):
    handmade(tmp_path / name)
    detector = Detector(tmp_path / name, runtime=runtime)
    pictures = [np.full((40, 60, 3), shade, np.uint8) for shade in range(0, 256, 16)]
    one_by_one = [detector.predict(picture, confidence=0.0)[0] for picture in pictures]
    assert len({tuple(found.confidence) for found in one_by_one}) == len(pictures)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: detector.predict(picture, confidence=0.0)[0], pictures * 4))
    for first, second in zip(one_by_one * 4, together, strict=True):
        assert np.array_equal(first.xyxy, second.xyxy)
        assert np.array_equal(first.confidence, second.confidence)


def test_four_threads_find_what_one_finds_in_pytorch(tmp_path):
    detector = Detector(tiny_model(tmp_path))
    pictures = [np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8) for seed in range(12)]
    settings = {"confidence": 0.0, "max_detections": 5}
    with ThreadPoolExecutor(4) as pool:  # first, so that nothing is in the layers' caches yet
        together = list(pool.map(lambda picture: detector.predict(picture, **settings)[0], pictures))
    for picture, second in zip(pictures, together, strict=True):
        first = detector.predict(picture, **settings)[0]
        assert np.abs(first.xyxy - second.xyxy).max() < 1e-3
        assert np.abs(first.confidence - second.confidence).max() < 1e-5


@pytest.mark.parametrize(("name", "runtime"), WAYS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 96}, r"images is float32 \[1, 3, 96, 96\], but the graph has float32 \[1, 3, 64, 64\]"),
        ({"layout": "nhwc"}, r"images is float32 \[1, 64, 64, 3\]"),
        ({"input_type": "uint8"}, "images is uint8"),
        ({"max_detections": 9}, r"\[1, 9, 4\], but the graph has float32 \[1, 4, 4\]"),
        ({"raw": True}, "its inputs should be images, but the graph has images, sizes"),
        ({"dynamic": True}, None),
    ],
)
def test_terms_that_the_graph_does_not_keep_are_refused(changes, message, name, runtime, tmp_path):
    handmade(tmp_path / name, written=replace(terms(), **changes))
    if message is None:  # a fixed graph that says it takes any size fails when it is run, in a sentence
        with pytest.raises(ModelFileError, match=f"{runtime} cannot run it on images"):
            Detector(tmp_path / name, runtime=runtime).predict(np.zeros((9, 9, 3), np.uint8), image_size=96)
        return
    with pytest.raises(ModelFileError, match=message):
        Detector(tmp_path / name, runtime=runtime)


@pytest.mark.parametrize(("name", "runtime"), WAYS)
def test_a_raw_graph_of_another_number_of_classes_is_refused(name, runtime, tmp_path):
    contract = terms(raw=True)
    handmade(tmp_path / name, contract, written=replace(contract, classes=[*CLASSES, "cow"]))
    with pytest.raises(ModelFileError, match=r"logits is float32 \[1, 4, 4\], but the graph has float32 \[1, 4, 3\]"):
        open_export(tmp_path / name, runtime=runtime)


@pytest.mark.parametrize(("name", "runtime"), WAYS)
def test_a_graph_of_free_sides_says_which_it_takes(name, runtime, tmp_path):
    handmade(tmp_path / name, terms(dynamic=True, step=32, least_size=96, largest_size=256))
    model = open_export(tmp_path / name, runtime=runtime).model
    assert model(torch.rand(1, 3, 96, 96)).logits.shape == (1, 4, 3)
    for side in (64, 100, 288):
        with pytest.raises(ConfigError, match=rf"multiples of 32 px, at least 96, at most 256 \(given: {side}\)"):
            model(torch.rand(1, 3, side, side))


@pytest.mark.parametrize(("name", "runtime"), WAYS)
def test_what_is_no_number_is_never_a_detection(name, runtime, tmp_path):
    handmade(tmp_path / name, scores=(0.0,) * 4)  # what a graph makes of NaN
    with pytest.raises(ModelFileError, match=f"in {runtime}, what it computes is not a number"):
        Detector(tmp_path / name, runtime=runtime).predict(np.zeros((9, 9, 3), np.uint8))
    raw = tmp_path / f"raw{name[-5:]}"
    handmade(raw, terms(raw=True))
    with pytest.raises(ModelFileError, match="not a number"):
        open_export(raw, runtime=runtime).model(torch.full((1, 3, SIDE, SIDE), torch.nan))


def test_a_class_that_has_no_name_is_refused(tmp_path):
    handmade(tmp_path / "model.onnx", labels=(0, 1, 3, 0))
    with pytest.raises(ModelFileError, match="returned the class 3, but names 3"):
        Detector(tmp_path).predict(np.zeros((9, 9, 3), np.uint8))


@pytest.mark.parametrize(
    ("passed", "chosen"),
    [(None, "onnxruntime"), (["onnxruntime"], "onnxruntime"), (["onnxruntime", "openvino"], "openvino"), ([], None)],
)
def test_a_file_is_opened_where_it_passed(passed, chosen, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    handmade(tmp_path / "model.onnx")
    if passed is not None:
        stamp_passed(tmp_path / "model.onnx", passed)
    assert Detector(tmp_path).opened.model.session.name == chosen or chosen is None
    assert bool(caplog.records) == (chosen is None)
    Detector(tmp_path, runtime="openvino")  # who insists gets it, and is told
    assert ("did not pass its gate in openvino" in caplog.text) == (passed is not None and "openvino" not in passed)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_the_stamp_changes_nothing_else(name, tmp_path):
    contract = terms(passed_runtimes=None)
    handmade(tmp_path / name, contract)
    before = open_export(tmp_path / name).model(torch.ones(1, 3, SIDE, SIDE))
    for passed in (["onnxruntime", "openvino"], ["openvino"]):
        stamp_passed(tmp_path / name, passed)
        metadata = read_metadata(tmp_path / name)
        assert metadata == {**contract.to_metadata(), "passed_runtimes": " ".join(passed)}
        assert Contract.from_metadata(metadata, "x") == replace(contract, passed_runtimes=tuple(passed))
    after = open_export(tmp_path / name, runtime="openvino").model(torch.ones(1, 3, SIDE, SIDE))
    np.testing.assert_allclose(before.boxes, after.boxes, rtol=1e-5, atol=1e-5)


def test_the_metadata_is_read_without_a_runtime(tmp_path):
    model = handmade(tmp_path / "model.onnx", replace(terms(), classes=["Größe", 'a "b"', "猫"]))
    assert read_metadata(tmp_path / "model.onnx") == {entry.key: entry.value for entry in model.metadata_props}
    whole = (tmp_path / "model.onnx").read_bytes()
    for end in (*range(64), *range(0, len(whole), 97)):
        (tmp_path / "cut.onnx").write_bytes(whole[:end])
        with pytest.raises(ModelFileError, match=r"cut\.onnx"):
            open_export(tmp_path / "cut.onnx", runtime="onnxruntime")
    (tmp_path / "cut.xml").write_text("<net><rt_info>")
    with pytest.raises(ModelFileError, match="cannot open it"):
        read_metadata(tmp_path / "cut.xml")


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_a_stranger_is_told_what_goes_in_and_comes_out(name, tmp_path, capsys):
    model = handmade(tmp_path / name)
    if model is not None:
        assert model.graph.input[1].doc_string.startswith("[1, 2] int64: height and width")
        assert "RGB" in model.graph.input[0].doc_string
        assert (model.producer_name, model.producer_version) == ("nextdetr", "0.0")
        assert "cat, dog, bird" in model.doc_string
    for command in (["info", str(tmp_path)], ["weights", "inspect", str(tmp_path / name)]):
        assert run(command) == 0
        text = capsys.readouterr().out
        for part in ("nextdetr 0.0", "cat, dog, bird", "RGB", "0 to 1", "Pillow", "height and width", "x1, y1, x2, y2"):
            assert part in text
        assert run([*command, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["classes"] == CLASSES
        assert list(found["inputs"]) == ["images", "sizes"]
        assert found["outputs"]["boxes"].startswith("[1, 4, 4] float32")


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("weights inspect FILE --model nextdetr-atto", "fits no other: leave --model out"),
        ("benchmark FILE --precision int8", "its precision is float32, and --precision is for exports made here"),
        ("benchmark FILE --precision float32 half", "its precision is float32"),
    ],
)
def test_options_that_an_exported_file_cannot_follow_are_refused(command, answer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    handmade(tmp_path / "model.onnx")
    assert run(command.replace("FILE", "model.onnx").split()) == 2
    assert answer in capsys.readouterr().err
