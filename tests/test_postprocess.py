from __future__ import annotations

import numpy as np
import pytest
import torch

from nextdetr.export.best import best_detections
from nextdetr.postprocess import Outputs, postprocess
from nextdetr.structures import DetectorOutput
from nextdetr.tensors import as_outputs


def tensors(batch: int = 2, queries: int = 7, classes: int = 3, scale: float = 1.0) -> DetectorOutput:
    return DetectorOutput(torch.randn(batch, queries, classes) * scale, torch.rand(batch, queries, 4))


def output(*sizes: int) -> Outputs:
    return as_outputs(tensors(*sizes))


def made(logits, boxes) -> Outputs:
    return Outputs(np.array(logits, np.float32), np.array(boxes, np.float32))


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values)))


def test_one_query_by_hand():
    both = made([[[2.0, -1.0], [0.5, 3.0]]], [[[0.5, 0.5, 0.5, 0.5], [0.1, 0.9, 0.4, 0.4]]])
    (found,) = postprocess(both, [(100, 200)], max_detections=3)
    assert found.labels.tolist() == [1, 0, 0]
    np.testing.assert_allclose(found.scores, sigmoid([3.0, 2.0, 0.5]), rtol=1e-6)
    expected = [[0.0, 70.0, 60.0, 100.0], [50.0, 25.0, 150.0, 75.0], [0.0, 70.0, 60.0, 100.0]]
    np.testing.assert_allclose(found.boxes, expected, rtol=1e-5)
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)


def test_equals_the_transformers_post_processor():
    transformers = pytest.importorskip("transformers")
    from transformers.models.rt_detr.modeling_rt_detr import RTDetrObjectDetectionOutput

    ours = tensors(3, 20, 5)
    sizes = torch.tensor([[480, 640], [100, 50], [33, 77]])
    theirs = transformers.RTDetrImageProcessor().post_process_object_detection(
        RTDetrObjectDetectionOutput(logits=ours.logits, pred_boxes=ours.boxes), threshold=0.0, target_sizes=sizes
    )
    found_in_all = postprocess(as_outputs(ours), sizes.numpy(), max_detections=20)
    for found, expected, (height, width) in zip(found_in_all, theirs, sizes.tolist(), strict=True):
        assert found.labels.tolist() == expected["labels"].tolist()
        np.testing.assert_allclose(found.scores, expected["scores"], rtol=1e-6)
        clipped = expected["boxes"].numpy().clip(0, [width, height, width, height])  # it does not clip
        np.testing.assert_allclose(found.boxes, clipped, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("queries", "classes", "most"), [(300, 80, 300), (7, 3, 300), (40, 1, 20), (100, 4, 1)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_equals_what_exported_graphs_have(queries, classes, most, scale):
    both, sizes = tensors(3, queries, classes, scale), torch.tensor([[480, 640], [1, 1], [33, 77]])
    boxes, scores, labels = best_detections(both, sizes.float(), max_detections=most)
    for image, found in enumerate(postprocess(as_outputs(both), sizes.numpy(), max_detections=most)):
        largest = max(1, int(sizes[image].max()))
        np.testing.assert_allclose(found.scores, scores[image], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.boxes / largest, boxes[image] / largest, rtol=0, atol=1e-6)
        assert found.labels.tolist() == labels[image].tolist()


def test_equals_what_exported_graphs_have_of_equal_scores():
    """Which of equals come first is open in torch; their scores, and what is certain to be among the best, are not."""
    both = tensors(1, 60, 5)
    both.logits = both.logits.mul(2).round() / 2
    both.boxes[..., 0] = torch.linspace(0.3, 0.6, 60)  # so that a box tells its query
    boxes, scores, labels = best_detections(both, torch.ones(1, 2), max_detections=50)
    (found,) = postprocess(as_outputs(both), [(1, 1)], max_detections=50)
    np.testing.assert_allclose(found.scores, scores[0], rtol=0, atol=1e-6)
    certain = found.scores > found.scores[-1]
    ours, theirs = (
        sorted((round(float(score), 5), int(label), *np.round(np.asarray(box), 5).tolist()) for score, label, box in rows)
        for rows in (
            zip(found.scores[certain], found.labels[certain], found.boxes[certain], strict=True),
            zip(scores[0][certain], labels[0][certain], boxes[0][certain], strict=True),
        )
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_of_equal_scores_the_earlier_comes_first():
    equal = made(np.zeros((1, 4, 3)), np.full((1, 4, 4), 0.5))
    equal.logits[0, 2, 1] = 1.0
    (found,) = postprocess(equal, [(10, 10)], max_detections=5)
    assert found.labels.tolist() == [1, 0, 1, 2, 0]


def test_the_limit_is_capped_by_what_there_is():
    assert [len(found) for found in postprocess(output(), [(10, 10)] * 2)] == [21, 21]
    assert [len(found) for found in postprocess(output(), [(10, 10)] * 2, max_detections=4)] == [4, 4]
    assert len(postprocess(output(1, 0), [(10, 10)])[0]) == 0


def test_scores_fall_and_boxes_stay_inside():
    for found in postprocess(output(2, 50), [(10, 20), (30, 5)]):
        assert (np.diff(found.scores) <= 0).all()
        assert (found.boxes >= 0).all()
    assert (postprocess(output(2, 50), [(10, 20)] * 2)[0].boxes <= [20, 10, 20, 10]).all()


def test_order_survives_a_saturated_sigmoid():
    boxes = [[[0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1], [0.3, 0.3, 0.1, 0.1]]]
    (found,) = postprocess(made([[[30.0], [40.0], [35.0]]], boxes), [(100, 100)])
    np.testing.assert_allclose(found.boxes[:, 0], [15.0, 25.0, 5.0], rtol=1e-5)
    (found,) = postprocess(made([[[-1e4]]], [boxes[0][:1]]), [(1, 1)])
    assert found.scores.tolist() == [0.0]


def test_minus_infinity_is_no_detection_and_nan_comes_out():
    some = output(1, 5, 2)
    some.logits[0, 1:] = -np.inf
    assert len(postprocess(some, [(10, 10)])[0]) == 2
    some.logits[0, 3, 1] = np.nan
    (found,) = postprocess(some, [(10, 10)], max_detections=2)
    assert np.isnan(found.scores[0])  # for the evaluator, which refuses it
    assert len(found) == 2


def test_half_precision_comes_out_as_float32():
    half = tensors()
    half = DetectorOutput(half.logits.bfloat16(), half.boxes.bfloat16())
    (found, _) = postprocess(as_outputs(half), [(480, 640)] * 2)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    reference = postprocess(as_outputs(DetectorOutput(half.logits.float(), half.boxes.float())), [(480, 640)] * 2)[0]
    assert np.array_equal(found.boxes, reference.boxes)


def test_a_filter_costs_no_detections():
    crowded = output(1, 30, 4)
    crowded.logits[..., 3] += 20  # class 3 would take all the places
    (found,) = postprocess(crowded, [(10, 10)], max_detections=10, classes=[0, 2])
    assert len(found) == 10
    assert set(found.labels.tolist()) <= {0, 2}
    everything = postprocess(crowded, [(10, 10)])[0]
    wanted = np.isin(everything.labels, [0, 2])
    assert np.array_equal(found.scores, everything.scores[wanted][:10])
    assert np.array_equal(found.labels, everything.labels[wanted][:10])


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="1 image sizes were given for a batch of 2"):
        postprocess(output(), [(10, 10)])
