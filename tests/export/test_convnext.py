from __future__ import annotations

import pytest
import torch

from nextdetr.export.convnext import use_channels_first
from nextdetr.export.sampling import sample_canvas
from nextdetr.layers.deformable import sample_levels_grid
from nextdetr.models.convnextv2 import ConvNeXtV2
from nextdetr.models.detection import DetectionModel, RowInfo
from nextdetr.models.fuse import fuse
from nextdetr.models.graph import build_model


def stirred(**options):
    """A backbone as a model of one row, with random parameters, so that no folded value is 0 or 1."""
    backbone = ConvNeXtV2((1, 2), (16, 24), out_indices=(0, 1), **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            start = 1.0 if parameter.ndim == 1 else 0.0
            parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator))
    row = RowInfo("backbone", -1, 1, [], (-1,), (1, 2), tuple(backbone.strides))
    return DetectionModel([backbone], [row], num_classes=1, text="", normalize="imagenet").eval()


@pytest.mark.parametrize("options", [{}, {"expansion": 3}, {"grn": False, "layer_scale": 0.5}])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_it_is_the_backbone(options, scale):
    model = stirred(**options)
    images = scale * torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    folded = fuse(model)
    use_channels_first(folded)
    assert folded.normalize == "none"
    assert model.normalize == "imagenet"
    with torch.no_grad():
        for got, expected in zip(folded.row_maps(images, 0), model.row_maps(images, 0), strict=True):
            assert got.shape == expected.shape
            assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_other_backbones_stay():
    model = fuse(build_model("rtdetr-r18vd", num_classes=2))
    before = [type(module) for module in model.modules()]
    use_channels_first(model)
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("shapes", [((8, 10), (4, 5), (2, 3)), ((5, 4),), ((3, 3), (3, 3))])
@pytest.mark.parametrize("channels_first", [False, True])
def test_the_canvas_reads_what_the_maps_hold(shapes, channels_first):
    generator = torch.Generator().manual_seed(0)
    points = (3, 4, 2)[: len(shapes)]
    value = torch.randn(2, sum(h * w for h, w in shapes), 2, 4, generator=generator)
    if channels_first:
        value = value.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    locations = torch.rand(2, 50, 2, sum(points), 2, generator=generator) * 3 - 1  # a map's width around the map as well
    locations[0, 0] = torch.tensor([0.0, 1.0])
    locations[0, 1] = torch.tensor([1e20, -1e20])
    weights = torch.rand(2, 50, 2, sum(points), generator=generator)
    got = sample_canvas(value, shapes, locations, weights, points)
    expected = sample_levels_grid(value, shapes, locations.clamp(-1, 2), weights, points)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
