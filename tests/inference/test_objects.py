"""What was found in an image, with and without supervision's type."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import supervision as sv
from PIL import Image

from nextdetr.inference.objects import Objects
from nextdetr.inference.prediction import Prediction


def objects(count: int = 4, **columns: object) -> Objects:
    rng = np.random.default_rng(0)
    return Objects(
        rng.uniform(0, 90, (count, 4)).astype(np.float32), rng.uniform(0, 1, count).astype(np.float32),
        np.arange(count), data={"class_name": np.array(["cat", "dog", "bird", "fish"])[:count]}, **columns,
    )  # fmt: skip


def same(ours: Objects | sv.Detections, theirs: Objects | sv.Detections) -> None:
    for name in ("xyxy", "confidence", "class_id", "tracker_id"):
        first, second = getattr(ours, name), getattr(theirs, name)
        assert (first is None) == (second is None), name
        if first is not None:
            np.testing.assert_array_equal(first, second)
            assert first.dtype == second.dtype
    assert ours.data.keys() == theirs.data.keys()
    for name, column in ours.data.items():
        np.testing.assert_array_equal(column, theirs.data[name])


@pytest.mark.parametrize(
    "chosen", [np.array([True, False, True, False]), np.array([3, 0, 0]), np.zeros(4, bool), np.zeros(0, int)]
)
@pytest.mark.parametrize("tracks", [None, np.array([5, -1, 2, 0])])
def test_rows_are_those_that_supervision_chooses(chosen, tracks):
    given = objects(tracker_id=tracks)
    assert len(given[chosen]) == len(given.xyxy[chosen])
    same(given[chosen], given.to_supervision()[chosen])


def test_columns_that_are_not_there_stay_away():
    bare = Objects(np.array([[0, 0, 5, 5], [1, 1, 9, 9]], np.float32))
    same(bare[np.array([1])], sv.Detections(bare.xyxy)[np.array([1])])
    assert Objects.joined([bare, bare]).confidence is None


def test_joined_as_supervision_merges():
    parts = [objects(), objects(2), objects(1)]
    same(Objects.joined(parts), sv.Detections.merge([part.to_supervision() for part in parts]))
    nothing = Objects.joined([objects(0), objects(0)])
    assert (len(nothing), nothing.confidence.shape, nothing.data["class_name"].tolist()) == (0, (0,), [])


def test_there_and_back():
    given = objects(tracker_id=np.array([5, -1, 2, 0]))
    theirs = given.to_supervision()
    assert isinstance(theirs, sv.Detections)
    assert theirs.xyxy is given.xyxy
    same(Objects.of(theirs), given)
    assert Objects.of(given) is given
    for other in (copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        same(other, given)


def test_a_prediction_hands_out_one_and_the_same():
    """What a user changes in it is what is drawn and written afterwards."""
    prediction = Prediction("a.png", 90, 90, objects(), Image.new("RGB", (90, 90)))
    before = prediction.to_json()
    detections = prediction.detections
    assert isinstance(detections, sv.Detections)
    assert prediction.detections is detections
    assert prediction.to_json() == before
    detections.tracker_id = np.array([7, 8, 9, -1])
    detections.data["class_name"] = np.array(["cow"] * 4)
    assert [row["track_id"] for row in prediction.to_json()["detections"]] == [7, 8, 9, None]
    assert prediction.counts() == {"cow": 4}
    assert replace(prediction, frame=1).detections is detections
    theirs = sv.Detections(np.array([[0, 0, 5, 5]]))
    assert Prediction("a.png", 90, 90, theirs).detections is theirs


def test_equal_is_what_has_the_same_columns():
    """Before and after supervision's type was asked for, and in either order."""
    first, second = (Prediction("a.png", 90, 90, objects()) for _ in range(2))
    assert first == second
    assert second.detections is second.found
    assert first == second
    assert second == first
    assert first != replace(first, found=objects(3))
    assert objects() != objects(tracker_id=np.arange(4))
    assert objects() != "objects"


def test_one_row_or_a_slice():
    given = objects()
    same(given[1], given[np.array([1])])
    same(given[1:3], given[np.array([1, 2])])
    assert [len(one) for one in given] == [1] * 4
