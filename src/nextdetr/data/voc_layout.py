"""Locations of XML files, images and lists in Pascal VOC data sets, as written by various tools.

- ``Annotations/`` and ``JPEGImages/``, with lists in ``ImageSets/Main/``, or without;
- the same under other names: ``annotations/`` and ``images/``, or ``labels/`` and ``data/`` (FiftyOne);
- XML files and images in one folder, as written by labelImg and Roboflow;
- any of these in folders named after splits, or with such folders inside.

Without lists and split folders, all images are one split, ``train``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nextdetr.data.listing import subfolders
from nextdetr.data.moved import split_words
from nextdetr.data.raw import read_lines
from nextdetr.pictures import is_picture_name

__all__ = ["VocSplit", "voc_splits"]

_ANNOTATIONS = frozenset(("annotations", "annotation", "xmls", "xml", "labels"))
_IMAGES = frozenset(("jpegimages", "images", "image", "imgs", "img"))
_LISTS = ("ImageSets/Main", "ImageSets", "ImageSets/Layout", "ImageSets/Segmentation")
_VERDICT = re.compile(r"(\S.*?)\s+(-1|0|1)")
_ROOT = re.compile(rb"<annotation[\s>]")
_LONE = "train"
_LOOK = 20  # lines of a list to check
_MOST = 1000  # entries of a folder to search for an XML file


@dataclass(frozen=True, slots=True)
class VocSplit:
    """Locations of a split.

    Attributes:
        annotations: folder of the XML files.
        images: folder of the images.
        list_file: names of the images; None for all.
        also: folders of the XML files of the other splits.
    """

    annotations: Path
    images: Path
    list_file: Path | None = None
    also: tuple[Path, ...] = ()


def voc_splits(root: Path) -> dict[str, VocSplit]:
    """Find the splits of a VOC folder; none if it is not a VOC folder.

    Raises:
        DataError: a list cannot be read.
        OSError: a folder cannot be listed.
    """
    folders = subfolders(root)
    pair = _pair(folders)
    if pair is not None:
        lists = _lists(root, *pair)
        if lists:
            return {split: VocSplit(*pair, file) for split, file in lists.items()}
        named = [] if _has_voc(pair[0]) else _named_after_splits(pair[0])
        inner = {path.name: (path, pair[1] / path.name) for path in named}
        together = _together({split: two for split, two in inner.items() if two[1].is_dir()})
        return together or {_LONE: VocSplit(*pair)}
    named = [folder for folder in folders if split_words([folder.name])]
    pairs = {folder.name: _pair(subfolders(folder)) for folder in named}
    found = {split: two for split, two in pairs.items() if two is not None}
    found = found or {folder.name: (folder, folder) for folder in named if _has_voc(folder)}
    if not _has_voc(root):
        return _together(found)
    lists = _lists(root, root, root)
    return {split: VocSplit(root, root, file) for split, file in lists.items()} or {_LONE: VocSplit(root, root)}


def _together(found: dict[str, tuple[Path, Path]]) -> dict[str, VocSplit]:
    folders = {split: two[0] for split, two in found.items()}
    return {
        split: VocSplit(*two, also=tuple(folder for other, folder in folders.items() if other != split))
        for split, two in found.items()
    }


def _pair(folders: list[Path]) -> tuple[Path, Path] | None:
    """Return the folders of XML files and images; VOC's own names are trusted, others need a valid XML file."""
    names = {folder.name: folder for folder in folders}
    if "Annotations" in names and "JPEGImages" in names:
        return names["Annotations"], names["JPEGImages"]
    xml = [folder for folder in folders if folder.name.lower() in _ANNOTATIONS]
    xml += [folder for above in xml for folder in subfolders(above) if folder.name.lower() in _ANNOTATIONS]
    images = [folder for folder in folders if folder.name.lower() in _IMAGES]
    images += [folder for folder in folders if folder.name.lower() == "data"]
    if not images or not xml:
        return None
    inner = [folder for folder in xml if _has_voc(folder) or any(map(_has_voc, _named_after_splits(folder)))]
    return (inner[0], images[0]) if inner else None


def _named_after_splits(folder: Path) -> list[Path]:
    return [path for path in subfolders(folder) if split_words([path.name])]


def _has_voc(folder: Path) -> bool:
    """Whether one of the first XML files of a folder is a VOC annotation."""
    with os.scandir(folder) as entries:
        names = [entry.name for _, entry in zip(range(_MOST), entries, strict=False)]
    names = [name for name in names if name.lower().endswith(".xml") and not name.startswith(".")]
    if not names:
        return False
    try:
        with (folder / min(names)).open("rb") as file:
            return _ROOT.search(file.read(2048)) is not None
    except OSError:
        return False


def _lists(root: Path, annotations: Path, images: Path) -> dict[str, Path]:
    """Return the lists of names by split, without those that hold a verdict on each image.

    VOC itself has such a list per class and split (``cat_train.txt``, "000012 -1" on its first line).
    """
    for folder in (root / name for name in _LISTS):
        paths = sorted(folder.glob("*.txt")) if folder.is_dir() else []
        found = {path.stem: path for path in paths if not _has_verdicts(path, annotations, images)}
        if found:
            return found
    paths = sorted(path for path in root.glob("*.txt") if split_words([path.stem]))
    return {path.stem: path for path in paths if _names_images(path)}


def _has_verdicts(path: Path, annotations: Path, images: Path) -> bool:
    """Whether each line is a name and -1, 0 or 1, rather than a name that ends so (``photo 1``)."""
    lines = [line.strip() for line in read_lines(path) if line.strip()][:_LOOK]
    matches = [_VERDICT.fullmatch(line) for line in lines]
    if not lines or not all(matches):
        return False
    names = lines[0], *(f"{lines[0]}{ending}" for ending in (".jpg", ".png", ".jpeg"))
    return not ((annotations / f"{names[0]}.xml").is_file() or any((images / name).is_file() for name in names))


def _names_images(path: Path) -> bool:
    """Whether the first line of a list beside the folders names an image or an XML file."""
    first = next((line.strip() for line in read_lines(path) if line.strip()), "")
    return is_picture_name(Path(first).name) or first.lower().endswith(".xml")
