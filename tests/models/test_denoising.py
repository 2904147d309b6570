"""Properties of the denoising queries; number-for-number parity with transformers is in tests/reference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.models.denoising import contrastive_denoising, denoising_mask
from nextdetr.structures import Target


def _target(number, classes=5):
    centre_size = torch.rand(number, 4) * torch.tensor([0.4, 0.4, 0.15, 0.15]) + torch.tensor([0.3, 0.3, 0.05, 0.05])
    return Target(centre_size, torch.randint(classes, (number,)))


def _labels(labels):
    """Stands in for the embedding: shows the label itself, from 1 up."""
    return (labels + 1.0)[..., None]


@pytest.mark.parametrize(
    ("counts", "groups"), [([3, 0, 7], 14), ([1], 100), ([100], 1), ([150, 2], 1), ([400], 1), ([33], 3)]
)
def test_groups_and_plan(counts, groups):
    targets = [_target(n) for n in counts]
    made = contrastive_denoising(targets, 5, _labels, label_noise=0, box_noise=0)
    most = max(counts)
    assert made.plan.groups == groups
    assert made.group_size == 2 * most
    assert made.content.shape == (len(counts), groups * 2 * most, 1)
    assert len(made.plan.query_index) == groups * sum(counts)
    # Without noise every positive is its target, and so is the negative half a group further on.
    for shift in (0, most):
        boxes = made.box_logits.sigmoid()[made.plan.batch_index, made.plan.query_index + shift]
        content = made.content[made.plan.batch_index, made.plan.query_index + shift, 0]
        for image, target in enumerate(targets):
            mine = made.plan.batch_index == image
            torch.testing.assert_close(boxes[mine], target.boxes[made.plan.target_index[mine]], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(content[mine], target.labels[made.plan.target_index[mine]] + 1.0)


def test_each_target_is_positive_once_a_group():
    made = contrastive_denoising([_target(4), _target(9)], 5, _labels)
    of_first = made.plan.batch_index == 0
    group = made.plan.query_index // made.group_size
    for g in range(made.plan.groups):
        assert sorted(made.plan.target_index[of_first & (group == g)].tolist()) == [0, 1, 2, 3]
    assert (made.plan.query_index % made.group_size < 9).all()


@pytest.mark.parametrize("counts", [[0], [0, 0], []])
def test_no_target_at_all(counts):
    assert contrastive_denoising([_target(n) for n in counts], 5, _labels) is None


def test_switched_off():
    assert contrastive_denoising([_target(3)], 5, _labels, num_denoising=0) is None


def test_empty_slots_hold_the_zero_vector():
    embedding = nn.Embedding(5, 8)
    made = contrastive_denoising([_target(2), _target(6)], 5, embedding, label_noise=1.0)
    slot = torch.arange(made.content.shape[1]) % 6
    assert (made.content[0, slot >= 2] == 0).all()
    assert (made.content[0, slot < 2].abs().sum(-1) > 0).all()
    assert made.box_logits.isfinite().all()


def test_label_noise_rate():
    target = Target(torch.full((50, 4), 0.5), torch.full((50,), 3))
    draws = torch.cat([contrastive_denoising([target] * 20, 1000, _labels).content.flatten() for _ in range(10)])  # 40,000
    changed = (draws != 4).float().mean().item()
    assert changed == pytest.approx(0.25, abs=0.01)
    other = draws[draws != 4]
    assert other.min() >= 1
    assert other.max() <= 1000
    assert other.mean().item() == pytest.approx(500, abs=15)  # uniform over the classes


def test_box_noise_ranges():
    """Sides of positives move by less than half the size, of negatives by half to all of it; both ways equally often."""
    target = _target(25)
    made = contrastive_denoising([target], 5, _labels)
    noisy = cxcywh_to_xyxy(made.box_logits.sigmoid()[0].view(made.plan.groups, 2, 25, 4))
    moved = (noisy - cxcywh_to_xyxy(target.boxes)) / (target.boxes[:, 2:].repeat(1, 2) / 2)
    positive, negative = moved[:, 0], moved[:, 1]
    assert positive.abs().max() <= 1 + 1e-4
    assert positive.abs().mean().item() == pytest.approx(0.5, abs=0.06)
    assert positive.mean().item() == pytest.approx(0, abs=0.12)
    # Opposite sides of a negative may cross; the inverse sigmoid then flattens the box, so look at the uncrossed ones.
    whole = (noisy[:, 1, :, 2:] - noisy[:, 1, :, :2]).min(-1).values > 1e-3
    assert whole.sum() > 10
    assert negative[whole].abs().min() >= 1 - 1e-2
    assert negative[whole].abs().max() <= 2 + 1e-2


def test_noise_is_the_global_generators():
    targets = [_target(3)]
    torch.manual_seed(5)
    first = contrastive_denoising(targets, 5, _labels)
    torch.manual_seed(5)
    again = contrastive_denoising(targets, 5, _labels)
    later = contrastive_denoising(targets, 5, _labels)
    assert torch.equal(first.box_logits, again.box_logits)
    assert not torch.equal(first.box_logits, later.box_logits)


def test_mask():
    mask = denoising_mask(6, 2, 3)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    for start in (0, 2, 4):
        expected[start : start + 2, start : start + 2] = True
    expected[:, 6:] = True
    assert torch.equal(mask, expected)


def test_negatives_are_mirrored_on_request_only():
    """D-FINE's code takes the absolute value of sides that have passed each other; RT-DETR's leaves the least size."""
    made = {}
    for mirror in (False, True):
        torch.manual_seed(5)
        made[mirror] = contrastive_denoising([_target(10)], 5, _labels, mirror=mirror)
    clamped, mirrored = (made[mirror].box_logits.sigmoid()[0] for mirror in (False, True))
    negative = torch.arange(len(clamped)) // 10 % 2 == 1
    tiny = (clamped[:, 2:] < 2e-5).any(dim=1)
    assert 0.3 < float(tiny[negative].float().mean()) < 0.6
    assert not tiny[~negative].any()
    assert float(mirrored[:, 2:].min()) >= 1e-5
    assert float((mirrored[:, 2:] < 2e-5).any(dim=1).float().mean()) < 0.01
    torch.testing.assert_close(mirrored[~tiny], clamped[~tiny], rtol=0, atol=0)  # all others are the same
    torch.testing.assert_close(mirrored[:, :2], clamped[:, :2], rtol=0, atol=0)


def test_mirrored_negatives_are_as_in_the_authors_code():
    target = _target(6)
    torch.manual_seed(5)
    made = contrastive_denoising([target], 5, _labels, label_noise=0.0, num_denoising=12, mirror=True)
    torch.manual_seed(5)
    boxes = target.boxes.repeat(4, 1)[None]  # two groups of positives and negatives
    negative = (torch.arange(24) // 6 % 2)[None, :, None]
    sign = torch.randint_like(boxes, 0, 2) * 2.0 - 1.0
    part = torch.rand_like(boxes)
    part = (part + 1.0) * negative + part * (1 - negative)
    known = cxcywh_to_xyxy(boxes) + sign * part * (boxes[..., 2:] * 0.5).repeat(1, 1, 2)
    known = torch.clip(known, min=0.0, max=1.0)
    known = torch.cat(((known[..., :2] + known[..., 2:]) / 2, known[..., 2:] - known[..., :2]), -1)
    known[known < 0] *= -1
    torch.testing.assert_close(made.box_logits.sigmoid(), known.clamp(1e-5, 1 - 1e-5), atol=1e-6, rtol=1e-4)
