"""AIFI, and the whole detector's neck, against transformers on the same random weights, float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import ConvNextV2Config, RTDetrConfig, RTDetrForObjectDetection

from nextdetr.models.graph import build_model
from nextdetr.weights.layouts.convnext_transformers import from_transformers


@pytest.fixture(scope="module")
def pair():
    """Our reference model and transformers' one, with the same random weights and the same BatchNorm epsilon."""
    torch.manual_seed(3)
    backbone = ConvNextV2Config(
        depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[80, 160, 320], num_labels=5, freeze_backbone_batch_norms=False,
        batch_norm_eps=1e-3,
    )  # fmt: skip
    theirs = RTDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and (tensor.ndim == 1 or "grn" in name):
                tensor.add_(0.1 * torch.randn_like(tensor))
            if name.endswith("sampling_offsets.weight"):
                tensor.add_(0.02 * torch.randn_like(tensor))
    ours = build_model("rtdetr-l-convnextv2-atto", num_classes=5).eval()
    for module in theirs.modules():  # transformers puts a LayerNorm on every map that its backbone returns
        if hasattr(module, "hidden_states_norms"):
            for key in module.hidden_states_norms:
                module.hidden_states_norms[key] = nn.Identity()
    _copy(theirs, ours)
    return theirs, ours


def _pairs(theirs, ours):
    """(their module, our module) for every Conv of the neck."""
    encoder = theirs.model.encoder
    rows = ours.rows
    yield from zip(theirs.model.encoder_input_proj, (rows[10], rows[5], rows[1]), strict=True)
    yield from ((encoder.lateral_convs[0], rows[3]), (encoder.lateral_convs[1], rows[8]))
    yield from ((encoder.downsample_convs[0], rows[13]), (encoder.downsample_convs[1], rows[16]))
    blocks = (*encoder.fpn_blocks, *encoder.pan_blocks)
    for block, row in zip(blocks, (rows[7], rows[12], rows[15], rows[18]), strict=True):
        yield from ((block.conv1, row.cv1), (block.conv2, row.cv2))
        for theirs_rep, ours_rep in zip(block.bottlenecks, row.m, strict=True):
            yield from ((theirs_rep.conv1, ours_rep.conv1), (theirs_rep.conv2, ours_rep.conv2))


def _copy(theirs, ours):
    state = {
        name: tensor for name, tensor in theirs.model.backbone.state_dict().items() if "hidden_states_norms" not in name
    }
    state = {name.split("model.", 1)[-1]: tensor for name, tensor in state.items()}
    ours.backbone.load_state_dict(from_transformers(state))
    for source, target in _pairs(theirs, ours):
        conv, norm = (source[0], source[1]) if isinstance(source, nn.Sequential) else (source.conv, source.norm)
        target.conv.load_state_dict(conv.state_dict())
        target.bn.load_state_dict(norm.state_dict())
    _copy_aifi(theirs.model.encoder, ours.rows[2])


def _copy_aifi(encoder, aifi):
    state = {
        name.split("layers.0.", 1)[1]: t
        for name, t in encoder.state_dict().items()
        if "layers.0." in name and "aifi" in name
    }
    state = state or {n.split("layers.0.", 1)[1]: t for n, t in encoder.encoder[0].state_dict().items()}
    attention = {
        "in_proj_weight": torch.cat([state[f"self_attn.{k}_proj.weight"] for k in "qkv"]),
        "in_proj_bias": torch.cat([state[f"self_attn.{k}_proj.bias"] for k in "qkv"]),
        "out_proj.weight": next(
            t for n, t in state.items() if n in ("self_attn.out_proj.weight", "self_attn.o_proj.weight")
        ),
        "out_proj.bias": next(t for n, t in state.items() if n in ("self_attn.out_proj.bias", "self_attn.o_proj.bias")),
    }
    aifi.ma.load_state_dict(attention)
    for ours_name, theirs_names in (
        ("norm1", ("self_attn_layer_norm",)), ("norm2", ("final_layer_norm",)),
        ("fc1", ("fc1", "mlp.fc1")), ("fc2", ("fc2", "mlp.fc2")),
    ):  # fmt: skip
        for name in theirs_names:
            part = {k.removeprefix(name + "."): t for k, t in state.items() if k.startswith(name + ".")}
            if part:
                getattr(aifi, ours_name).load_state_dict(part)
                break
        else:
            raise AssertionError(f"{ours_name} not found among {sorted(state)}")


@torch.no_grad()
@pytest.mark.parametrize("size", [160, 224])
def test_backbone_and_encoder_equal_transformers(pair, size):
    theirs, ours = pair
    images = torch.rand(2, 3, size, size)
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        ours.rows[row].register_forward_hook(lambda _, __, output, row=row: seen.__setitem__(row, output))
        for row in (12, 15, 18)
    ]
    expected: list[torch.Tensor] = []
    hook = theirs.model.encoder.register_forward_hook(lambda _, __, output: expected.extend(output.last_hidden_state))
    theirs.model(images)
    ours(images)
    for handle in (*hooks, hook):
        handle.remove()
    assert len(expected) == 3
    for row, reference in zip((12, 15, 18), expected, strict=True):
        torch.testing.assert_close(seen[row], reference, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(128, 160), (160, 224)])
def test_aifi_equals_transformers_encoder_layer(pair, size):
    """One layer alone, its position code included, on what transformers' own encoder feeds it."""
    theirs, ours = pair
    layer = next(module for module in theirs.model.encoder.modules() if type(module).__name__ == "RTDetrEncoderLayer")
    seen: list[torch.Tensor] = []

    def keep(_, inputs, named, output):
        seen.extend((inputs[0] if inputs else named["hidden_states"], output[0] if isinstance(output, tuple) else output))

    hook = layer.register_forward_hook(keep, with_kwargs=True)
    theirs.model(torch.rand(2, 3, *size))
    hook.remove()
    tokens, expected = seen  # [B, H·W, C] each
    cells = tokens.transpose(1, 2).reshape(2, 256, size[0] // 32, size[1] // 32)
    torch.testing.assert_close(ours.rows[2](cells).flatten(2).transpose(1, 2), expected, rtol=1e-5, atol=1e-5)
