from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from nextdetr.layers import response
from nextdetr.layers.norm import GRN
from nextdetr.layers.response import grn_linear, grn_mlp
from nextdetr.models.convnextv2 import convnextv2
from nextdetr.models.fuse import ScaleGRN


def _pair(inside, outputs, dtype=torch.float32):
    grn, linear = GRN(inside).to(dtype), nn.Linear(inside, outputs, dtype=dtype)
    nn.init.normal_(grn.gamma)
    nn.init.normal_(grn.beta)
    return grn, linear


def _fused_calls(monkeypatch):
    calls = []
    apply = response._GRNLinearFunction.apply
    monkeypatch.setattr(response._GRNLinearFunction, "apply", lambda *values: calls.append(1) or apply(*values))
    return calls


@pytest.mark.parametrize("training", [True, False])
def test_equals_grn_and_linear_forward_and_backward(training, monkeypatch):
    grn, linear = _pair(12, 5)
    calls = _fused_calls(monkeypatch)
    x = torch.randn(3, 6, 7, 12)
    x[0, :, :, 2] = 0  # a dead channel
    x[2] = 0  # a dead image
    grads = []
    for run in (grn_linear, lambda x, grn, linear: linear(grn(x))):
        for module in (grn, linear):
            module.zero_grad()
        leaf = x.clone().requires_grad_()
        grn.train(training)
        out = run(leaf, grn, linear)
        out.square().sum().backward()
        grads.append([out.detach(), leaf.grad, *(p.grad.clone() for m in (grn, linear) for p in m.parameters())])
    assert len(calls) == int(training)
    for fused, plain in zip(*grads, strict=True):
        assert torch.isfinite(fused).all()
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(grn_linear(x, grn, linear), linear(grn(x)), rtol=1e-5, atol=1e-5)
    assert len(calls) == int(training) + 1


def test_gradient_is_right():
    grn, linear = _pair(4, 3, torch.float64)
    x = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True)
    values = (x, grn.gamma, grn.beta, linear.weight, linear.bias)
    assert gradcheck(lambda *v: response._GRNLinearFunction.apply(*v, 1e-6), values)


@pytest.mark.parametrize("frozen", range(5))
def test_gives_no_gradient_to_what_is_frozen(frozen):
    grn, linear = _pair(4, 2)
    values = [torch.randn(1, 3, 3, 4, requires_grad=True), grn.gamma, grn.beta, linear.weight, linear.bias]
    values[frozen].requires_grad_(False)
    grn_linear(values[0], grn, linear).sum().backward()
    assert [number for number, value in enumerate(values) if value.grad is None] == [frozen]


def test_what_looks_in_between_gets_to_see_the_map(monkeypatch):
    calls = _fused_calls(monkeypatch)
    grn, linear = _pair(4, 2)
    seen = []
    handle = grn.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    grn_linear(torch.randn(1, 3, 3, 4), grn, linear)
    handle.remove()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grn_linear(torch.randn(1, 3, 3, 4), grn, linear)
    grn_linear(torch.randn(1, 1, 3, 4), grn, linear)  # fewer positions than pay
    assert seen == [(1, 3, 3, 4)]
    assert not calls


@pytest.mark.parametrize("shape", [(1, 7, 5, 3), (3, 4, 6, 3), (2, 1, 9, 3)])
@pytest.mark.parametrize("at_once", [1, 150, 2**20])
@pytest.mark.parametrize("folded", [False, True])
def test_by_rows_equals_the_layers_one_after_the_other(shape, at_once, folded, monkeypatch):
    monkeypatch.setattr(response, "_AT_ONCE", at_once)
    grn, narrow = _pair(12, 3)
    widen, act = nn.Linear(3, 12), nn.GELU()
    if folded:
        grn = ScaleGRN(grn)
    grn.eval()
    x = torch.randn(shape)
    with torch.no_grad():
        expected = narrow(grn(act(widen(x))))
        called = []
        whole = response._image_by_rows
        monkeypatch.setattr(response, "_image_by_rows", lambda *values: called.append(1) or whole(*values))
        torch.testing.assert_close(grn_mlp(x, widen, act, grn, narrow), expected, rtol=1e-5, atol=1e-5)
        assert len(called) == shape[0]
    seen = []
    grn.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        grn_mlp(x, widen, act, grn, narrow)
    assert len(seen) == 1
    grn_mlp(x, widen, act, grn, narrow).sum().backward()  # with gradients, the layers as they are
    assert len(called) == shape[0]
    assert widen.weight.grad is not None


@pytest.mark.parametrize("at_once", [150, 2**20])
@pytest.mark.parametrize("residual", [False, True])
def test_by_rows_takes_norm_and_residual_along(at_once, residual, monkeypatch):
    monkeypatch.setattr(response, "_AT_ONCE", at_once)
    grn, narrow = _pair(12, 3)
    widen, act, norm = nn.Linear(3, 12), nn.GELU(), nn.LayerNorm(3)
    nn.init.normal_(norm.weight)
    grn.eval()
    x, added = torch.randn(2, 7, 5, 3), torch.randn(2, 3, 7, 5).permute(0, 2, 3, 1)
    expected = narrow(grn(act(widen(norm(x))))) + (added if residual else 0)
    for context in (torch.no_grad(), contextlib.nullcontext()):
        with context:
            got = grn_mlp(x, widen, act, grn, narrow, norm=norm, residual=added if residual else None)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_block_by_rows_equals_itself_with_gradients_and_leaves_its_input():
    block = convnextv2("atto").stages[1][0].eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 80, 11, 9).to(memory_format=torch.channels_last)
    kept = x.clone()
    expected = block(x).detach()
    with torch.inference_mode():
        got = block(x)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)
