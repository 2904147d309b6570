"""COCO metrics: the recorded oracle, and pycocotools on random detections."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.engine.evaluate import METRICS, CocoEvaluator, EvalResult
from nextdetr.postprocess import Detected

ORACLE = [
    *(0.504581, 0.696973, 0.572982, 0.585626, 0.519400, 0.501398),
    *(0.386813, 0.593680, 0.595353, 0.639811, 0.566421, 0.564291),
]


def records_of(annotations: dict) -> DetectionData:
    categories = sorted(annotations["categories"], key=lambda category: category["id"])
    index = {category["id"]: position for position, category in enumerate(categories)}
    records = []
    for image in annotations["images"]:
        rows = [row for row in annotations["annotations"] if row["image_id"] == image["id"]]
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        records.append(
            ImageRecord(
                path=Path(image["file_name"]),
                image_id=image["id"],
                width=image["width"],
                height=image["height"],
                boxes=boxes.astype(np.float32),
                labels=np.array([index[row["category_id"]] for row in rows], dtype=np.int64),
                crowd=np.array([bool(row["iscrowd"]) for row in rows], dtype=bool),
                areas=np.array([row["area"] for row in rows], dtype=np.float32),
            )
        )
    names = [category["name"] for category in categories]
    return DetectionData("oracle", "val", names, [category["id"] for category in categories], records, [])


def score(data: DetectionData, results: list[dict]) -> EvalResult:
    evaluator = CocoEvaluator(data)
    for position, record in enumerate(data.records):
        rows = [row for row in results if row["image_id"] == record.image_id]
        if not rows:
            continue
        boxes = np.array([row["bbox"] for row in rows])
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([data.category_ids.index(row["category_id"]) for row in rows])
        scores = np.array([row["score"] for row in rows], np.float32)
        evaluator.update(position, Detected(boxes.astype(np.float32), scores, labels))
    return evaluator.summarize()


@pytest.mark.shared_data
def test_the_recorded_oracle_to_six_digits(shared_data):
    annotations = json.loads((shared_data / "coco_eval" / "instances_val2014_100.json").read_text())
    results = json.loads((shared_data / "coco_eval" / "instances_val2014_fakebbox100_results.json").read_text())
    assert (len(annotations["images"]), len(annotations["annotations"]), len(results)) == (100, 839, 734)
    result = score(records_of(annotations), results)
    assert [round(result.metrics[name], 6) for name in METRICS] == ORACLE
    counted = sum(row["boxes"] for row in result.per_class.values())
    assert counted == 839 - 9
    defined = [row["AP"] for row in result.per_class.values() if row["AP"] is not None]
    assert np.mean(defined) == pytest.approx(result.metrics["AP"], abs=1e-9)
    assert np.mean([row["AP50"] for row in result.per_class.values() if row["AP50"] is not None]) == pytest.approx(
        result.metrics["AP50"], abs=1e-9
    )


@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_on_random_detections(seed):
    pytest.importorskip("pycocotools")
    annotations, results = random_problem(np.random.default_rng(seed))
    expected, per_class = pycocotools_says(annotations, results)
    result = score(records_of(annotations), results)
    assert [-1 if result.metrics[name] is None else result.metrics[name] for name in METRICS] == pytest.approx(
        expected, abs=1e-6
    )
    ours = [-1 if row["AP"] is None else row["AP"] for row in result.per_class.values()]
    assert ours == pytest.approx(per_class, abs=1e-6)


def random_problem(rng: np.random.Generator) -> tuple[dict, list[dict]]:
    """Boxes and detections near them, with crowds, gaps in the ids, empty images, and equal scores."""
    categories = [{"id": number, "name": str(number)} for number in (1, 4, 90, 91)]
    images = [{"id": int(7 * number + 2), "file_name": "", "width": 640, "height": 480} for number in rng.permutation(20)]
    annotations, results = [], []
    for image in images:
        for _ in range(rng.integers(0, 9)):
            box = [float(value) for value in (*rng.integers(0, 300, 2), *rng.integers(4, 300, 2))]
            category = int(rng.choice([1, 4, 90]))  # the last class has no box
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "bbox": box,
                    "area": box[2] * box[3] * float(rng.uniform(0.3, 1)), "iscrowd": int(rng.random() < 0.1),
                }
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                near = (np.array(box) + rng.integers(-6, 7, 4)).clip(1)
                results.append(
                    {
                        "image_id": image["id"], "category_id": category if rng.random() < 0.8 else 91,
                        "bbox": [float(value) for value in near], "score": float(rng.integers(1, 30)) / 32,
                    }
                )  # fmt: skip
    return {"images": images, "annotations": annotations, "categories": categories}, results


def pycocotools_says(annotations: dict, results: list[dict]) -> tuple[list[float], list[float]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes([dict(row) for row in results]), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    precision = scorer.eval["precision"]
    curves = [precision[:, :, number, 0, -1] for number in range(precision.shape[2])]
    return list(scorer.stats), [float(curve[curve > -1].mean()) if (curve > -1).any() else -1 for curve in curves]
