"""Models as they are shipped, whole, through each format; what can be chosen is tested on small ones."""

from __future__ import annotations

import json

import pytest

from nextdetr import Detector
from tests.export.helpers import CLASSES, SIZE, assert_same_detections, checkpoint, detections, needs_runtimes, pictures

needs_runtimes()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["nextdetr-atto", "rtdetr-l-convnextv2-atto"])
def source(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("export"), request.param, SIZE)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_export_gives_pytorchs_detections_and_carries_its_terms(source, kind, tmp_path):
    original = Detector(source)
    result = original.export(kind, output=tmp_path / kind, images=2, quiet=True)
    assert result.passed, result.failures
    ways = [(result.file, "auto"), (tmp_path / kind, "openvino")] + [(result.file, "onnxruntime")] * (kind == "onnx")
    for name, runtime in ways:
        exported = Detector(name, runtime=runtime)
        assert runtime in ("auto", exported.opened.model.session.name)
        images = pictures()
        assert_same_detections(detections(original, images), detections(exported, images))
    assert exported.classes == CLASSES
    assert exported.opened.image_size == SIZE
    metadata = exported.opened.metadata
    assert metadata["weights_licence"] == "MIT"
    assert metadata["normalisation"].startswith(original.opened.model.normalize)
    assert metadata["nextdetr_version"]
    assert metadata["licence"]
    report = json.loads((tmp_path / kind / "report.json").read_text())
    assert report["passed"] is True
    assert report["weights_licence"] == "MIT"
    assert report["comparison"]["matched"] >= 0.99


@pytest.mark.parametrize("name", ["dfine-n", "deimv2-atto"])
def test_other_decoders_and_encoders_export_too(name, tmp_path):
    """Two maps, sums for joins, pooling, RMSNorm and a shared box head: rows that the family does not have."""
    source = checkpoint(tmp_path, name, SIZE)
    result = Detector(source).export("onnx", output=tmp_path / "onnx", images=2, quiet=True)
    assert result.passed, result.failures
    assert result.comparison.matched >= 0.99
    images = pictures()
    expected = detections(Detector(source), images)
    for runtime in ("onnxruntime", "openvino"):
        assert_same_detections(expected, detections(Detector(result.file, runtime=runtime), images))
