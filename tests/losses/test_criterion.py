from __future__ import annotations

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from nextdetr.losses import processes as module
from nextdetr.losses.criterion import LOSS_NAMES, Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.structures import DenoisingOutput, DenoisingPlan, DetectorOutput, Target, TrainingOutput
from tests.losses.samples import random_output, random_targets, supervised


def _criterion(classes: int) -> Criterion:
    return Criterion(classes, HungarianMatcher())


def _moved(boxes: torch.Tensor) -> list:
    """How many queries of each image, on each layer, get a gradient for their box."""
    return (boxes.grad != 0).any(-1).sum(-1).tolist()


@pytest.mark.parametrize(
    ("counts", "classes", "queries", "groups"),
    [
        ([3, 0, 5], 4, 20, 2),
        ([0, 0], 4, 20, 2),
        ([0], 1, 5, 0),
        ([2, 1], 1, 10, 3),
        ([2, 7], 1000, 10, 1),
        ([12, 3], 3, 8, 1),  # more boxes than queries
        ([310], 2, 300, 1),  # over 300 boxes
        ([2, 2], 3, 6, 0),  # no denoising
    ],
)
def test_keys_finiteness_and_gradients(counts, classes, queries, groups):
    output = random_output(counts, classes, layers=2, queries=queries, groups=groups)
    losses = _criterion(classes)(output, random_targets(counts, classes))
    assert tuple(losses) == LOSS_NAMES
    for value in losses.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert value >= 0
        assert value.requires_grad
    sum(losses.values()).backward()
    for leaf in supervised(output):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    training = output.training
    # Every logit learns to be of a class or of none, but for a positive that does not overlap with its target at all.
    matched = [min(count, queries) for count in counts]
    assert (training.layer_logits.grad == 0).sum() <= 2 * sum(matched)
    assert (training.encoder_logits.grad == 0).sum() <= sum(matched)
    assert _moved(training.layer_boxes) == [matched] * 2
    assert _moved(training.encoder_boxes) == matched
    if training.denoising is not None:
        assert (training.denoising.logits.grad == 0).sum() <= 2 * groups * sum(counts)
        assert _moved(training.denoising.boxes) == [[count * groups for count in counts]] * 2


def test_a_single_layer_keeps_the_auxiliary_keys():
    losses = _criterion(3)(random_output([2], 3, layers=1, groups=0), random_targets([2], 3))
    assert tuple(losses) == LOSS_NAMES
    for name in LOSS_NAMES:
        assert (losses[name] == 0) == name.endswith(("_aux", "_denoising")), name
        assert losses[name].requires_grad


def test_sums_of_the_layers():
    counts, output = [3, 1], random_output([3, 1], 4, layers=4)
    targets, criterion = random_targets(counts, 4), _criterion(4)
    parts, losses = criterion.per_layer(output, targets), criterion(output, targets)
    for term in ("vfl", "l1", "giou"):
        layers = parts.layers[term]
        assert layers.shape == (4,)
        torch.testing.assert_close(losses[f"loss_{term}"], layers[-1])
        torch.testing.assert_close(losses[f"loss_{term}_aux"], layers[:3].sum())
        torch.testing.assert_close(losses[f"loss_{term}_encoder"], parts.encoder[term].squeeze())
        torch.testing.assert_close(losses[f"loss_{term}_denoising"], parts.denoising[term].sum())


def test_perfect_predictions_cost_almost_nothing():
    targets = random_targets([4, 2], 5)
    output = random_output([4, 2], 5, queries=4, groups=0)
    training = output.training
    with torch.no_grad():
        for image, target in enumerate(targets):
            for logits, boxes in (
                (training.layer_logits[:, image], training.layer_boxes[:, image]),
                (training.encoder_logits[image], training.encoder_boxes[image]),
            ):
                logits.fill_(-12.0)
                boxes[..., : len(target), :] = target.boxes
                logits[..., torch.arange(len(target)), target.labels] = 12.0
    for name, value in _criterion(5)(output, targets).items():
        assert 0 <= value < 1e-3, name


