"""How near the speed contract comes to what was asked for: asked, promised and measured again, on several data sets.

    python benchmarks/latency_contract.py DATA… [--latency 40] [--model nextdetr-atto] [--epochs 1] [--images 40] [--write]

Each data set is trained for a few steps under ``--latency`` (accuracy does not matter for this claim), the detector is
exported with ``--latency``, and the file is timed again in a process of its own, in the runtime of the table. ``coins`` is
drawn as ``nextdetr quickstart`` draws it. Pass times that lie between the fastest and the slowest setting of the model.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nextdetr.data import sources
from nextdetr.data.coins import make_coins
from nextdetr.detector import Detector
from nextdetr.export.measure import Task, measure
from results import machine, write_result


def few(images: int) -> None:
    """Let a data set have so many images a split: the contract's time is not the training's."""
    load = sources.load_data

    def cut(*arguments: object, **more: object) -> object:
        found = load(*arguments, **more)  # type: ignore[arg-type]
        return replace(found, records=found.records[:images])

    import nextdetr.engine.setup as setup

    setup.load_data = cut  # type: ignore[assignment]


def one(arguments: argparse.Namespace, data: str, latency: float) -> dict[str, Any]:
    """Train, export and time again."""
    few(arguments.images)
    folder = Path(arguments.output) / f"{Path(data).stem}-{latency:g}"
    started = time.perf_counter()
    result = Detector(arguments.model).train(data=data, latency=latency, epochs=arguments.epochs, workers=0, output=folder)
    trained = time.perf_counter() - started
    assert result.speed is not None
    chosen = result.speed["chosen"]
    row = {
        "data": Path(data).stem,
        "asked": latency,
        "chosen": chosen,
        "seconds": trained,
        "points": result.speed["points"],
    }
    if chosen is None:
        return row
    exported = Detector(result.checkpoint).export("onnx", latency=latency, images=1, quiet=True)
    kind = chosen["runtime"] if chosen["runtime"] != "pytorch" else "onnxruntime"
    taken = measure(Task(kind, exported.file, exported.image_size, 1, torch.get_num_threads(), arguments.seconds))
    again = 1000 * taken["median"]
    return row | {"again": again, "promised": chosen["latency_ms"] / latency, "kept": again / latency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--latency", type=float, nargs="+", default=[40.0])
    parser.add_argument("--model", default="nextdetr-atto")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--output", default="runs/latency_contract")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for data in arguments.data:
        source = str(make_coins(Path(arguments.output) / "coins", image_size=320)) if data == "coins" else data
        for latency in arguments.latency:
            rows.append(one(arguments, source, latency))
            print(json.dumps({name: value for name, value in rows[-1].items() if name != "points"}), flush=True)
    write_result("latency_contract", [machine(), "", *table(rows, arguments.model)], write=arguments.write)


def table(rows: list[dict[str, Any]], model: str) -> list[str]:
    """Rows of the result, in milliseconds."""
    lines = [
        f"`{model}`, {torch.get_num_threads()} threads, batch 1, median of the exported file.", "",
        "| data | asked | promised | of asked | timed again | of asked | size, queries, layers | runtime | training, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        point = row["chosen"]
        if point is None:
            lines.append(f"| {row['data']} | {row['asked']:g} | not kept | | | | | | {row['seconds']:.0f} |")
            continue
        setting = f"{point['image_size']}, {point['queries']}, {point['layers']}"
        lines.append(
            f"| {row['data']} | {row['asked']:g} | {point['latency_ms']:.1f} | {row['promised']:.2f} | "
            f"{row['again']:.1f} | {row['kept']:.2f} | {setting} | {point['runtime']} | {row['seconds']:.0f} |"
        )
    return lines


if __name__ == "__main__":
    main()
