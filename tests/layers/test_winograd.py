from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from nextdetr.layers import winograd
from nextdetr.layers.winograd import Conv3x3, direct_sums, winograd_conv
from nextdetr.models.graph import build_model
from nextdetr.models.summary import count_gflop


@pytest.mark.parametrize("shape", [(1, 5, 8, 8), (2, 3, 7, 13), (3, 4, 1, 2), (1, 2, 20, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_convolution_with_its_gradients(shape, dtype):
    tolerance = 1e-11 if dtype is torch.float64 else 2e-5
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(6, shape[1], 3, 3, dtype=dtype)
    bias = torch.randn(6, dtype=dtype)
    results = []
    for convolve in (lambda *values: functional.conv2d(*values, padding=1), winograd_conv):
        leaves = [value.clone().requires_grad_() for value in (x, weight, bias)]
        out = convolve(*leaves)
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for expected, got in zip(*results, strict=True):
        assert expected.shape == got.shape
        assert (expected - got).abs().max() <= tolerance * expected.abs().max()


def test_a_frozen_kernel_or_input_has_no_gradient():
    x, weight = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(3, 2, 3, 3)
    winograd_conv(x, weight).sum().backward()
    assert x.grad is not None
    x, weight = x.detach(), weight.requires_grad_()
    winograd_conv(x, weight).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.fixture
def wide(monkeypatch):
    """A convolution that is taken for wide, and whether it computed by tiles."""
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 4)
    monkeypatch.setattr(winograd, "LEAST_PIXELS", 16)
    calls = []
    monkeypatch.setattr(winograd, "to_points", lambda x, inner=winograd.to_points: calls.append(x.shape) or inner(x))
    return Conv3x3(4, 6), calls


def is_direct_sum(out, conv, x):
    expected = functional.conv2d(x, conv.weight, conv.bias, padding=1)
    return (out - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_a_wide_convolution_goes_by_tiles_and_follows_its_weights(wide):
    conv, calls = wide
    x = torch.randn(2, 4, 9, 9)
    for _ in range(2):
        with torch.no_grad():
            assert is_direct_sum(conv(x), conv, x)
            conv.weight.mul_(3)  # the kept kernel is of the earlier one
    conv.weight.data = torch.randn(6, 4, 3, 3)
    with torch.inference_mode():
        assert is_direct_sum(conv(x), conv, x)
    assert is_direct_sum(conv(x), conv, x)
    assert len(calls) == 4
    with torch.no_grad(), direct_sums():
        assert is_direct_sum(conv(x), conv, x)
    assert len(calls) == 4


def _rewrite(conv):
    conv.weight.data.mul_(-2)  # torch's count of changes does not see it


def _cast_and_back(conv):
    with torch.no_grad():
        conv.weight.mul_(3)
    conv.half().float()


def _cast_twice(conv):
    conv.double().float()
    conv.weight.data.copy_(torch.randn_like(conv.weight))
    conv.double().float()


@pytest.mark.parametrize("change", [_rewrite, _cast_and_back, _cast_twice])
def test_no_kernel_is_stale(wide, change):
    conv, calls = wide
    x = torch.randn(2, 4, 9, 9)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert is_direct_sum(conv(x), conv, x)
        change(conv)
        with context:
            assert is_direct_sum(conv(x), conv, x)
    assert len(calls) == 4


def test_a_kept_kernel_is_used_again_and_not_copied(wide, monkeypatch):
    conv, _ = wide
    made = []
    inner = winograd.winograd_kernel
    monkeypatch.setattr(winograd, "winograd_kernel", lambda weight: made.append(1) or inner(weight))
    x = torch.randn(1, 4, 9, 9)
    with torch.no_grad():
        conv(x)
        conv(x)
        assert len(made) == 1
        other = copy.deepcopy(conv)
        assert other._kept is None
        assert is_direct_sum(other(x), other, x)
    assert len(made) == 2


def test_a_second_gradient_is_refused():
    x, weight = torch.randn(1, 2, 6, 6, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(winograd_conv(x, weight).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_small_maps_other_precisions_and_graphs_have_the_direct_sum(wide):
    conv, calls = wide
    with torch.no_grad():
        conv(torch.randn(1, 4, 3, 5))
        with torch.autocast("cpu", torch.bfloat16):
            conv(torch.randn(1, 4, 9, 9))
    program = torch.export.export(conv, (torch.randn(1, 4, 9, 9),), strict=False)
    assert any("conv" in str(node.target) for node in program.graph.nodes)
    assert conv.double()(torch.randn(1, 4, 9, 9, dtype=torch.float64)).dtype == torch.float64
    assert not calls


def test_operations_are_counted_as_of_the_direct_sum():
    model = build_model("rtdetr-l-convnextv2-atto", num_classes=80)
    assert count_gflop(model, 640) == pytest.approx(71, abs=1)
