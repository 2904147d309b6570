"""The decoder against transformers' RTDetrForObjectDetection: same random weights, same feature maps, same noise."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import DFineConfig, RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig, RTDetrV2Config
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.d_fine.modeling_d_fine import DFineMultiscaleDeformableAttention
from transformers.models.rt_detr.modeling_rt_detr import (
    RTDetrMultiscaleDeformableAttention,
    get_contrastive_denoising_training_group,
)
from transformers.models.rt_detr_v2.modeling_rt_detr_v2 import RTDetrV2MultiscaleDeformableAttention

from nextdetr.layers.deformable import MSDeformableAttention
from nextdetr.models.decoder import RTDETRDecoder
from nextdetr.models.denoising import contrastive_denoising, denoising_mask
from nextdetr.structures import Target

CLASSES, HIDDEN, QUERIES, LAYERS = 5, 64, 30, 3
CHANNELS = [16, 24, 32]
SIZES = ((12, 12), (6, 6), (3, 3))
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


def _config():
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )
    return RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=HIDDEN, decoder_in_channels=CHANNELS, decoder_ffn_dim=96, num_queries=QUERIES,
        decoder_layers=LAYERS, decoder_attention_heads=4, decoder_n_points=4, num_denoising=20, num_labels=CLASSES,
    )  # fmt: skip


RENAMES = (
    (r"^model\.decoder_input_proj\.(\d)\.0\.", r"input_proj.\1.conv."),
    (r"^model\.decoder_input_proj\.(\d)\.1\.", r"input_proj.\1.bn."),
    (r"^model\.decoder\.query_pos_head\.", "query_pos_head."),
    (r"^model\.decoder\.class_embed\.", "dec_score_head."),
    (r"^model\.decoder\.bbox_embed\.", "dec_bbox_head."),
    (r"^model\.decoder\.layers\.", "decoder.layers."),
    (r"^model\.(enc_|denoising_class_embed)", r"\1"),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.mlp\.fc(\d)\.", r".linear\1."),
    (r"\.o_proj\.", ".out_proj."),
)


def _our_state(model):
    """transformers' names and shapes to ours."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(("model.backbone.", "model.encoder.", "model.encoder_input_proj.")):
            continue
        for pattern, replacement in RENAMES:
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
    reference = RTDetrForObjectDetection(_config())
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() > 1:
                tensor.normal_(std=1.5 * tensor[0].numel() ** -0.5)
            else:
                tensor.add_(torch.randn_like(tensor) * 0.2)
        reference.model.denoising_class_embed.weight[CLASSES] = 0  # the padding row, which transformers fills by mistake
    ours = RTDETRDecoder(CLASSES, CHANNELS, HIDDEN, QUERIES, 4, 4, LAYERS, 96, nd=20, eps=1e-5, momentum=0.1)
    ours.load_state_dict(_our_state(reference))
    return reference, ours


