"""Where the decoder reads, against the formula of deformable attention and the detector's own predictions."""

import json
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr import Detector
from nextdetr.analysis.attention import draw_points, read_points
from nextdetr.cli.main import run
from nextdetr.errors import ConfigError
from nextdetr.layers.deformable import MSDeformableAttention

SIZE = 64


@pytest.fixture(scope="module", params=["nextdetr-zepto", "rtdetr-l-convnextv2-atto"])
def detector(request):
    torch.manual_seed(0)
    return Detector(request.param, device="cpu")


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))


def last_attention(model):
    return [module for module in model.modules() if isinstance(module, MSDeformableAttention)][-1]


def test_points_lie_where_the_formula_puts_them(detector, image):
    model = detector.opened.model.eval()
    last = last_attention(model)
    given = []
    hook = last.register_forward_pre_hook(lambda module, arguments: given.append(arguments))
    try:
        layer, reads = read_points(model, image, image_size=SIZE, most=1)
    finally:
        hook.remove()
    ((_, boxes, _, shapes),) = given
    assert layer == sum(isinstance(module, MSDeformableAttention) for module in model.modules())
    # As initialised, head h looks in direction h, and point p is p + 1 steps out (arXiv 2010.04159, appendix A.4).
    expected = []
    for head in range(last.heads):
        angle = 2 * math.pi * head / last.heads
        direction = np.array([math.cos(angle), math.sin(angle)])
        direction /= abs(direction).max()
        expected += [direction * (point + 1) * 0.5 / count for count in last.points for point in range(count)]
    candidates = boxes[0].numpy()[:, None, :2] + np.array(expected)[None] * boxes[0].numpy()[:, None, 2:]  # [Q, K, 2]
    distances = abs(candidates * [90, 50] - reads[0].points).max(axis=(1, 2))
    assert distances.min() < 1e-3
    np.testing.assert_allclose(reads[0].weights, 1 / len(expected), rtol=1e-5)  # all weigh the same at first
    assert len(shapes) == len(last.points)
    np.testing.assert_allclose(reads[0].shares(), np.array(last.points) / sum(last.points), rtol=1e-5)


def test_detections_are_those_of_predict(detector, image):
    (found,) = detector.predict(image, image_size=SIZE, confidence=0.0, max_detections=1)
    _, reads = read_points(detector.opened.model, image, image_size=SIZE, most=3)
    np.testing.assert_allclose(reads[0].box, found.xyxy[0], atol=1e-3)
    assert reads[0].score == pytest.approx(float(found.confidence[0]), abs=1e-5)
    assert reads[0].label == found.class_id[0]
    assert [read.score for read in reads] == sorted((read.score for read in reads), reverse=True)


def test_a_model_is_left_as_it_was(detector, image):
    read_points(detector.opened.model, image, image_size=SIZE, most=1)
    for module in detector.opened.model.modules():
        assert "sample" not in vars(module)


def test_layers_differ_and_are_counted_from_one(detector, image):
    model = deepcopy(detector.opened.model)  # of random weights, all layers read the same places
    with torch.no_grad():
        last_attention(model).sampling_offsets.bias.add_(1)
    (first, early), (last, late) = (read_points(model, image, image_size=SIZE, most=1, layer=layer) for layer in (1, None))
    assert first == 1 < last
    moved = late[0].points - early[0].points
    assert moved.min() > 0  # all of them to the right and down
    with pytest.raises(ConfigError, match=f"--layer {last + 1}: this decoder runs {last} layers"):
        read_points(detector.opened.model, image, image_size=SIZE, layer=last + 1)


def test_a_panel_shows_points_in_the_colours_of_their_maps(detector, image):
    _, reads = read_points(detector.opened.model, image, image_size=SIZE, most=4)
    picture = draw_points(image, reads, detector.classes, (8, 16, 32))
    assert picture.width == 3 * 420  # four panels in two rows
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert {(0xFF, 0xD6, 0x00), (0xFF, 0x2D, 0x95), (0x00, 0xD5, 0xD5)} <= colours


def test_command_writes_a_picture_for_each_image(image, tmp_path, capsys):
    for name in ("a/photo.png", "b/photo.png"):
        (tmp_path / name).parent.mkdir()
        image.save(tmp_path / name)
    command = ["analyze", "attention", "nextdetr-zepto", str(tmp_path / "a"), str(tmp_path / "b"), "--image-size", "64"]
    assert run([*command, "--output", str(tmp_path / "out"), "--detections", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "analyze attention"
    assert len({entry["picture"] for entry in found["images"]}) == 2
    for entry in found["images"]:
        assert Image.open(entry["picture"]).width == 2 * 420
        assert [sum(detection["shares"]) for detection in entry["detections"]] == [pytest.approx(1, abs=1e-3)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nextdetr-zepto", "{tmp}/none.png"], "there is no such file"),
        (["nextdetr-zepto", "{tmp}/broken.png"], "broken.png"),
        (["nextdetr-zepto", "{tmp}/good.png", "--detections", "0"], "--detections is at least 1"),
        (["nextdetr-zepto", "{tmp}/good.png", "--layer", "0"], "choose one from 1 to"),
    ],
)
def test_command_refuses_in_a_sentence(arguments, message, image, tmp_path, capsys):
    image.save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    assert run(["analyze", "attention", *given, "--image-size", "64", "--output", str(tmp_path / "out"), "--json"]) != 0
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]
