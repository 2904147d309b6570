"""The folder of a run: opened for one process, and removed again if the run is refused before it begins."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from nextdetr.config_file import read_config_file
from nextdetr.errors import ConfigError
from nextdetr.files import exclusive, make_directory, missing_folders, new_directory, remove_empty

__all__ = ["open_directory"]

#: What is written before the first step; a folder with nothing else holds no run.
BEGINNINGS = frozenset((".lock", "config.yaml", "data.yaml", "val.txt"))
#: Weights that runs write beside their state; they are all that remains if that was deleted to save space.
WEIGHTS = ("best.safetensors", "last.safetensors", "backbone.safetensors", "detector.safetensors")


def open_directory(output: Path | None, default: Path, resume: Path | None, held: ExitStack) -> Path:
    """Open the folder of a run for this process alone: ``resume``, ``output``, or a new one named after ``default``.

    Args:
        output: folder given by the user for a new run, if any.
        default: its name otherwise, with a number if it is taken.
        resume: folder of a run to resume.
        held: keeps other processes out until it is closed, and then removes what is left of a new run that was refused.

    Raises:
        ConfigError: ``output`` already holds a run or the weights of one, has a config.yaml that no run has written, or
            another process is using it.
        WriteError: the folder cannot be created.
    """
    if resume is not None:
        held.enter_context(exclusive(resume))
        return resume
    made = missing_folders(default.parent if output is None else output)
    if output is None:
        folder = new_directory(default)
        made = [folder, *made]
    else:
        folder = make_directory(output)
    before = {entry.name for entry in folder.iterdir()}
    held.enter_context(exclusive(folder))
    held.callback(_remove_beginnings, folder, before, made)
    if (folder / "last.ckpt").exists():
        raise ConfigError(f"{folder}: holds a run already; resume it with --resume {folder}, or choose another --output.")
    _check_free(folder)
    return folder


def _check_free(folder: Path) -> None:
    """Check that a new run replaces nothing of value: what a killed one wrote before its first checkpoint has none.

    Raises:
        ConfigError: it would.
    """
    kept = next((name for name in WEIGHTS if (folder / name).exists()), None)
    if kept is not None:
        raise ConfigError(
            f"{folder}: holds {kept} of an earlier run, whose files a new one would replace; choose another --output."
        )
    config = folder / "config.yaml"
    if config.exists() and not _is_of_run(config):
        raise ConfigError(f"{config}: a run would replace this file with all of its settings; choose another --output.")


def _is_of_run(config: Path) -> bool:
    """Whether a run has written a configuration: it has all settings, even ones that nobody gives in a file."""
    try:
        return "resume" in read_config_file(config)
    except ConfigError:
        return False


def _remove_beginnings(folder: Path, before: Collection[str], made: Sequence[Path]) -> None:
    """Remove what a run that never began has written; called while this process holds the folder.

    Args:
        folder: the run's folder.
        before: names of what it held before.
        made: folders that were made for the run, innermost first.
    """
    with contextlib.suppress(OSError):
        new = {entry.name for entry in folder.iterdir()}.difference(before)
        if not new <= BEGINNINGS:
            return
        for name in new:
            (folder / name).unlink()  # on Windows an open file, and so its folder, cannot be removed
        remove_empty(made)
