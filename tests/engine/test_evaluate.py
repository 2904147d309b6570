from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.engine.evaluate import METRICS, CocoEvaluator, evaluate
from nextdetr.errors import TrainingError
from nextdetr.postprocess import Detected
from nextdetr.structures import DetectorOutput

CLASSES = ["cat", "dog", "bird"]


def record(
    boxes, labels, *, image_id: int | str = 1, crowd=None, areas=None, path="image.png", size=(200, 100)
) -> ImageRecord:
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    plain = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return ImageRecord(
        path=Path(path),
        image_id=image_id,
        width=size[0],
        height=size[1],
        boxes=boxes,
        labels=np.array(labels, dtype=np.int64),
        crowd=np.zeros(len(boxes), bool) if crowd is None else np.array(crowd, dtype=bool),
        areas=plain if areas is None else np.array(areas, dtype=np.float32),
    )


def data(*records: ImageRecord) -> DetectionData:
    return DetectionData("test", "val", CLASSES, [7, 3, 90], list(records), [])


def detected(boxes, scores, labels) -> Detected:
    return Detected(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64))


def nothing() -> Detected:
    return detected([], [], [])


def test_a_perfect_detector():
    boxes = [[10, 10, 40, 40], [50, 10, 60, 20]]
    evaluator = CocoEvaluator(data(record(boxes, [0, 2]), record([[0, 0, 150, 99]], [0], image_id=5)))
    evaluator.update(0, detected(boxes, [0.9, 0.8], [0, 2]))
    evaluator.update(1, detected([[0, 0, 150, 99]], [0.7], [0]))
    result = evaluator.summarize()
    assert list(result.metrics) == list(METRICS)
    assert result.metrics == pytest.approx({**dict.fromkeys(METRICS, 1.0), "AP_medium": None, "AR_medium": None})
    assert result.per_class == {
        "cat": {"AP": pytest.approx(1), "AP50": pytest.approx(1), "boxes": 2},
        "dog": {"AP": None, "AP50": None, "boxes": 0},
        "bird": {"AP": pytest.approx(1), "AP50": pytest.approx(1), "boxes": 1},
    }
    assert result.images == 2
    assert json.loads(json.dumps(result.to_json()))["metrics"]["AP_medium"] is None


def test_missed_images_and_missed_classes_count():
    boxes = [[10, 10, 40, 40]]
    evaluator = CocoEvaluator(data(record(boxes, [0]), record(boxes, [0], image_id=2), record(boxes, [1], image_id=3)))
    evaluator.update(0, detected(boxes, [0.9], [0]))
    evaluator.update(1, nothing())
    result = evaluator.summarize()  # image 3 was never seen
    assert result.per_class["cat"]["AP"] == pytest.approx(51 / 101)  # precision 1 up to recall 0.5
    assert result.per_class["dog"]["AP"] == 0
    assert result.metrics["AP50"] == pytest.approx(51 / 202)


def test_no_detections_at_all():
    result = CocoEvaluator(data(record([[10, 10, 20, 20]], [0]))).summarize()
    assert result.metrics["AP"] == 0
    assert result.metrics["AR100"] == 0
    assert result.metrics["AP_large"] is None


@pytest.mark.parametrize("found", [nothing(), detected([[1, 1, 9, 9]], [0.5], [0])])
def test_no_ground_truth_is_undefined(found):
    evaluator = CocoEvaluator(data(record([], [])))
    evaluator.update(0, found)
    result = evaluator.summarize()
    assert result.metrics == dict.fromkeys(METRICS)
    assert result.per_class["cat"] == {"AP": None, "AP50": None, "boxes": 0}


def test_no_images():
    assert CocoEvaluator(data()).summarize().metrics == dict.fromkeys(METRICS)


def test_crowds_swallow_detections():
    truth = record([[10, 10, 40, 40], [100, 10, 180, 90]], [0, 0], crowd=[False, True])
    evaluator = CocoEvaluator(data(truth))
    evaluator.update(0, detected([[100, 10, 120, 30], [130, 30, 150, 50], [10, 10, 40, 40]], [0.9, 0.8, 0.7], [0, 0, 0]))
    result = evaluator.summarize()
    assert result.metrics["AP"] == pytest.approx(1)
    assert result.per_class["cat"]["boxes"] == 1


def test_areas_are_those_of_the_records():
    box = [[0, 0, 100, 100]]  # the object fills a tenth of its box
    evaluator = CocoEvaluator(data(record(box, [0], areas=[900])))
    evaluator.update(0, detected(box, [0.9], [0]))
    metrics = evaluator.summarize().metrics
    assert metrics["AP_small"] == pytest.approx(1)
    assert metrics["AP_large"] is None


