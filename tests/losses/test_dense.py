from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nextdetr.boxes import cxcywh_to_xyxy, paired_iou_and_giou
from nextdetr.losses import processes as module
from nextdetr.losses.criterion import LOSS_NAMES, Criterion
from nextdetr.losses.dense import task_aligned_pairs
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.models.decoder import RTDETRDecoder
from nextdetr.models.dense import make_cells
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.structures import DenseOutput, DetectorOutput, Target, TrainingOutput
from tests.losses.samples import random_output, random_targets

CLASSES, SHAPES = 3, ((8, 10), (4, 5), (2, 2))


def _dense(batch: int) -> DenseOutput:
    """Boxes near their cells, so that many overlap with the targets."""
    cells = make_cells(SHAPES)
    boxes = torch.cat((cells[:, :2] + torch.randn(batch, len(cells), 2) * 0.03, torch.rand(batch, len(cells), 2) * 0.3), -1)
    logits = torch.randn(batch, len(cells), CLASSES)
    return DenseOutput(logits.requires_grad_(), boxes.clamp(0.01, 0.99).requires_grad_(), cells)


def _by_loop(dense: DenseOutput, targets: list[Target]) -> dict[tuple[int, int], tuple[int, float]]:
    """(image, token) -> (target, quality), the rules of the docstring one number at a time."""
    result = {}
    for image, target in enumerate(targets):
        claims: dict[int, list[tuple[float, float, int]]] = {}
        for t, (box, label) in enumerate(zip(target.boxes, target.labels, strict=True)):
            candidates = []
            for s, cell in enumerate(dense.cells):
                inside = [(cell[i] - box[i]).abs() <= max(cell[i + 2], box[i + 2]) / 2 for i in range(2)]
                if all(inside):
                    iou = paired_iou_and_giou(cxcywh_to_xyxy(dense.boxes[image, s]), cxcywh_to_xyxy(box))[0].item()
                    score = dense.logits[image, s, label].sigmoid().item()
                    candidates.append((score * iou**6, iou, s))
            for alignment, iou, s in sorted(candidates, reverse=True)[:13]:
                claims.setdefault(s, []).append((iou, alignment, t))
        kept = {s: max(wishes) for s, wishes in claims.items()}
        for s, (_, alignment, t) in kept.items():
            own = [wish for wish in kept.values() if wish[2] == t]
            best = max(wish[1] for wish in own)
            result[image, s] = (t, alignment / (best + 1e-9) * max(wish[0] for wish in own))
    return result


@pytest.mark.parametrize("counts", [[3, 0, 5], [1], [12, 12]])
def test_pairs_equal_the_rules(counts):
    dense, targets = _dense(len(counts)), random_targets(counts, CLASSES)
    expected = _by_loop(dense, targets)
    pairs = task_aligned_pairs(dense, targets)
    columns = (pairs.batch_index.tolist(), pairs.token_index.tolist(), pairs.target_index.tolist(), pairs.quality.tolist())
    got = {(image, token): (target, quality) for image, token, target, quality in zip(*columns, strict=True)}
    assert len(got) == len(pairs.quality)  # no token twice
    # Boxes without any overlap tie at 0, where any of the tied may fill the 13.
    firm = {place: value for place, value in expected.items() if value[1] > 1e-6}
    assert len(firm) > sum(counts)
    for place, (target, quality) in firm.items():
        assert got[place][0] == target
        assert got[place][1] == pytest.approx(quality, abs=1e-5)
    assert all(quality <= 1e-6 for place, (_, quality) in got.items() if place not in firm)


def test_a_box_smaller_than_a_cell_has_a_token_on_every_map():
    target = Target(torch.tensor([[0.31, 0.42, 1e-3, 1e-3]]), torch.zeros(1, dtype=torch.int64))
    pairs = task_aligned_pairs(_dense(1), [target])
    starts = torch.tensor([0, 80, 100, 104])
    assert torch.bucketize(pairs.token_index, starts, right=True).tolist() == [1, 2, 3]


def test_cells_tile_the_image():
    cells = make_cells(SHAPES)
    torch.testing.assert_close(cells[:80, 2:].prod(1).sum(), torch.tensor(1.0))
    torch.testing.assert_close(cells[11], torch.tensor([0.15, 0.1875, 0.1, 0.125]))


def _output(counts, dense: DenseOutput) -> DetectorOutput:
    output = random_output(counts, CLASSES, layers=2, queries=8)
    output.training.dense = dense
    return output


