"""Images in one folder per class, for the classification probe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nextdetr.data.check import inspect_images
from nextdetr.data.listing import list_images
from nextdetr.errors import DataError

__all__ = ["ClassFolders", "read_class_folders"]

_HELD_OUT = ("val", "valid", "validation", "test")


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """Training and held-out parts of a set of classified images.

    Attributes:
        classes: C names, in the order of their indices.
        train, held_out: (path, class index) of each image.
        skipped: files that cannot be read, each with the reason.
    """

    classes: list[str]
    train: list[tuple[Path, int]]
    held_out: list[tuple[Path, int]]
    skipped: list[str]


def read_class_folders(folder: str | Path, *, held_out: float = 0.25, seed: int = 0) -> ClassFolders:
    """List the images of each class and split them.

    Args:
        folder: one subfolder per class; or ``train`` and ``val`` (or ``test``), each with one subfolder per class, which is
            then the split.
        held_out: fraction of each class, 0 to 1, kept for scoring if the folder has no split of its own; each side gets at
            least one image of each class.
        seed: seed of that split.

    Raises:
        DataError: there is no such folder, there are fewer than two classes, or one has too few readable images.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give one with a subfolder of images for each class.")
    skipped: list[str] = []
    other = next((root / name for name in _HELD_OUT if (root / name).is_dir()), None)
    if (root / "train").is_dir() and other is not None:
        first, second = _by_class(root / "train", skipped), _by_class(other, skipped)
        unknown = sorted(set(second) - set(first))
        if unknown:
            raise DataError(f"{other / unknown[0]}: there is no class {unknown[0]} in {root / 'train'}.")
        classes = sorted(first)
        _check(root / "train", classes)
        if not second:
            raise DataError(f"{other}: there is nothing to score on; it needs a subfolder of images for each class.")
        return ClassFolders(classes, _labelled(first, classes), _labelled(second, classes), skipped)
    images = _by_class(root, skipped)
    classes = sorted(images)
    _check(root, classes)
    first, second = {}, {}
    for number, name in enumerate(classes):
        paths = images[name]
        if len(paths) < 2:
            raise DataError(f"{root / name}: a class needs at least two images, one to learn from and one to score.")
        order = np.random.default_rng((seed, number)).permutation(len(paths))
        count = min(max(1, round(len(paths) * held_out)), len(paths) - 1)
        second[name] = [paths[index] for index in order[:count]]
        first[name] = [paths[index] for index in order[count:]]
    return ClassFolders(classes, _labelled(first, classes), _labelled(second, classes), skipped)


def _check(root: Path, classes: list[str]) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{root}: it needs a subfolder of images for each of at least two classes; there are {len(classes)}."
        )


def _by_class(root: Path, skipped: list[str]) -> dict[str, list[Path]]:
    """Return readable images by subfolder; a subfolder without image files is not a class."""
    found = {}
    for sub in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            files, problems = list_images(sub)
        except OSError as error:
            raise DataError(f"{error.filename or sub} cannot be read: {error.strerror or error}.") from error
        skipped += [f"{problem.file}: {problem.message}" for problem in problems]
        if not files:
            continue
        reports = inspect_images(files)
        good = [path for path, report in zip(files, reports, strict=True) if report.width > 0]
        skipped += [f"{path}: {r.message}" for path, r in zip(files, reports, strict=True) if r.width < 1]
        if not good:
            raise DataError(f"{sub}: none of its {len(files)} images can be read.")
        found[sub.name] = good
    return found


def _labelled(images: dict[str, list[Path]], classes: list[str]) -> list[tuple[Path, int]]:
    return [(path, label) for label, name in enumerate(classes) for path in images.get(name, [])]
