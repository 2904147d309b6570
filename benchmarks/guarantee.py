"""Does the calibrated confidence keep its bound? Random splits of held-out images into calibration and test.

    python benchmarks/guarantee.py CHECKPOINT DATA [--splits 200] [--others DATA ...] [--write]

The images of DATA's ``val`` and ``test`` are pooled and split into random halves. One half sets the confidence as
``nextdetr calibrate`` does; on the other, the share of missed objects per image is measured. The same is done for the
limit on how unlike the training images an image may be, and the share of images that it flags. Halves are random
regardless of which images chose the weights, so that they are exchangeable, which is all that the bound assumes. The
miss rates themselves are too low because of ``val``. The detector runs on each image once. If a recall is out of reach
for a half, all detections count, and nothing is promised; the result says how often. ``--others`` names data sets whose
``val`` images should be flagged.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextdetr.config import ValConfig
from nextdetr.data.sources import load_data
from nextdetr.engine.validate import examine
from nextdetr.inference.familiarity import conformal_limit, fit_space
from nextdetr.inference.pytorch.embed import embed_images
from nextdetr.report.guarantee import Objects, control_risk, found_objects
from nextdetr.report.matching import match
from nextdetr.weights.checkpoint import OpenedModel, open_model
from results import machine, write_result

RECALLS = (0.7, 0.8, 0.9, 0.95)
SHARES = (0.05, 0.1, 0.2)


def look(opened: OpenedModel, data: str, others: list[str]) -> tuple[Objects, NDArray[np.float64], list[float]]:
    """Return the objects of val and test, each image's distance from training, and the share of others that is flagged."""
    parts = [load_data(data, split, classes=opened.classes) for split in ("val", "test")]
    pool = replace(parts[1], split="val and test", records=[record for part in parts for record in part.records])
    examined = examine(opened, ValConfig(data=data), data=pool)
    objects = found_objects(match(pool.records, examined.evaluator.state(), len(pool.classes), ious=np.array([0.5])))
    training = [record.path for record in load_data(data, "train", classes=opened.classes).records]

    def vectors(paths: list[Path]) -> NDArray[np.float32]:
        return embed_images(opened.model, paths, image_size=opened.image_size).embeddings

    space = fit_space(vectors(training))
    assert space is not None
    distances = space.distances(vectors([record.path for record in pool.records]))
    limit = conformal_limit(distances, SHARES[0])
    assert limit is not None
    unlike = [[record.path for record in load_data(other, "val").records] for other in others]
    return objects, distances, [float((space.distances(vectors(paths)) > limit).mean()) for paths in unlike]


def halves(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // 2], order[count // 2 :]


def miss_rates(objects: Objects, recall: float, splits: int) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return the mean share of missed objects in each split's test half, the thresholds, and how many splits have none."""
    rates, thresholds, beyond = [], [], 0
    for seed in range(splits):
        first, second = halves(len(objects.count), seed)
        found = control_risk(objects.take(first), recall)
        beyond += found.threshold is None
        thresholds.append(found.threshold or 0.0)
        rates.append(objects.take(second).missed(thresholds[-1]).mean())
    return np.array(rates), np.array(thresholds), beyond


def flagged(distances: NDArray[np.float64], share: float, splits: int) -> NDArray[np.float64]:
    """Return the share of test images beyond the limit, for each split."""
    rates = []
    for seed in range(splits):
        first, second = halves(len(distances), seed)
        limit = conformal_limit(distances[first], share)
        rates.append(0.0 if limit is None else float((distances[second] > limit).mean()))
    return np.array(rates)


def kept(rates: NDArray[np.float64], limit: float) -> tuple[float, str]:
    """Return the standard error of the mean over splits, and whether the mean exceeds the limit by at most that."""
    error = float(rates.std(ddof=1) / np.sqrt(len(rates)))
    return error, "yes" if rates.mean() <= limit + error else "**no**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--others", nargs="*", default=[])
    options = parser.parse_args()
    opened = open_model(options.checkpoint)
    objects, distances, unlike = look(opened, options.data, options.others)
    lines = [
        "# Bound and result of a calibrated confidence",
        "",
        machine(),
        "",
        f"{Path(options.data).resolve().name}: {len(distances)} images of val and test, {len(objects.count)} of them with "
        f"objects, {options.splits} random splits into halves. The detector was trained at {opened.image_size} px.",
        "",
        "| recall | may miss | mean missed | standard error | kept | out of reach | mean threshold |",
        "|---|---|---|---|---|---|---|",
    ]
    for recall in RECALLS:
        rates, thresholds, beyond = miss_rates(objects, recall, options.splits)
        error, verdict = kept(rates, 1 - recall)
        lines.append(
            f"| {recall:g} | {1 - recall:.3f} | {rates.mean():.4f} | {error:.4f} | {verdict} | {beyond} | "
            f"{thresholds.mean():.3f} |"
        )
    lines += ["", "| may flag | mean flagged | standard error | kept |", "|---|---|---|---|"]
    for share in SHARES:
        rates = flagged(distances, share, options.splits)
        error, verdict = kept(rates, share)
        lines.append(f"| {share:.3f} | {rates.mean():.4f} | {error:.4f} | {verdict} |")
    if unlike:
        names = (Path(other).resolve().stem for other in options.others)
        shares = ", ".join(f"{share:.1%} of {name}" for name, share in zip(names, unlike, strict=True))
        lines += ["", f"With the limit that {SHARES[0]:.0%} of all these images exceed, {shares} (val) are flagged."]
    write_result("guarantee", lines, write=options.write)


if __name__ == "__main__":
    main()
