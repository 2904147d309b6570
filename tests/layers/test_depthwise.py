from __future__ import annotations

import pytest
import torch
from torch import nn

import nextdetr.layers.depthwise as module
from nextdetr.layers.depthwise import DepthwiseConv2d


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("shape", "kernel"), [((3, 5, 9, 12), 7), ((1, 8, 2, 3), 7), ((5, 4, 7, 7), 3)])
@pytest.mark.parametrize("chunk", [1, 700, 2**18])
def test_gradients_equal_those_of_a_plain_convolution(shape, kernel, chunk, memory_format, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    ours = DepthwiseConv2d(shape[1], kernel)
    plain = nn.Conv2d(shape[1], shape[1], kernel, padding=kernel // 2, groups=shape[1])
    plain.load_state_dict(ours.state_dict())
    x, weight = torch.randn(shape).contiguous(memory_format=memory_format), torch.randn(shape)
    results = []
    for conv in (ours, plain):
        leaf = x.clone().requires_grad_()
        out = conv(leaf)
        (out * weight).sum().backward()
        results.append((out, leaf.grad, conv.weight.grad, conv.bias.grad))
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_fast_gradient_is_in_use_and_steps_aside(monkeypatch):
    conv = DepthwiseConv2d(4, 7)
    x = torch.randn(2, 4, 8, 8)
    assert "DepthwiseFunction" in type(conv(x).grad_fn).__name__
    assert "DepthwiseFunction" not in type(conv.eval()(x).grad_fn).__name__
    conv.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    assert "DepthwiseFunction" not in type(out.grad_fn).__name__
    torch.testing.assert_close(out.float(), conv(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("frozen", ["weight", "bias", "x"])
def test_what_is_frozen_gets_no_gradient(frozen):
    conv = DepthwiseConv2d(4, 7)
    leaves = {"weight": conv.weight, "bias": conv.bias, "x": torch.randn(2, 4, 8, 8, requires_grad=True)}
    leaves[frozen].requires_grad_(False)
    conv(leaves["x"]).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is None} == {frozen}
