"""Files of detectors: what to call a detector, and where files made from it go by default."""

from __future__ import annotations

import re
from pathlib import Path

from nextdetr.errors import ConfigError

__all__ = ["check_not_cached", "detector_name", "own_folder"]

_PLAIN_NAMES = ("best", "last", "detector", "model")  # they say nothing about the detector in the file
_SNAPSHOT = re.compile(r"/models--(?:[^/]+?--)?([^/]+)/snapshots/[^/]+$")  # in huggingface_hub's cache


def detector_name(source: str | Path) -> str:
    """Return what to call a detector: the name of its file without the ending, or of its folder.

    A file called as runs and exports call theirs (best, last, detector, model) has the name of the folder that it is in. A
    folder in the cache of the Hugging Face Hub has the name of its repository, without the owner.
    """
    path = Path(source)
    if path.is_dir():
        return _repository(path) or path.resolve().name
    is_plain = path.stem in _PLAIN_NAMES and path.suffix.lower() not in (".yaml", ".yml")
    # The cache's files are links to others in another folder
    return (is_plain and (_repository(path.parent) or path.resolve().parent.name)) or path.stem


def own_folder(source: str | Path) -> Path | None:
    """Return the folder of a detector's file, where files made from it go by default.

    None if there is no such file, or if it lies in the cache of the Hugging Face Hub: huggingface_hub deletes from it.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent if path.is_file() else None
    return None if folder is None or _repository(folder) is not None else folder


def check_not_cached(source: str | Path, command: str) -> None:
    """Refuse to write into a detector in the cache of the Hugging Face Hub, where all programs share one copy.

    Raises:
        ConfigError: the file lies in the cache.
    """
    if _repository(Path(source).parent) is not None:
        raise ConfigError(
            f"{source}: {command} writes into the detector's file, and this one is in the cache of the Hugging "
            'Face Hub: save it elsewhere first, in Python with detector.save("FILE.safetensors").'
        )


def _repository(folder: Path) -> str | None:
    """Return the name of the repository whose snapshot, called after its commit, a folder is; None for other folders."""
    match = _SNAPSHOT.search(folder.absolute().as_posix())
    return None if match is None else match[1]
