from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from nextdetr.layers.norm import GRN, BatchNorm2d, LayerNorm2d


def _random_grn(channels, dtype=torch.float32):
    grn = GRN(channels).to(dtype)
    torch.nn.init.normal_(grn.gamma)
    torch.nn.init.normal_(grn.beta)
    return grn


def _naive_grn(x, gamma, beta, eps=1e-6):
    """Algorithm 1 of the paper, one channel of one image at a time."""
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        norms = torch.stack([x[b, :, :, c].square().sum().sqrt() for c in range(x.shape[3])])
        for c in range(x.shape[3]):
            response = norms[c] / (norms.mean() + eps)
            out[b, :, :, c] = gamma[0, 0, 0, c] * x[b, :, :, c] * response + beta[0, 0, 0, c] + x[b, :, :, c]
    return out


def test_layer_norm_2d_normalises_the_channels_of_each_position():
    norm = LayerNorm2d(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5) * 4 + 2
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    expected = (x - mean) / (variance + 1e-6).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(norm(x), expected)
    assert norm(x).is_contiguous(memory_format=torch.channels_last)
    assert norm.eps == 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_grn_equals_the_paper(training):
    grn = _random_grn(7).train(training)
    x = torch.randn(3, 4, 5, 7)
    torch.testing.assert_close(grn(x), _naive_grn(x, grn.gamma, grn.beta))


def test_grn_starts_as_the_identity_and_norms_each_image_by_itself():
    x = torch.randn(2, 4, 4, 8)
    torch.testing.assert_close(GRN(8)(x), x)
    grn = _random_grn(8)
    torch.testing.assert_close(grn(x)[:1], grn(x[:1]))
    assert [tuple(p.shape) for p in grn.parameters()] == [(1, 1, 1, 8)] * 2


def test_grn_gradient_is_right():
    grn = _random_grn(5, torch.float64)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)

    def run(x, gamma, beta):
        return torch.func.functional_call(grn, {"gamma": gamma, "beta": beta}, (x,))

    assert gradcheck(run, (x, grn.gamma, grn.beta))


def test_grn_gradient_equals_autograd_on_a_map_with_a_dead_channel():
    grn = _random_grn(16)
    x = torch.randn(2, 6, 6, 16)
    x[0, :, :, 3] = 0
    x[1] = 0
    grads = []
    for training in (True, False):  # the second way is plain autograd
        grn.train(training).zero_grad()
        leaf = x.clone().requires_grad_()
        grn(leaf).square().sum().backward()
        grads.append([leaf.grad, grn.gamma.grad.clone(), grn.beta.grad.clone()])
    for ours, autograd in zip(*grads, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, autograd, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", ["x", "gamma", "beta"])
def test_grn_gives_no_gradient_to_what_is_frozen(frozen):
    grn = _random_grn(4)
    leaves = {"x": torch.randn(1, 2, 2, 4, requires_grad=True), "gamma": grn.gamma, "beta": grn.beta}
    leaves[frozen].requires_grad_(False)
    grn(leaves["x"]).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is None} == {frozen}


@pytest.mark.parametrize("training", [True, False])
def test_grn_does_not_overflow_float16(training):
    """A channel of 64 x 64 values of 60 has a sum of squares of 1.5e7, far over float16's 65,504."""
    grn = _random_grn(8).train(training)
    x = (torch.rand(2, 64, 64, 8) * 60).half()
    out = grn(x)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), grn(x.float()), rtol=5e-3, atol=5e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grn_gradient_of_a_half_precision_map_under_autocast(dtype):
    grn = _random_grn(8)
    x = torch.randn(2, 16, 16, 8)
    grads = []
    for cast in (dtype, torch.float32):
        grn.zero_grad()
        leaf = x.to(cast).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast != torch.float32):
            out = grn(leaf)
        assert out.dtype == cast
        (out.float() * 1000).sum().backward()  # the scale of a loss scaler
        grads.append((leaf.grad.float(), grn.gamma.grad.clone(), grn.beta.grad.clone()))
    for half, full in zip(*grads, strict=True):
        assert torch.isfinite(half).all()
        assert (half - full).abs().max() <= 0.02 * full.abs().max()


def test_batch_norm_of_a_single_value_uses_the_statistics_so_far():
    norm, torchs = BatchNorm2d(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(norm.train()(x), torchs.train()(x), rtol=0, atol=0)
    single = torch.randn(1, 3, 1, 1, requires_grad=True)
    out = norm(single)
    torch.testing.assert_close(out, torchs.eval()(single))
    out.sum().backward()
    assert single.grad.isfinite().all()
    assert norm.weight.grad is not None
    for name, value in torchs.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_takes_its_gradient_in_the_map_s_own_layout(memory_format, monkeypatch):
    """A gradient that is a slice of a longer one goes through torch's slow way otherwise."""
    maps, longer = torch.randn(2, 3, 4, 5), torch.randn(2, 30, 3)
    slices = longer[:, 5:25].transpose(1, 2).view(2, 3, 4, 5)
    norm, plain = BatchNorm2d(3), nn.BatchNorm2d(3)
    seen, results = [], []
    for layer in (norm, plain):
        leaf = maps.clone(memory_format=memory_format).requires_grad_()
        out = layer(leaf)
        if layer is norm:
            assert out.grad_fn is not None
            out.grad_fn.register_prehook(lambda gradients: seen.append(gradients[0]))
        out.backward(slices)
        results.append((leaf.grad, layer.weight.grad, layer.bias.grad))
    assert seen[0].is_contiguous(memory_format=memory_format)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
