"""A detector without val is exported and scored with the images that its training held out."""

from __future__ import annotations

from nextdetr import Detector
from nextdetr.config import ExportConfig
from nextdetr.data.split import load_split_off
from nextdetr.export.run import _calibration, _contract
from tests.helpers import squares, tiny_model


def test_export_takes_what_training_set_aside_and_calibrates_on_the_rest(tmp_path):
    data = squares(tmp_path / "squares")
    (data / "annotations" / "instances_val.json").unlink()
    detector = Detector(tiny_model(tmp_path))
    run = detector.train(
        data=data, epochs=1, image_size=64, batch_size=2, workers=0, seed=5, output=tmp_path / "run", quiet=True
    )
    trained = Detector(run.checkpoint)
    result = trained.export("onnx", data=data, output=tmp_path / "out", images=2, quiet=True)
    assert "that training set aside" in result.compared_on
    assert result.metrics.keys() == {"before", "after"}
    val = load_split_off(data, "val", 0.2, 5)
    train = load_split_off(data, "train", 0.2, 5)
    opened = trained.opened
    config = ExportConfig(data=str(data), int8=True)
    images = _calibration(config, _contract(opened, config))
    assert len(images) == len(train.records) == 6 - len(val.records)
