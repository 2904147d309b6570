"""The files that ``anchors.py`` times: peers exported in their own environments, ours by this tree and an earlier one.

Files from an earlier run are reused: those of peers by name and size, ours by the source that wrote them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from environments import environment, surroundings
from nextdetr.inference.onnx import start_session
from nextdetr.inference.openvino import compile_on_cpu

EXPORTER = Path(__file__).parent / "anchor_peer.py"

#: Peers, and what each needs in its environment; several may share one.
PEERS: dict[str, tuple[str, list[str]]] = {
    "yolo26n": ("ultralytics", ["ultralytics", "onnxslim"]),
    "d-fine-n": ("transformers", ["transformers>=5.24"]),
    "deimv2-pico": ("transformers", ["transformers>=5.24"]),
    "rf-detr-nano": ("rfdetr", ["rfdetr"]),
}
ONLY_AT = {"rf-detr-nano": [384]}  # peers published for one size only
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}

# Exports one of our detectors with the tree on the path: arguments are a checkpoint and the settings of each export.
OURS = """
import json, sys
import torch
from nextdetr import Detector
from nextdetr.config import ExportConfig, build_config
from nextdetr.export.run import export
from nextdetr.models.summary import count_gflop
opened = Detector(sys.argv[1]).opened
jobs = json.loads(sys.argv[2])
for given in jobs:
    made = export(opened, build_config(ExportConfig, given))
    model = opened.model
    facts = {
        "file": made.file, "failures": made.failures, "gflop": count_gflop(model, given["image_size"]), "bytes": made.bytes,
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "difference": made.comparison.box,
    }
    open(given["output"] + "/facts.json", "w").write(json.dumps(facts))
"""
SAVE = """
import sys
import torch
from nextdetr import Detector
torch.manual_seed(0)
Detector(sys.argv[1]).save(sys.argv[2])
"""


@dataclass(frozen=True)
class Candidate:
    """One file in one runtime.

    Attributes:
        name: the model, with the commit if it is an earlier one.
        size: side of its input in pixels.
        precision: ``float32`` or ``int8``.
        runtime: ``onnx`` or ``openvino``.
        file: what the runtime opens.
        facts: ``gflop`` of one image, ``parameters``, ``difference`` (to the model in PyTorch), ``version``.
    """

    name: str
    size: int
    precision: str
    runtime: str
    file: Path
    facts: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Unique key among the candidates."""
        return self.name, self.size, self.precision, self.runtime


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def peer_file(name: str, size: int, work: Path) -> Path:
    """Export a peer at one size, unless it is already exported."""
    path = work / "files" / name / f"{size}.onnx"
    if not path.with_suffix(".json").is_file():
        home, packages = PEERS[name]
        python = environment(work / "environments", home, packages)
        say(f"exporting {name} at {size} px")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".log").open("w", encoding="utf-8") as log:
            command = [str(python), "-W", "ignore", str(EXPORTER), name, str(size), str(path)]
            subprocess.run(command, check=True, stdout=log, stderr=log, env=surroundings(2))
    return path


def difference(answers: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Largest difference of outputs, with each column sorted by value.

    Random weights give nearly equal scores, so runtimes return the same detections in different orders.
    """
    found = 0.0
    for answer, wanted in zip(answers, expected, strict=True):
        pairs = (np.sort(part.reshape(-1, part.shape[-1]), axis=0) for part in (answer, wanted))
        found = max(found, float(np.abs(np.subtract(*pairs)).max()))
    return found


def peers(names: Sequence[str], sizes: Sequence[int], work: Path) -> list[Candidate]:
    """The peers' float32 files in both runtimes, each compared with its model in PyTorch."""
    found = []
    for name in names:
        for size in ONLY_AT.get(name, sizes):
            path = peer_file(name, size, work)
            facts = json.loads(path.with_suffix(".json").read_text())
            noted = np.load(path.with_suffix(".npz"))
            expected = [noted[str(number)] for number in range(len(noted.files) - 1)]
            facts["version"] = f"{facts['package']} {facts['version']}"
            for runtime in RUNTIMES:
                candidate = Candidate(name, size, "float32", runtime, path, dict(facts))
                answers = opened(candidate, 2, noted["images"])()
                candidate.facts["difference"] = difference(list(answers), expected)
                found.append(candidate)
    return found


def quantized(candidate: Candidate, work: Path) -> list[Candidate]:
    """The same file in 8 bits for OpenVINO, quantised by NNCF like ours; empty if NNCF fails."""
    path = candidate.file.parent / f"{candidate.size}-int8.xml"
    refused = path.with_suffix(".refused")
    if not path.is_file() and not refused.is_file():
        say(f"quantising {candidate.name} at {candidate.size} px")
        try:
            quantize_peer(candidate, path, work)
        except Exception as error:  # noqa: BLE001 - any error of NNCF is the result
            refused.write_text(f"{type(error).__name__}: {' '.join(str(error).split())}")
    if refused.is_file():
        say(f"{candidate.name} at {candidate.size} px could not be quantised to 8 bits: {refused.read_text()}")
        return []
    made = Candidate(candidate.name, candidate.size, "int8", "openvino", path, dict(candidate.facts))
    noted = np.load(candidate.file.with_suffix(".npz"))
    expected = [noted[str(number)] for number in range(len(noted.files) - 1)]
    made.facts["difference"] = difference(opened(made, 2, noted["images"])(), expected)
    return [made]


def quantize_peer(candidate: Candidate, path: Path, work: Path) -> None:
    """Write a peer's OpenVINO model in 8 bits; YOLO's box decoding stays float, as in its own exporter."""
    import nncf
    import openvino

    side = candidate.size
    pictures = sorted((calibration_data(work) / "images" / "train").glob("*.png"))

    def read(picture: Path) -> np.ndarray:
        pixels = np.asarray(Image.open(picture).resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])

    kind = None if candidate.name == "yolo26n" else nncf.ModelType.TRANSFORMER
    scope = nncf.IgnoredScope(patterns=[r".*/model\.23/(Add|Sub|Mul|Div).*"], validate=False)
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    model = openvino.Core().read_model(candidate.file)
    made = nncf.quantize(
        model, nncf.Dataset(pictures, read), subset_size=len(pictures), model_type=kind,
        preset=nncf.QuantizationPreset.MIXED, ignored_scope=scope, advanced_parameters=advanced,
    )  # fmt: skip
    openvino.save_model(made, str(path), compress_to_fp16=False)


