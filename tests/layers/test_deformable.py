"""Deformable attention against a plain loop, against grid_sample, and against numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch

from nextdetr.errors import ConfigError
from nextdetr.layers import deformable
from nextdetr.layers.deformable import MSDeformableAttention, sample_levels_grid, sample_levels_rows
from nextdetr.layers.mlp import MLP

SHAPES = ((6, 9), (3, 5), (2, 2))
CELLS = sum(height * width for height, width in SHAPES)


def _inputs(batch=2, queries=5, heads=3, dim=4, points=2, dtype=torch.float64):
    value = torch.randn(batch, CELLS, heads, dim, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2, dtype=dtype) * 1.6 - 0.3  # a third lie outside
    weights = torch.randn(batch, queries, heads, len(SHAPES) * points, dtype=dtype).softmax(-1)
    return value, locations, weights.view(locations.shape[:-1])


def _by_loop(value, locations, weights):
    """Equation 3 of Deformable DETR, one read at a time."""
    batch, queries, heads, levels, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for b, q, h, level, p in torch.cartesian_prod(
        *[torch.arange(n) for n in (batch, queries, heads, levels, points)]
    ).tolist():
        height, width = SHAPES[level]
        start = sum(a * c for a, c in SHAPES[:level])
        x, y = (locations[b, q, h, level, p] * torch.tensor([width, height])).sub(0.5).tolist()
        for column in (math.floor(x), math.floor(x) + 1):
            for row in (math.floor(y), math.floor(y) + 1):
                if 0 <= column < width and 0 <= row < height:
                    part = (1 - abs(x - column)) * (1 - abs(y - row))
                    out[b, q, h] += weights[b, q, h, level, p] * part * value[b, start + row * width + column, h]
    return out.flatten(2)


@pytest.mark.parametrize("sample", [sample_levels_rows, sample_levels_grid])
def test_equals_the_equation(sample):
    value, locations, weights = _inputs()
    torch.testing.assert_close(sample(value, SHAPES, locations, weights), _by_loop(value, locations, weights))


@pytest.mark.parametrize("project", [True, False])
def test_values_with_channels_first_are_the_same(project):
    layer = MSDeformableAttention(12, len(SHAPES), 3, 2, project=project).double()
    for parameter in layer.parameters():  # biases and weights start as zeros
        torch.nn.init.normal_(parameter)
    query, boxes, value = (torch.rand(2, rows, width).double() for rows, width in ((5, 12), (5, 4), (CELLS, 12)))
    expected = layer(query, boxes, value, SHAPES)
    layer.channels_first = True
    torch.testing.assert_close(layer(query, boxes, value, SHAPES), expected)


@pytest.mark.parametrize("mkl", [True, False])
def test_rows_and_grid_agree_with_their_gradients(monkeypatch, mkl):
    if not mkl:  # the other way to the mixing weights' gradient
        monkeypatch.setattr(torch._C, "has_mkl", False)
    inputs = _inputs(batch=3, queries=40, heads=4, dim=8, points=4)
    grad = torch.randn(3, 40, 32, dtype=torch.float64)
    results = []
    for sample in (sample_levels_rows, sample_levels_grid):
        value, locations, weights = (t.clone().requires_grad_() for t in inputs)
        out = sample(value, SHAPES, locations, weights)
        out.backward(grad)
        results.append((out, value.grad, locations.grad, weights.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("sample", [sample_levels_rows, sample_levels_grid])
def test_points_that_differ_from_map_to_map(sample):
    """Leaving points of a map out is the same as giving them no weight; so are the gradients."""
    points, most = (3, 4, 1), 4
    value, locations, weights = _inputs(points=most)
    kept = torch.tensor([p < points[level] for level in range(3) for p in range(most)])
    weights = weights * kept.view(3, most)
    results = []
    for few in (True, False):
        v, p, w = (t.clone().requires_grad_() for t in (value, locations, weights))
        if few:
            out = sample(v, SHAPES, p.flatten(3, 4)[..., kept, :], w.flatten(3)[..., kept], points)
        else:
            out = sample(v, SHAPES, p, w)
        out.square().sum().backward()
        results.append((out, v.grad, p.grad.flatten(3, 4)[..., kept, :], w.grad.flatten(3)[..., kept]))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(results[0][0], _by_loop(value, locations, weights))


def test_points_per_level_of_the_module():
    module = MSDeformableAttention(16, 3, 4, [3, 6, 3])
    assert module.sampling_offsets.out_features == 4 * 12 * 2
    assert module.attention_weights.out_features == 4 * 12
    assert set(module.state_dict()) == set(MSDeformableAttention(16, 3, 4, 4).state_dict())
    grid = module.sampling_offsets.bias.detach().view(4, 12, 2)
    torch.testing.assert_close(grid[0, :, 0], torch.tensor([1.0, 2, 3, 1, 2, 3, 4, 5, 6, 1, 2, 3]))


@pytest.mark.parametrize("points", [0, [3, 6], [3, 0, 3], [1, 2, 3, 4], [1.5, 2, 3], [True, 1, 1]])
def test_points_that_make_no_sense(points):
    with pytest.raises(ConfigError, match="a list of 3 of them"):
        MSDeformableAttention(16, 3, 4, points)


def test_numerical_gradient_of_rows():
    value, locations, weights = _inputs(batch=1, queries=2, heads=2, dim=2)
    inputs = tuple(t.requires_grad_() for t in (value, locations, weights))
    assert torch.autograd.gradcheck(lambda v, p, w: sample_levels_rows(v, SHAPES, p, w), inputs)


@pytest.mark.parametrize("needs", ["value", "locations", "weights"])
def test_gradient_for_one_input_only(needs):
    tensors = dict(zip(("value", "locations", "weights"), _inputs(), strict=True))
    tensors[needs].requires_grad_()
    sample_levels_rows(tensors["value"], SHAPES, tensors["locations"], tensors["weights"]).sum().backward()
    assert tensors[needs].grad is not None
    assert tensors[needs].grad.abs().sum() > 0


def test_places_on_cell_centres_and_edges():
    value = torch.arange(CELLS, dtype=torch.float32).view(1, CELLS, 1, 1)
    first, size = 0, SHAPES[0]
    centres = torch.tensor([[0.5 / size[1], 0.5 / size[0]], [1.5 / size[1], 2.5 / size[0]], [0.0, 0.5 / size[0]]])
    locations = torch.full((1, 3, 1, 3, 1, 2), -9.0)
    locations[0, :, 0, first, 0] = centres
    read = sample_levels_rows(value + 1, SHAPES, locations, torch.ones(1, 3, 1, 3, 1))
    torch.testing.assert_close(read.flatten(), torch.tensor([1.0, 2 * 9 + 1 + 1.0, 0.5]))  # the last is half outside


def test_non_finite_places_do_not_crash():
    value, locations, weights = _inputs(dtype=torch.float32)
    locations[0, 0], locations[0, 1], locations[0, 2], locations[0, 3] = math.nan, math.inf, -math.inf, 1e30
    inputs = [t.requires_grad_() for t in (value, locations, weights)]
    out = sample_levels_rows(value, SHAPES, locations, weights)
    out.sum().backward()
    assert out[1].isfinite().all()
    assert inputs[0].grad[1].isfinite().all()


def test_module_keeps_float64_and_follows_autocast():
    module = MSDeformableAttention(16, 3, 4, 2)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.1)
    query, boxes, value = torch.randn(2, 7, 16), torch.rand(2, 7, 4), torch.randn(2, CELLS, 16)
    plain = module(query, boxes, value, SHAPES)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(query, boxes, value, SHAPES)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, atol=0.05, rtol=0.05)
    double = module.double()(query.double(), boxes.double(), value.double(), SHAPES)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), plain, atol=1e-5, rtol=1e-5)


def test_exported_form_equals_the_fast_one():
    module = MSDeformableAttention(16, 3, 4, 2).eval()
    arguments = (torch.randn(2, 7, 16), torch.rand(2, 7, 4), torch.randn(2, CELLS, 16), list(SHAPES))
    program = torch.export.export(module, arguments)
    assert "grid_sampler" in str(program.graph)
    torch.testing.assert_close(program.module()(*arguments), module(*arguments), atol=1e-5, rtol=1e-5)


def test_initial_offsets_point_around_the_box():
    module = MSDeformableAttention(16, 2, 4, 3)
    grid = module.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])  # four heads, four directions
    torch.testing.assert_close(grid[:, 1, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(grid[:, 0, 2], expected * 3, atol=1e-6, rtol=0)


def test_width_that_heads_do_not_divide():
    with pytest.raises(ConfigError, match="10 and 4"):
        MSDeformableAttention(10, 3, 4, 4)


def test_helpers_have_what_they_promise():
    assert deformable.at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    mlp = MLP(4, 8, 3, 3)
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(8, 4), (8, 8), (3, 8)]
    x = torch.randn(5, 4)
    by_hand = mlp.layers[2](mlp.layers[1](mlp.layers[0](x).clamp(min=0)).clamp(min=0))
    torch.testing.assert_close(mlp(x), by_hand)
