from __future__ import annotations

import copy

import pytest
import torch

from nextdetr.errors import ConfigError
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.models.summary import count_gflop, summarize
from tests.helpers import TINY_MODEL


@pytest.fixture
def tiny():
    return build_model(parse_model_text(TINY_MODEL, "tiny.yaml"))


@pytest.mark.parametrize(("size", "gflop"), [(640, 71.1), (320, 21.35)])
def test_gflop_of_the_reference(size, gflop):
    assert count_gflop(build_model("rtdetr-l-convnextv2-atto", num_classes=1), size) == pytest.approx(gflop, rel=0.005)


@pytest.mark.parametrize(
    ("size", "gflop"), [("atto", 71.45), ("femto", 75.34), ("pico", 85.11), ("nano", 102.90), ("tiny", 135.89)]
)
def test_gflop_with_80_classes(size, gflop):
    """REFERENCE, section 1; on the meta device, which has shapes and no numbers."""
    with torch.device("meta"):
        model = build_model(f"rtdetr-l-convnextv2-{size}")
    assert count_gflop(model, 640) == pytest.approx(gflop, rel=0.005)


def test_totals_are_the_sums_of_the_rows(tiny):
    summary = summarize(tiny, 64)
    assert [row.index for row in summary.rows] == [0, 1, 2, 3]
    assert sum(row.parameters for row in summary.rows) == summary.parameters
    assert summary.parameters == summary.trainable_parameters == sum(p.numel() for p in tiny.parameters())
    assert summary.image_size == 64


def test_frozen_parameters_are_counted_apart(tiny):
    tiny.backbone.requires_grad_(requires_grad=False)
    summary = summarize(tiny, 64)
    assert summary.rows[0].parameters == 3_386_760
    assert summary.parameters - summary.trainable_parameters == 3_386_760


def test_json_has_the_interfaces_names(tiny):
    result = summarize(tiny, 64).to_json()
    assert set(result) == {"rows", "parameters", "trainable_parameters", "gflop", "image_size"}
    assert result["rows"][1] == {
        "index": 1, "from": -1, "repeats": 1, "parameters": 320 * 32 + 64, "module": "Conv", "arguments": [320, 32, 1, 1],
    }  # fmt: skip


def test_counting_has_no_side_effect(tiny):
    tiny.train()
    tiny.backbone.eval()  # as with a frozen backbone: no single mode for the whole model
    modes = [module.training for module in tiny.modules()]
    state = copy.deepcopy(tiny.state_dict())
    random = torch.get_rng_state()
    summarize(tiny, 64)
    assert [module.training for module in tiny.modules()] == modes
    assert all(p.grad is None for p in tiny.parameters())
    torch.testing.assert_close(tiny.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_modes_come_back_after_a_failure(tiny):
    tiny.train()
    with pytest.raises(ConfigError, match="multiple of 32"):
        count_gflop(tiny, 2)
    assert all(module.training for module in tiny.modules())


def test_a_summarized_model_still_trains(tiny):
    """What the counting forward keeps (positions, anchors) must be usable by a training step of the same size."""
    summarize(tiny, 64)
    tiny.train()(torch.rand(2, 3, 64, 64)).logits.sum().backward()
    assert tiny.backbone.downsample_layers[0][0].weight.grad is not None
