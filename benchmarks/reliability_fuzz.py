"""Coverage-guided fuzzing of the parsers for untrusted files; part of ``reliability.py``.

Each parser gets ``--fuzz-minutes`` of CPU time in total, over any number of calls; the corpus is kept. Findings are
stored in the folder of the parser, and counted here by kind and location.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from environments import environment, surroundings
from nextdetr.models.graph import load_model_file
from nextdetr.weights.tensorfile import write_tensors
from reliability_state import ROOT, State

TARGET = Path(__file__).with_name("reliability_fuzz_target.py")
PARSERS = ("coco", "voc", "yolo", "model-yaml", "safetensors", "pickle")
TURN = 400.0  # seconds per process: loading libraries takes up to 20 of them, and an interruption loses the rest

COCO = {
    "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 48}, {"id": 2, "file_name": "2.png"}],
    "categories": [{"id": 3, "name": "square", "supercategory": "none"}, {"id": 7, "name": "bar"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [4, 5.5, 10, 12], "area": 120, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 7, "segmentation": [[1, 1, 9, 1, 9, 9]], "iscrowd": 0},
        {
            "id": 3, "image_id": 2, "category_id": 7, "iscrowd": 1,
            "segmentation": {"size": [48, 64], "counts": [10, 30, 3032]},
        },
    ],
}  # fmt: skip
VOC = (
    "<annotation><filename>1.png</filename><size><width>64</width><height>48</height><depth>3</depth></size><object>"
    "<name>square</name><difficult>0</difficult><bndbox><xmin>4</xmin><ymin>5.5</ymin><xmax>20</xmax><ymax>30</ymax>"
    "</bndbox></object></annotation>"
)
YOLO = (
    "path: .\ntrain: images/train\nval: images/train\nnames: [square, bar]\n\0\0""0 0.5 0.5 0.2 0.1\n1 0.1 0.1 0.2 0.2\n",
    "train: images/train\nnc: 2\nnames:\n  0: square\n  1: bar\nkpt_shape: [2, 3]\n\0\0"
    "0 0.5 0.5 0.2 0.1 0.1 0.1 2 0.3 0.3 1\n",
    "train: [images/train]\nnames: {0: a}\n\0\0""0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n",
)  # fmt: skip
WORDS = {
    "coco": [
        "images", "annotations", "categories", "id", "image_id", "category_id", "bbox", "segmentation", "counts", "size",
        "file_name", "width", "height", "iscrowd", "area", "name", "supercategory", "null", "NaN", "Infinity", "-1",
        "1e999",
    ],
    "voc": [
        "<annotation>", "</annotation>", "<object>", "</object>", "<bndbox>", "</bndbox>", "<xmin>", "</xmin>", "<name>",
        "<size>", "<width>", "<!DOCTYPE a [", "<!ENTITY a", "&a;", "<![CDATA[", "<?xml version='1.0' encoding='utf-16'?>",
        "nan", "inf", "1.png", "2",
    ],
    "yolo": [
        "train:", "val:", "names:", "nc:", "path:", "kpt_shape:", "download:", "../", "images/train", "nan", "inf", "1e999",
        "0 0.5 0.5 0.1 0.1", "&a", "*a", "<<:", "!!python/name:os.system", "- ", "{", "[",
    ],
    "model-yaml": [
        "backbone:", "head:", "nc:", "scales:", "scale:", "Conv", "RepC3", "AIFI", "RTDETRDecoder", "DFINEDecoder",
        "Concat",
        "nn.Upsample", "HGStem", "HGBlock", "convnextv2_atto", "normalize: imagenet", "[-1, 1, ", "nearest", "&a", "*a",
        "!!python/name:os.system", "1e999", "-1", "99999999999",
    ],
    "safetensors": [
        "__metadata__", "dtype", "shape", "data_offsets", "F32", "BF16", "I64", "F8_E5M2", "format_version", "model",
        "classes", "image_size", "kind", "backbone", "rows.0.", "-1", "18446744073709551615",
    ],
    "pickle": [
        "ctorch._utils", "_rebuild_tensor_v2", "ctorch", "FloatStorage", "storage", "cpu", "ccollections", "OrderedDict",
        "cposix", "system", "c__builtin__", "eval", "ctorch.nn.modules.linear", "Linear", "_parameters", "_modules",
        "_buffers", "state_dict", "ema", "model", "cnumpy.core.multiarray", "_reconstruct", "scalar",
    ],
}  # fmt: skip


def seeds(name: str) -> list[bytes]:
    """Return valid files, from which the fuzzer starts."""
    if name == "coco":
        return [json.dumps(COCO).encode()]
    if name == "voc":
        return [f"{VOC}\0\0001\n2\n".encode(), f"{VOC}\0\0001.png 1\n2 -1\n".encode()]
    if name == "yolo":
        return [text.encode() for text in YOLO]
    if name == "model-yaml":
        return [load_model_file(model).text.encode() for model in ("nextdetr-zepto", "rtdetr-l", "rtdetr-r18vd")]
    return _tensor_files() if name == "safetensors" else _torch_files()


def _tensor_files() -> list[bytes]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for metadata in ({}, {"format_version": "1", "model": "nc: 2", "classes": '["a"]', "image_size": "64"}):
            tensors = {"rows.0.w": torch.ones(2, 4), "b": torch.zeros(3)}
            content = write_tensors(Path(folder, "a.safetensors"), tensors, metadata).read_bytes()
            length = int.from_bytes(content[:8], "little")
            found += [b"\x00" + content[8 : 8 + length], b"\x80" + content]
    return found


def _torch_files() -> list[bytes]:
    layer = torch.nn.Linear(2, 2)
    contents = [
        {"w": torch.ones(4)}, {"model": layer.state_dict(), "epoch": 3, "names": ["a", 1.5, None]},
        {"ema": {"module": layer.state_dict()}, "args": (True, b"x", {"a": {1, 2}})}, layer,
    ]  # fmt: skip
    found = []
    for content in contents:
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
            found.append(b"\xc0" + file.getvalue())
            if zipped:
                with zipfile.ZipFile(file) as archive:
                    name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                    found.append(b"\x00" + archive.read(name))
    return [seed for seed in found if len(seed) <= 16384]


def run(state: State, output: Path, minutes: float, wall_minutes: float | None, jobs: int = 1) -> None:
    """Fuzz each parser until its minutes or the time of this call are used up; parsers take turns.

    ``jobs`` of them run at the same time.
    """
    python = environment(output, "fuzz-environment", ["atheris"])
    end = time.monotonic() + 60 * (wall_minutes if wall_minutes is not None else 10**6)
    busy: set[str] = set()
    choosing = threading.Lock()

    def choose() -> str | None:
        with choosing:
            waiting = [name for name in PARSERS if name not in busy and _entry(state, name)["seconds"] < 60 * minutes - 1]
            if not waiting or time.monotonic() >= end:
                return None
            name = min(waiting, key=lambda name: _entry(state, name)["seconds"])
            busy.add(name)
            return name

    def work() -> None:
        while (name := choose()) is not None:
            entry = _entry(state, name)
            left = min(TURN, 60 * minutes - entry["seconds"], end - time.monotonic())
            said = _turn(entry, name, python, output / "fuzz" / name, max(5, round(left)))
            with choosing:
                state.save()
                busy.discard(name)
            print(said, file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for worker in [pool.submit(work) for _ in range(jobs)]:
            worker.result()


def _entry(state: State, name: str) -> dict[str, Any]:
    fresh = {"seconds": 0.0, "inputs": 0, "turns": 0, "coverage": 0, "corpus": 0, "grew": [], "found": {}, "ended": []}
    entry: dict[str, Any] = state.entries.setdefault(name, fresh)
    return entry


def _turn(entry: dict[str, Any], name: str, python: Path, folder: Path, seconds: int) -> str:
    _prepare(name, folder)
    environ = {**surroundings(1), "PYTHONPATH": str(ROOT / "src")}
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # the fuzzer writes each input to a file
    scratch = tempfile.mkdtemp(prefix="fuzz-", dir=memory)
    command = [str(python), str(TARGET), name, str(folder), str(seconds), str(1 + entry["turns"]), scratch]
    progress = folder / "progress.json"
    progress.unlink(missing_ok=True)
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)
        try:
            code: int | None = process.wait(seconds + 900)  # it ends by itself; loading libraries is slow on a busy machine
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            shutil.rmtree(scratch, ignore_errors=True)
    said = (folder / "log.txt").read_text(errors="replace")
    if not progress.is_file():
        raise SystemExit(f"Fuzzing of {name} did not start; {folder / 'log.txt'} says why:\n{said[-1500:]}")
    numbers = json.loads(progress.read_text())
    entry["seconds"] += numbers["seconds"]
    entry["inputs"] += numbers["inputs"]
    entry["turns"] += 1
    covered = [line.split("cov: ")[1].split()[0] for line in said.splitlines() if "cov: " in line]
    entry["coverage"] = max([entry["coverage"], *map(int, covered[-1:])])
    entry["corpus"] = len(list((folder / "corpus").iterdir()))
    if numbers["settled"]:
        entry["grew"].append([numbers["inputs"], numbers["settled"] >> 20, numbers["resident"] >> 20])
    if code != 0:  # libFuzzer exits on a hang, on too much memory, and if the interpreter itself crashes
        cause = next((line for line in said.splitlines() if "ERROR: libFuzzer" in line), f"exit code {code}")
        entry["ended"].append(cause.split("libFuzzer: ")[-1][:200])
    for path in (folder / "found").glob("*.json"):
        content = json.loads(path.read_text())
        entry["found"][path.stem] = f"{content['kind']}: {content['signature']}"
    return (
        f"fuzz {name}: {entry['seconds'] / 60:.1f} min, {entry['inputs']:,} inputs, coverage {entry['coverage']}, "
        f"{len(entry['found'])} found"
    )


def _prepare(name: str, folder: Path) -> None:
    (folder / "seeds").mkdir(parents=True, exist_ok=True)
    (folder / "corpus").mkdir(exist_ok=True)
    if not any((folder / "seeds").iterdir()):
        for number, seed in enumerate(seeds(name)):
            (folder / "seeds" / f"{number}").write_bytes(seed)
    words = [word.replace("\\", "\\\\").replace('"', '\\"') for word in WORDS[name]]
    (folder / "words.dict").write_text("".join(f'"{word}"\n' for word in words))


def lines(state: State, minutes: float) -> list[str]:
    """Return the section of the result."""
    part = state.entries
    rows = []
    for name in PARSERS:
        entry = _entry(state, name)
        grown = max([now - first for _, first, now in entry["grew"]], default=0)
        kinds = list(entry["found"].values())
        rows.append(
            f"| {name} | {entry['seconds'] / 60:.1f} of {minutes:g} | {entry['inputs']:,} | {entry['coverage']:,} | "
            f"{entry['corpus']:,} | {sum(kind.startswith('crash') for kind in kinds)} | "
            f"{sum(kind.startswith('slow') for kind in kinds) + sum('timeout' in end for end in entry['ended'])} | "
            f"{sum(kind.startswith('growth') for kind in kinds) + sum('memory' in end for end in entry['ended'])} | "
            f"{sum(kind.startswith('action') for kind in kinds)} | {grown} |"
        )
    spent = sum(part[name]["seconds"] for name in PARSERS) / 60
    found = [f"- {name}: {what}" for name in PARSERS for what in part[name]["found"].values()]
    found += [f"- {name}: the process ended early ({what})" for name in PARSERS for what in part[name]["ended"]]
    unfinished = [name for name in PARSERS if part[name]["seconds"] < 60 * minutes - 1]
    return [
        "## Fuzzing",
        "",
        f"atheris, {spent:.0f} CPU minutes in total"
        + (f"; unfinished: {', '.join(unfinished)} have not reached their {minutes:g} minutes." if unfinished else "."),
        "",
        "| parser | minutes | inputs | coverage | corpus | crashes | hangs | growth | actions | growth over a turn, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        *(["Found:", "", *found, ""] if found else []),
    ]
