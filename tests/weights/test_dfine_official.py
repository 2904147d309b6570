"""Checkpoints of D-FINE's and DEIMv2's authors, made here with their exact names and shapes: every tensor has its place.

The names are those of Peterande/D-FINE and Intellindust-AI-Lab/DEIMv2 (Apache-2.0); neither package is needed.
"""

from __future__ import annotations

import pytest
import torch

from nextdetr.models.graph import build_model
from nextdetr.weights.layouts.detectors import detector_kind, detector_to_ours, shipped_model_for
from tests.weights.test_detectors import CLASSES, _complete, _State

#: Stages of HGNetV2: channels in, inside and out, blocks, whether light, kernel, layers.
B0 = (
    (16, 16, 64, 1, False, 3, 3), (64, 32, 256, 1, False, 3, 3), (256, 64, 512, 2, True, 5, 3),
    (512, 128, 1024, 1, True, 5, 3),
)  # fmt: skip
ATTO = (*B0[:2], (256, 64, 256, 1, True, 3, 3))


def _hgnet(state, stages):
    def conv(name, a, b, kernel, *, groups=1, act=True):
        state.add(f"{name}.conv.weight", b, a // groups, kernel, kernel)
        state.batch_norm(f"{name}.bn", b)
        if act:  # a learnable affine block after each activation
            state.add(f"{name}.lab.scale", 1)
            state.add(f"{name}.lab.bias", 1)

    stem = (("stem1", 3, 16, 3), ("stem2a", 16, 8, 2), ("stem2b", 8, 16, 2), ("stem3", 32, 16, 3), ("stem4", 16, 16, 1))
    for part, a, b, kernel in stem:
        conv(f"backbone.stem.{part}", a, b, kernel)
    for i, (inputs, inside, outputs, blocks, light, kernel, layers) in enumerate(stages):
        if i:
            conv(f"backbone.stages.{i}.downsample", inputs, inputs, 3, groups=inputs, act=False)
        for j in range(blocks):
            block, width = f"backbone.stages.{i}.blocks.{j}", outputs if j else inputs
            for k in range(layers):
                layer, before = f"{block}.layers.{k}", inside if k else width
                if light:
                    conv(f"{layer}.conv1", before, inside, 1, act=False)
                    conv(f"{layer}.conv2", inside, inside, kernel, groups=inside)
                else:
                    conv(layer, before, inside, kernel)
            conv(f"{block}.aggregation.0", width + layers * inside, outputs // 2, 1)
            conv(f"{block}.aggregation.1", outputs // 2, outputs, 1)


def _elan(state, name, inputs, hidden, inside, count, doubled):
    state.conv(f"{name}.cv1", inputs, 2 * hidden)
    for part, width in (("cv2", hidden), ("cv3", inside)):
        if doubled:  # DEIMv2's: one convolution for both ways
            state.conv(f"{name}.{part}.0.conv1", width, 2 * inside)
        else:
            state.conv(f"{name}.{part}.0.conv1", width, inside)
            state.conv(f"{name}.{part}.0.conv2", width, inside)
        for j in range(count):
            state.conv(f"{name}.{part}.0.bottlenecks.{j}.conv1", inside, inside, 3)
            state.conv(f"{name}.{part}.0.bottlenecks.{j}.conv2", inside, inside)
        state.conv(f"{name}.{part}.1", inside, inside, 3)
    state.conv(f"{name}.cv4", 2 * hidden + 2 * inside, hidden)


def _hybrid(state, channels, hidden, ffn, inside, count, doubled):
    for i, width in enumerate(channels):
        state.conv(f"encoder.input_proj.{i}", width, hidden)
    state.encoder_layer("encoder.encoder.0.layers.0", hidden, ffn)
    joined = hidden if doubled else 2 * hidden  # DEIMv2 adds maps
    for i in range(len(channels) - 1):
        state.conv(f"encoder.lateral_convs.{i}", hidden, hidden)
        state.conv(f"encoder.downsample_convs.{i}.0.cv1", hidden, hidden)
        state.add(f"encoder.downsample_convs.{i}.0.cv2.conv.weight", hidden, 1, 3, 3)
        state.batch_norm(f"encoder.downsample_convs.{i}.0.cv2.norm", hidden)
        for part in ("fpn_blocks", "pan_blocks"):
            _elan(state, f"encoder.{part}.{i}", joined, hidden, inside, count, doubled)


def _lite(state, inputs, hidden, inside, count):
    state.conv("encoder.input_proj.0", inputs, hidden)
    for k in (1, 2):
        state.add(f"encoder.down_sample{k}.1.weight", hidden, hidden, 1, 1)
        state.batch_norm(f"encoder.down_sample{k}.2", hidden)
    state.conv("encoder.bi_fusion.cv", hidden, hidden)
    for part in ("fpn_block", "pan_block"):
        _elan(state, f"encoder.{part}", hidden, hidden, inside, count, True)


def _decoder(state, hidden, ffn, points, *, second, gate=True, share=False):
    def norm(name):
        if second:
            state.add(f"{name}.scale", hidden)
        else:
            state.norm(name, hidden)

    for i in range(3):
        layer = f"decoder.decoder.layers.{i}"
        state.attention(f"{layer}.self_attn", hidden)
        state.linear(f"{layer}.cross_attn.sampling_offsets", hidden, 2 * 8 * sum(points))
        state.linear(f"{layer}.cross_attn.attention_weights", hidden, 8 * sum(points))
        state.add(f"{layer}.cross_attn.num_points_scale", sum(points))
        if gate:
            state.linear(f"{layer}.gateway.gate", 2 * hidden, 2 * hidden)
        for name in ("norm1", "gateway.norm" if gate else "norm2", "norm3"):
            norm(f"{layer}.{name}")
        first, last, width = ("swish_ffn.w12", "swish_ffn.w3", ffn // 2) if second else ("linear1", "linear2", ffn)
        state.linear(f"{layer}.{first}", hidden, 2 * width if second else width)
        state.linear(f"{layer}.{last}", width, hidden)
        state.mlp(f"decoder.decoder.lqe_layers.{i}.reg_conf", 20, 64, 1, 2)
        state.linear(f"decoder.dec_score_head.{i}", hidden, CLASSES)
        if not share or i == 0:  # safetensors keep one of several names
            state.mlp(f"decoder.dec_bbox_head.{i}", hidden, hidden, 4 * 33, 3)
    for place in ("decoder.", "decoder.decoder."):
        state[f"{place}up"], state[f"{place}reg_scale"] = torch.tensor([0.5]), torch.tensor([4.0])
    if not second:
        state.linear("decoder.enc_output.proj", hidden, hidden)
        state.norm("decoder.enc_output.norm", hidden)
    state.linear("decoder.enc_score_head", hidden, CLASSES)
    for head in ("enc_bbox_head", "pre_bbox_head"):
        state.mlp(f"decoder.{head}", hidden, hidden, 4, 3)
    state.mlp("decoder.query_pos_head", 4, hidden if second else 2 * hidden, hidden, 3 if second else 2)
    state.add("decoder.denoising_class_embed.weight", CLASSES + 1, hidden)
    state.add("decoder.anchors", 1, 500, 4)
    state.add("decoder.valid_mask", 1, 500, 1)


def official(name, device="meta"):
    """A state dict of the authors' code."""
    state = _State(device)
    if name == "deimv2-atto":
        _hgnet(state, ATTO)
        _lite(state, 256, 64, 10, 2)
        _decoder(state, 64, 160, (4, 2), second=True, gate=False, share=True)
        return state
    second = name == "deimv2-n"
    channels, hidden, ffn, inside, count, points = (512, 1024), 128, 512, 21, 2, (6, 6)
    if name == "dfine-s":
        channels, hidden, ffn, inside, count, points = (256, 512, 1024), 256, 1024, 64, 1, (3, 6, 3)
    _hgnet(state, B0)
    _hybrid(state, channels, hidden, ffn, inside, count, second)
    _decoder(state, hidden, ffn, points, second=second)
    return state


@pytest.mark.parametrize("name", ["dfine-n", "dfine-s", "deimv2-atto", "deimv2-n"])
def test_every_tensor_has_its_place(name):
    state = official(name)
    kind = detector_kind(state)
    assert kind == f"{name.partition('-')[0]}-official"
    assert shipped_model_for(kind, state) == name
    with torch.device("meta"):
        model = build_model(name, num_classes=CLASSES)
    _complete(detector_to_ours(kind, state, model), model)


@pytest.mark.parametrize("name", ["dfine-n", "deimv2-atto"])
def test_no_two_tensors_share_a_place(name):
    state = official(name, "cpu")
    mapped = detector_to_ours(detector_kind(state), state, build_model(name, num_classes=CLASSES))
    shared = ".dec_bbox_head." if name == "deimv2-atto" else "none"
    values = [float(t.flatten()[0]) for key, t in mapped.items() if "num_batches" not in key and shared not in key]
    halves = len(values) - len(set(values))  # of a doubled convolution and its BatchNorm, which are two here
    assert halves == (2 * 2 * 5 if name == "deimv2-atto" else 0)
    heads = [key for key in mapped if shared in key]
    assert len(heads) in (0, 3 * 6)
