from __future__ import annotations

import numpy as np
import pytest
import supervision as sv
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.confidence import (
    DEFAULT,
    THRESHOLDS,
    Thresholds,
    read_thresholds,
    stored_thresholds,
    thresholds_metadata,
)
from nextdetr.errors import ConfigError, DataError, WeightsError
from nextdetr.weights.checkpoint import extra_metadata, open_model, save_opened
from tests.helpers import squares, tiny_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    data = squares(folder / "data")
    detector = Detector(tiny_model(folder))
    result = detector.train(
        data=data, epochs=1, image_size=64, batch_size=2, workers=0, output=folder / "run", quiet=True
    )  # fmt: skip
    return detector, data, result


def test_after_training_the_detector_has_the_best_weights(trained):
    detector, _, result = trained
    assert detector.source == result.checkpoint
    assert detector.classes == ["square", "bar"]
    assert detector.opened.image_size == 64


def test_val_equals_the_training_runs_own_score(trained):
    detector, data, result = trained
    scored = detector.val(data=data, quiet=True)
    assert scored.metrics == pytest.approx(result.best["metrics"], nan_ok=True)
    assert scored.images == 6


@pytest.mark.parametrize("kind", ["path", "pil", "array", "folder", "list"])
def test_predict_returns_one_entry_an_image(trained, kind):
    detector, data, _ = trained
    path = data / "images" / "val" / "1.png"
    sources = {
        "path": path, "pil": Image.open(path), "array": np.asarray(Image.open(path)), "folder": path.parent,
        "list": [path, Image.open(path)],
    }  # fmt: skip
    found = detector.predict(sources[kind], confidence=0.0, max_detections=5)
    assert isinstance(found, list)
    assert len(found) == {"folder": 6, "list": 2}.get(kind, 1)
    assert all(isinstance(item, sv.Detections) and len(item) == 5 for item in found)
    assert (found[0].xyxy >= 0).all()
    assert (found[0].xyxy <= 96).all()


def test_saved_and_opened_again_it_finds_the_same(trained, tmp_path):
    detector, data, _ = trained
    again = Detector(detector.save(tmp_path / "copy.safetensors"))
    source = data / "images" / "val" / "2.png"
    first, second = (d.predict(source, confidence=0.0)[0] for d in (detector, again))
    np.testing.assert_array_equal(first.xyxy, second.xyxy)
    assert again.classes == detector.classes
    with pytest.raises(ConfigError, match="safetensors"):
        detector.save(tmp_path / "copy.pt")


def test_a_detectors_own_thresholds_are_its_confidence(trained, tmp_path):
    detector, data, _ = trained
    opened, source = detector.opened, data / "images" / "val" / "2.png"
    extra = {name: value for name, value in extra_metadata(opened.metadata).items() if name != THRESHOLDS}
    own = Detector(save_opened(tmp_path / "own.safetensors", opened, extra=extra | thresholds_metadata([1.0, 0.0])))
    plain = Detector(save_opened(tmp_path / "plain.safetensors", opened, extra=extra))
    every, found = plain.predict(source, confidence=0.0)[0], own.predict(source)[0]
    np.testing.assert_array_equal(found.confidence, every.confidence[every.class_id == 1])
    assert len(found) > 0
    assert len(plain.predict(source)[0]) == (every.confidence >= DEFAULT).sum()
    assert len(own.predict(source, confidence=0.0)[0]) == len(every)


def test_a_barely_trained_class_lets_little_through_and_predict_says_why(trained, tmp_path, caplog, capsys):
    detector, data, _ = trained
    opened, source = detector.opened, data / "images" / "val" / "2.png"
    extra = {name: value for name, value in extra_metadata(opened.metadata).items() if name != THRESHOLDS}
    thresholds = thresholds_metadata([0.0, 0.0], [0.03, 0.5])
    path = save_opened(tmp_path / "own.safetensors", opened, extra=extra | thresholds)
    own = Detector(path)
    every, found = detector.predict(source, confidence=0.0)[0], own.predict([source] * 3)[0]
    assert len(found) == ((every.class_id == 1) | (every.confidence >= DEFAULT)).sum()
    told = "own.safetensors is barely trained: its best F1 is 0.03 for square. There confidence auto is at least 0.3"
    assert caplog.text.count(told) == 1
    own.predict(source)
    assert caplog.text.count(told) == 1  # once for a detector, not before each use of it
    Detector(path).predict(source)
    assert caplog.text.count(told) == 2
    caplog.clear()
    Detector(path).predict(source, confidence=0.2)
    assert "barely" not in caplog.text
    assert run(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "square 0.30, bar 0.00" in shown
    assert "its best F1 is 0.03 for square" in shown


def test_training_and_its_report_say_that_it_was_too_short(tmp_path, monkeypatch, capsys):
    best = Thresholds([0.01, 0.4], [0.03, 0.5])
    monkeypatch.setattr("nextdetr.engine.train.thresholds_of", lambda evaluator: best)
    data = squares(tmp_path / "data", 2)
    settings = {"epochs": 1, "image_size": 64, "batch_size": 2, "workers": 0, "output": tmp_path / "run"}
    result = Detector(tiny_model(tmp_path)).train(data=data, **settings)
    told = "The detector is barely trained: its best F1 is 0.03 for square."
    assert told in " ".join(capsys.readouterr().err.split())
    assert told in (tmp_path / "run" / "report.html").read_text()
    metadata = open_model(result.checkpoint).metadata
    assert stored_thresholds(metadata, 2) == best
    assert read_thresholds(metadata, 2) == [DEFAULT, 0.4]


def test_info(trained):
    summary = trained[0].info(64)
    assert summary.parameters == sum(p.numel() for p in trained[0].opened.model.parameters())


def test_mistakes(trained, tmp_path):
    detector = trained[0]
    with pytest.raises(DataError, match="nowhere"):
        detector.predict("nowhere.jpg")
    with pytest.raises(ConfigError, match="did you mean confidence"):
        detector.predict("x.jpg", confidance=0.5)  # codespell:ignore
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(WeightsError, match=r"bad\.safetensors"):
        Detector(tmp_path / "bad.safetensors")


def test_a_detector_prints_as_it_was_made():
    assert repr(Detector("nextdetr-zepto")) == "Detector('nextdetr-zepto')"
