"""The minimum score of a detection: requested, stored with the detector, or the default."""

from __future__ import annotations

import numpy as np
import pytest

from nextdetr.confidence import (
    DEFAULT,
    LEAST_F1,
    THRESHOLDS,
    Thresholds,
    barely_trained,
    least_scores,
    named_thresholds,
    read_thresholds,
    stored_thresholds,
    thresholds_metadata,
)
from nextdetr.config import PredictConfig, build_config
from nextdetr.errors import ConfigError


def test_thresholds_survive_the_metadata():
    metadata = thresholds_metadata([0.25, 1 / 3])
    assert read_thresholds(metadata, 2) == [0.25, 0.3333]
    assert named_thresholds(metadata, ["cat", "dog"]) == {"cat": 0.25, "dog": 0.3333}
    assert thresholds_metadata([]) == {}


def test_the_threshold_of_a_barely_trained_class_is_not_used():
    metadata = thresholds_metadata([0.01, 0.01, 0.6], [0.03, LEAST_F1, 0.02])
    assert stored_thresholds(metadata, 3) == Thresholds([0.01, 0.01, 0.6], [0.03, LEAST_F1, 0.02])
    assert read_thresholds(metadata, 3) == [DEFAULT, 0.01, 0.6]  # never lower than its own
    assert named_thresholds(metadata, ["cat", "dog", "bird"]) == {"cat": DEFAULT, "dog": 0.01, "bird": 0.6}
    told = barely_trained(stored_thresholds(metadata, 3), ["cat", "dog", "bird"])
    assert told.startswith(
        "barely trained: its best F1 is 0.03 for cat, 0.02 for bird. There confidence auto is at least 0.3"
    )
    many = barely_trained(Thresholds([0.01] * 9, [0.0] * 9), [str(label) for label in range(9)])
    assert "0.00 for 4 and as low for 4 more." in many


def test_thresholds_without_an_f1_are_used_as_they_are():
    for metadata in (thresholds_metadata([0.01, 0.5]), {THRESHOLDS: '{"values": [0.01, 0.5], "f1": [0.0, "x"]}'}):
        assert read_thresholds(metadata, 2) == [0.01, 0.5]
        assert barely_trained(stored_thresholds(metadata, 2), ["cat", "dog"]) == ""
    assert barely_trained(None, ["cat"]) == ""
    assert Thresholds().usable() == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"values": 3}', '{"values": [0.5]}', '{"values": [0.5, "x"]}', '{"values": [0.5, 1.5]}',
             '{"values": [true, 0.5]}', '{"values": [NaN, 0.5]}', "[" * 100_000]
)  # fmt: skip
def test_damaged_or_foreign_thresholds_are_none(text):
    assert read_thresholds({THRESHOLDS: text}, 2) is None


def test_what_counts_as_a_detection():
    assert least_scores("auto", [0.2, 0.6], 2) == pytest.approx([0.2, 0.6])
    assert least_scores("auto", None, 2) == pytest.approx([DEFAULT, DEFAULT])
    assert least_scores(0.5, [0.2, 0.6], 2) == pytest.approx([0.5, 0.5])
    assert least_scores(np.array([0.1, 0.9]), None, 2) == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("wrong", ["best", -0.1, 1.1, float("nan"), [0.5], [0.5, 2.0]])
def test_a_confidence_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="the confidence is"):
        least_scores(wrong, None, 2)


def test_the_setting_of_predict():
    assert build_config(PredictConfig, {}).confidence == "auto"
    assert build_config(PredictConfig, {"confidence": "0.4"}).confidence == 0.4
    with pytest.raises(ConfigError, match="--confidence"):
        build_config(PredictConfig, {"confidence": 1.2})
