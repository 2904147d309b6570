"""Pascal VOC: an XML per image, folders of images, and optional lists of names; see ``voc_layout.py`` for the layout.

Choices:

- Coordinates are used as written: width = xmax - xmin. VOC's own development kit counts pixels from 1 and includes the last
  one, which would add a pixel to every side and shift the box by one. Today's tools write plain corners, the published
  figures for BCCD are computed so, and one pixel is within the annotation error.
- ``difficult`` objects are ordinary boxes.
- An image without an XML is background. If no image at all has an XML, the data set is refused.
- Without a given list, the classes are those of all XML files of the data set, in order of appearance in the sorted files:
  the same for every split.
- A file with a DOCTYPE is refused: annotations need none, and entities can be used to fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nextdetr.data.listing import NameIndex, list_files, list_images
from nextdetr.data.raw import BoxTable, NameList, RawImage, RawSplit, find_nearest, map_classes, plural
from nextdetr.data.records import Problem
from nextdetr.data.voc_xml import CORNERS, VocFile, parse_voc
from nextdetr.errors import DataError
from nextdetr.pictures import NAMED_SUFFIXES

__all__ = ["read_voc"]

# "JPEGImages/a.jpg Annotations/a.xml", as in lists of PaddleDetection
_PAIR = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, sorted(NAMED_SUFFIXES)))}))\s+.+\.xml", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An image of a split: its name, where it is listed, and its path if it has no XML."""

    name: str
    where: str = ""
    background: Path | None = None


def read_voc(
    annotations: Path,
    image_folder: Path,
    *,
    include: NameList | None = None,
    classes: Sequence[str] | None = None,
    also: Iterable[Path] = (),
) -> RawSplit:
    """Read the XML files of a split.

    Args:
        annotations: folder of the XML files.
        image_folder: folder of the images, with the same subfolders as ``annotations``.
        include: names of the images to use, with or without extension; None uses all images.
        classes: names in the model's order; None uses those of all XML files.
        also: folders of the XML files of the other splits, if separate; for the classes.

    Raises:
        DataError: a folder does not exist, no image has an XML file, or none of those has one of the ``classes``.
        OSError: a folder cannot be listed.
    """
    for folder in (annotations, image_folder):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder.")
    problems: list[Problem] = list(include.problems) if include else []
    files = _list_xml(annotations, problems)
    parsed = {name: parse_voc(path) for name, path in files.items()}
    mapped, label_of = _classes(annotations, list(parsed.values()), also, classes)
    finder = _ImageFinder(image_folder)
    if include is None:
        claimed = _claims(files, parsed, finder)
        unclear = _unclear(files, parsed, finder, claimed)
        problems += unclear.values()
        chosen = [_Chosen(name) for name in files]
        chosen += [
            _Chosen(name, "", path) for name, paths in finder.by_key.items() for path in paths
            if path not in claimed and path not in unclear
        ]  # fmt: skip
        source = str(annotations)
    else:
        chosen = _choose(include, annotations, files, parsed, finder, problems)
        source = include.file
    images, table = [], BoxTable()
    for item in chosen:
        file = parsed.get(item.name) if item.background is None else None
        if file is None:
            images.append(RawImage(item.background or finder.folder, item.name, source if item.where else "", item.where))
        elif file.problem is not None:
            problems.append(file.problem)
        else:
            path = str(files[item.name])
            images.append(RawImage(finder.find(item.name, file.image_name), item.name, path, "", file.size))
            _add_boxes(file, path, label_of, len(images) - 1, table, problems)
    if chosen and all(item.background is not None for item in chosen):
        count, first = plural(len(chosen), "image"), chosen[0]
        place = annotations / f"{first.name}.xml"
        raise DataError(f"{source}: none of {count} has an XML file; that of {first.background} is looked for at {place}.")
    problems += finder.problems
    return table.split(mapped, images, problems, source=source)


def _list_xml(folder: Path, problems: list[Problem]) -> dict[str, Path]:
    """Return the XML files by their keys: see ``_key``."""
    listing = list_files(folder, {".xml"})
    problems += listing.problems
    files: dict[str, Path] = {}
    for path in listing.files:
        other = files.setdefault(_key(folder, path), path)
        if other != path:
            message = f"{other.name} has the same name but for the ending's letters; this one is skipped"
            problems.append(Problem(str(path), "", message, "annotation file given twice"))
    return files


