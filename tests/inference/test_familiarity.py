"""How unlike the training images an image is: the distance, its limit, and what a file keeps of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nextdetr.inference.familiarity import Familiarity, conformal_limit, fit_space, read_familiarity
from nextdetr.weights.checkpoint import FAMILIARITY


def vectors(count: int, seed: int, channels: int = 24) -> np.ndarray:
    mixing = np.random.default_rng(99).normal(size=(channels, channels)) * np.linspace(3, 0.1, channels)
    return (np.random.default_rng(seed).normal(size=(count, channels)) @ mixing.T + 5).astype(np.float32)


def test_distance_is_mahalanobis_of_the_stated_covariance():
    space = fit_space(vectors(100, 0))
    assert space.directions.shape == (12, 24)
    outer = np.eye(24) - space.directions.T @ space.directions
    covariance = (space.directions.T * space.variances) @ space.directions + space.rest * outer
    new = vectors(7, 1)
    centred = new - space.mean
    expected = np.sqrt(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred) / 24)
    np.testing.assert_allclose(space.distances(new), expected, rtol=1e-4)


def test_covariance_is_that_of_the_training_images_as_far_as_it_goes():
    training = vectors(400, 0)
    space = fit_space(training)
    covariance = np.cov(training.T)
    values = np.linalg.eigvalsh(covariance)[::-1]
    kept = len(space.variances)
    np.testing.assert_allclose(space.variances, values[:kept], rtol=1e-3)
    assert space.rest == pytest.approx(values[kept:].mean(), rel=1e-3)


@pytest.mark.parametrize("training", [vectors(8, 0)[:7], np.ones((50, 24), np.float32)])
def test_too_few_or_equal_images_have_no_space(training):
    assert fit_space(training) is None


def test_at_most_the_share_is_beyond_the_limit():
    space, rates = fit_space(vectors(200, 0)), []
    for seed in range(1, 301):
        distances = space.distances(vectors(60, seed))
        rates.append((distances[30:] > conformal_limit(distances[:30], 0.1)).mean())
    error = np.std(rates, ddof=1) / np.sqrt(len(rates))
    assert 0.1 - 1 / 31 - 2 * error <= np.mean(rates) <= 0.1 + 2 * error
    assert conformal_limit(np.arange(19.0), 0.05) == 18
    assert conformal_limit(np.arange(18.0), 0.05) is None


def test_a_file_keeps_it_to_the_bit_and_damage_is_none():
    known = Familiarity(fit_space(vectors(200, 0)), 1.25, 0.05, 64)
    metadata = known.to_metadata()
    read = read_familiarity(metadata)
    np.testing.assert_array_equal(read.unlikeness(vectors(9, 3)), known.unlikeness(vectors(9, 3)))
    assert (read.limit, read.share, read.image_size) == (1.25, 0.05, 64)
    content = json.loads(metadata[FAMILIARITY])
    for changes in (
        {"mean": "??"}, {"mean": content["mean"][:-8]}, {"channels": 0}, {"limit": float("nan")}, {"limit": 0},
        {"variances": content["mean"]}, {"directions": None}, {"image_size": "x"}, {"rest": -1}, {"channels": 10**30},
    ):  # fmt: skip
        assert read_familiarity({FAMILIARITY: json.dumps(content | changes)}) is None, changes
    for text in ("", "[]", "null", "{", "[" * 100_000, "3"):
        assert read_familiarity({FAMILIARITY: text}) is None
    assert read_familiarity({}) is None


def test_what_lies_elsewhere_is_far():
    space = fit_space(vectors(200, 0))
    limit = conformal_limit(space.distances(vectors(60, 1)), 0.05)
    assert (Familiarity(space, limit, 0.05, 64).unlikeness(vectors(20, 2) + 40) > 1).all()
