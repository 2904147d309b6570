"""Files as ``torch.save`` lays them out, but with a pickle of the test's choice."""

from __future__ import annotations

import contextlib
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


def torch_zip(path, pickled, storages=None, *, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    """Write a zip checkpoint with this ``data.pkl``; ``storages`` are key -> bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", b"3\n")
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def storage(key="0", numel=4, kind="FloatStorage"):
    """Return the instructions that push a storage."""
    return b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor(size=(4,), stride=(1,), offset=0, *, of=None):
    """Return the instructions that push a tensor."""
    shape = b"(" + b"".join(map(number, size)) + b"t" + b"(" + b"".join(map(number, stride)) + b"t"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return call + b"(" + (of or storage()) + number(offset) + shape + b"\x89}tR"


def state_dict(**values):
    """Return a pickle of a dictionary; the values are instructions."""
    body = b"".join(text(name.replace("__", ".")) + value for name, value in values.items())
    return b"\x80\x02}(" + body + b"u."


class Runs:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@contextlib.contextmanager
def ultralytics():
    """Make a package of that name, with the classes that its checkpoints hold, for as long as they are pickled."""
    tasks, blocks, utils = (types.ModuleType(f"ultralytics.{name}") for name in ("nn.tasks", "nn.modules.block", "utils"))

    class HGStem(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem1 = nn.Conv2d(3, 4, 3, bias=False)
            self.bn = nn.BatchNorm2d(4)
            self.act = nn.ReLU()
            self.register_buffer("grid", torch.zeros(7), persistent=False)
            self.register_parameter("none", None)
            self.anchors = torch.full((2,), float("inf"))  # an attribute, no buffer
            self.function = torch.nn.functional.relu

    class RTDETRDetectionModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.yaml = {"nc": 2, "backbone": [[-1, 1, "HGStem", [32, 48]]], "yaml_file": "rtdetr-l.yaml"}
            self.names = {0: "coin", 1: "key"}
            self.model = nn.Sequential(HGStem(), nn.Linear(4, 2))
            self.tied = self.model[1]
            self.args = IterableSimpleNamespace(box=7.5)

    class IterableSimpleNamespace(types.SimpleNamespace):
        pass

    classes = {HGStem: blocks, RTDETRDetectionModel: tasks, IterableSimpleNamespace: utils}
    for cls, module in classes.items():
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    names = ["ultralytics", "ultralytics.nn", "ultralytics.nn.modules"]
    made = {name: types.ModuleType(name) for name in names} | {module.__name__: module for module in classes.values()}
    sys.modules.update(made)
    try:
        yield RTDETRDetectionModel
    finally:
        for name in made:
            del sys.modules[name]


def memo_bomb(levels):
    """Return the instructions that push a list of lists of lists …, each twice in the next."""
    return b"]" + b"".join(b"q" + bytes([k]) + b"0](h" + bytes([k]) + b"h" + bytes([k]) + b"e" for k in range(levels))


def dumps(value, protocol=2):
    return pickle.dumps(value, protocol=protocol)


def ordered(**tensors):
    return OrderedDict(tensors)


def spoil(path, name, change):
    """Change a tensor of a safetensors file, as our own writer would refuse to."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name])}, path, metadata=metadata)
