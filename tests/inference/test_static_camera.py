"""A fixed camera: what is computed, and that results are the plain ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run as command
from nextdetr.config import PredictConfig
from nextdetr.errors import ConfigError, DataError
from nextdetr.inference.camera_report import CameraReport
from nextdetr.inference.contract import Contract
from nextdetr.inference.exported import ExportedModel, OpenedExport
from nextdetr.inference.pytorch.static_camera import CHANGED, StaticCamera, largest_drift
from nextdetr.inference.writers.video import VideoWriter
from nextdetr.models.graph import build_model, parse_model_text
from tests.helpers import tiny_model

SIDE = 256


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    torch.manual_seed(0)
    return Detector(tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def network(detector):
    return detector.opened.model.eval()


def scene():
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def moved(step, size=16):
    picture = scene()
    place = (..., slice(96, 96 + size), slice(64 + step, 64 + step + size))
    picture[place] = 1 - picture[place]
    return picture


def same(got, wanted, **tolerance):
    torch.testing.assert_close(got.logits, wanted.logits, **tolerance)
    torch.testing.assert_close(got.boxes, wanted.boxes, **tolerance)


def test_without_motion_results_are_the_same(network):
    camera = StaticCamera(network)
    found = camera(scene().expand(3, -1, -1, -1))
    again = camera(scene() + 0.5 * CHANGED)
    with torch.inference_mode():
        same(DetectorSlice(found, 0), network(scene()), atol=1e-5, rtol=1e-5)
    for number in (1, 2):
        assert torch.equal(found.logits[number], found.logits[0])
    assert torch.equal(again.boxes[0], found.boxes[0])
    assert (camera.report.frames, camera.report.full, camera.report.unchanged) == (4, 1, 3)
    assert camera.report.to_json()["computed_share"] == 0.25


class DetectorSlice:
    def __init__(self, output, number):
        self.logits, self.boxes = output.logits[number : number + 1], output.boxes[number : number + 1]


def test_what_moves_is_computed_and_the_rest_is_not(network):
    camera = StaticCamera(network)
    camera(moved(0))
    first = [part.clone() for part in camera._backbone.maps]
    camera(moved(4))
    renewed = camera._backbone.maps
    assert camera.report.full == 1
    assert 0 < camera.report.computed - 1 <= 0.5
    changed = (renewed[0] - first[0]).abs().amax(dim=1)[0] > 0
    assert changed.any()
    assert not changed[:16].any()  # the first two rows of patches are two away
    with torch.inference_mode():
        wanted = network.row_maps(moved(4), 0)
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(renewed, wanted, strict=True))
    untouched = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(first, wanted, strict=True))
    assert difference < 0.5 * untouched


def test_too_much_motion_and_every_so_many_frames_are_computed_in_full(network):
    camera = StaticCamera(network, full_every=3)
    for picture in (scene(), 1 - scene()):
        with torch.inference_mode():
            same(camera(picture), network(picture), atol=1e-5, rtol=1e-5)
    assert camera.report.full == 2
    for step in (1, 2, 3):
        picture = 1 - moved(8 * step)
        found = camera(picture)
    assert camera.report.full == 3
    assert 0 < camera.report.largest_drift < 1
    with torch.inference_mode():
        same(found, network(picture), atol=1e-5, rtol=1e-5)


def test_a_cut_is_no_drift(network):
    camera = StaticCamera(network)
    camera(scene())
    cut = scene()
    cut[..., :160, :] = 1 - cut[..., :160, :]  # the last two rows of patches stay, and are none of their neighbours
    camera(cut)
    assert camera.report.full == 2
    assert camera.report.largest_drift is None


def test_slow_changes_add_up(network):
    camera = StaticCamera(network)
    for step in range(5):
        camera(scene() * 0.5 + 0.3 * CHANGED * step)
    assert (camera.report.full, camera.report.unchanged) == (2, 3)


def test_a_small_object_is_seen(network):
    camera = StaticCamera(network)
    picture = torch.full((1, 3, SIDE, SIDE), 0.5)
    camera(picture)
    small = picture.clone()
    small[..., 100:104, 100:104] = 1.0
    camera(small)
    assert camera.report.unchanged == 0


def test_another_stream_size_or_number_of_queries_starts_anew(network):
    camera = StaticCamera(network)
    camera(scene(), streams=["a"])
    camera(scene(), streams=["b"])
    camera(scene()[..., :192], streams=["b"])
    camera(scene()[..., :192], streams=["b"], queries=5)
    assert camera.report.full == 4
    assert camera.report.largest_drift is None


def test_drift_is_relative_to_the_map_and_of_the_named_patches():
    old, new = torch.zeros(1, 2, 8, 8), torch.ones(1, 2, 8, 8)
    old[..., 4:, :] = 1.0
    where = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    assert largest_drift([old], [new], where) is None
    where[..., 1, :] = True
    assert largest_drift([old], [new], where) == 0.0
    where[..., 0, 0] = True
    assert largest_drift([old], [2 * new], where) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, SIDE, SIDE, 10) as writer:
        for number in range(6):
            pixels = np.full((SIDE, SIDE, 3), 90, np.uint8)
            pixels[40:60, 40 : 60 + 8 * max(0, number - 2)] = 250
            writer.write(pixels, number / 10)
    return path


def test_predict_takes_a_video_and_reports(detector, clip, tmp_path, capsys):
    detector.save(tmp_path / "m.safetensors")
    options = f"--static-camera --image-size {SIDE} --json --confidence 0 --full-every 5 --save json --device cpu".split()
    words = ["predict", str(tmp_path / "m.safetensors"), str(clip), *options, "--output", str(tmp_path / "out")]
    assert command(words) == 0
    result = json.loads(capsys.readouterr().out)
    report = result["static_camera"]
    assert report["frames"] == len(result["images"]) == 6
    assert report["full_frames"] == 2
    assert 0 < report["computed_share"] < 1
    assert report["largest_drift"] is not None
    assert result["images"][0]["detections"]


def test_python_gives_the_first_frame_as_ever(detector, clip):
    plain = detector.predict(clip, image_size=SIDE, confidence=0.0)
    fixed = detector.predict(clip, image_size=SIDE, confidence=0.0, static_camera=True)
    np.testing.assert_allclose(fixed[0].xyxy, plain[0].xyxy, atol=1e-2)
    assert len(fixed) == len(plain)


def test_images_are_refused(detector, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", [tmp_path / "a.png"], Image.new("RGB", (64, 64))):
        with pytest.raises(DataError, match="is an image, and --static-camera looks at videos"):
            detector.predict(source, static_camera=True)


@pytest.mark.parametrize("other", [{"tile": 64}, {"features": "maps"}, {"output": "table.parquet"}])
def test_what_does_not_go_together_is_refused(detector, clip, other):
    with pytest.raises(ConfigError, match="static-camera looks at whole frames"):
        detector.predict(clip, static_camera=True, **other)


def test_full_frames_of_a_camera_that_moves_are_refused(detector, clip):
    with pytest.raises(ConfigError, match="give --static-camera too"):
        detector.predict(clip, full_every=5)


def test_another_backbone_is_refused():
    rows = "  - [-1, 1, Conv, [8, 3, 2]]\n  - [-1, 1, Conv, [8, 3, 2]]\n"
    text = f"nc: 2\nbackbone:\n{rows}head:\n  - [[1], 1, RTDETRDecoder, [nc, 32, 20, 2, 4, 1, 64]]\n"
    with pytest.raises(ConfigError, match="only a ConvNeXt V2 backbone"):
        StaticCamera(build_model(parse_model_text(text, "m.yaml")))


def test_an_exported_file_is_refused(detector, clip, monkeypatch):
    exported = Detector.__new__(Detector)
    file = OpenedExport(ExportedModel(None, Contract(["a"], 64, 10), "model.onnx"), ["a"], 64, "model.onnx", {})
    exported.__dict__.update(detector.__dict__, _opened=file, source="model.onnx")
    with pytest.raises(ConfigError, match="exported file cannot compute only what has changed"):
        exported._network("compute only what has changed (--static-camera)")


def test_the_report_in_words():
    report = CameraReport()
    report.add(1.0)
    report.add(0.0)
    counted = "2 frames, 1 computed in full, 1 unchanged; 50% of the patches computed"
    assert str(report) == f"{counted}; largest drift not measured"
    assert PredictConfig().full_every == 30
