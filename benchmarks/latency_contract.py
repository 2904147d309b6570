"""How close does the speed contract come to the request? Requested, promised and measured again, on several data sets.

    python benchmarks/latency_contract.py DATA… [--latency 40] [--model nextdetr-atto] [--images 40] [--write]

Each data set is trained for a few steps with ``--latency`` (accuracy does not matter here), and the file of the chosen
point is timed again in a separate process, in the runtime of the table. ``coins`` is generated as in ``nextdetr
quickstart``. Pass times between the fastest and the slowest setting of the model. Exported files are kept under
``--output``, by setting and number of classes, so that an interrupted run need not export them again. Times are always
measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nextdetr.config import ExportConfig, TrainConfig
from nextdetr.data import sources
from nextdetr.data.coins import make_coins
from nextdetr.engine.train import train
from nextdetr.export.measure import Task, measure
from nextdetr.export.run import write_graph
from nextdetr.export.speed import time_file
from nextdetr.inference.speed import Setting, SpeedPoint
from nextdetr.inference.times import Meter
from nextdetr.weights.checkpoint import OpenedModel, open_model
from results import machine, write_result


def few(images: int) -> None:
    """Limit the number of images per split, since training time does not matter here."""
    load = sources.load_data

    def cut(*arguments: object, **more: object) -> object:
        found = load(*arguments, **more)  # type: ignore[arg-type]
        return replace(found, records=found.records[:images])

    from nextdetr.engine import splits

    splits.load_data = cut  # type: ignore[assignment]


def keeping_meter(folder: Path, model: str) -> Meter:
    """Return a function that measures as training does, with files that are written only once."""

    def measure(opened: OpenedModel, setting: Setting) -> SpeedPoint:
        path = kept_file(folder, model, len(opened.classes), setting)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            size, queries, layers = setting
            write_graph(opened, ExportConfig(image_size=size, queries=queries, decoder_layers=layers), path)
        return time_file(path, setting, torch.get_num_threads())

    return measure


def kept_file(folder: Path, model: str, classes: int, setting: Setting) -> Path:
    """Path of the file of a setting."""
    return folder / "files" / f"{model}-{classes}-{'-'.join(map(str, setting))}.onnx"


def one(arguments: argparse.Namespace, data: str, latency: float) -> dict[str, Any]:
    """Train, export and time again."""
    few(arguments.images)
    kept = Path(arguments.output)
    folder = kept / f"{Path(data).stem}-{latency:g}"
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    config = TrainConfig(
        data=data, model=arguments.model, latency=latency, epochs=arguments.epochs, workers=0, output=folder
    )  # fmt: skip
    result = train(config, meter=keeping_meter(kept, arguments.model))
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
    setting = Setting(chosen["image_size"], chosen["queries"], chosen["layers"])
    file = kept_file(kept, arguments.model, len(open_model(result.checkpoint).classes), setting)
    taken = measure(Task(chosen["runtime"], str(file), setting.image_size, 1, chosen["threads"], arguments.seconds))
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