def _key(folder: Path, path: Path) -> str:
    """Return the key of a file: its path in the folder, with ``/`` and without the extension."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _classes(
    annotations: Path, parsed: Sequence[VocFile], also: Iterable[Path], wanted: Sequence[str] | None
) -> tuple[tuple[list[str], list[int | str]], dict[str, int]]:
    """Return (names, ids) of the classes, and the model's index of each name."""
    by_folder = {annotations: parsed}
    if wanted is None:
        by_folder |= {folder: [parse_voc(path) for path in list_files(folder, {".xml"}).files] for folder in also}
    files = [file for folder in sorted(by_folder) for file in by_folder[folder]]
    own = list(dict.fromkeys(item.name for file in files for item in file.objects if item.name))
    mapped, to_label = map_classes(dict(enumerate(own)), wanted, str(annotations))
    return mapped, {name: to_label[index] for index, name in enumerate(own) if index in to_label}


def _choose(
    include: NameList, folder: Path, files: Mapping[str, Path], parsed: Mapping[str, VocFile], finder: _ImageFinder,
    problems: list[Problem],
) -> list[_Chosen]:  # fmt: skip
    """Return the images that a list names, each once."""
    index = NameIndex(list(files), folder)
    folders = (folder, finder.folder)
    names = [line if line in files else _spelling(line, files, index, folders) for _, line in include.entries]
    images = [None if name in files else finder.named(name) for name in names]
    if not any(name in files or image for name, image in zip(names, images, strict=True)):
        hits = find_nearest(index, include, problems, names)
        names = [index.names[found[0]] if len(found) == 1 else name for found, name in zip(hits, names, strict=True)]
    claimed = _claims(files, parsed, finder) if any(images) else {}
    unclear = _unclear(files, parsed, finder, claimed) if any(images) else {}
    chosen: dict[str, _Chosen] = {}
    for (where, _), name, image in zip(include.entries, names, images, strict=True):
        key = name if image is None else claimed.get(image, name)  # an XML of another name may describe this image
        if key in chosen:
            problems.append(Problem(include.file, where, f"{key} is listed twice; counted once", "image listed twice"))
        elif key in files:
            chosen[key] = _Chosen(key, where)
        elif image in unclear:
            problems.append(unclear[image])
        elif image is not None:
            chosen[key] = _Chosen(key, where, image)
        else:
            message = f"there is no {folder / key}.xml, and no image of this name; skipped"
            problems.append(Problem(include.file, where, message, "missing annotation file"))
    return list(chosen.values())


def _spelling(line: str, files: Mapping[str, Path], index: NameIndex, folders: Iterable[Path]) -> str:
    """Convert a line of a list to the name of an XML file, if one is meant, else of an image.

    It may have folders and an extension, start with one of the ``folders`` (``JPEGImages/a.jpg``), or name image and XML.
    """
    pair = _PAIR.fullmatch(line)
    path = PurePosixPath((pair[1] if pair else line).replace("\\", "/"))
    parts = (path.with_suffix("") if path.suffix.lower() in NAMED_SUFFIXES | {".xml"} else path).parts
    for folder in folders:
        if folder.name in parts[:-1]:
            parts = parts[len(parts) - parts[::-1].index(folder.name) :]
    name = "/".join(part for part in parts if part != "/")
    found = [] if name in files else index.find(name)
    return index.names[found[0]] if len(found) == 1 else name


def _claims(files: Mapping[str, Path], parsed: Mapping[str, VocFile], finder: _ImageFinder) -> dict[Path, str]:
    """Return which XML file each image belongs to."""
    return {finder.find(name, parsed[name].image_name): name for name in reversed(list(files))}


