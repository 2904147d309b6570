"""Pascal VOC: an XML an image in ``Annotations/``, images in ``JPEGImages/``, lists of names in ``ImageSets/Main/``.

Choices:

- Coordinates are taken as they stand: width = xmax - xmin. VOC's own development kit counts pixels from 1 and includes the
  last one, which would add a pixel to every side and shift the box by one; the tools that write this format today write
  plain corners, the figures for BCCD that ours are compared with count so, and one pixel is within anybody's drawing error.
- ``difficult`` objects are ordinary boxes.
- Without a given list, the classes are those of all XML files of the data set, in the order in which they first appear
  in the sorted files: the same for every split.
- A file with a DOCTYPE is refused: annotations need none, and entities can be made to fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.parsers import expat

from nextdetr.data.listing import NameIndex, list_files, list_images
from nextdetr.data.raw import BoxTable, NameList, RawImage, RawSplit, map_classes, read_lines
from nextdetr.data.records import Problem
from nextdetr.errors import DataError
from nextdetr.preprocess import IMAGE_SUFFIXES

__all__ = ["read_voc", "voc_splits"]

_VERDICT = re.compile(r"\S+\s+(-1|0|1)")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_splits(root: Path) -> dict[str, Path]:
    """Return the lists of a VOC folder: split name -> list file; without those that hold a verdict on each image.

    VOC itself has one such list a class and split (``cat_train.txt``, "000012 -1" on its first line).

    Raises:
        DataError: a list cannot be read.
    """
    folder = root / "ImageSets" / "Main"
    paths = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    return {path.stem: path for path in paths if not _VERDICT.fullmatch(read_lines(path)[0].strip())}


def read_voc(
    annotations: Path, image_folder: Path, *, include: NameList | None = None, classes: Sequence[str] | None = None
) -> RawSplit:
    """Read the XML files of a split.

    Args:
        annotations: folder of the XML files.
        image_folder: folder of the images.
        include: names of the images to use, with or without suffix; None uses every XML file.
        classes: names in the model's order; None takes those of all XML files.

    Raises:
        DataError: a folder does not exist, or no XML file has one of the ``classes``.
    """
    for folder in (annotations, image_folder):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder.")
    listing = list_files(annotations, {".xml"})
    files: dict[str, Path] = {}
    doubles: list[Problem] = []
    for path in listing.files:
        other = files.setdefault(_key(annotations, path), path)
        if other != path:
            message = f"{other.name} has the same name but for the ending's letters; this one is passed over"
            doubles.append(Problem(str(path), "", message, "annotation file given twice"))
    parsed = {name: _parse(path) for name, path in files.items()}
    own = list(dict.fromkeys(item.name for file in parsed.values() for item in file.objects if item.name))
    mapped, to_label = map_classes(dict(enumerate(own)), classes, str(annotations))
    label_of = {name: to_label[index] for index, name in enumerate(own) if index in to_label}
    if include is None:
        include = NameList(str(annotations), [("", name) for name in files], [])
    finder = _ImageFinder(image_folder)
    problems, images, table = [*include.problems, *listing.problems, *doubles], [], BoxTable()
    index = NameIndex(list(files))
    seen: set[str] = set()
    for where, line in include.entries:
        name = _spelling(line, files, index)
        if name in seen:
            problems.append(Problem(include.file, where, f"{name} is listed twice; counted once", "image listed twice"))
            continue
        seen.add(name)
        file = parsed.get(name)
        if file is None:
            message = f"there is no {annotations / name}.xml; the image is dropped"
            problems.append(Problem(include.file, where, message, "missing annotation file"))
        elif file.problem is not None:
            problems.append(file.problem)
        else:
            images.append(RawImage(finder.find(name, file.image_name), name, str(files[name]), "", file.size))
            _add_boxes(file, str(files[name]), label_of, len(images) - 1, table, problems)
    problems += finder.problems
    return table.split(mapped, images, problems, source=include.file)


def _key(folder: Path, path: Path) -> str:
    """Return the name that an annotation file goes by: its path in the folder, with ``/`` and without the ending."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _spelling(line: str, files: Container[str], index: NameIndex) -> str:
    """Turn a line of a list, with or without folders and suffix, into the name of an XML file, if one is meant."""
    if line in files:
        return line
    path = PurePosixPath(line.replace("\\", "/"))
    name = str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES | {".xml"} else str(path)
    found = [] if name in files else index.find(name)
    return index.names[found[0]] if len(found) == 1 else name


