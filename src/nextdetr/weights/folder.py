"""Contents of a folder or repository of weights, as laid out by the Hugging Face Hub and transformers; without torch."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

__all__ = ["CARD", "CONFIG", "FOLDER_FILES", "RUN_FILES", "read_card"]

CARD, CONFIG = "README.md", "config.json"
#: Possible names of a folder's weights file; the first that exists is used.
FOLDER_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
#: Detectors in the folder of a training run; the first that exists is used.
RUN_FILES = ("best.safetensors", "last.safetensors")
_MAX_CARD = 64 << 10


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
