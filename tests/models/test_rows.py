"""Rows of model files as the documentation has them: paddings, channels, options, and the smallest map."""

from __future__ import annotations

import pytest
import torch

from nextdetr.errors import ModelFileError
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.structures import Target

FILE = """
nc: 2
{scales}
backbone:
  - [-1, 1, Conv, [8, 4, 4]]
  - [-1, 1, Conv, [8, 3, 2]]
head:
  - [-1, 1, {row}]
  - [[1, 2], 1, RTDETRDecoder, [{decoder}]]
"""


def build(row="Conv, [8]", scales="", decoder="nc, 16, 5, 1, 2, 1, 16"):
    return build_model(parse_model_text(FILE.format(row=row, scales=scales, decoder=decoder), "own.yaml"))


@pytest.mark.parametrize(
    "row",
    [
        "Conv, [8, 3]", "Conv, [8, 5, 1, 2]", "Conv, [8, 3, 2]", "Conv, [8, 2, 2]", "Conv, [8, 2, 2, 0]",
        "Conv, [8, 4, 2, 1]", "Conv, [8, 6, 2]", "Conv, [8, 3, 3]", "Conv, [8, 1, 4]", "Conv, [8, 8, 8]",
        "Conv, [8, 3, 1, None, 1, 2]", "Conv, [8, 3, 1, 2, 1, 2]", "Conv, [8, 4, 1, None, 1, 2]",
        "Conv, [8, 3, 1, None, 8, 1, None]", "DWConv, [8, 5, 2]", "DWConv, [16, 3, 1, 3]", "DWConv, [8, 2, 2]",
    ],
)  # fmt: skip
def test_maps_have_the_size_that_their_stride_says(row):
    model = build(row)
    height, width = 2 * model.stride, 4 * model.stride
    for number, info in enumerate(model.row_infos[:-1]):
        (found,) = model.eval().row_maps(torch.rand(1, 3, height, width), number)
        assert tuple(found.shape[2:]) == (height // info.strides[0], width // info.strides[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Conv, [8, 3, 1, 0]", "a kernel of 3 and stride 1 needs a padding of 1, not 0"),
        ("Conv, [8, 5, 2, 1]", "a kernel of 5 and stride 2 needs a padding of 2, not 1"),
        ("Conv, [8, 3, 1, 1, 1, 2]", "a kernel of 3 with dilation 2 and stride 1 needs a padding of 2, not 1"),
        ("Conv, [8, 1, 1, 1]", "needs a padding of 0, not 1"),
        ("Conv, [8, 4, 2, 2]", "needs a padding of 1, not 2"),
        ("Conv, [8, 4]", "a kernel of 4 cannot keep the size of a map at stride 1: take an odd kernel"),
        ("Conv, [8, 2, 1, 1]", "take an odd kernel"),
        ("DWConv, [8, 4]", "take an odd kernel"),
        ("Conv, [8, 3, 1, -1]", "padding must be at least 0"),
        ("Conv, [8, 3.0]", "kernel must be int"),
        ("Conv, [8, 3, {dense: True}]", "stride must be int"),
    ],
)
def test_what_changes_the_size_is_one_sentence(row, message):
    with pytest.raises(ModelFileError, match=f"own.yaml, row 2 .*{message}") as error:
        build(row)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scales", "written", "built"),
    [
        ("", 12, 16), ("", 64, 64), ("scales: {n: [1, 1.0, 1024]}", 100, 104), ("scales: {n: [1, 0.25, 1024]}", 100, 32),
        ("scales: {n: [1, 1.0, 48]}", 100, 48), ("scales: {n: [1, 1.0, 6]}", 8, 8), ("scales: {n: [1, 0.33, 64]}", 100, 24),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layer", ["Conv", "DWConv", "RepC3"])
def test_channels_are_rounded_up_to_multiples_of_8(layer, scales, written, built):
    model = build(f"{layer}, [{written}]", scales)
    assert model.row_infos[2].arguments[1] == built
    assert model.eval().row_maps(torch.rand(1, 3, 32, 32), 2)[0].shape[1] == built


@pytest.mark.parametrize(
    "decoder", ["nc, {dense: True}", "nc, 16, 5, {dense: True}", "nc, 16, 5, 1, 2, 1, 16, 0, {dense: True}"]
)
def test_options_stand_behind_any_number_of_arguments(decoder):
    model = build(decoder=decoder).train()
    assert model.rows[-1].dense_head is not None
    assert any(".dense_head." in name for name in model.state_dict())
    target = Target(torch.tensor([[0.5, 0.5, 0.3, 0.3]]), torch.tensor([1]))
    assert model(torch.rand(1, 3, 32, 32), [target]).training.dense is not None
    model.rows[-1].dense_head.forward = None  # neither evaluation nor training without targets runs it
    model.eval()(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ("nc, {dense: True}, 16", "hidden width must be int"),
        ("{dense: True}", "it has 0 arguments"),
        ("nc, {dense: 1}", "dense must be bool"),
        ("nc, {dens: True}", "no option 'dens'"),
    ],
)
def test_wrong_options_are_one_sentence(decoder, message):
    with pytest.raises(ModelFileError, match=message):
        build(decoder=decoder)


SMALLEST = """
nc: 1
backbone:
  - [-1, 1, convnextv2_atto, []]
head:
  - [4, 1, AIFI, [64, 4]]
  - [-1, 1, RepC3, [32]]
  - [{maps}, 1, {decoder}, [nc, 32, 20, 2, 4, 2, 64, {{dense: True}}]]
"""


@pytest.mark.parametrize("decoder", ["RTDETRDecoder", "DFINEDecoder"])
@pytest.mark.parametrize("maps", ["6", "[4, 6]", "[3, 6]"])
@pytest.mark.parametrize("counts", [[1], [0], [30], [3, 0]])
def test_maps_of_one_cell_train(decoder, maps, counts):
    """32 pixels: the coarsest map is a single cell, with batch 1 a single value for each BatchNorm."""
    model = build_model(parse_model_text(SMALLEST.format(maps=maps, decoder=decoder), "smallest.yaml")).train()
    targets = [Target(0.2 + 0.3 * torch.rand(n, 4), torch.zeros(n, dtype=torch.int64)) for n in counts]
    losses = Criterion(1, HungarianMatcher())(model(torch.rand(len(counts), 3, 32, 32), targets), targets)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
