"""Safetensors files: opened with one clear sentence for every problem, and written reproducibly.

The format (huggingface/safetensors): eight bytes with the length of the header, the header as JSON, the tensors' bytes.
safetensors itself writes metadata in random order, so its files are not reproducible.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.files import atomic_write
from nextdetr.weights.folder import MAX_HEADER
from nextdetr.weights.gate import check_tensor

__all__ = ["DTYPES", "count_tensors", "open_tensors", "read_metadata", "write_tensors"]

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; the yielded handle is that of ``safetensors.safe_open``.

    Raises:
        WeightsError: the file is missing, damaged or incomplete, even if that shows only while reading.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path}: a damaged or incomplete safetensors file ({cause}); download or save it again."
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in a file's header; its tensors are not read.

    Raises:
        WeightsError: the file is missing, damaged or incomplete.
    """
    with open_tensors(path) as file:
        return dict(file.metadata() or {})


def count_tensors(path: Path) -> int:
    """Return the number of tensors in a file.

    Raises:
        WeightsError: the file is missing, damaged or incomplete.
    """
    with open_tensors(path) as file:
        return len(file.keys())


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file atomically; the same tensors and metadata give the same bytes.

    Args:
        path: target.
        tensors: name -> tensor, on any device.
        metadata: metadata for the header.

    Raises:
        WeightsError: a tensor has an unsuitable type, or holds NaN or infinity; nothing is written.
    """
    for name, tensor in tensors.items():
        check_tensor(str(path), name, tensor, dtype=tensor.dtype)
    # The order of safetensors itself: wide types first, so that every tensor is aligned to its elements.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            content = tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8)
            file.write(content.numpy().data)
    return Path(path)


def _check_header(path: Path) -> None:
    """Refuse an impossible header length before reading the header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = file.seek(0, 2)
    if size < 8 or length > size - 8:
        raise WeightsError(
            f"{path}: its safetensors header states {length:,} bytes, but the file has {size:,}; download it again."
        )
    if length > MAX_HEADER:
        raise WeightsError(
            f"{path}: its safetensors header has {length >> 20:,} MB, more than weights need; it is refused."
        )
