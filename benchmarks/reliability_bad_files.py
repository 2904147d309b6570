"""Bad images, weights and states for ``reliability_bad.py``: each must be refused. All of them are harmless."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextdetr.weights.reader import read_tensors
from reliability_bad_data import DEEP, Bad
from reliability_runs import COMMANDS, arguments, make_data, session

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "ten bytes": lambda content: content[:10],
    "a third": lambda content: content[: len(content) // 3],
    "two thirds": lambda content: content[: 2 * len(content) // 3],
    "zeros": lambda content: bytes(len(content)),
    "backwards": lambda content: content[::-1],
    "words": lambda content: b"no picture",
}


def images(home: Path, model: Path) -> Iterator[Bad]:
    """Yield files that are not images, or incomplete ones."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
    cases: dict[str, bytes] = {}
    for kind in FORMATS:
        file = io.BytesIO()
        picture.save(file, kind)
        suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
        cases |= {f"{name}.{suffix}": damage(file.getvalue()) for name, damage in DAMAGE.items()}
    png = io.BytesIO()
    picture.save(png, "PNG")
    cases["huge.png"] = _huge(png.getvalue())
    cases["page.jpg"] = b"<!DOCTYPE html><html><body>Sign in</body></html>"
    cases["drawing.png"] = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    for number, (name, content) in enumerate(cases.items()):
        folder = home / str(number)
        folder.mkdir(exist_ok=True)
        (folder / name.replace(" ", "-")).write_bytes(content)
        yield f"image, {name}", _predict(model, folder / name.replace(" ", "-"), folder)


