"""A teacher's boxes: thresholds by class, uncertain ones, mapping to a view, and their weight in the loss."""

from __future__ import annotations

import pytest
import torch

from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.losses.pseudo import LEAST, Found, PseudoTarget, Thresholds, find_boxes, of_images, seen_through
from nextdetr.structures import DenoisingOutput, DenseOutput, Target

from .samples import random_boxes, random_output, random_targets


def found(scores, labels):
    return Found(random_boxes(len(scores)), torch.tensor(labels), torch.tensor(scores))


def test_as_many_boxes_are_taken_as_labelled_images_have_of_each_class():
    """Class 0 has 3 an image and scores up to 1, class 1 has 1 an image and scores up to 0.4."""
    torch.manual_seed(0)
    thresholds = Thresholds(torch.tensor([3.0, 1.0]), certain=1.0, doubtful=2.0)
    taken, doubts = torch.zeros(2), 0
    for step in range(40):
        batch = [
            Found(
                random_boxes(20), torch.tensor([0] * 10 + [1] * 10), torch.rand(20) * torch.tensor([1.0] * 10 + [0.4] * 10)
            )
            for _ in range(8)
        ]
        thresholds.update(batch)
        if step >= 20:
            targets = thresholds.targets(batch)
            taken += sum(torch.bincount(target.labels, minlength=2) for target in targets)
            doubts += sum(len(target.doubtful) for target in targets)
    assert (taken / 160).tolist() == pytest.approx([3.0, 1.0], rel=0.15)
    assert doubts / 160 == pytest.approx(4.0, rel=0.15)
    assert thresholds.of_share(1.0, LEAST).tolist() == pytest.approx([0.7, 0.36], abs=0.03)
    assert thresholds.readiness == pytest.approx(1.0)


def test_a_teacher_that_knows_nothing_yet_gives_doubts_and_counts_for_little():
    thresholds = Thresholds(torch.tensor([2.0]), certain=1.0)
    batch = [found([0.05, 0.04, 0.2], [0, 0, 0])]
    thresholds.update(batch)
    (target,) = thresholds.targets(batch)
    assert target.confidence.tolist() == pytest.approx([0.2])
    assert len(target.doubtful) == 2
    assert thresholds.readiness == pytest.approx(0.5)


def test_thresholds_go_on_from_their_state():
    first = Thresholds(torch.tensor([1.0, 2.0]))
    first.update([found([0.3, 0.8, 0.5], [0, 1, 1])])
    second = Thresholds(torch.tensor([1.0, 2.0]))
    second.load_state_dict(first.state_dict())
    for one in (first, second):
        one.update([found([0.7], [1])])
    assert torch.equal(first.counts, second.counts)
    assert first.images == second.images == pytest.approx(1.98)


def test_duplicates_of_a_class_are_one_box():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.51, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    scores = torch.tensor([[[0.9, 0.1], [0.6, 0.2], [0.1, 0.8], [0.01, 0.0]]])
    (one,) = find_boxes(scores, boxes)
    assert one.scores.tolist() == pytest.approx([0.9, 0.8])
    assert one.labels.tolist() == [0, 1]


