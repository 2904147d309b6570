"""One reader for weights files of any origin; nothing in a file is run, and memory is bounded by its size.

The format is determined by content, not by name: safetensors, both formats of ``torch.save``, or a folder of transformers.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.weights.folder import CARD, CONFIG, EXPORTED, FOLDER_FILES, RUN_FILES, is_export, read_card
from nextdetr.weights.gate import is_finite
from nextdetr.weights.pickle.archive import map_file
from nextdetr.weights.pickle.calls import NumberKey
from nextdetr.weights.pickle.statedict import Found, find_weights, plain
from nextdetr.weights.pickle.stubs import Stub
from nextdetr.weights.pickle.torchfile import TorchFile, is_legacy, open_legacy, open_zip
from nextdetr.weights.tensorfile import DTYPES, open_tensors

__all__ = ["WeightsFile", "beside", "check_finite", "read_tensors"]

_MAX_JSON = 16 << 20
_LFS = b"version https://git-lfs"
_ALIENS = {
    b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive", b"7z\xbc\xaf": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive", b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array", b"GGUF": "GGUF",
    b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"%PDF": "a PDF", b"\x7fELF": "a program", b"MZ": "a program",
}  # fmt: skip


@dataclass(slots=True)
class WeightsFile:
    """Content of a weights file.

    Attributes:
        path: path that was read; for a file from the Hugging Face Hub, its name there with the commit.
        format: ``safetensors``, ``torch`` (zip), ``torch-legacy`` or ``folder``.
        tensors: name -> tensor, with the types of the file. They may be views of the file on disk: copy what must outlive
            changes of the file.
        metadata: metadata in the header of safetensors; empty for others.
        extra: other information, as text, numbers, lists and dictionaries. For a folder, or a file named as one in a
            folder: ``config`` (config.json) and ``card`` (from README.md, see ``read_card``). For torch: the other entries
            of the file by name (``config`` and ``card`` as ``file_config`` and ``file_card``), ``unwrapped`` (location of
            the tensors: ``ema.module``, ``model``, or empty for the whole file), ``keys`` (all entries), ``prefix`` (common
            prefix of the names), ``not_tensors``, ``stubs`` (classes that were not built); and for a pickled module
            ``pickled_class`` and, if present, ``names`` (classes) and ``yaml``.
        maps: the memory maps behind the tensors.
    """

    path: PurePath
    format: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    maps: list[mmap.mmap] = field(default_factory=list, repr=False)

    def release(self) -> None:
        """Release the memory of what has been read; tensors are read again when used.

        Changes to the tensors are lost: only call this if there are none.
        """
        for pages in self.maps:
            if hasattr(mmap, "MADV_DONTNEED"):
                pages.madvise(mmap.MADV_DONTNEED)


def read_tensors(path: str | Path, *, key: str | None = None) -> WeightsFile:
    """Read the tensors of a weights file or folder.

    Args:
        path: a file, a folder with ``model.safetensors`` or ``pytorch_model.bin``, which may be sharded, or the folder of a
            training run.
        key: for a torch file, dotted keys of its weights (for example ``model``, to skip averaged ones); None uses the
            first usual place that has any, averaged weights first.

    Raises:
        WeightsError: the file is missing, damaged, hostile, or holds no weights; nothing in it was run.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_folder(path, key)
        if not path.is_file():
            raise WeightsError(f"{path}: no such file." if not path.exists() else f"{path}: not an ordinary file.")
        if is_export(path):
            raise WeightsError(f"{path}: {EXPORTED}")
        file = _read_file(path, key)
        if path.name in FOLDER_FILES:
            file.extra |= beside(path.parent)
        return file
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}).") from error


def check_finite(file: WeightsFile) -> None:
    """Refuse weights that are not finite, except constant buffers that contain infinity on purpose (anchors, masks).

    Raises:
        WeightsError: a tensor holds NaN or infinity (the message names it).
    """
    for name, tensor in file.tensors.items():
        if not tensor.is_floating_point() or name.rsplit(".", 1)[-1].endswith(("anchors", "mask")):
            continue
        if not is_finite(tensor):
            raise WeightsError(f"{file.path}: its tensor {name} holds NaN or infinity; take an earlier checkpoint.")


def _read_file(path: Path, key: str | None) -> WeightsFile:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PK\x03\x04"):
        return _from_torch(path, "torch", open_zip(str(path), map_file(path)), key)
    if is_legacy(head):
        return _from_torch(path, "torch-legacy", open_legacy(str(path), map_file(path)), key)
    _refuse_others(path, head)
    return _read_safetensors(path, head)


def _refuse_others(path: Path, head: bytes) -> None:
    """Refuse files that are not weights, by their beginning.

    Raises:
        WeightsError: it is something else; the message says what.
    """
    if head[8:9] == b"{" and b"\0" in head[:8]:  # safetensors with a header of 640 bytes begins like a pickle
        return
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    alien = next((what for magic, what in _ALIENS.items() if head.startswith(magic)), None)
    if not head:
        cause = "the file is empty; download or save it again."
    elif head.startswith(_LFS):
        cause = "a git-lfs pointer, not the file itself; fetch that with 'git lfs pull', or download it from its page."
    elif start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        cause = "a web page, not weights; the download needs another address, or a login."
    elif head[257:262] == b"ustar" or alien is not None:
        cause = f"{alien or 'a tar archive'}, not weights; NextDETR reads safetensors and the .pt files of torch.save."
    elif head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        cause = "a Python pickle that torch.save did not write; it is refused, and nothing in it was run."
    elif _is_text(head):
        cause = "a text file, not weights; check that it is the file you meant."
    elif head[8:9] != b"{" and path.suffix != ".safetensors":
        cause = "neither safetensors nor a file of torch.save; check its format, and that it is complete."
    else:
        return
    raise WeightsError(f"{path}: {cause}")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character cut by the end of the sample
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text) and all(letter.isprintable() or letter in "\t\r\n\f" for letter in text)