def _huge(content: bytes) -> bytes:
    """Return a PNG whose header claims a gigapixel."""
    import zlib

    header = b"IHDR" + struct.pack(">II", 40000, 40000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def _predict(model: Path, source: Path, folder: Path) -> list[str]:
    return ["predict", str(model), str(source), "--image-size", "64", "--device", "cpu", "--output", str(folder / "out")]


class Runs:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def attacks(marker: Path) -> dict[str, Runs]:
    """Return objects that create a marker file, and do nothing else, if they are unpickled."""
    return {
        "os.system": Runs(os.system, f"touch {marker}"),
        "eval": Runs(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Runs(exec, f"open({str(marker)!r}, 'w')"),
        "open": Runs(open, str(marker), "w"),
        "subprocess": Runs(subprocess.check_call, ["touch", str(marker)]),
        "import": Runs(__import__, "antigravity"),
        "loads": Runs(pickle.loads, pickle.dumps(Runs(os.system, f"touch {marker}"))),
    }


def weights(home: Path, model: Path, marker: Path) -> Iterator[Bad]:
    """Yield malicious pickles, and weights files that are damaged or have false headers."""
    good, layer = model.read_bytes(), {"w": torch.ones(2)}
    files: dict[str, bytes] = {}
    for name, attack in attacks(marker).items():
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save({"model": layer, "extra": attack}, file, _use_new_zipfile_serialization=zipped)
            files[f"{name}, {'zip' if zipped else 'legacy'}.pt"] = file.getvalue()
        files[f"{name}, bare pickle.pkl"] = pickle.dumps({"model": 1, "extra": attack})
    plain = io.BytesIO()
    torch.save({"model": {f"layer.{n}": torch.ones(64) for n in range(4)}}, plain)
    torched = plain.getvalue()
    files |= {
        "half a zip.pt": torched[: len(torched) // 2],
        "zip without its end.pt": torched[:-30],
        "compressed.pt": _squeezed(torched),
        "zip without a pickle.pt": _archive({"a/b": b"c"}),
        "pickle of words.pt": _archive({"a/data.pkl": b"words"}),
        "no tensors.pt": _saved({"epoch": 3}),
        "a list.pt": _saved([1, 2]),
        "nan.pt": _saved({"w": torch.tensor([float("nan")])}),
        "empty.safetensors": b"",
        "seven bytes.safetensors": good[:7],
        "half.safetensors": good[: len(good) // 2],
        "long header.safetensors": (1 << 60).to_bytes(8, "little") + good[8:],
        "no header.safetensors": bytes(8) + good[8:],
        "header of words.safetensors": _header(b"words"),
        "deep header.safetensors": _header(b"[" * DEEP),
        "outside.safetensors": _header(_entry([4], [0, 1 << 40])),
        "wrong size.safetensors": _header(_entry([1 << 20], [0, 16])),
        "negative.safetensors": _header(_entry([-4], [0, 16])),
        "unknown type.safetensors": _header(_entry([4], [0, 16], "F99")),
        "overlap.safetensors": _header(
            json.dumps({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}).encode()
        ),
        "a page.safetensors": b"<!DOCTYPE html><html></html>",
        "git-lfs.safetensors": b"version https://git-lfs.github.com/spec/v1\n",
        "a picture.pt": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "gzip.pt": b"\x1f\x8b" + bytes(100),
        "words.pt": b"these are no weights",
    }
    picture = home / "picture.png"
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(picture)
    for number, (name, content) in enumerate(files.items()):
        file = home / str(number) / name.replace(" ", "-").replace(",", "")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        train = [
            "train",
            "--data",
            str(home.parent / "labels" / "small"),
            "--model",
            "nextdetr-zepto",
            "--weights",
            str(file),
        ]
        ways = {
            0: ["weights", "inspect", str(file)],
            2: [*train, "--image-size", "64", "--accelerator", "cpu"],
            1: ["predict", "nextdetr-zepto", str(picture), "--weights", str(file), "--output", str(file.parent / "out")],
        }
        way = 1 if "nan" in name else number % 3
        yield f"weights, {name}", [*ways[way], *(["--output", str(file.parent / "out")] if way == 2 else [])]
    for number, (name, changes) in enumerate(_lies().items()):
        file = home / f"metadata-{number}.safetensors"
        _with_metadata(model, file, changes)
        yield f"checkpoint, {name}", _predict(file, picture, home / f"metadata-{number}")


def _lies() -> dict[str, dict[str, str | None]]:
    return {
        "no model": {"model": None},
        "no classes": {"classes": None},
        "classes are words": {"classes": "square"},
        "a class too many": {"classes": '["a", "b", "c"]'},
        "another model": {"model": "backbone: []\nhead: []\n"},
        "model of a tag": {"model": "nc: !!python/name:os.system\n"},
        "size is a word": {"image_size": "large"},
        "later version": {"format_version": "999"},
        "deep classes": {"classes": "[" * DEEP},
    }


def _with_metadata(model: Path, file: Path, changes: dict[str, str | None]) -> None:
    from safetensors.torch import save_file

    read = read_tensors(model)
    metadata = {name: value for name, value in (read.metadata | changes).items() if value is not None}
    save_file({name: tensor.clone() for name, tensor in read.tensors.items()}, file, metadata)


def _entry(shape: list[int], offsets: list[int], kind: str = "F32") -> bytes:
    return json.dumps({"w": {"dtype": kind, "shape": shape, "data_offsets": offsets}}).encode()


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(16)


def _archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def _squeezed(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return _archive({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def states(home: Path, marker: Path) -> Iterator[Bad]:
    """Yield run folders of ``train`` and ``pretrain`` with a file that is damaged, malicious, or from another run."""
    for command in COMMANDS:
        run = _made_run(home, command)
        for number, (name, (file, content)) in enumerate(_damages(run, command, marker).items()):
            folder = home / f"{command}-{number}"
            shutil.copytree(run, folder, dirs_exist_ok=True)
            (folder / file).unlink(missing_ok=True)
            if content is not None:
                (folder / file).write_bytes(content)
            yield f"state of {command}, {name}", [command, "--resume", str(folder), "--epochs", "2", "--workers", "0"]


def _made_run(home: Path, command: str) -> Path:
    data, run = make_data(home / "data", images=4), home / command
    if not (home / f"{command}-made").is_file():
        shutil.rmtree(run, ignore_errors=True)
        words = arguments(command, data, epochs=1, **({"val_every": 1} if command == "train" else {}))
        with session([*words, "--output", str(run)], home / f"{command}.steps") as first:
            ended = first.end()
        if ended.code:
            raise SystemExit(f"The run to damage failed: {ended.error[-2000:]}")
        (home / f"{command}-made").touch()
    return run


def _damages(run: Path, command: str, marker: Path) -> dict[str, tuple[str, bytes | None]]:
    """Return a file of the run and its new content, by kind of damage."""
    state = torch.load(run / "last.ckpt", weights_only=True)
    good, settings = (run / "last.ckpt").read_bytes(), (run / "config.yaml").read_text()
    ways: dict[str, bytes | None] = {
        "no state": None,
        "empty state": b"",
        "half a state": good[: len(good) // 2],
        "zeros": bytes(5000),
        "words": b"no state",
        "bare weights": _saved(state["model"]),
        "a list": _saved([1]),
    }
    ways |= {name: _saved(changed) for name, changed in _changed(state, command).items()}
    ways |= {f"runs {name}": _saved({**state, "extra": attack}) for name, attack in attacks(marker).items()}
    source = str(run.parent / "data")
    configs: dict[str, bytes | None] = {
        "no settings": None,
        "empty settings": b"",
        "settings of words": b"settings",
        "settings not YAML": b"epochs: [\n",
        "half the settings": settings[:200].encode() + b"\n: [",
        "settings unknown": (settings + "colour: red\n").encode(),
        "deep settings": b"a: " + b"[" * DEEP,
        "data gone": settings.replace(source, f"{source}-gone").encode(),
    }
    return {name: ("last.ckpt", content) for name, content in ways.items()} | {
        name: ("config.yaml", content) for name, content in configs.items()
    }


def _changed(state: dict[str, Any], command: str) -> dict[str, dict[str, Any]]:
    """Return states that are incomplete, or contain values that no run writes."""
    cursor, model = state["cursor"], state["model"]
    cursors: dict[str, Any] = {
        "cursor is a list": [1],
        "cursor of words": {"epoch": "two"},
        "cursor with more": {**cursor, "more": 1},
        "epoch is text": {**cursor, "epoch": "one"},
        "sums are a list": {**cursor, "sums": [1]},
        "negative place": {**cursor, "place": -4},
        "seconds are text": {**cursor, "seconds": "long"},
        "best is null": {**cursor, "best": None},
    }
    found = {name: {**state, "cursor": value} for name, value in cursors.items()}
    found |= {f"no {part}": {k: v for k, v in state.items() if k != part} for part in ("cursor", "model", "contract")}
    found |= {
        "a later version": {**state, "state_version": 99},
        "an earlier version": {**state, "state_version": 1},
        "version is text": {**state, "state_version": "2"},
        "model is null": {**state, "model": None},
        "model of another shape": {**state, "model": {k: v[:1] if v.ndim else v for k, v in model.items()}},
        "optimizer is a list": {**state, "optimizer": [1]},
        "optimizer is empty": {**state, "optimizer": {"state": {}, "param_groups": []}},
        "contract is null": {**state, "contract": None},
        "contract of words": {**state, "contract": {"classes": 5}},
        "average is missing": {**state, "ema": {}},
    }
    if command == "pretrain":
        found |= {
            "origin is a list": {**state, "started_from": [1]},
            "loss is missing": {**state, "pretraining": {}},
            "loss is text": {**state, "pretraining": {"loss": "low", "drawn_at": 0.0}},
        }
    return found
