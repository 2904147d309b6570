"""Does a detector find objects in turned images? Its AP on val upright, mirrored top to bottom, and rotated.

    python benchmarks/turned_objects.py DETECTOR DATA [DETECTOR DATA …] [--split val] [--limit 87] [--write]

Each detector was trained without turned images. If it finds turned objects nearly as well, ``--auto-turn`` lets it learn
from turned images (``engine/turning.py``); the ratios here show where that decision comes out how.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from nextdetr.config import ValConfig
from nextdetr.data.oriented import ROTATED_180, TURNED_LEFT, TURNED_RIGHT, UPSIDE_DOWN, oriented
from nextdetr.data.sources import load_data
from nextdetr.engine.evaluate import evaluate
from nextdetr.weights.checkpoint import open_model
from results import machine, write_result

WAYS = {"upside down": UPSIDE_DOWN, "by 180°": ROTATED_180, "to the left": TURNED_LEFT, "to the right": TURNED_RIGHT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="DETECTOR DATA")
    parser.add_argument("--split", default=ValConfig.model_fields["split"].default)
    parser.add_argument("--limit", type=int, default=100, help="images of each split at most")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    lines = [
        "# AP on turned images of detectors trained on upright ones",
        "",
        f"`benchmarks/turned_objects.py`, split {options.split}. {machine()}",
        "",
        "| detector | data | images | upright |" + "".join(f" {way} |" for way in WAYS),
        "|---|---|---|---|" + "---|" * len(WAYS),
    ]
    for detector, path in zip(options.pairs[::2], options.pairs[1::2], strict=True):
        opened = open_model(detector)
        data = load_data(path, options.split, classes=opened.classes)
        data = replace(data, records=data.records[: options.limit])
        scores = []
        for way in (1, *WAYS.values()):
            turned = data if way == 1 else oriented(data, way)
            result = evaluate(opened.model, turned, image_size=opened.image_size, batch_size=8, device="cpu")
            scores.append(result.metrics["AP"] or 0.0)
        ratios = "".join(f" {value:.3f} ({value / max(scores[0], 1e-9):.2f}) |" for value in scores[1:])
        name = "/".join(Path(detector).resolve().parts[-3:-1])
        lines.append(f"| {name} | {Path(path).stem} | {len(data.records)} | {scores[0]:.3f} |{ratios}")
        print(lines[-1], flush=True)
    write_result("turned-objects", lines, write=options.write)


if __name__ == "__main__":
    main()
