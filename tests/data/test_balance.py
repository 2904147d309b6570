from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nextdetr.data.balance import repeat_factors
from nextdetr.data.loader import EpochSampler
from nextdetr.data.records import ImageRecord


def record(index, labels, crowd=()):
    labels = np.array(labels, np.int64)
    boxes = np.tile(np.array([[0, 0, 5, 5]], np.float32), (len(labels), 1))
    return ImageRecord(f"{index}", index, 10, 10, boxes, labels, np.isin(np.arange(len(labels)), crowd), boxes[:, 0])


def test_a_rare_class_is_shown_by_the_root_of_its_rarity():
    records = [record(i, [0]) for i in range(15)] + [record(15, [0, 1]), record(16, []), record(17, [1], crowd=[0])]
    factors = repeat_factors(records, 3)
    assert factors.tolist() == pytest.approx([1.0] * 15 + [4.0, 1.0, 1.0])  # 16 images of class 0, one of class 1
    assert repeat_factors([record(0, [])], 2).tolist() == [1.0]


def keys(sampler, epoch):
    return [key for batch in sampler.epoch(epoch) for key in batch]


def test_an_epoch_draws_by_weight_and_stays_as_long():
    weights = np.array([1.0] * 8 + [4.0, 0.5])
    sampler = EpochSampler(10, 5, seed=3, base_size=64, weights=weights)
    total = Counter()
    for epoch in range(40):
        drawn = keys(sampler, epoch)
        assert len(drawn) == 10
        assert len({(key.index, key.copy) for key in drawn}) == 10  # each repeat has an augmentation of its own
        counts = Counter(key.index for key in drawn)
        assert counts[8] in (3, 4)  # 4 of 12.5, in 10 draws 3.2
        total.update(counts)
    assert total[8] / 40 == pytest.approx(3.2, abs=0.2)
    assert total[9] / 40 == pytest.approx(0.4, abs=0.25)
    again = keys(EpochSampler(10, 5, seed=3, base_size=64, weights=weights), 39)
    assert again == drawn


def test_ranks_share_a_weighted_order_and_filling_up_repeats_it():
    weights = np.array([1.0, 1.0, 3.0])
    ranks = [EpochSampler(3, 4, base_size=64, weights=weights, rank=rank, world=2) for rank in range(2)]
    drawn = [key for sampler in ranks for key in keys(sampler, 0)]
    assert len({(key.index, key.copy) for key in drawn}) == 8


def test_equal_weights_draw_each_image_once():
    sampler = EpochSampler(7, 7, base_size=64, weights=np.full(7, 2.0))
    assert sorted(key.index for key in keys(sampler, 1)) == list(range(7))