def test_weights_and_normaliser():
    counts, targets = [2, 4], random_targets([2, 4], 3)
    output = random_output(counts, 3)
    plain = Criterion(3, HungarianMatcher(), vfl_weight=1, l1_weight=1, giou_weight=1)(output, targets)
    heavy = Criterion(3, HungarianMatcher(), vfl_weight=2, l1_weight=3, giou_weight=7)(output, targets)
    for name in LOSS_NAMES:
        factor = {"vfl": 2, "l1": 3, "giou": 7}[name.split("_")[1]]
        torch.testing.assert_close(heavy[name], plain[name] * factor)
    matches = HungarianMatcher().match(output.training.layer_logits[-1:], output.training.layer_boxes[-1:], targets)
    l1 = sum(
        (output.boxes[image, query] - targets[image].boxes[target]).abs().sum()
        for image, query, target in zip(matches.batch_index, matches.query_index, matches.target_index, strict=True)
    )
    torch.testing.assert_close(plain["loss_l1"], l1 / 6)


def test_matchability_takes_varifocals_place_and_nothing_else():
    counts, targets = [2, 4], random_targets([2, 4], 3)
    output = random_output(counts, 3)
    usual = _criterion(3)(output, targets)
    losses = Criterion(3, HungarianMatcher(), class_loss="matchability")(output, targets)
    assert tuple(losses) == tuple(name.replace("vfl", "mal") for name in LOSS_NAMES)
    for name, value in losses.items():
        if "mal" in name:
            assert value != usual[name.replace("mal", "vfl")]
            assert value.isfinite()
        else:
            torch.testing.assert_close(value, usual[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_predictions_are_supervised_in_float32(dtype):
    counts, targets = [3, 2], random_targets([3, 2], 4)
    output = random_output(counts, 4, dtype=dtype)
    low = supervised(output)
    exact = [leaf.detach().float().requires_grad_() for leaf in low]
    twin = random_output(counts, 4)
    twin.training = TrainingOutput(*exact[:4], twin.training.denoising)
    twin.training.denoising.logits, twin.training.denoising.boxes = exact[4:]
    expected = _criterion(4)(twin, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = _criterion(4)(output, targets)
    for name in LOSS_NAMES:
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], expected[name], rtol=0, atol=0)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for mine, theirs in zip(low, exact, strict=True):
        assert mine.grad.dtype == dtype
        torch.testing.assert_close(mine.grad, theirs.grad.to(dtype))


def test_degenerate_predicted_boxes_give_no_nan():
    output, targets = random_output([3, 2], 4), random_targets([3, 2], 4)
    with torch.no_grad():
        for boxes in supervised(output)[1::2]:
            boxes[..., 2:] = 0.0
            boxes[..., ::2, :] = 0.0
        output.training.layer_boxes[0, :, :, :2] = targets[0].boxes[0, :2]  # a point within a target
    losses = _criterion(4)(output, targets)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(leaf.grad.isfinite().all() for leaf in supervised(output))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("counts", [[2, 1], [0, 1]])
def test_a_single_non_finite_value_reaches_the_loss(value, index, counts):
    output = random_output(counts, 3)
    with torch.no_grad():
        supervised(output)[index].view(-1)[0] = value
    losses = _criterion(3)(output, random_targets(counts, 3))
    part = ("_aux", "_aux", "_encoder", "_encoder", "_denoising", "_denoising")[index]
    assert not losses[("loss_vfl", "loss_l1")[index % 2] + part].isfinite()
    assert all(losses[name].isfinite() for name in LOSS_NAMES if not name.endswith(part))


def test_misuse_is_explained():
    output, targets = random_output([2], 3), random_targets([2], 3)
    with pytest.raises(ValueError, match="3 classes, but the loss was made for 4"):
        _criterion(4)(output, targets)
    with pytest.raises(ValueError, match="1 images, but there are 2 targets"):
        _criterion(3)(output, targets * 2)
    with pytest.raises(ValueError, match="training mode"):
        _criterion(3)(DetectorOutput(output.logits, output.boxes), targets)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 3), st.integers(0, 10**6))
