"""One rule decides when a fast path may run, and every fast path follows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import nextdetr
from nextdetr.layers import deformable, depthwise, norm, response, sparse, winograd
from nextdetr.layers.fast import may_run
from nextdetr.layers.winograd import Conv3x3
from nextdetr.models.convnextv2 import Block


def test_the_rule():
    x, layer = torch.ones(2), nn.Linear(2, 2)
    assert may_run(x, layer)
    assert not may_run(x.double())
    assert may_run(x.double(), any_precision=True)
    assert not may_run(x.to("meta"), any_device=True, any_precision=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert not may_run(x)
        assert may_run(x, any_precision=True)
    handle = layer.register_forward_hook(lambda *_: None)
    assert not may_run(x, layer, any_device=True, any_precision=True)
    handle.remove()
    with layer.register_forward_pre_hook(lambda *_: None):
        assert not may_run(x, layer)
    assert may_run(x, layer)
    answers = []

    def asked(value):
        answers.append(may_run(value, any_device=True, any_precision=True))
        return value + 1

    torch.jit.trace(asked, x, check_trace=False)
    assert torch.equal(torch.compile(lambda value: value + int(may_run(value)), backend="eager")(x), x)
    assert answers
    assert not any(answers)


@pytest.fixture
def calls(monkeypatch):
    """Which fast paths ran."""
    seen = set()

    def watch(owner, name, path):
        inner = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **keywords: seen.add(path) or inner(*args, **keywords))

    watch(depthwise._DepthwiseFunction, "apply", "depthwise")
    watch(norm._GRNFunction, "apply", "GRN")
    watch(response._GRNLinearFunction, "apply", "GRN and linear")
    watch(response, "_image_by_rows", "rows")
    watch(winograd, "to_points", "Winograd")
    watch(sparse._SparseDepthwiseFunction, "apply", "sparse depthwise")
    watch(deformable, "sample_levels_rows", "deformable")
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 4)
    monkeypatch.setattr(winograd, "LEAST_PIXELS", 16)
    return seen


class _Everything(nn.Module):
    """All that has a fast path, on one map [B, 8, H, W]."""

    def __init__(self):
        super().__init__()
        self.block, self.conv, self.grn = Block(8), Conv3x3(8, 8), norm.GRN(8)

    def forward(self, x):
        y = self.conv(self.block(x))
        y = self.grn(y.permute(0, 2, 3, 1))
        batch, height, width, _ = y.shape
        places = torch.full((batch, 3, 2, 1, 2, 2), 0.4, dtype=y.dtype)
        weights = torch.full((batch, 3, 2, 1, 2), 0.5, dtype=y.dtype)
        return deformable.sample_levels(y.reshape(batch, -1, 2, 4), ((height, width),), places, weights)


def test_every_path_runs_where_it_may_and_gives_way_where_it_may_not(calls):
    model, x = _Everything(), torch.randn(2, 8, 12, 12, requires_grad=True)
    model(x).sum().backward()
    assert calls == {"depthwise", "GRN", "GRN and linear", "Winograd", "deformable"}
    calls.clear()
    with torch.no_grad():
        model.eval()(x)
    assert calls == {"rows", "Winograd", "deformable"}
    calls.clear()
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        model(x).sum().backward()
    assert calls <= {"GRN", "deformable"}  # these two are for any precision
    calls.clear()
    torch.export.export(model.eval(), (torch.randn(2, 8, 12, 12),), strict=False)
    torch.jit.trace(model, torch.randn(2, 8, 12, 12), check_trace=False)
    assert not calls


def test_nothing_else_asks_what_the_rule_asks():
    source = Path(nextdetr.__file__).parent
    words = ("is_compiling", "_get_tracing_state", "is_autocast_enabled", "_forward_pre_hooks")
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if any(word in path.read_text("utf-8") for word in words)
    }
    assert found == {"layers/fast.py"}