def _unclear(
    files: Mapping[str, Path], parsed: Mapping[str, VocFile], finder: _ImageFinder, claimed: Mapping[Path, str]
) -> dict[Path, Problem]:
    """Return images, with a problem each, that an XML file may or may not describe: they are not background.

    These are images that differ only in extension from the one that has the XML file, and images of one name in several
    folders if the XML file is in none of these.
    """
    unclear: dict[Path, Problem] = {}
    for key, file in files.items():
        image, alike = finder.find(key, parsed[key].image_name), finder.by_key.get(key, [])
        if len(alike) == 1 and alike[0] == image:  # the usual case
            continue
        if not alike and not image.is_file():
            named = finder.by_stem.get(key.rpartition("/")[2], [])
            alike = [path for path in named if _agree(key, _key(finder.folder, path))]
        for path in alike:
            if path not in claimed:
                message = f"{file} may describe it or another image of this name; left out"
                unclear[path] = Problem(str(path), "", message, "several images of one name")
    return unclear


class _ImageFinder:
    """Finds the image of an XML file by the XML's name, else by the name in it (often a path of another machine)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_key: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        listing = list_images(folder)
        self.problems = listing.problems
        self._found: dict[str, Path] = {}
        self._index: NameIndex | None = None
        for path in listing.files:
            self.by_key.setdefault(_key(folder, path), []).append(path)
            self.by_stem.setdefault(path.stem, []).append(path)

    def named(self, name: str) -> Path | None:
        """Return the image that a list means by a name, if it is unique."""
        return next(iter(self.by_key.get(name) or self._alike(name)), None)

    def find(self, key: str, image_name: str) -> Path:
        """Return the image of an XML file, or where it would be.

        Args:
            key: the XML's path in its folder, without the extension.
            image_name: path of the image in the XML; may be empty.
        """
        if key not in self._found:
            self._found[key] = self._find(key, image_name.lstrip("./"))
        return self._found[key]

    def _find(self, key: str, written: str) -> Path:
        place, base = self.folder / key, written.rpartition("/")[2]
        candidates = self.by_key.get(key) or self._alone(key)
        named = place.parent / base if base else place
        if named in candidates or (not candidates and base and named.is_file()):
            return named
        whole = [path for path in self.by_key.get(written.rpartition(".")[0], ()) if path.name == base]
        if not candidates and whole:
            return whole[0]
        if len(candidates) > 1:
            others = ", ".join(path.name for path in candidates[1:])
            message = f"it is taken for the image of {key}.xml, which may also be {others}"
            self.problems.append(Problem(str(candidates[0]), "", message, "several images of one name"))
        return candidates[0] if candidates else place.parent / (base or f"{place.name}.jpg")

    def _alone(self, key: str) -> list[Path]:
        """Return the images of a name that differs in case, or has a folder that the other lacks."""
        alike = self._alike(key)
        alone = [path for path in self.by_stem.get(key.rpartition("/")[2], ()) if _agree(key, _key(self.folder, path))]
        return alike or (alone if len({path.parent for path in alone}) == 1 else [])

    def _alike(self, name: str) -> list[Path]:
        if self._index is None:
            self._index = NameIndex(list(self.by_key), self.folder)
        found = self._index.find(name)
        return self.by_key[self._index.names[found[0]]] if len(found) == 1 else []


def _agree(first: str, second: str) -> bool:
    """Whether one of two names ends with the other: ``1/a`` and ``a``, but not ``1/a`` and ``2/a``."""
    return f"/{first}".endswith(f"/{second}") or f"/{second}".endswith(f"/{first}")


def _add_boxes(
    file: VocFile, path: str, label_of: dict[str, int], image: int, table: BoxTable, problems: list[Problem]
) -> None:
    for item in file.objects:
        if item.name not in label_of:
            message = f"its class {item.name} is not among the classes; dropped" if item.name else "it has no name; dropped"
            problems.append(Problem(path, item.where, message, "unknown class"))
            continue
        if item.corners is None:
            problems.append(Problem(path, item.where, "it has no bndbox; dropped", "malformed box"))
            continue
        try:
            x1, y1, x2, y2 = (float(item.corners[tag]) for tag in CORNERS)
        except ValueError:
            written = ", ".join(f"{tag} {text!r}"[:40] for tag, text in item.corners.items())
            problems.append(Problem(path, item.where, f"its box is not four numbers ({written}); dropped", "malformed box"))
            continue
        table.add(image, (x1, y1, x2, y2), label_of[item.name], (path, item.where))