def test_an_image_seen_twice_counts_once():
    boxes = [[10, 10, 40, 40]]
    whole = data(record(boxes, [0], image_id="a"), record(boxes, [0], image_id="b"))
    first, second = CocoEvaluator(whole), CocoEvaluator(whole)
    first.update(0, detected(boxes, [0.5], [0]))
    first.update(0, detected(boxes, [0.5], [0]))
    second.update(1, detected(boxes, [0.9], [0]))
    second.update(0, detected(boxes, [0.5], [0]))  # a sampler's padding
    first.merge(pickle.loads(pickle.dumps([first.state(), second.state()])))
    assert first.summarize().metrics["AP"] == pytest.approx(1)


def test_detections_of_classes_that_the_data_set_lacks_are_left_out():
    boxes = [[10, 10, 40, 40]]
    evaluator = CocoEvaluator(data(record(boxes, [0])))
    evaluator.update(0, detected([[10, 10, 40, 40], [50, 10, 60, 20]], [0.8, 0.9], [0, 3]))
    assert [part.tolist() for part in evaluator.state()[0]][1:] == [[pytest.approx(0.8)], [0]]
    assert evaluator.summarize().metrics["AP"] == pytest.approx(1)


def test_nothing_is_printed(capfd):
    evaluator = CocoEvaluator(data(record([[10, 10, 40, 40]], [0])))
    evaluator.update(0, detected([[10, 10, 40, 40]], [0.9], [0]))
    evaluator.summarize()
    assert capfd.readouterr() == ("", "")


def test_unusable_updates():
    evaluator = CocoEvaluator(data(record([[10, 10, 40, 40]], [0], path="cells.png")))
    with pytest.raises(TrainingError, match=r"cells\.png is not finite"):
        evaluator.update(0, detected([[0, 0, 1, 1]], [float("nan")], [0]))
    with pytest.raises(IndexError, match="no image 1"):
        evaluator.update(1, nothing())


class Finder(nn.Module):
    """Reports, as class 0, the box of the pixels brighter than a half."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.BatchNorm2d(3).eval()
        self.batches: list[int] = []
        self.queries: list[int | None] = []

    def forward(self, images: torch.Tensor, targets: None = None, *, queries: int | None = None) -> DetectorOutput:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        self.queries.append(queries)
        size, boxes = images.shape[-1], []
        for image in images:
            ys, xs = torch.where(image[0] > 0.5)
            low, high = torch.stack((xs.min(), ys.min())), torch.stack((xs.max(), ys.max())) + 1
            boxes.append(torch.cat(((low + high) / 2, high - low)) / size)
        return DetectorOutput(torch.tensor([4.0, -9.0, -9.0]).expand(len(images), 1, 3), torch.stack(boxes)[:, None])


@pytest.fixture
def files(tmp_path) -> DetectionData:
    records = []
    for number in range(5):
        pixels = np.zeros((100, 200, 3), np.uint8)
        x, y = 20 * number, 10 * number
        pixels[y : y + 40, x : x + 60] = 255
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        records.append(record([[x, y, x + 60, y + 40]], [0], image_id=2 * number + 3, path=tmp_path / f"{number}.png"))
    return data(*records)


def test_evaluate_reads_runs_and_scores(files):
    model, steps = Finder(), []
    model.train()
    model.frozen.eval()
    result = evaluate(model, files, image_size=200, batch_size=2, queries=17, progress=lambda *step: steps.append(step))
    assert result.metrics["AP"] == pytest.approx(1)
    assert result.images == 5
    assert model.batches == [2, 2, 1]
    assert model.queries == [17, 17, 17]
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert model.training
    assert not model.frozen.training
    assert set(result.seconds_per_image) == {"preprocess", "model", "postprocess"}
    assert all(seconds > 0 for seconds in result.seconds_per_image.values())


def test_evaluate_takes_batches_and_restores_the_mode_after_a_failure(files):
    batches = [(torch.ones(1, 3, 8, 8), [4]), (torch.ones(2, 3, 8, 8), [0, 1])]
    assert evaluate(Finder().eval(), files, image_size=8, batches=batches).metrics["AP50"] == 0
    model = Finder().train()
    with pytest.raises(RuntimeError):
        evaluate(model, files, image_size=8, batches=[(torch.zeros(1, 3, 8, 8), [0])])  # nothing is bright
    assert model.training


def test_two_processes_score_as_one(files):
    shares: list[object] = []

    def first_gather(value: object) -> list[object]:
        shares.append(value)
        return [value]

    alone = evaluate(Finder(), files, image_size=200)
    first, second = Finder(), Finder()
    evaluate(first, files, image_size=200, rank=0, world=2, gather=first_gather)
    both = evaluate(
        second, files, image_size=200, rank=1, world=2, gather=lambda value: pickle.loads(pickle.dumps([*shares, value]))
    )
    assert (first.batches, second.batches) == ([3], [2])
    assert both.metrics == alone.metrics
    assert both.seconds_per_image["model"] > 0
