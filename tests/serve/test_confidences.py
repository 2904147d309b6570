"""Confidences by name and images unlike the training ones, as ``predict`` has them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.confidence import Calibrated
from nextdetr.errors import ConfigError
from nextdetr.inference.familiarity import Familiarity, fit_space
from nextdetr.serve.run import start
from nextdetr.weights.checkpoint import extra_metadata, open_model, save_opened
from tests.export.handmade import handmade, terms
from tests.export.helpers import checkpoint
from tests.serve.conftest import client, encoded


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(1)
    for number in range(20):
        pixels = generator.integers(0, 255, (60, 90, 3), dtype=np.uint8) if number < 19 else np.full((60, 90, 3), 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, photos):
    """A checkpoint with a calibrated threshold, for which all photos are familiar but the last, which is white."""
    path = checkpoint(tmp_path_factory.mktemp("calibrated"), "nextdetr-zepto", 64)
    vectors = Detector(path).embed(photos).embeddings
    space = fit_space(vectors[:-1])
    familiarity = Familiarity(space, float(space.distances(vectors[:-1]).max() * 1.01), 0.05, 64)
    scores = Detector(path).predict(photos[:1], confidence=0.0)[0].confidence
    threshold = float(np.sort(scores)[-20])  # twenty detections
    known = Calibrated(threshold, 0.9, 0.08, 0.5, 100, "toys", "test", 64, True)
    opened = open_model(path)
    save_opened(
        path, opened, extra=extra_metadata(opened.metadata) | known.to_metadata() | familiarity.to_metadata()
    )  # fmt: skip
    return path, threshold


def form(paths):
    return [("image", (path.name, path.read_bytes())) for path in paths]


def test_a_request_may_ask_for_the_calibrated_confidence(calibrated, photos):
    path, threshold = calibrated
    (expected,) = Detector(path).predict(photos[:1], confidence="calibrated")
    with start(path) as running, client(running) as ours:
        (image,) = ours.post("/predict?confidence=calibrated", files=form(photos[:1])).json()["images"]
        assert [row["confidence"] for row in image["detections"]] == pytest.approx(expected.confidence.tolist(), rel=1e-6)
        assert len(expected) == 20
        (default,) = ours.post("/predict", files=form(photos[:1])).json()["images"]
        (auto,) = ours.post("/predict?confidence=auto", files=form(photos[:1])).json()["images"]
        assert default == auto != image
        info = ours.get("/model").json()
        assert (info["confidence"], info["calibrated"]) == ("auto", {"threshold": threshold, "recall": 0.9})
    with start(path, confidence="calibrated") as running, client(running) as ours:
        assert ours.post("/predict", files=form(photos[:1])).json()["images"] == [image]
        assert ours.get("/model").json()["confidence"] == "calibrated"


def test_images_unlike_the_training_ones_are_flagged_as_by_predict(calibrated, photos, capsys, tmp_path):
    path, _ = calibrated
    arguments = ["predict", str(path), *map(str, photos), "--json", "--output", str(tmp_path / "out")]
    assert run(arguments) == 0
    expected = json.loads(capsys.readouterr().out)["images"]
    with start(path, batch=4, max_images=20) as running, client(running) as ours:
        images = ours.post("/predict", files=form(photos)).json()["images"]
        assert ours.get("/model").json()["checks_unlikeness"]
        properties = ours.get("/openapi.json").json()["components"]["schemas"]["ImageBody"]["properties"]
    assert [image["unlike_training"] for image in images] == [False] * 19 + [True]
    assert [image["unlikeness"] for image in images] == pytest.approx([row["unlikeness"] for row in expected], rel=1e-4)
    assert {"unlikeness", "unlike_training"} <= set(properties)


def test_what_cannot_be_had_is_a_sentence(tmp_path, calibrated, caplog):
    plain = tmp_path / "plain.onnx"
    handmade(plain)
    with start(plain) as running, client(running) as ours:
        answer = ours.post("/predict?confidence=calibrated", content=encoded())
        assert (answer.status_code, answer.json()["error"]["type"]) == (422, "DataError")
        assert "nextdetr calibrate" in answer.json()["error"]["message"]
        assert ours.post("/predict?confidence=perhaps", content=encoded()).status_code == 422
        image = ours.post("/predict", content=encoded()).json()["images"][0]
        assert "unlikeness" not in image
    with pytest.raises(ConfigError, match="no calibrated confidence"), start(plain, confidence="calibrated"):
        pass
    exported = tmp_path / "known.onnx"
    contract = terms()
    contract.details.update(Calibrated(0.2, 0.9, 0.08, 0.5, 100, "toys", "test", 64, True).to_metadata())
    handmade(exported, contract)
    with start(exported):
        assert "is not checked in an exported file" in caplog.text
    with start(calibrated[0], confidence="calibrated", image_size=96):
        assert "does not hold at 96 px instead of 64" in caplog.text
        assert "is not checked at another image size" in caplog.text
