"""Matcher and criterion against those of transformers, on the same random predictions and targets."""

from __future__ import annotations

import pytest
import torch
from transformers import Deimv2Config, RTDetrConfig
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss, RTDetrHungarianMatcher
from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.structures import DenoisingPlan
from tests.losses.samples import random_boxes, random_output, random_targets, supervised

LAYERS = 3
CASES = [
    # targets of each image, classes, queries, denoising queries asked for
    pytest.param([3, 0, 7], 5, 30, 20, id="an image without a box"),
    pytest.param([0, 0], 5, 30, 20, id="no box at all"),
    pytest.param([4, 1], 1, 30, 100, id="one class"),
    pytest.param([2, 6], 1000, 20, 10, id="1000 classes"),
    pytest.param([25, 3], 80, 10, 6, id="more boxes than queries"),
    pytest.param([350, 2], 3, 300, 0, id="350 boxes for 300 queries"),
    pytest.param([10, 10, 10, 10], 80, 300, 100, id="a usual batch"),
]


def _config(classes: int) -> RTDetrConfig:
    config = RTDetrConfig(num_labels=classes)
    assert (config.matcher_class_cost, config.matcher_bbox_cost, config.matcher_giou_cost) == (2, 5, 2)
    assert (config.matcher_alpha, config.matcher_gamma) == (0.25, 2)
    assert (config.weight_loss_vfl, config.weight_loss_bbox, config.weight_loss_giou) == (1, 5, 2)
    assert (config.focal_loss_alpha, config.focal_loss_gamma) == (0.75, 2)
    return config


def _labels(targets):
    return [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]


def _denoising_meta(targets, classes, queries, asked):
    embedding = torch.nn.Embedding(classes + 1, 4, padding_idx=classes)
    return get_contrastive_denoising_training_group(_labels(targets), classes, queries, embedding, asked)[3]


def _case(counts, classes, queries, asked):
    """Our output, its targets, and transformers' description of the denoising queries (None without any)."""
    targets = random_targets(counts, classes)
    meta = _denoising_meta(targets, classes, queries, asked)
    groups = 0 if meta is None else meta["dn_num_group"]
    output = random_output(counts, classes, layers=LAYERS, queries=queries, groups=groups)
    if meta is not None:
        assert output.training.denoising.logits.shape[2] == meta["dn_num_split"][0]
        # The positives as transformers numbers them; ours must mean the same.
        output.training.denoising.plan = DenoisingPlan(
            groups,
            torch.arange(len(counts)).repeat_interleave(torch.tensor(counts) * groups),
            torch.cat(meta["dn_positive_idx"]),
            torch.cat([torch.arange(count).repeat(groups) for count in counts]),
        )
    return output, targets, meta


def _theirs(output, targets, meta, classes):
    training = output.training
    logits, boxes = training.layer_logits, training.layer_boxes
    if meta is not None:
        logits = torch.cat((training.denoising.logits, logits), 2)
        boxes = torch.cat((training.denoising.boxes, boxes), 2)
    total, terms, _ = RTDetrForObjectDetectionLoss(
        logits[-1],
        _labels(targets),
        torch.device("cpu"),
        boxes[-1],
        _config(classes),
        outputs_class=logits.transpose(0, 1),  # [B, L, Q, C]
        outputs_coord=boxes.transpose(0, 1),
        enc_topk_logits=training.encoder_logits,
        enc_topk_bboxes=training.encoder_boxes,
        denoising_meta_values=meta,
    )
    return total, terms


@pytest.mark.parametrize(("counts", "classes", "queries", "asked"), CASES)
def test_every_term_and_gradient(counts, classes, queries, asked):
    output, targets, meta = _case(counts, classes, queries, asked)
    leaves = supervised(output)
    their_total, theirs = _theirs(output, targets, meta, classes)
    their_gradients = torch.autograd.grad(their_total, leaves)

    criterion = Criterion(classes, HungarianMatcher())
    parts = criterion.per_layer(output, targets)
    for mine, their in (("vfl", "loss_vfl"), ("l1", "loss_bbox"), ("giou", "loss_giou")):
        expected = [theirs[f"{their}_aux_{layer}"] for layer in range(LAYERS - 1)] + [theirs[their]]
        torch.testing.assert_close(parts.layers[mine], torch.stack(expected), atol=1e-4, rtol=1e-5)
        encoder = theirs[f"{their}_aux_{LAYERS - 1}"][None]
        torch.testing.assert_close(parts.encoder[mine], encoder, atol=1e-4, rtol=1e-5)
        expected = [theirs[f"{their}_dn_{layer}"].item() for layer in range(LAYERS)] if meta else []
        torch.testing.assert_close(parts.denoising[mine], torch.tensor(expected), atol=1e-4, rtol=1e-5)

    total = sum(criterion(output, targets).values())
    torch.testing.assert_close(total, their_total, atol=1e-4, rtol=1e-5)
    for mine, their in zip(torch.autograd.grad(total, leaves), their_gradients, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("counts", "classes", "queries", "asked"), CASES)
def test_matchability_aware_loss(counts, classes, queries, asked):
    """DEIM's, of the last layer, value and gradient."""
    output, targets, _ = _case(counts, classes, queries, asked)
    config = Deimv2Config(num_labels=classes, focal_loss_gamma=1.5)  # the paper's; transformers' default is 2
    reference = Deimv2Loss(config)
    assert (reference.mal_alpha, reference.gamma, config.weight_loss_mal) == (None, 1.5, 1.0)
    last = {"logits": output.training.layer_logits[-1], "pred_boxes": output.training.layer_boxes[-1]}
    labels = _labels(targets)
    indices = RTDetrHungarianMatcher(_config(classes))(last, labels)
    expected = reference.loss_labels_mal(last, labels, indices, max(sum(counts), 1))["loss_mal"]

    criterion = Criterion(classes, HungarianMatcher(), class_loss="matchability")
    value = criterion(output, targets)["loss_mal"]
    torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-5)
    leaf = output.training.layer_logits
    (mine,), (their,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("counts", "classes", "queries", "asked"), CASES)
def test_same_assignment(counts, classes, queries, asked):
    targets = random_targets(counts, classes)
    logits, boxes = torch.randn(2, len(counts), queries, classes), random_boxes(2, len(counts), queries)
    matches = HungarianMatcher().match(logits, boxes, targets)
    reference = RTDetrHungarianMatcher(_config(classes))
    for layer in range(2):
        expected = reference({"logits": logits[layer], "pred_boxes": boxes[layer]}, _labels(targets))
        for image, (query_index, target_index) in enumerate(expected):
            mine = (matches.layer_index == layer) & (matches.batch_index == image)
            assert matches.query_index[mine].tolist() == query_index.tolist()
            assert matches.target_index[mine].tolist() == target_index.tolist()