def test_the_order_of_the_targets_does_not_matter(counts, classes, groups, seed):
    torch.manual_seed(seed)
    targets, output = random_targets(counts, classes), random_output(counts, classes, queries=9, groups=groups)
    expected = _criterion(classes)(output, targets)
    orders = [torch.randperm(count) for count in counts]
    shuffled = [Target(target.boxes[order], target.labels[order]) for target, order in zip(targets, orders, strict=True)]
    if output.training.denoising is not None:
        plan = output.training.denoising.plan
        moved = [
            order.argsort()[target]
            for order, target in zip([orders[image] for image in plan.batch_index.tolist()], plan.target_index, strict=True)
        ]
        plan.target_index = torch.stack(moved)
    losses = _criterion(classes)(output, shuffled)
    for name in LOSS_NAMES:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-5)


# --- several processes: each holds one half of the batch, the mean of their gradients must be the whole batch's ---


def _half(output: DetectorOutput, image: int) -> DetectorOutput:
    training, denoising = output.training, output.training.denoising
    rows = slice(image, image + 1)
    half = TrainingOutput(
        *(leaf[:, rows].detach().requires_grad_() for leaf in (training.layer_logits, training.layer_boxes)),
        *(leaf[rows].detach().requires_grad_() for leaf in (training.encoder_logits, training.encoder_boxes)),
        None,
    )
    if denoising is not None:
        chosen = denoising.plan.batch_index == image
        plan = DenoisingPlan(
            denoising.plan.groups,
            torch.zeros(int(chosen.sum()), dtype=torch.int64),
            denoising.plan.query_index[chosen],
            denoising.plan.target_index[chosen],
        )
        half.denoising = DenoisingOutput(
            denoising.logits[:, rows].detach().requires_grad_(), denoising.boxes[:, rows].detach().requires_grad_(), plan
        )
    return DetectorOutput(half.layer_logits[-1], half.layer_boxes[-1], half)


def _gradients(output: DetectorOutput, targets: list[Target]) -> list[torch.Tensor]:
    sum(_criterion(4)(output, targets).values()).backward()
    return [leaf.grad for leaf in supervised(output)]


def _assert_halves(whole: list[torch.Tensor], halves: list[list[torch.Tensor]]) -> None:
    for index, gradient in enumerate(whole):
        axis = 0 if index in (2, 3) else 1
        torch.testing.assert_close(torch.cat([half[index] for half in halves], axis) / 2, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("counts", [[3, 1], [1, 0], [0, 0], [5, 5]])
def test_two_processes_equal_one_with_the_whole_batch(counts, monkeypatch):
    output, targets = random_output(counts, 4), random_targets(counts, 4)
    whole = _gradients(output, targets)
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(module.dist, "all_reduce", lambda total: total.fill_(float(sum(counts))))
    _assert_halves(whole, [_gradients(_half(output, rank), [targets[rank]]) for rank in range(2)])


def _rank(rank: int, port: int, training: TrainingOutput, target: Target, results) -> None:
    torch.set_num_threads(1)
    half = DetectorOutput(training.layer_logits[-1], training.layer_boxes[-1], training)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results[rank] = [gradient.tolist() for gradient in _gradients(half, [target])]
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_real_processes():
    counts = [3, 0]
    output, targets = random_output(counts, 4), random_targets(counts, 4)
    whole = _gradients(output, targets)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        ranks = [
            context.Process(target=_rank, args=(rank, port, _half(output, rank).training, targets[rank], results))
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
            assert process.exitcode == 0
        _assert_halves(whole, [[torch.tensor(gradient) for gradient in results[rank]] for rank in range(2)])
