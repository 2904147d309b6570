"""The minimum score of a detection: requested, stored with the detector, or the default."""

from __future__ import annotations

import numpy as np
import pytest

from nextdetr.confidence import DEFAULT, THRESHOLDS, least_scores, named_thresholds, read_thresholds, thresholds_metadata
from nextdetr.config import PredictConfig, build_config
from nextdetr.errors import ConfigError


def test_thresholds_survive_the_metadata():
    metadata = thresholds_metadata([0.25, 1 / 3])
    assert read_thresholds(metadata, 2) == [0.25, 0.3333]
    assert named_thresholds(metadata, ["cat", "dog"]) == {"cat": 0.25, "dog": 0.3333}
    assert thresholds_metadata([]) == {}


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