class _ImageFinder:
    """Finds the image of an XML file by the XML's name, else by the name that it holds (often one from another machine)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_key: dict[str, list[Path]] = {}
        self.by_stem: dict[str, list[Path]] = {}
        listing = list_images(folder)
        self.problems = listing.problems
        for path in listing.files:
            self.by_key.setdefault(_key(folder, path), []).append(path)
            self.by_stem.setdefault(path.stem, []).append(path)

    def find(self, key: str, image_name: str) -> Path:
        """Return the image that belongs to an XML file, or where it would be.

        Args:
            key: the XML's path in its folder, without the ending.
            image_name: file name that stands in the XML; may be empty.
        """
        place = self.folder / key
        alone = self.by_stem.get(place.name, [])
        candidates = self.by_key.get(key) or (alone if len({path.parent for path in alone}) == 1 else [])
        named = place.with_name(image_name) if image_name else place
        if named in candidates or (not candidates and image_name and named.is_file()):
            return named
        if len(candidates) > 1:
            others = ", ".join(path.name for path in candidates[1:])
            message = f"it is taken for the image of {key}.xml, which may also be {others}"
            self.problems.append(Problem(str(candidates[0]), "", message, "several images of one name"))
        return candidates[0] if candidates else place.with_name(image_name or f"{place.name}.jpg")


@dataclass(slots=True)
class _Element:
    tag: str
    line: int
    text: str = ""
    children: list[_Element] = field(default_factory=list)

    def all(self, tag: str) -> Iterator[_Element]:
        return (child for child in self.children if child.tag == tag)

    def first(self, tag: str) -> _Element | None:
        return next(self.all(tag), None)

    def text_of(self, tag: str) -> str:
        child = self.first(tag)
        return "" if child is None else child.text.strip()


@dataclass(frozen=True, slots=True)
class _Object:
    where: str
    name: str
    corners: dict[str, str] | None  # as written; None without a bndbox


@dataclass(frozen=True, slots=True)
class _File:
    objects: list[_Object]
    image_name: str = ""
    size: tuple[float, float] | None = None
    problem: Problem | None = None


class _RefusedError(Exception):
    """The XML has what no annotation needs."""


def _parse_xml(content: bytes) -> _Element:
    """Build the tree with line numbers, which ElementTree does not keep.

    Raises:
        expat.ExpatError: a syntax error.
        _RefusedError: there is a DOCTYPE.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    top = _Element("", 0)
    stack = [top]

    def start(tag: str, _attributes: dict[str, str]) -> None:
        element = _Element(tag, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_tag: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].text += data

    def doctype(*_arguments: object) -> None:
        raise _RefusedError(parser.CurrentLineNumber)

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = doctype
    parser.Parse(content, True)
    return top.children[0]


def _parse(path: Path) -> _File:
    """Read one XML file; what is wrong with the file as a whole comes back as its ``problem``."""

    def bad(where: str, message: str) -> _File:
        return _File(
            [], problem=Problem(str(path), where, f"{message}; the image is dropped", "unreadable annotation file")
        )

    try:
        root = _parse_xml(path.read_bytes())
    except OSError as error:
        return bad("", f"it cannot be read: {error.strerror}")
    except expat.ExpatError as error:
        return bad(f"line {error.lineno}", f"not valid XML ({expat.ErrorString(error.code)})")
    except _RefusedError as refusal:
        return bad(f"line {refusal}", "it declares a DOCTYPE, which annotations do not need and which is not safe to read")
    except (ValueError, LookupError) as error:  # an encoding that Python does not know
        return bad("line 1", f"not valid XML ({error})")
    if root.tag != "annotation":
        return bad(f"line {root.line}", f"not a VOC annotation: its first element is {root.tag}")
    objects = []
    for number, element in enumerate(root.all("object"), start=1):
        box = element.first("bndbox")
        line = element.line if box is None else box.line
        corners = None if box is None else {tag: box.text_of(tag) for tag in _CORNERS}
        objects.append(_Object(f"line {line} (object {number})", element.text_of("name"), corners))
    image_name = root.text_of("filename").replace("\\", "/").rpartition("/")[2]
    return _File(objects, image_name, _size(root))


def _size(root: _Element) -> tuple[float, float] | None:
    size = root.first("size")
    if size is None:
        return None
    try:
        width, height = float(size.text_of("width")), float(size.text_of("height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None  # some tools write 0 for "not known"


def _add_boxes(
    file: _File, path: str, label_of: dict[str, int], image: int, table: BoxTable, problems: list[Problem]
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
            x1, y1, x2, y2 = (float(item.corners[tag]) for tag in _CORNERS)
        except ValueError:
            written = ", ".join(f"{tag} {text!r}"[:40] for tag, text in item.corners.items())
            problems.append(Problem(path, item.where, f"its box is not four numbers ({written}); dropped", "malformed box"))
            continue
        table.add(image, (x1, y1, x2, y2), label_of[item.name], (path, item.where))