def _read_safetensors(path: Path, head: bytes) -> WeightsFile:
    header = int.from_bytes(head[:8], "little")
    try:
        with open_tensors(path) as file:
            metadata = dict(file.metadata() or {})
            buffer = map_file(path)
            entries = json.loads(buffer[8 : 8 + header])
            tensors = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                view = _view(buffer, 8 + header, entries[name])
                tensors[name] = file.get_tensor(name) if view is None else view
    except (TypeError, KeyError, AttributeError) as error:  # two parsers may read one header differently
        cause = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: a damaged or incomplete safetensors file ({cause}); download it again.") from error
    return WeightsFile(path, "safetensors", tensors, metadata, maps=[buffer])


def _view(buffer: mmap.mmap, start: int, entry: dict[str, Any]) -> Tensor | None:
    """Return a tensor of safetensors as a view of the map; None if that is not possible.

    ``safe_open`` has checked the header; the used parts are checked again, as two parsers may read it differently.
    """
    dtype, shape, (first, last) = DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
    count = math.prod(shape)
    if dtype is None or count == 0 or count * dtype.itemsize != last - first or not 0 <= first < last:
        return None
    if (start + first) % dtype.itemsize or start + last > len(buffer):
        return None
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=start + first).view(shape)


def _from_torch(path: Path, kind: str, file: TorchFile, key: str | None) -> WeightsFile:
    found = find_weights(str(path), file.root, key)
    return WeightsFile(path, kind, file.read(found.records), {}, _extra(file, found), [file.buffer])


def _extra(file: TorchFile, found: Found) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    keys = []
    if isinstance(file.root, dict) and found.place:
        keys = [str(name)[:80] for name in list(file.root)[:100] if isinstance(name, str | NumberKey)]
        for name in list(file.root)[:100]:
            value = file.root[name]
            if isinstance(name, str) and not (isinstance(value, Stub) and "_modules" in value.state):
                extra[f"file_{name}" if name in ("config", "card") else name] = plain(value)
    extra |= {"unwrapped": found.place, "keys": keys, "prefix": found.prefix}
    extra |= {"not_tensors": found.others[:100], "stubs": [name[:200] for name in file.stubs[:200]]}
    if found.module is not None:
        extra["pickled_class"] = found.module.name
        for name in ("names", "yaml"):
            if name in found.module.state:
                extra[name] = plain(found.module.state[name])
    return extra


def _read_folder(folder: Path, key: str | None) -> WeightsFile:
    run = next((name for name in RUN_FILES if (folder / name).is_file()), None)
    if run is not None:
        return _read_file(folder / run, key)
    name = next((name for name in FOLDER_FILES if (folder / name).is_file()), None)
    if name is None:
        found = sorted(path.name for path in folder.glob("*.safetensors"))
        if len(found) != 1:
            if is_export(folder):
                raise WeightsError(f"{folder}: {EXPORTED}")
            several = f"several files ({', '.join(found[:4])}); name one" if found else "no model.safetensors"
            raise WeightsError(f"{folder}: a folder with {several}; give a weights file or a folder of transformers.")
        name = found[0]
    file = _read_shards(folder, folder / name, key) if name.endswith(".index.json") else _read_file(folder / name, key)
    return WeightsFile(folder, "folder", file.tensors, file.metadata, file.extra | beside(folder), file.maps)


def beside(folder: Path) -> dict[str, Any]:
    """Return the entries of ``WeightsFile.extra`` that a folder's config.json and README.md give.

    Raises:
        WeightsError: config.json cannot be read.
    """
    found: dict[str, Any] = {}
    if (folder / CONFIG).is_file():
        found["config"] = _read_json(folder / CONFIG)
    card = read_card(folder / CARD)
    return found | ({"card": card} if card else {})


def _read_shards(folder: Path, index: Path, key: str | None) -> WeightsFile:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{index}: it does not say which file has which tensor.")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    maps: list[mmap.mmap] = []
    for name in sorted(set(places.values())):
        if name != Path(name).name or "\\" in name or not (folder / name).is_file():
            raise WeightsError(f"{index}: it names {name[:200]!r}, which is not in this folder; download it as well.")
        shard = _read_file(folder / name, key)
        tensors |= shard.tensors
        metadata = shard.metadata | metadata
        maps += shard.maps
    missing = [name for name in places if name not in tensors]
    if missing:
        raise WeightsError(f"{index}: {len(missing)} of its tensors (such as {missing[0]}) are in none of its files.")
    return WeightsFile(folder, "folder", tensors, metadata, maps=maps)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError("it is far too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it holds no object")
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a readable JSON file ({' '.join(str(error).split())[:120]}).") from error
    return content
