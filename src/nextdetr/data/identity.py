"""The ids of a data set's classes and images, for writing results: see ``nextdetr.identity``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from nextdetr.data.coco import read_coco
from nextdetr.data.joined import DataSets, listed, sets_of
from nextdetr.data.records import DetectionData
from nextdetr.data.sources import other_images, with_own_ids
from nextdetr.errors import DataError
from nextdetr.identity import LONGEST_MAP, Identity, is_number_in_name

__all__ = ["coco_identity", "describe_identity"]


def describe_identity(
    path: DataSets, splits: Sequence[DetectionData], tell: Callable[[str], None] = lambda _: None
) -> Identity:
    """Return a data set's own ids of its classes and images.

    The images of all splits are included, even of those not in ``splits``, if the files have ids at all (COCO) and any id
    differs from the number in the image's name. For several data sets these are the ids of all that have them, named
    with the folder of their set, which distinguishes two images of one id.

    Args:
        path: the data set, or several, as for ``load_data``.
        splits: the splits that were read, the training split first.
        tell: called with a message if ids cannot be stored.
    """
    sets = sets_of(path)
    if len(sets) > 1:
        return _of_sets(sets, dict(zip(splits[0].classes, splits[0].category_ids, strict=True)), tell)
    found = [(record.path, record.image_id) for data in splits if data.own_ids for record in data.records]
    if all(is_number_in_name(file, image_id) for file, image_id in found):
        return Identity(tuple(splits[0].category_ids))
    (root,) = sets
    for split, read in other_images(root, [data.split for data in splits]):
        try:
            found += read()
        except DataError as error:
            tell(f"the image ids of the split {split} are not known: {error}")
    return _checked(Identity(tuple(splits[0].category_ids), _names(found, _folder(root))), tell)


def _of_sets(sets: Sequence[Path], ids: Mapping[str, int | str], tell: Callable[[str], None]) -> Identity:
    """Return the ids of several data sets.

    Args:
        sets: their paths.
        ids: id of each class, in the order of the model's indices.
        tell: as in :func:`describe_identity`.
    """
    names: dict[str, int | str] = {}
    plain, others = True, []  # whether all ids are the numbers in the names; sets with other ids of their classes
    for number, root in enumerate(sets, start=1):
        for split, read in with_own_ids(root):
            try:
                raw = read()
            except DataError as error:
                tell(f"the image ids of the split {split} of {root} are not known: {error}")
                continue
            if not raw.own_ids:
                continue
            plain = plain and all(is_number_in_name(image.path, image.image_id) for image in raw.images)
            folder = _folder(root)
            inside = _names(((image.path, image.image_id) for image in raw.images), folder)
            names |= {f"{number}/{folder.resolve().name}/{name}": image_id for name, image_id in inside.items()}
            own = zip(raw.classes, raw.category_ids, strict=True)
            if any(ids.get(name, value) not in (value, -1) for name, value in own):
                others.append(str(root))
    if others:
        which = listed(list(dict.fromkeys(others)))
        tell(
            f"results of predict --save json will not have the category ids of {which}, which "
            "clash with those of another set; --annotations FILE takes the ids from a COCO file."
        )
    return Identity(tuple(ids.values())) if plain else _checked(Identity(tuple(ids.values()), names), tell)


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _checked(identity: Identity, tell: Callable[[str], None]) -> Identity:
    """Return the identity; a message says if it is too long to be stored."""
    if "image_ids" not in identity.to_metadata():
        tell(
            f"the ids of the {len(identity.image_ids):,} images would take more than {LONGEST_MAP >> 20} MiB, so the "
            "checkpoint does not carry them; predict --save json --annotations FILE takes them from the COCO file."
        )
    return identity


def coco_identity(annotation_file: Path, classes: Sequence[str]) -> Identity:
    """Return the ids that a COCO file gives to a detector's classes, found by name, and to its images.

    Raises:
        DataError: the file cannot be read, or has none of the classes.
    """
    raw = read_coco(annotation_file, [], classes=classes)  # images are not looked up: only names are needed
    return Identity(tuple(raw.category_ids), _names(((i.path, i.image_id) for i in raw.images), annotation_file.parent))


def _names(images: Iterable[tuple[Path, int | str]], root: Path) -> dict[str, int | str]:
    """Name images relative to the data set; for those elsewhere keep only the last folder, as the rest is private."""
    names = {}
    for path, image_id in images:
        inside = path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[-2:])
        names[inside.as_posix()] = image_id
    return names