def _features(batch=2, sizes=SIZES):
    return [torch.randn(batch, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


def _run_reference(reference, features, targets=None):
    labels = None if targets is None else [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]
    return reference.model(None, inputs_embeds=features[0], encoder_outputs=BaseModelOutput(list(features)), labels=labels)


def _align(ours, theirs, distinct=True):
    """For every query of ours the same one of theirs, [B, Q]; near-ties in the ranking may order them differently."""
    order = torch.cdist(ours, theirs).argmin(-1)
    assert not distinct or all(len(set(row)) == len(row) for row in order.tolist())
    return order


def _pick(tensor, order):
    return torch.stack([tensor[b, ..., order[b], :] for b in range(len(order))])


@pytest.mark.parametrize("sizes", [SIZES, ((56, 2), (4, 4), (2, 2))])  # the second has 4 invalid anchors, all alike
def test_every_layer_in_evaluation(pair, sizes):
    reference, ours = (model.eval() for model in pair)
    features = _features(sizes=sizes)
    with torch.no_grad():
        expected = _run_reference(reference, features)
        for layer in range(LAYERS):
            ours.eval_layer = layer
            output = ours(features)
            order = _align(
                torch.cat((output.logits, output.boxes), -1),
                torch.cat((expected.intermediate_logits[:, layer], expected.intermediate_reference_points[:, layer]), -1),
                distinct=sizes == SIZES,
            )
            torch.testing.assert_close(output.logits, _pick(expected.intermediate_logits[:, layer], order), **TOLERANCE)
            boxes = _pick(expected.intermediate_reference_points[:, layer], order)
            torch.testing.assert_close(output.boxes, boxes, **TOLERANCE)
    assert ours.eval_layer == LAYERS - 1
    assert expected.intermediate_logits.std() > 0.1  # the comparison is of something


def _targets(counts):
    return [Target(torch.rand(n, 4) * 0.3 + 0.2, torch.randint(CLASSES, (n,))) for n in counts]


@pytest.mark.parametrize("counts", [(3, 5), (0, 2), (30, 1), (0, 0)])
def test_training_with_denoising(pair, counts):
    """All outputs under the same noise, and the gradients of every parameter that both chains reach alike."""
    reference, ours = (model.train() for model in pair)
    features, targets = _features(), _targets(counts)
    torch.manual_seed(3)
    expected = _run_reference(reference, features, targets)
    torch.manual_seed(3)
    training = ours(features, targets).training

    extra = 0 if training.denoising is None else training.denoising.logits.shape[2]
    assert extra == expected.intermediate_logits.shape[2] - QUERIES
    order = _align(training.encoder_logits.detach(), expected.enc_topk_logits.detach())
    theirs = {
        "encoder_logits": _pick(expected.enc_topk_logits, order),
        "encoder_boxes": _pick(expected.enc_topk_bboxes, order),
        "layer_logits": _pick(expected.intermediate_logits[:, :, extra:], order).transpose(0, 1),
        "layer_boxes": _pick(expected.intermediate_reference_points[:, :, extra:], order).transpose(0, 1),
    }
    for name, tensor in theirs.items():
        torch.testing.assert_close(getattr(training, name), tensor, **TOLERANCE)
    pairs = [(getattr(training, name), tensor) for name, tensor in theirs.items() if name != "layer_boxes"]
    pairs.append((training.layer_boxes[0], theirs["layer_boxes"][0]))  # later ones differ: "look forward twice"
    if training.denoising is not None:
        noisy_boxes = expected.intermediate_reference_points[:, :, :extra].transpose(0, 1)
        pairs.append((training.denoising.logits, expected.intermediate_logits[:, :, :extra].transpose(0, 1)))
        pairs.append((training.denoising.boxes[0], noisy_boxes[0]))
        torch.testing.assert_close(training.denoising.boxes, noisy_boxes, **TOLERANCE)
        torch.testing.assert_close(*pairs[-2], **TOLERANCE)
        positives = expected.denoising_meta_values["dn_positive_idx"]
        assert expected.denoising_meta_values["dn_num_group"] == training.denoising.plan.groups
        for image, indices in enumerate(positives):
            mine = training.denoising.plan.batch_index == image
            assert torch.equal(training.denoising.plan.query_index[mine], indices)
            repeated = torch.arange(counts[image]).repeat(training.denoising.plan.groups)
            assert torch.equal(training.denoising.plan.target_index[mine], repeated)
    _compare_gradients(reference, ours, pairs)


def _compare_gradients(reference, ours, pairs):
    reference.zero_grad(), ours.zero_grad()
    factors = [torch.randn_like(tensor) / tensor.numel() ** 0.5 for _, tensor in pairs]
    sum((a * f).sum() for (a, _), f in zip(pairs, factors, strict=True)).backward()
    sum((b * f).sum() for (_, b), f in zip(pairs, factors, strict=True)).backward()
    with torch.no_grad():
        for parameter in reference.parameters():  # so that the renaming below carries gradients
            parameter.backup, parameter.data = (
                parameter.data,
                parameter.grad if parameter.grad is not None else parameter * 0,
            )
    try:
        gradients = {name: tensor.clone() for name, tensor in _our_state(reference).items()}
    finally:
        for parameter in reference.parameters():
            parameter.data = parameter.backup
    for name, parameter in ours.named_parameters():
        scale = max(gradients[name].abs().max().item(), 1e-3)
        torch.testing.assert_close(
            parameter.grad / scale, gradients[name] / scale, atol=2e-3, rtol=0, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("counts", [(3, 5), (0, 2, 7), (1,), (150, 20)])
def test_denoising_queries_and_mask(counts):
    targets = _targets(counts)
    embedding = torch.nn.Embedding(CLASSES + 1, 8, padding_idx=CLASSES)
    torch.manual_seed(9)
    content, box_logits, mask, meta = get_contrastive_denoising_training_group(
        [{"class_labels": t.labels, "boxes": t.boxes} for t in targets], CLASSES, QUERIES, embedding
    )
    torch.manual_seed(9)
    made = contrastive_denoising(targets, CLASSES, embedding)
    torch.testing.assert_close(made.content, content)
    torch.testing.assert_close(made.box_logits, box_logits, atol=1e-5, rtol=1e-5)
    assert made.plan.groups == meta["dn_num_group"]
    assert torch.equal(made.plan.query_index, torch.cat(meta["dn_positive_idx"]))
    assert torch.equal(denoising_mask(content.shape[1], made.group_size, QUERIES), mask == 0)


def _v2_attention():
    config = RTDetrV2Config(d_model=HIDDEN, decoder_attention_heads=4, decoder_n_levels=3, decoder_n_points=5)
    return RTDetrV2MultiscaleDeformableAttention(config), MSDeformableAttention(HIDDEN, 3, 4, 5)


def _d_fine_attention():
    config = DFineConfig(d_model=HIDDEN, decoder_attention_heads=4, decoder_n_points=[3, 6, 1])
    return DFineMultiscaleDeformableAttention(config), MSDeformableAttention(HIDDEN, 3, 4, [3, 6, 1], project=False)


def _attention():
    theirs = RTDetrMultiscaleDeformableAttention(_config(), num_heads=4, n_points=4)
    return theirs, MSDeformableAttention(HIDDEN, 3, 4, 4)


@pytest.mark.parametrize("make", [_attention, _v2_attention, _d_fine_attention])
def test_deformable_attention(make):
    theirs, ours = make()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours.load_state_dict({name: tensor for name, tensor in theirs.state_dict().items() if "scale" not in name})
    sizes = torch.tensor(SIZES)
    results = []
    inputs = [torch.randn(2, 11, HIDDEN), torch.rand(2, 11, 4), torch.randn(2, int(sizes.prod(1).sum()), HIDDEN)]
    for which in ("theirs", "ours"):
        query, boxes, value = (t.clone().requires_grad_() for t in inputs)
        if which == "ours":
            out = ours(query, boxes, value, SIZES)
        else:
            out, _ = theirs(
                query,
                encoder_hidden_states=value,
                reference_points=boxes.unsqueeze(2),
                spatial_shapes=sizes,
                spatial_shapes_list=list(SIZES),
                level_start_index=None,
            )
        out.square().sum().backward()
        results.append((out.detach(), query.grad, boxes.grad, value.grad))
    for reference, mine in zip(*results, strict=True):
        scale = reference.abs().max()
        torch.testing.assert_close(mine / scale, reference / scale, atol=1e-5, rtol=0)
