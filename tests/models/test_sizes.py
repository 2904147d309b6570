"""Which image sizes a model accepts, by its strides: checked before anything is read, with one sentence."""

from __future__ import annotations

import pytest
import torch

from nextdetr.errors import ConfigError, ModelFileError
from nextdetr.models.convnextv2 import convnextv2
from nextdetr.models.fcmae import FCMAE
from nextdetr.models.graph import available_models, build_model, build_skeleton, parse_model_text
from nextdetr.models.sizes import nearest_size
from tests.helpers import TINY_MODEL

#: Strides 8, 16 and, with ``deep``, 64, behind plain convolutions.
STRIDES = """
nc: 2
{size}
backbone:
  - [-1, 1, Conv, [8, 3, 4]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, {last}]]
head:
  - [[1, 2], 1, RTDETRDecoder, [nc, 8, 5, 1, 2, 1, 16]]
"""


def strided(last: int, size: str = ""):
    return build_model(parse_model_text(STRIDES.format(last=last, size=size), "strides.yaml"))


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (
            100,
            None,
            "--image-size must be a multiple of 32, the model's largest stride, not 100; the nearest are 96 and 128.",
        ),
        (80, None, "--image-size must be a multiple of 32, .* not 80; the nearest are 64 and 96."),
        (20, None, "--image-size .* not 20; the smallest is 32."),
        (0, None, "--image-size .* not 0; the smallest is 32."),
        (-64, None, "--image-size .* not -64; the smallest is 32."),
        (64, 50, "Images are 50 x 64 pixels: each side must be a multiple of 32, .* not 50; the nearest are 32 and 64."),
    ],
)
def test_other_sizes_are_refused_with_the_nearest(height, width, message):
    model = build_model(parse_model_text(TINY_MODEL, "tiny.yaml"))
    with pytest.raises(ConfigError, match=message):
        model.check_size(height, width)


def test_the_models_own_strides_count():
    assert strided(2).stride == 16
    assert strided(8).stride == 64
    assert strided(3).stride == 24
    strided(2).check_size(48)
    with pytest.raises(ConfigError, match=r"multiple of 64, .* not 96; the nearest are 64 and 128"):
        strided(8).check_size(96)


def test_every_shipped_model_has_stride_32():
    assert {build_skeleton(name).stride for name in available_models() if "large" not in name and "huge" not in name} == {
        32
    }


@pytest.mark.parametrize("train", [False, True])
def test_forward_refuses_what_would_shift_the_boxes(train):
    model = build_model(parse_model_text(TINY_MODEL, "tiny.yaml")).train(train)
    with pytest.raises(ConfigError, match="nearest are 96 and 128"):
        model(torch.rand(1, 3, 100, 100))
    with pytest.raises(ConfigError, match="Images are 64 x 80 pixels"):
        model.row_maps(torch.rand(1, 3, 80, 64), 0)
    assert model.eval()(torch.rand(1, 3, 64, 96)).boxes.shape == (1, 20, 4)  # sides may differ


def test_a_model_file_proposes_a_size_that_fits():
    assert strided(2, "image_size: 48").image_size == 48
    assert strided(2).image_size == 640
    assert strided(3).image_size == nearest_size(640, 24) == 648
    with pytest.raises(ModelFileError, match=r"image_size must be a multiple of 16, .* not 56; the nearest are 48 and 64"):
        strided(2, "image_size: 56")


def test_backbone_and_pretraining_answer_too():
    encoder = convnextv2("atto")
    encoder.check_size(96)
    with pytest.raises(ConfigError, match="multiple of 32, the backbone's largest stride, not 100"):
        encoder.check_size(100)
    convnextv2("atto", out_indices=(0, 1)).check_size(40)  # stages that are not built do not count
    model = FCMAE(encoder, patch_size=64)
    model.check_size(128)
    with pytest.raises(ConfigError, match="multiple of 64, the patch size, not 96; the nearest are 64 and 128"):
        model.check_size(96)
    with pytest.raises(ConfigError, match="a single patch of 64"):
        model.check_size(64)
