"""The replacements of GridSample and TopK give the same results; needs no runtime."""

from __future__ import annotations

import pytest
import torch

from nextdetr.config import ExportConfig, build_config
from nextdetr.errors import ConfigError
from nextdetr.export.portable import gather_levels, largest_by_halving, largest_by_maxima, make_portable
from nextdetr.layers.deformable import sample_levels_grid
from nextdetr.models.graph import build_model
from nextdetr.postprocess import postprocess
from nextdetr.tensors import as_outputs
from tests.export.helpers import assert_same_detections
from tests.models.test_fuse import stir


@pytest.mark.parametrize("points", [(4, 4, 4), (3, 6, 3), None])
def test_gathered_reads_equal_grid_sample(points):
    shapes = ((9, 13), (5, 7), (3, 3))
    value = torch.randn(2, sum(height * width for height, width in shapes), 4, 6)
    locations = torch.rand(2, 11, 4, 12, 2) * 1.6 - 0.3  # outside the maps too
    weights = torch.rand(2, 11, 4, 12).softmax(-1)
    numbers = (4, 4, 4) if points is None else points
    expected = sample_levels_grid(value, shapes, locations, weights, numbers)
    assert torch.allclose(gather_levels(value, shapes, locations, weights, points), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 300, 2100])
def test_halving_finds_the_largest(count):
    scores = torch.randn(3, 2100) * torch.tensor([[1.0], [1e-3], [50.0]])
    found = largest_by_halving(scores, count)
    assert (found.diff(dim=1) > 0).all()
    assert torch.equal(found, scores.topk(count, dim=1).indices.sort(dim=1).values)


def test_halving_counts_beyond_what_halves_can():
    scores = torch.randn(1, 8400).half()
    found = largest_by_halving(scores, 300)
    best = scores.float().topk(300, dim=1).values
    assert torch.equal(scores.float().gather(1, found).sort(dim=1, descending=True).values, best)
    assert int(found.max()) < 8400


def test_halving_takes_the_first_of_equal_ones():
    scores = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, -3.0, 2.0], [5.0] * 7])
    assert largest_by_halving(scores, 4).tolist() == [[1, 2, 3, 6], [0, 1, 2, 3]]
    assert largest_by_halving(scores, 7).tolist() == [list(range(7))] * 2


def test_maxima_with_and_without_ties():
    values = torch.rand(2, 5, 4, 33).softmax(-1)
    assert torch.equal(largest_by_maxima(values, 4), values.topk(4, dim=-1).values)
    equal = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    assert torch.equal(largest_by_maxima(equal, 4), equal.topk(4, dim=-1).values)


@pytest.mark.parametrize("name", ["nextdetr-atto", "rtdetr-l-convnextv2-atto"])
def test_a_portable_model_detects_the_same(name):
    model = stir(build_model(name, num_classes=3)).eval()
    images, sizes = torch.rand(1, 3, 96, 160), [(90, 150)]
    with torch.inference_mode():
        expected = postprocess(as_outputs(model(images)), sizes)
        make_portable(model)
        assert_same_detections(expected, postprocess(as_outputs(model(images)), sizes))


def test_a_portable_export_has_a_fixed_size():
    with pytest.raises(ConfigError, match="leave --dynamic out"):
        build_config(ExportConfig, {"portable": True, "dynamic": True})
