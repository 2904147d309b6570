from __future__ import annotations

import pytest
import torch

from nextdetr.postprocess import postprocess
from nextdetr.structures import DetectorOutput


def output(batch: int = 2, queries: int = 7, classes: int = 3, scale: float = 1.0) -> DetectorOutput:
    return DetectorOutput(torch.randn(batch, queries, classes) * scale, torch.rand(batch, queries, 4))


def test_one_query_by_hand():
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.1, 0.9, 0.4, 0.4]]])
    logits = torch.tensor([[[2.0, -1.0], [0.5, 3.0]]])
    (found,) = postprocess(DetectorOutput(logits, boxes), [(100, 200)], max_detections=3)
    assert found.labels.tolist() == [1, 0, 0]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 0.5]).sigmoid())
    expected = torch.tensor([[0.0, 70.0, 60.0, 100.0], [50.0, 25.0, 150.0, 75.0], [0.0, 70.0, 60.0, 100.0]])
    torch.testing.assert_close(found.boxes, expected)


def test_equals_the_transformers_post_processor():
    transformers = pytest.importorskip("transformers")
    from transformers.models.rt_detr.modeling_rt_detr import RTDetrObjectDetectionOutput

    ours = output(3, 20, 5)
    sizes = torch.tensor([[480, 640], [100, 50], [33, 77]])
    theirs = transformers.RTDetrImageProcessor().post_process_object_detection(
        RTDetrObjectDetectionOutput(logits=ours.logits, pred_boxes=ours.boxes), threshold=0.0, target_sizes=sizes
    )
    for found, expected, size in zip(postprocess(ours, sizes, max_detections=20), theirs, sizes, strict=True):
        assert torch.equal(found.labels, expected["labels"])
        torch.testing.assert_close(found.scores, expected["scores"])
        height, width = size.tolist()
        clipped = torch.minimum(
            expected["boxes"].clamp(min=0), torch.tensor([width, height, width, height])
        )  # it does not clip
        torch.testing.assert_close(found.boxes, clipped)


def test_the_limit_is_capped_by_what_there_is():
    assert [len(found) for found in postprocess(output(), [(10, 10)] * 2)] == [21, 21]
    assert [len(found) for found in postprocess(output(), [(10, 10)] * 2, max_detections=4)] == [4, 4]
    assert len(postprocess(output(1, 0), [(10, 10)])[0]) == 0


def test_scores_fall_and_boxes_stay_inside():
    for found in postprocess(output(queries=50), torch.tensor([[10, 20], [30, 5]])):
        assert (found.scores.diff() <= 0).all()
        assert (found.boxes >= 0).all()
    limits = torch.tensor([20.0, 10, 20, 10])
    assert (postprocess(output(queries=50), [(10, 20)] * 2)[0].boxes <= limits).all()


def test_order_survives_a_saturated_sigmoid():
    logits = torch.tensor([[[30.0], [40.0], [35.0]]])
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1], [0.3, 0.3, 0.1, 0.1]]])
    (found,) = postprocess(DetectorOutput(logits, boxes), [(100, 100)])
    torch.testing.assert_close(found.boxes[:, 0], torch.tensor([15.0, 25.0, 5.0]))


def test_half_precision_comes_out_as_float32():
    half = output()
    half = DetectorOutput(half.logits.bfloat16(), half.boxes.bfloat16())
    (found, _) = postprocess(half, [(480, 640)] * 2)
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    reference = postprocess(DetectorOutput(half.logits.float(), half.boxes.float()), [(480, 640)] * 2)[0]
    assert torch.equal(found.boxes, reference.boxes)


def test_a_filter_costs_no_detections():
    crowded = output(1, 30, 4)
    crowded.logits[..., 3] += 20  # class 3 would take all the places
    (found,) = postprocess(crowded, [(10, 10)], max_detections=10, classes=[0, 2])
    assert len(found) == 10
    assert set(found.labels.tolist()) <= {0, 2}
    everything = postprocess(crowded, [(10, 10)])[0]
    wanted = torch.isin(everything.labels, torch.tensor([0, 2]))
    assert torch.equal(found.scores, everything.scores[wanted][:10])
    assert torch.equal(found.labels, everything.labels[wanted][:10])


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="1 image sizes were given for a batch of 2"):
        postprocess(output(), [(10, 10)])
