"""The losses of D-FINE's distributions: formulas written out, transformers' DFineLoss, and the criterion around them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.nn import functional
from transformers import Deimv2Config, DFineConfig
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_deimv2 import Deimv2Loss

from nextdetr.boxes import cxcywh_to_xyxy, paired_iou_and_giou
from nextdetr.losses import processes as module
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.edges import TEMPERATURE, distillation_loss, fine_grained_loss, united
from nextdetr.losses.matcher import HungarianMatcher, Matches
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.structures import DenoisingPlan, DetectorOutput, Target, TrainingOutput
from tests.losses.samples import random_output, random_targets, supervised

BINS, CLASSES = 16, 4


def _criterion(**settings) -> Criterion:
    return Criterion(CLASSES, HungarianMatcher(), **settings)


def _pairs(output, targets) -> Matches:
    training = output.training
    return united(
        HungarianMatcher().match(training.layer_logits, training.layer_boxes, targets), 20, max(map(len, targets))
    )


def _wanted(pairs, targets):
    return torch.stack([targets[b].boxes[t] for b, t in zip(pairs.batch_index, pairs.target_index, strict=True)])


def _quality(boxes, pairs, wanted):
    return paired_iou_and_giou(cxcywh_to_xyxy(boxes[:, pairs.batch_index, pairs.query_index]), cxcywh_to_xyxy(wanted))[
        0
    ].detach()


@pytest.mark.parametrize("counts", [[3, 0, 5], [7], [25, 1], [20], [25, 22]])
def test_both_losses_against_transformers(counts):
    """Layer by layer and with gradient, on the same pairs."""
    targets = random_targets(counts, CLASSES)
    output = random_output(counts, CLASSES, groups=0, bins=BINS)
    training, edges = output.training, output.training.edges
    pairs = _pairs(output, targets)
    wanted = _wanted(pairs, targets)
    quality = _quality(training.layer_boxes, pairs, wanted)
    reference = DFineLoss(DFineConfig(num_labels=CLASSES, max_num_bins=BINS, reg_scale=4.0, up=0.5))
    indices = []
    for image in range(len(counts)):
        mine = pairs.batch_index == image
        indices.append((pairs.query_index[mine], pairs.target_index[mine]))
    labels = [{"boxes": t.boxes, "class_labels": t.labels} for t in targets]
    theirs = [
        reference.loss_local(
            {
                "pred_corners": edges.bins[layer].flatten(2), "ref_points": edges.anchors,
                "pred_boxes": training.layer_boxes[layer], "teacher_corners": edges.bins[-1].flatten(2),
                "teacher_logits": training.layer_logits[-1],
            }, labels, indices, 1.0,
        )
        for layer in range(3)
    ]  # fmt: skip
    fgl = fine_grained_loss(edges, pairs, wanted, quality).sum(1)
    torch.testing.assert_close(fgl, torch.stack([loss["loss_fgl"] for loss in theirs]), atol=1e-4, rtol=1e-5)

    some = torch.tensor(float(len(pairs)))
    sizes = (some, 20.0 * len(counts) - some)
    confidence = training.layer_logits[-1].sigmoid().amax(-1)
    ddf = distillation_loss(edges.bins[:-1], edges.bins[-1], pairs, confidence, quality[:-1], sizes)
    expected = torch.stack([loss["loss_ddf"] for loss in theirs[:-1]])
    torch.testing.assert_close(ddf, expected, atol=1e-4, rtol=1e-5)
    assert theirs[-1]["loss_ddf"] == 0

    # Apart from FGL's, whose gradient is far larger than that of the distillation.
    mine = torch.autograd.grad(ddf.sum(), edges.bins, retain_graph=True)[0]
    theirs_ddf = torch.autograd.grad(expected.sum(), edges.bins, retain_graph=True)[0]
    torch.testing.assert_close(mine, theirs_ddf, atol=1e-6, rtol=1e-3)
    mine = torch.autograd.grad(fgl.sum() + ddf.sum(), edges.bins)[0]
    total = sum(loss["loss_fgl"] for loss in theirs) + expected.sum()
    torch.testing.assert_close(mine, torch.autograd.grad(total, edges.bins)[0], atol=1e-5, rtol=1e-4)


def test_fine_grained_loss_by_hand():
    output, targets = random_output([2], CLASSES, layers=1, bins=BINS, groups=0), random_targets([2], CLASSES)
    edges, pairs = output.training.edges, Matches(*torch.tensor([[0, 0], [0, 0], [4, 7], [1, 0]]))
    loss = fine_grained_loss(edges, pairs, _wanted(pairs, targets), torch.tensor([[0.5, 0.9]]))
    for p, (query, target) in enumerate([(4, 1), (7, 0)]):
        x, y, w, h = edges.anchors[0, query].tolist()
        x1, y1, x2, y2 = cxcywh_to_xyxy(targets[0].boxes[target]).tolist()
        distances = [(x - x1) / (w / 4) - 2, (y - y1) / (h / 4) - 2, (x2 - x) / (w / 4) - 2, (y2 - y) / (h / 4) - 2]
        total = 0.0
        for edge, distance in enumerate(distances):
            bins = edges.offsets.tolist()
            distance = min(max(distance, bins[0]), bins[-1])
            n = max(i for i in range(BINS) if bins[i] <= distance)
            share = (distance - bins[n]) / (bins[n + 1] - bins[n])
            logs = edges.bins[0, 0, query, edge].log_softmax(-1)
            total = total - (1 - share) * logs[n] - share * logs[n + 1]
        torch.testing.assert_close(loss[0, p], total * (0.5, 0.9)[p], atol=1e-4, rtol=1e-4)


def test_distillation_by_hand():
    output = random_output([2, 1], CLASSES, layers=2, bins=BINS, groups=0, queries=6)
    edges, pairs = output.training.edges, Matches(*torch.tensor([[0, 0, 0], [0, 0, 1], [4, 2, 5], [1, 0, 0]]))
    quality, confidence = torch.rand(1, 3), torch.rand(2, 6)
    sizes = (torch.tensor(3.0), torch.tensor(9.0))
    value = distillation_loss(edges.bins[:1], edges.bins[1], pairs, confidence, quality, sizes)
    matched, rest = [], []
    places = {(b, q): w for b, q, w in zip([0, 0, 1], [4, 2, 5], quality[0].tolist(), strict=True)}
    for b in range(2):
        for q in range(6):
            for edge in range(4):
                teacher = (edges.bins[1, b, q, edge] / TEMPERATURE).softmax(-1)
                pupil = (edges.bins[0, b, q, edge] / TEMPERATURE).log_softmax(-1)
                divergence = functional.kl_div(pupil, teacher, reduction="sum") * TEMPERATURE**2
                group = matched if (b, q) in places else rest
                group.append(divergence * places.get((b, q), confidence[b, q].item()))
    roots = len(matched) ** 0.5, len(rest) ** 0.5
    means = torch.stack(matched).mean(), torch.stack(rest).mean()
    expected = (means[0] * roots[0] + means[1] * roots[1]) / sum(roots)
    torch.testing.assert_close(value[0], expected, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(value.sum(), edges.bins)
    assert gradient[1].abs().sum() == 0  # the teacher


@pytest.mark.parametrize("counts", [[3, 0, 5], [9, 9], [0, 0]])
def test_united_pairs(counts):
    targets = random_targets(counts, CLASSES)
    output = random_output(counts, CLASSES, layers=6, queries=12, groups=0)
    matches = HungarianMatcher().match(output.training.layer_logits, output.training.layer_boxes, targets)
    pairs = united(matches, 12, max(counts))
    got = list(zip(pairs.batch_index.tolist(), pairs.query_index.tolist(), pairs.target_index.tolist(), strict=True))
    columns = (matches.batch_index.tolist(), matches.query_index.tolist(), matches.target_index.tolist())
    votes = Counter(zip(*columns, strict=True))
    expected = {}
    for (image, query, target), number in sorted(votes.items(), key=lambda item: (-item[1], item[0])):
        expected.setdefault((image, query), (target, number))
    assert got == [(*place, target) for place, (target, _) in sorted(expected.items())]

    by_layer = []  # the authors' own, by way of transformers; it breaks ties at will
    for layer in range(6):
        masks = [(matches.layer_index == layer) & (matches.batch_index == image) for image in range(len(counts))]
        by_layer.append([(matches.query_index[mask], matches.target_index[mask]) for mask in masks])
    theirs = Deimv2Loss(Deimv2Config())._get_dense_o2o_indices(by_layer[0], by_layer[1:])
    for image, (queries, chosen) in enumerate(theirs):
        mine = {query: target for b, query, target in got if b == image}
        assert sorted(queries.tolist()) == sorted(mine)
        for query, target in zip(queries.tolist(), chosen.tolist(), strict=True):
            assert votes[image, query, target] == votes[image, query, mine[query]]


# --- joined in the criterion ---


@pytest.mark.parametrize(
    ("counts", "queries", "groups"),
    [([3, 0, 5], 20, 2), ([0, 0], 20, 0), ([0], 5, 0), ([12, 3], 8, 1), ([310], 300, 1), ([2, 2], 6, 0)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_finiteness_and_gradients(counts, queries, groups, dtype):
    output = random_output(counts, CLASSES, queries=queries, groups=groups, bins=BINS, dtype=dtype)
    losses = _criterion()(output, random_targets(counts, CLASSES))
    plain = ("vfl", "l1", "giou")
    assert tuple(losses) == (
        *(f"loss_{term}" for term in (*plain, "fgl")),
        *(f"loss_{term}_aux" for term in (*plain, "fgl", "ddf")),
        *(f"loss_{term}_encoder" for term in plain),
        *(f"loss_{term}_denoising" for term in (*plain, "fgl", "ddf")),
        *(f"loss_{term}_initial" for term in plain),
    )
    assert all(value.shape == () and value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert all(value > -1e-5 for value in losses.values())
    sum(losses.values()).backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in supervised(output))
    assert output.training.edges.bins.grad[-1].abs().sum() > 0 or not sum(counts)
    assert output.training.edges.bins.grad[0].abs().sum() > 0


def test_weights():
    counts, targets = [3, 2], random_targets([3, 2], CLASSES)
    output = random_output(counts, CLASSES, bins=BINS)
    usual = _criterion()(output, targets)
    without = _criterion(fine_grained_weight=0.0, distillation_weight=0.0)(output, targets)
    double = _criterion(fine_grained_weight=0.3, distillation_weight=3.0)(output, targets)
    for name, value in usual.items():
        new = "fgl" in name or "ddf" in name
        assert value > 0
        torch.testing.assert_close(double[name], value * (2 if new else 1))
        torch.testing.assert_close(without[name], value * (0 if new else 1))


def test_boxes_of_all_layers_train_the_united_pairs_and_classes_their_own():
    counts, targets = [3, 2], random_targets([3, 2], CLASSES)
    output = random_output(counts, CLASSES, bins=BINS, groups=0, queries=9)
    training, edges = output.training, output.training.edges
    logits = torch.cat((training.layer_logits, edges.first_logits[None], training.encoder_logits[None])).detach()
    boxes = torch.cat((training.layer_boxes, edges.first_boxes[None], training.encoder_boxes[None])).detach()
    pairs = united(HungarianMatcher().match(logits, boxes, targets), 9, 3)
    losses = _criterion()(output, targets)
    wanted = _wanted(pairs, targets)
    distance = (boxes[:, pairs.batch_index, pairs.query_index] - wanted).abs().sum((1, 2)) * 5 / len(pairs)
    torch.testing.assert_close(losses["loss_l1"], distance[2])
    torch.testing.assert_close(losses["loss_l1_aux"], distance[:2].sum())
    torch.testing.assert_close(losses["loss_l1_initial"], distance[3])
    torch.testing.assert_close(losses["loss_l1_encoder"], distance[4])
    fgl = fine_grained_loss(edges, pairs, wanted, _quality(training.layer_boxes, pairs, wanted)).sum(1) * 0.15 / len(pairs)
    torch.testing.assert_close(losses["loss_fgl"], fgl[2])

    same = random_output(counts, CLASSES, groups=0, queries=9)  # the classes' losses are those of any other decoder
    same.training = TrainingOutput(*(leaf for leaf in supervised(output)[:4]), None)
    for name in ("loss_vfl", "loss_vfl_aux", "loss_vfl_encoder"):
        torch.testing.assert_close(losses[name], _criterion()(same, targets)[name])


def _half(output: DetectorOutput, image: int) -> DetectorOutput:
    training, denoising, rows = output.training, output.training.denoising, slice(image, image + 1)

    def leaf(tensor, axis):
        return (tensor[rows] if axis == 0 else tensor[:, rows]).detach().requires_grad_()

    def edges(whole):
        return type(whole)(
            leaf(whole.bins, 1), whole.anchors[rows], whole.offsets, whole.scale,
            leaf(whole.first_logits, 0), leaf(whole.first_boxes, 0),
        )  # fmt: skip

    chosen = denoising.plan.batch_index == image
    query, target = denoising.plan.query_index[chosen], denoising.plan.target_index[chosen]
    plan = DenoisingPlan(denoising.plan.groups, torch.zeros_like(query), query, target)
    noisy = type(denoising)(leaf(denoising.logits, 1), leaf(denoising.boxes, 1), plan, edges(denoising.edges))
    half = TrainingOutput(
        leaf(training.layer_logits, 1), leaf(training.layer_boxes, 1), leaf(training.encoder_logits, 0),
        leaf(training.encoder_boxes, 0), noisy, edges(training.edges),
    )  # fmt: skip
    return DetectorOutput(half.layer_logits[-1], half.layer_boxes[-1], half)


def _gradients(output: DetectorOutput, targets: list[Target]) -> list[torch.Tensor]:
    sum(_criterion()(output, targets).values()).backward()
    return [leaf.grad for leaf in supervised(output)]


@pytest.mark.parametrize("counts", [[3, 1], [4, 0]])
def test_two_processes_equal_one_with_the_whole_batch(counts, monkeypatch):
    output, targets = random_output(counts, CLASSES, bins=BINS), random_targets(counts, CLASSES)
    whole = _gradients(output, targets)
    sent = []
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(module.dist, "all_reduce", lambda total: sent.append(total.clone()))
    for rank in range(2):  # what each would send
        _criterion()(_half(output, rank), [targets[rank]])
    monkeypatch.setattr(module.dist, "all_reduce", lambda total: total.copy_(sent[0] + sent[1]))
    halves = [_gradients(_half(output, rank), [targets[rank]]) for rank in range(2)]
    for index, gradient in enumerate(whole):
        axis = 0 if index in (2, 3, 7, 8, 10, 11) else 1
        joined = torch.cat([half[index] for half in halves], axis) / 2
        torch.testing.assert_close(joined, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("index", [6, 7, 8, 9, 10, 11])
def test_a_single_non_finite_value_reaches_the_loss(index):
    output = random_output([2, 1], CLASSES, bins=BINS)
    with torch.no_grad():
        supervised(output)[index].view(-1)[0] = float("nan")
    assert not sum(_criterion()(output, random_targets([2, 1], CLASSES)).values()).isfinite()


@pytest.mark.parametrize("counts", [(3, 2), (0, 0), (0, 4), (310, 1)])
@pytest.mark.parametrize("layers", [1, 3])
def test_every_parameter_of_the_decoder_gets_a_gradient(counts, layers):
    decoder = DFINEDecoder(CLASSES, [8, 12], 32, 20, [2, 3], 4, layers, 48, bins=BINS).train()
    features, targets = [torch.randn(2, 8, 8, 8), torch.randn(2, 12, 4, 4)], random_targets(counts, CLASSES)
    losses = _criterion()(decoder(features, targets), targets)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
