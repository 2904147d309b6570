"""D-FINE's decoder and its arithmetic against transformers' DFineForObjectDetection."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config
from transformers.loss.loss_d_fine import bbox2distance, weighting_function
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.d_fine.modeling_d_fine import distance2bbox

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.models.edges import (
    boxes_to_offsets,
    expected_offsets,
    offsets_of_bins,
    offsets_to_boxes,
    split_over_bins,
)
from tests.losses.samples import random_boxes, random_targets
from tests.reference.test_decoder_parity import RENAMES, SIZES, _align, _pick

CLASSES, HIDDEN, QUERIES, LAYERS, BINS = 5, 32, 30, 3, 16
CHANNELS = [24, 24, 24]
OWN = (
    (r"^model\.decoder\.pre_bbox_head\.", "pre_bbox_head."),
    (r"^model\.decoder\.lqe_layers\.", "lqe."),
    (r"\.mlp\.layers\.0\.", ".linear1."),
    (r"\.mlp\.layers\.1\.", ".linear2."),
)


def _config(**settings):
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 8, 8], stage_mid_channels=[8] * 4,
        stage_out_channels=[8] * 4, stage_num_blocks=[1] * 4, stage_numb_of_layers=[1] * 4, hidden_sizes=[8] * 4,
        embedding_size=8, depths=[1] * 4, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return DFineConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=HIDDEN, hidden_size=HIDDEN, decoder_in_channels=CHANNELS, decoder_ffn_dim=48,
        num_queries=QUERIES, decoder_layers=LAYERS, decoder_attention_heads=4, decoder_n_points=[3, 4, 2],
        num_denoising=20, num_labels=CLASSES, max_num_bins=BINS, **settings,
    )  # fmt: skip


def _our_state(model):
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(("model.backbone.", "model.encoder.", "model.encoder_input_proj.", "class_embed", "bbox_embed")):
            continue
        if name.endswith(("reg_scale", ".up", "num_points_scale")):
            continue
        for pattern, replacement in (*OWN, *RENAMES):
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    for i in range(LAYERS):
        prefix = f"decoder.layers.{i}.self_attn."
        for kind in ("weight", "bias"):
            state[f"{prefix}in_proj_{kind}"] = torch.cat([state.pop(f"{prefix}{p}_proj.{kind}") for p in "qkv"])
    state["denoising_class_embed.weight"] = state["denoising_class_embed.weight"][:CLASSES]
    return state


@pytest.fixture(scope="module")
def pair():
    """transformers' model and our decoder with the same random weights, none of them zero."""
    torch.manual_seed(1)
    reference = DFineForObjectDetection(_config())
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            if not tensor.is_floating_point() or name.endswith(("reg_scale", ".up", "num_points_scale")):
                continue
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() > 1:
                tensor.normal_(std=1.2 * tensor[0].numel() ** -0.5)
            else:
                tensor.add_(torch.randn_like(tensor) * 0.2)
        reference.model.denoising_class_embed.weight[CLASSES] = 0
    ours = DFINEDecoder(CLASSES, CHANNELS, HIDDEN, QUERIES, [3, 4, 2], 4, LAYERS, 48, bins=BINS, nd=20, eps=1e-5)
    ours.load_state_dict(_our_state(reference))
    return reference, ours


def _features(batch=2):
    return [torch.randn(batch, c, *size) for c, size in zip(CHANNELS, SIZES, strict=True)]


def _run_reference(reference, features, targets=None):
    labels = None if targets is None else [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]
    return reference.model(None, inputs_embeds=features[0], encoder_outputs=BaseModelOutput(list(features)), labels=labels)


def test_evaluation(pair):
    reference, ours = (model.eval() for model in pair)
    features = _features()
    with torch.no_grad():
        expected, output = _run_reference(reference, features), ours(features)
    logits, boxes = expected.intermediate_logits[:, -1], expected.intermediate_reference_points[:, -1].clamp(0, 1)
    order = _align(torch.cat((output.logits, output.boxes), -1), torch.cat((logits, boxes), -1))
    torch.testing.assert_close(output.logits, _pick(logits, order), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.boxes, _pick(boxes, order), atol=1e-4, rtol=0)
    assert logits.std() > 0.1