def test_boxes_move_into_the_view():
    """The view is the left half of the picture, mirrored."""
    view = torch.tensor([[-2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    boxes = torch.tensor([[0.2, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.2], [0.59, 0.5, 0.2, 0.2], [0.8, 0.5, 0.1, 0.1]])
    target = PseudoTarget(boxes, torch.tensor([3, 2, 1, 0]), None, torch.tensor([0.9, 0.8, 0.7, 0.6]), boxes[3:])
    moved = seen_through(target, view)
    assert moved.labels.tolist() == [3, 2]
    assert moved.confidence.tolist() == pytest.approx([0.9, 0.8])
    torch.testing.assert_close(moved.boxes, torch.tensor([[0.6, 0.5, 0.4, 0.4], [0.1, 0.5, 0.2, 0.2]]))
    torch.testing.assert_close(moved.doubtful, torch.tensor([[0.01, 0.5, 0.02, 0.2]]))  # the third: a tenth is seen


def criterion():
    return Criterion(4, HungarianMatcher())


def total(terms):
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("bins", [0, 8])
def test_sure_boxes_cost_what_labels_cost_and_unsure_ones_their_share(bins):
    torch.manual_seed(1)
    targets = random_targets([3, 2], 4)
    output = random_output([3, 2], 4, bins=bins)

    def cost(confidence):
        pseudo = [
            PseudoTarget(one.boxes, one.labels, None, torch.full((len(one),), confidence)) for one in targets
        ]  # fmt: skip
        return criterion()(output, pseudo)

    plain, sure, half = criterion()(output, targets), cost(1.0), cost(0.5)
    for name, value in plain.items():
        torch.testing.assert_close(sure[name], value)
        if "vfl" not in name and "ddf" not in name:
            torch.testing.assert_close(half[name], 0.5 * value, msg=name)
        elif "vfl" in name:
            assert half[name] < value


def test_a_query_in_doubt_is_not_told_that_there_is_nothing():
    torch.manual_seed(2)
    output = random_output([1], 4, layers=2, groups=0)
    training = output.training
    doubtful = training.layer_boxes[-1, 0, 7:8].detach().clone()
    far = Target(torch.tensor([[0.02, 0.02, 0.01, 0.01]]), torch.tensor([1]))
    target = PseudoTarget(far.boxes, far.labels, None, torch.ones(1), doubtful)
    total(criterion()(output, [target])).backward()
    gradient = training.layer_logits.grad[-1, 0]
    matched = criterion().matcher.match(training.layer_logits.detach(), training.layer_boxes.detach(), [target])
    assert 7 not in matched.query_index[matched.layer_index == 1].tolist()
    assert (gradient[7] == 0).all()
    assert (gradient.abs().sum(1) > 0).sum() >= 15  # the others are told as always


@pytest.mark.parametrize("bins", [0, 8])
def test_what_the_teacher_does_not_know_is_not_taught_as_background(bins):
    torch.manual_seed(5)
    targets = [Target(random_boxes(count), torch.zeros(count, dtype=torch.int64)) for count in (2, 1)]
    output = random_output([2, 1], 4, bins=bins)
    training = output.training
    dense = torch.randn(2, 30, 4, requires_grad=True)
    cells = torch.cat((torch.rand(30, 2), torch.full((30, 2), 0.1)), 1)
    training.dense = DenseOutput(dense, random_boxes(2, 30), cells)
    pseudo = [PseudoTarget(one.boxes, one.labels, None, torch.full((len(one),), 0.5)) for one in targets]
    total(criterion()(output, pseudo, told=torch.tensor([True, True, False, True]))).backward()
    edges = [one.first_logits for one in (training.edges, training.denoising.edges) if one is not None]
    for logits in (training.layer_logits, training.encoder_logits, training.denoising.logits, dense, *edges):
        taught = logits.grad.abs().flatten(0, -2).sum(0)
        assert taught[2] == 0
        assert (taught[[0, 1, 3]] > 0).all()


def test_one_to_many_pairs_weigh_in_too():
    torch.manual_seed(3)
    targets = random_targets([2], 4)
    output = random_output([2], 4)
    boxes = targets[0].boxes.repeat(15, 1)
    cells = torch.cat((boxes[:, :2], torch.full((30, 2), 0.1)), 1)
    output.training.dense = DenseOutput(torch.randn(1, 30, 4), boxes[None] + 0.01 * torch.rand(30, 4), cells)
    plain = criterion()(output, targets)
    pseudo = [PseudoTarget(targets[0].boxes, targets[0].labels, None, torch.full((2,), 0.25))]
    weighed = criterion()(output, pseudo)
    torch.testing.assert_close(weighed["loss_l1_dense"], 0.25 * plain["loss_l1_dense"])
    assert weighed["loss_vfl_dense"] < plain["loss_vfl_dense"]


@pytest.mark.parametrize("bins", [0, 8])
def test_images_of_a_batch_have_the_loss_that_they_have_alone(bins):
    """Both halves hold an image of two boxes, as the fullest decides how many denoising queries there are."""
    torch.manual_seed(4)
    counts = [2, 1, 2, 0]
    targets = random_targets(counts, 4)
    output = random_output(counts, 4, bins=bins)
    training = output.training
    for images in (slice(2), slice(2, 4)):
        part = of_images(output, images)
        alone = random_output(counts[images], 4, bins=bins)
        plan = alone.training.denoising.plan
        assert torch.equal(part.training.denoising.plan.batch_index, plan.batch_index)
        assert torch.equal(part.training.denoising.plan.query_index, plan.query_index)
        noisy = training.denoising
        alone.training.layer_logits, alone.training.layer_boxes = (
            training.layer_logits[:, images],
            training.layer_boxes[:, images],
        )
        alone.training.encoder_logits, alone.training.encoder_boxes = (
            training.encoder_logits[images], training.encoder_boxes[images],
        )  # fmt: skip
        alone.training.denoising = DenoisingOutput(
            noisy.logits[:, images], noisy.boxes[:, images], plan, part.training.denoising.edges
        )
        alone.training.edges = part.training.edges
        first, second = criterion()(part, targets[images]), criterion()(alone, targets[images])
        for name, value in first.items():
            assert torch.isfinite(value)
            torch.testing.assert_close(value, second[name], msg=name)
