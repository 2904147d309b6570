"""Contents of a folder or repository of weights, as laid out by the Hugging Face Hub and transformers; without torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

__all__ = [
    "CARD",
    "CONFIG",
    "EXPORTED",
    "EXPORT_FILES",
    "FOLDER_FILES",
    "MAX_HEADER",
    "RUN_FILES",
    "is_export",
    "read_card",
    "read_notes",
]

CARD, CONFIG = "README.md", "config.json"
#: Possible names of a folder's weights file; the first that exists is used.
FOLDER_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
#: Detectors in the folder of a training run; the first that exists is used.
RUN_FILES = ("best.safetensors", "last.safetensors")
#: Possible names of an exported detector in a folder; the first that exists is used.
EXPORT_FILES = ("model.onnx", "model.xml")
#: What an exported detector is, where weights are needed.
EXPORTED = "an exported detector, from which no weights can be loaded; name the checkpoint that it was made from."
_MAX_CARD = 64 << 10
MAX_HEADER = 16 << 20  # bytes of a safetensors file; 100 are enough for a tensor


def read_card(path: Path) -> dict[str, str]:
    """Return the ``licence`` stated in a model card of the Hugging Face Hub; empty without one.

    Args:
        path: a README.md that starts with YAML between two lines of ``---``.
    """
    try:
        with path.open("rb") as file:
            parts = re.split(r"^---\s*$", file.read(_MAX_CARD).decode("utf-8", "replace"), maxsplit=2, flags=re.MULTILINE)
        entries = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip("\ufeff \r\n") else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    entries = entries if isinstance(entries, dict) else {}
    licence = entries.get("license")
    if licence == "other":
        licence = entries.get("license_name") or licence
    return {"licence": licence[:100]} if isinstance(licence, str) and licence else {}


def is_export(path: Path) -> bool:
    """Whether a path is that of an exported detector, its file or its folder, rather than of weights."""
    if path.is_dir():
        return any((path / name).is_file() for name in EXPORT_FILES)
    suffix = path.suffix.lower()
    return suffix == ".onnx" or (suffix == ".xml" and path.with_suffix(".bin").is_file())


def read_notes(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, read from its header without torch; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_HEADER else None
    except (OSError, ValueError, RecursionError):
        return {}
    notes = header.get("__metadata__") if isinstance(header, dict) else None
    return {str(name): str(text) for name, text in notes.items()} if isinstance(notes, dict) else {}