@pytest.mark.parametrize("counts", [(3, 5), (0, 2), (0, 0)])
def test_training_outputs_of_every_layer(pair, counts):
    reference, ours = (model.train() for model in pair)
    features, targets = _features(), random_targets(counts, CLASSES)
    torch.manual_seed(3)
    expected = _run_reference(reference, features, targets)
    torch.manual_seed(3)
    training = ours(features, targets).training
    extra = 0 if training.denoising is None else training.denoising.logits.shape[2]
    order = _align(training.encoder_logits.detach(), expected.enc_topk_logits.detach())
    # transformers puts the first layer's plain boxes before the layers' own.
    logits, boxes = expected.intermediate_logits, expected.intermediate_reference_points.clamp(0, 1)
    bins = expected.intermediate_predicted_corners  # [B, L, T, 4 (N+1)]
    anchors = expected.initial_reference_points[:, 0]
    wanted = {
        "logits": (logits[:, 1:].transpose(0, 1), training.layer_logits, "logits"),
        "boxes": (boxes[:, 1:].transpose(0, 1), training.layer_boxes, "boxes"),
        "bins": (bins.transpose(0, 1), training.edges.bins.flatten(3), "bins"),
        "anchors": (anchors, training.edges.anchors, "anchors"),
        "first logits": (logits[:, 0], training.edges.first_logits, "first_logits"),
        "first boxes": (boxes[:, 0], training.edges.first_boxes, "first_boxes"),
    }
    for name, (theirs, mine, field) in wanted.items():
        by_image = theirs[..., extra:, :] if theirs.dim() == 3 else theirs[..., extra:, :].transpose(0, 1)
        picked = _pick(by_image, order)
        picked = picked if theirs.dim() == 3 else picked.transpose(0, 1)
        torch.testing.assert_close(mine, picked, atol=2e-4, rtol=1e-4, msg=lambda m, n=name: n + m)
        if training.denoising is not None:
            noisy = training.denoising if field in ("logits", "boxes") else training.denoising.edges
            got = getattr(noisy, field)
            got = got.flatten(3) if field == "bins" else got
            torch.testing.assert_close(got, theirs[..., :extra, :], atol=2e-4, rtol=1e-4)
    assert not training.edges.anchors.requires_grad
    assert training.edges.first_boxes.requires_grad


@pytest.mark.parametrize(("bins", "scale"), [(32, 4.0), (16, 8.0), (4, 2.5)])
def test_offsets_of_bins(bins, scale):
    expected = weighting_function(bins, torch.tensor([0.5]), scale)
    torch.testing.assert_close(offsets_of_bins(bins, scale), expected, atol=1e-5, rtol=1e-5)


def test_boxes_and_offsets():
    anchors, offsets = random_boxes(50), torch.randn(50, 4)
    boxes = offsets_to_boxes(anchors, offsets, 4.0)
    torch.testing.assert_close(boxes, distance2bbox(anchors, offsets, 4.0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(boxes_to_offsets(anchors, boxes, 4.0), offsets, atol=1e-4, rtol=1e-4)


def test_targets_in_bins():
    weights = offsets_of_bins(BINS, 4.0)
    anchors, boxes = random_boxes(400), random_boxes(400)  # many are out of reach
    lower, upper_share = split_over_bins(boxes_to_offsets(anchors, boxes, 4.0), weights)
    theirs, right, left = bbox2distance(anchors, cxcywh_to_xyxy(boxes), BINS, 4.0, torch.tensor([0.5]))
    torch.testing.assert_close(lower.flatten(), theirs.long())
    torch.testing.assert_close(upper_share.flatten(), right, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(1 - upper_share.flatten(), left, atol=1e-4, rtol=1e-4)
    # The mean of the two bins is the value that was split.
    values = torch.rand(100) * 7.9 - 3.95
    lower, share = split_over_bins(values, weights)
    torch.testing.assert_close(weights[lower] * (1 - share) + weights[lower + 1] * share, values)
    logits = torch.full((100, BINS + 1), -100.0)
    logits.scatter_(1, lower[:, None], (1 - share).log()[:, None])
    logits.scatter_(1, lower[:, None] + 1, share.log()[:, None])
    torch.testing.assert_close(expected_offsets(logits, weights), values, atol=1e-4, rtol=1e-4)