def test_losses_by_hand_and_the_others_untouched():
    counts, targets, dense = [3, 2], random_targets([3, 2], CLASSES), _dense(2)
    output = _output(counts, dense)
    losses = Criterion(CLASSES, HungarianMatcher())(output, targets)
    output.training.dense = None
    plain = Criterion(CLASSES, HungarianMatcher())(output, targets)
    assert tuple(losses) == (*LOSS_NAMES, "loss_vfl_dense", "loss_l1_dense", "loss_giou_dense")
    assert all(losses[name] == plain[name] for name in LOSS_NAMES)

    pairs = task_aligned_pairs(dense, targets)
    total = max(pairs.quality.sum().item(), 1.0)
    wanted, weight = torch.zeros_like(dense.logits), 0.75 * dense.logits.detach().sigmoid() ** 2
    l1 = giou = 0.0
    columns = (pairs.batch_index, pairs.token_index, pairs.target_index, pairs.quality)
    for image, token, target, quality in zip(*columns, strict=True):
        box = targets[image].boxes[target]
        place = (image, token, targets[image].labels[target])
        wanted[place] = weight[place] = quality
        l1 += quality * (dense.boxes[image, token] - box).abs().sum()
        overlap = paired_iou_and_giou(cxcywh_to_xyxy(dense.boxes[image, token]), cxcywh_to_xyxy(box))[1]
        giou += quality * (1 - overlap)
    vfl = functional.binary_cross_entropy_with_logits(dense.logits, wanted, weight, reduction="sum")
    torch.testing.assert_close(losses["loss_vfl_dense"], vfl / total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(losses["loss_l1_dense"], 5 * l1 / total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(losses["loss_giou_dense"], 2 * giou / total, atol=1e-4, rtol=1e-5)
    output.training.dense = dense
    half = Criterion(CLASSES, HungarianMatcher(), dense_weight=0.5)(output, targets)
    torch.testing.assert_close(half["loss_l1_dense"], losses["loss_l1_dense"] / 2)


@pytest.mark.parametrize("field", ["logits", "boxes"])
@pytest.mark.parametrize("counts", [[2, 1], [0, 0]])
def test_a_single_non_finite_value_reaches_the_loss(field, counts):
    dense = _dense(2)
    with torch.no_grad():
        getattr(dense, field).view(-1)[5] = float("nan")
    losses = Criterion(CLASSES, HungarianMatcher())(_output(counts, dense), random_targets(counts, CLASSES))
    assert not sum(losses[name] for name in losses if name.endswith("dense")).isfinite()


def test_two_processes_equal_one_with_the_whole_batch(monkeypatch):
    counts, dense = [3, 1], _dense(2)
    targets, output = random_targets(counts, CLASSES), _output(counts, dense)
    sum(Criterion(CLASSES, HungarianMatcher())(output, targets).values()).backward()
    sent = []
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 2)

    def gradients(rank):
        rows, whole = slice(rank, rank + 1), output.training
        mine = DenseOutput(*(x[rows].detach().requires_grad_() for x in (dense.logits, dense.boxes)), dense.cells)
        training = TrainingOutput(
            *(x[:, rows].detach().requires_grad_() for x in (whole.layer_logits, whole.layer_boxes)),
            *(x[rows].detach().requires_grad_() for x in (whole.encoder_logits, whole.encoder_boxes)),
            None, dense=mine,
        )  # fmt: skip
        half = DetectorOutput(training.layer_logits[-1], training.layer_boxes[-1], training)
        sum(Criterion(CLASSES, HungarianMatcher())(half, [targets[rank]]).values()).backward()
        return mine.logits.grad, mine.boxes.grad

    monkeypatch.setattr(module.dist, "all_reduce", lambda total: sent.append(total.clone()))
    _ = [gradients(rank) for rank in range(2)]
    monkeypatch.setattr(module.dist, "all_reduce", lambda total: total.copy_(sent[0] + sent[1]))
    for whole, *halves in zip((dense.logits.grad, dense.boxes.grad), *(gradients(rank) for rank in range(2)), strict=True):
        torch.testing.assert_close(torch.cat(halves) / 2, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", [RTDETRDecoder, DFINEDecoder])
@pytest.mark.parametrize("counts", [(3, 2), (0, 0), (0, 4), (310, 1)])
def test_decoder_with_a_dense_head(kind, counts):
    torch.manual_seed(5)
    decoder = kind(CLASSES, [8, 12], 32, 20, 2, 4, 2, 48, dense=True)
    features = [torch.randn(2, 8, 8, 8), torch.randn(2, 12, 4, 4)]
    targets = random_targets(counts, CLASSES)
    ran = []
    decoder.dense_head.register_forward_hook(lambda *_: ran.append(1))
    decoder.eval()(features)
    decoder.train()(features)
    assert not ran  # never without targets
    training = decoder(features, targets).training
    assert training.dense.logits.shape == (2, 80, CLASSES)
    torch.testing.assert_close(training.dense.boxes[0, :, :2], training.dense.cells[:, :2], atol=1e-5, rtol=0)
    output = DetectorOutput(training.layer_logits[-1], training.layer_boxes[-1], training)
    losses = Criterion(CLASSES, HungarianMatcher())(output, targets)
    assert all(value.isfinite() and value >= -1e-5 for value in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in decoder.parameters())
    torch.manual_seed(5)
    without = kind(CLASSES, [8, 12], 32, 20, 2, 4, 2, 48)
    names = set(decoder.state_dict()) - set(without.state_dict())
    assert names == {name for name in decoder.state_dict() if name.startswith("dense_head.")}


def test_dense_supervision_reaches_the_maps_and_nothing_behind():
    decoder = RTDETRDecoder(CLASSES, [8, 12], 32, 20, 2, 4, 2, 48, dense=True).train()
    features = [torch.randn(1, 8, 8, 8, requires_grad=True), torch.randn(1, 12, 4, 4, requires_grad=True)]
    dense = decoder(features, random_targets([2], CLASSES)).training.dense
    dense.logits.square().sum().backward()
    assert all(feature.grad.abs().sum() > 0 for feature in features)
    assert all(parameter.grad is None for parameter in decoder.decoder.parameters())