def opened(candidate: Candidate, threads: int, images: np.ndarray) -> Any:
    """Return a function that runs a file on one image."""
    pixels, extent = images.astype(np.float32), np.array([[candidate.size, candidate.size]], np.int64)
    if candidate.runtime == "onnx":
        session = start_session(str(candidate.file), threads)
        feed = {entry.name: pixels if len(entry.shape) == 4 else extent for entry in session.get_inputs()}
        return lambda: session.run(None, feed)
    import openvino

    compiled = compile_on_cpu(openvino.Core(), str(candidate.file), threads)
    request = compiled.create_infer_request()
    given = {entry.get_any_name(): pixels if len(entry.partial_shape) == 4 else extent for entry in compiled.inputs}
    return lambda: list(request.infer(given).values())


def digest(tree: Path) -> str:
    """Return twelve hex digits that identify the source of a tree."""
    found = hashlib.sha256()
    for path in sorted((tree / "src").rglob("*")):
        if path.suffix in (".py", ".yaml"):
            found.update(path.relative_to(tree).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def run_ours(tree: Path, code: str, *arguments: str) -> None:
    """Run a piece of Python with a tree's source on the path."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], env={**os.environ, "PYTHONPATH": str(tree / "src")},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr.strip()[-1500:]}")


def checkpoint(model: str, tree: Path, work: Path) -> Path:
    """A detector with random weights, written once, by the earlier tree if there is one."""
    path = work / "files" / "ours" / f"{model}-{digest(tree)}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        run_ours(tree, SAVE, model, str(path))
    return path


def ours(
    name: str, weights: Path, tree: Path, sizes: Sequence[int], work: Path, *, int8: bool, label: str = ""
) -> list[Candidate]:
    """Files of one of our models, each written by a tree for the runtime that it is timed in."""
    terms: list[tuple[int, str, str]] = [(size, "float32", kind) for size in sizes for kind in RUNTIMES]
    if int8:
        terms += [(size, "int8", kind) for size in sizes for kind in RUNTIMES]
    home = work / "files" / "ours" / digest(tree)
    jobs, found = [], []
    for size, precision, kind in terms:
        folder = home / f"{weights.stem}-{size}-{precision}-{kind}"
        given: dict[str, Any] = {"format": kind, "output": str(folder), "image_size": size, "images": 1}
        if precision == "int8":
            given |= {"int8": True, "data": str(calibration_data(work)), "calibration_images": 32}
        if not (folder / "facts.json").is_file():
            jobs.append(given)
    if jobs:
        say(f"exporting {label or name}: {len(jobs)} files")
        run_ours(tree, OURS, str(weights), json.dumps(jobs))
    for size, precision, kind in terms:
        facts = json.loads((home / f"{weights.stem}-{size}-{precision}-{kind}" / "facts.json").read_text())
        if facts["failures"] and precision == "float32":
            raise SystemExit(f"{label or name}, {size} px, {kind}: " + " ".join(facts["failures"]))
        facts["version"] = "this commit" if not label else "as that commit writes it"
        found.append(Candidate(label or name, size, precision, kind, Path(facts["file"]), facts))
    return found


def calibration_data(work: Path, images: int = 32) -> Path:
    """A COCO folder of images for 8-bit calibration: colours with squares of a model's first class; generated once."""
    folder = work / "files" / "calibration"
    if not (folder / "annotations" / "instances_val.json").is_file():
        generator = np.random.default_rng(0)
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        for split, number in (("train", images), ("val", 2)):
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            entries, boxes = [], []
            for index in range(1, number + 1):
                small = Image.fromarray(generator.integers(0, 255, (12, 12, 3), np.uint8))
                pixels = np.array(small.resize((640, 640), Image.Resampling.BICUBIC))
                x, y, side = (int(value) for value in generator.integers(40, 300, 3))
                pixels[y : y + side, x : x + side] = generator.integers(0, 255, 3)
                Image.fromarray(pixels).save(folder / "images" / split / f"{index}.png")
                entries.append({"id": index, "file_name": f"{index}.png", "width": 640, "height": 640})
                box = {"bbox": [x, y, side, side], "area": side * side, "category_id": 1, "iscrowd": 0}
                boxes.append({"id": index, "image_id": index, **box})
            content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "class_0"}]}
            (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder
