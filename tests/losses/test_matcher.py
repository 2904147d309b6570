from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.structures import Target
from tests.losses.samples import random_boxes, random_targets


def _pairs(matches):
    columns = (matches.layer_index, matches.batch_index, matches.query_index, matches.target_index)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_assignment_is_the_cheapest_of_all():
    matcher = HungarianMatcher()
    targets = random_targets([3, 2], 4)
    logits, boxes = torch.randn(2, 2, 5, 4), random_boxes(2, 2, 5)
    cost = matcher.cost(logits, boxes, targets)
    pairs = _pairs(matcher.match(logits, boxes, targets))
    for layer, image in itertools.product(range(2), range(2)):
        count = len(targets[image])
        mine = sum(cost[layer, image, q, t].item() for i, b, q, t in pairs if (i, b) == (layer, image))
        best = min(
            sum(cost[layer, image, q, t].item() for t, q in enumerate(queries))
            for queries in itertools.permutations(range(5), count)
        )
        assert mine == pytest.approx(best, abs=1e-5)


def test_order_counts_and_uniqueness():
    counts, layers, queries = [4, 0, 12, 1], 3, 8
    matches = HungarianMatcher().match(
        torch.randn(layers, 4, queries, 2), random_boxes(layers, 4, queries), random_targets(counts, 2)
    )
    pairs = _pairs(matches)
    assert matches.layer_index.dtype == matches.target_index.dtype == torch.int64
    assert [pair[:2] for pair in pairs] == sorted(pair[:2] for pair in pairs)
    assert len(matches) == len(pairs) == layers * sum(min(count, queries) for count in counts)
    assert len({pair[:3] for pair in pairs}) == len(pairs)  # no query twice
    assert len({(layer, image, target) for layer, image, _, target in pairs}) == len(pairs)  # no target twice
    assert all(target < counts[image] for _, image, _, target in pairs)


def test_queries_equal_to_the_targets_find_them():
    (target,) = random_targets([6], 9)
    order = torch.randperm(10)
    logits, boxes = torch.full((10, 9), -6.0), random_boxes(10)
    logits[order[:6], target.labels] = 6.0
    boxes[order[:6]] = target.boxes
    pairs = _pairs(HungarianMatcher().match(logits[None, None], boxes[None, None], [target]))
    assert {t: q for _, _, q, t in pairs} == dict(enumerate(order[:6].tolist()))


@pytest.mark.parametrize("counts", [[0], [0, 0, 0]])
def test_no_target_at_all(counts):
    matches = HungarianMatcher().match(
        torch.randn(2, len(counts), 5, 3), random_boxes(2, len(counts), 5), random_targets(counts, 3)
    )
    assert len(matches) == 0
    assert matches.query_index.dtype == torch.int64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_predictions_do_not_stop_it_and_come_last(bad):
    targets = random_targets([4], 3)
    logits, boxes = torch.randn(1, 1, 8, 3), random_boxes(1, 1, 8)
    good = [1, 2, 5, 6, 7]
    expected = HungarianMatcher().match(logits[:, :, good], boxes[:, :, good], targets)
    logits[0, 0, 0], boxes[0, 0, 3], boxes[0, 0, 4, 2] = float("nan"), bad, bad
    matches = HungarianMatcher().match(logits, boxes, targets)
    assert matches.query_index.tolist() == [good[query] for query in expected.query_index.tolist()]
    assert matches.target_index.tolist() == expected.target_index.tolist()


def test_non_finite_queries_that_have_to_be_taken_leave_the_others_their_best():
    targets = random_targets([100], 3)
    logits, boxes = torch.randn(1, 1, 100, 3) * 3, random_boxes(1, 1, 100)
    logits[0, 0, :30] = float("nan")
    matcher = HungarianMatcher()
    matches, cost = matcher.match(logits, boxes, targets), matcher.cost(logits, boxes, targets)[0, 0]
    valid, others = matches.query_index >= 30, cost[30:].numpy()
    best = others[linear_sum_assignment(others)].sum()
    # Broken queries that cost the largest float would swamp the sums: the rest then costs 9 % more than it need.
    assert cost[matches.query_index[valid], matches.target_index[valid]].sum().item() == pytest.approx(best, abs=1e-3)


def test_all_non_finite():
    nothing = torch.full((1, 1, 5, 4), float("nan"))
    assert len(HungarianMatcher().match(nothing, nothing, random_targets([3], 4))) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_cast_before_the_costs(dtype):
    targets = random_targets([5, 3], 4)
    logits, boxes = torch.randn(2, 2, 30, 4).to(dtype), random_boxes(2, 2, 30).to(dtype)
    matcher = HungarianMatcher()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = matcher.cost(logits, boxes, targets)
    assert cost.dtype == torch.float32
    torch.testing.assert_close(cost, matcher.cost(logits.float(), boxes.float(), targets), rtol=0, atol=0)


def test_each_weight_counts():
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))
    # Query 0 has the class; 1 the smallest L1 distance but no overlap; 2 the best overlap.
    logits = torch.tensor([[-3.0, 3.0], [-3.0, -3.0], [-3.0, -3.0]])
    boxes = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.5, 0.71, 0.2, 0.2], [0.5, 0.5, 0.33, 0.33]])
    for chosen, weights in enumerate(((1, 0, 0), (0, 1, 0), (0, 0, 1))):
        matches = HungarianMatcher(*weights).match(logits[None, None], boxes[None, None], [target])
        assert matches.query_index.tolist() == [chosen], weights


def test_all_weights_zero_is_refused():
    with pytest.raises(ValueError, match="all 0"):
        HungarianMatcher(0, 0, 0)
