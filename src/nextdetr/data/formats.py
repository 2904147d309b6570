"""The formats of data sets, in the order in which they are tried on a path.

If several match, the first wins, and the message lists the others; a dataset YAML with ``format`` and ``root`` chooses
another one and precedes all. An explicit description (VOC's folders, a ``data.yaml``) precedes formats recognised by the
files of an annotation tool.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from nextdetr.data.crowdhuman import CROWDHUMAN
from nextdetr.data.csv_boxes import CSV
from nextdetr.data.cvat import CVAT
from nextdetr.data.dataset_yaml import open_dataset_yaml
from nextdetr.data.folders import COCO, VOC, YAML_NAMES, YOLO, yaml_in
from nextdetr.data.imagefolder import IMAGEFOLDER
from nextdetr.data.kitti import KITTI
from nextdetr.data.labelme import LABELME
from nextdetr.data.ndjson import NDJSON
from nextdetr.data.parquet import PARQUET
from nextdetr.data.raw import parse_yaml
from nextdetr.data.recognise import Format, Glance, SplitReader, yaml_beside
from nextdetr.data.visdrone import VISDRONE
from nextdetr.data.yolo_layout import looks_like_yolo
from nextdetr.errors import DataError
from nextdetr.pictures import is_picture_name

__all__ = ["FORMATS", "Source", "open_source"]


def _is_dataset_yaml(glance: Glance) -> str:
    file = yaml_in(glance.path)
    content = {} if file is None else parse_yaml(file)
    return f"{glance.shown(file)} (format: {content['format']})" if file is not None and "format" in content else ""


def _open_dataset_yaml(glance: Glance) -> dict[str, SplitReader]:
    file = yaml_in(glance.path)
    assert file is not None
    return open_dataset_yaml(file, {kind.name: kind for kind in FORMATS if kind is not DATASET})


DATASET = Format("yaml", "a dataset YAML", _is_dataset_yaml, _open_dataset_yaml)

FORMATS = (
    DATASET, VOC, YOLO, COCO, CVAT, LABELME, IMAGEFOLDER, PARQUET, CSV, NDJSON, KITTI, VISDRONE, CROWDHUMAN,
)  # fmt: skip

_MOST_BELOW = 10  # subfolders searched for a data set to suggest in a message


@dataclass(frozen=True, slots=True)
class Source:
    """An opened data set.

    Attributes:
        name: name for headings.
        recognised: one line: the format, and the evidence for it.
        readers: readers by split, spelt as in the data set.
        unfinished: as in ``Format``.
    """

    name: str
    recognised: str
    readers: dict[str, SplitReader]
    unfinished: bool


def open_source(path: Path) -> Source:
    """Recognise a data set and find its splits.

    Raises:
        DataError: the path does not exist, no format matches, or the files that define the splits have an error.
        OSError: a folder cannot be listed.
    """
    if not path.exists():
        raise DataError(_missing(path))
    glance = Glance(path)
    found: dict[str, str] = {}
    for kind in FORMATS:
        try:
            reason = kind.recognise(glance)
        except (DataError, OSError) as error:
            if not found and (isinstance(error, OSError) or _is_named(path)):
                raise
            continue  # a bad YAML or an unreadable folder beside what was or may be recognised
        if reason:
            found[kind.name] = reason
    if not found:
        raise _unknown(path)
    first, *others = found if DATASET.name not in found else [DATASET.name]  # its author has chosen
    line = f"{first}: {found[first]}"
    if others:
        also = ", ".join(f"{name} ({found[name]})" for name in others)
        line += f"; {also} would also match: a dataset YAML with format: {others[0]} and root chooses it"
    kind = next(kind for kind in FORMATS if kind.name == first)
    return Source(_name(path, first), line, kind.open(glance), kind.unfinished)


def _is_named(path: Path) -> bool:
    """Whether a path is explicitly described by a YAML."""
    file = yaml_in(path)
    return file is not None and (file == path or file.name in YAML_NAMES)


def _name(path: Path, kind: str) -> str:
    """Name a data set after its folder, or after its YAML or other file with a specific name."""
    file = yaml_in(path) if kind in (DATASET.name, YOLO.name) else path
    if file is None or file.is_dir():
        return path.resolve().name
    return file.resolve().parent.name if file.name in YAML_NAMES else file.stem


def _kinds() -> str:
    usual = (VOC, YOLO, COCO)
    *most, last = (kind.name for kind in FORMATS if kind not in (*usual, DATASET))
    others = f"a data set of another tool ({', '.join(most)} or {last})"
    return f"{', '.join(kind.expected for kind in usual)}, {others} or {DATASET.expected}"


def _missing(path: Path) -> str:
    try:
        neighbours = [entry.name for entry in path.absolute().parent.iterdir()]
    except OSError:
        neighbours = []
    close = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.8)
    guess = f" Did you mean {path.parent / close[0]}?" if close else ""
    if path.name == str(path) and not path.suffix:
        return f"{path}: there is no such folder, and no data set is known by name: give the path of {_kinds()}.{guess}"
    return f"{path}: there is no such file or folder; expected {_kinds()}.{guess}"


def _unknown(path: Path) -> DataError:
    """Build the error for a path that is not a data set."""
    hint = ""
    if path.is_file():
        if path.suffix.lower() == ".json":
            hint = (
                " For a COCO file, write a dataset YAML with format: coco that names it and its images, or give its "
                "folder; for labelme's JSON files, give their folder."
            )
        return DataError(f"{path}: not a data set; expected {_kinds()}.{hint}")
    yaml = yaml_in(path)
    if yaml is not None:
        YOLO.open(Glance(yaml))  # raises a specific error
    inner = sorted(file for name in YAML_NAMES for file in path.glob(f"*/{name}")) or _sets_below(path)
    if len(inner) == 1:
        hint = f" Did you mean {inner[0]}?"
    elif ((path / "images").is_dir() and (path / "labels").is_dir()) or looks_like_yolo(path):
        hint = " It looks like a YOLO set without its data.yaml, or a classes.txt with the name of a class in each line."
    beside = yaml_beside(path)
    if not hint and beside.is_file():
        hint = f" Did you mean {beside}?"
    if not hint and any(is_picture_name(entry.name) for entry in path.iterdir()):
        hint = " It holds images, but no labels; pretrain and predict need none."
    return DataError(f"{path}: not recognised as a data set; expected {_kinds()}.{hint}")


def _sets_below(path: Path) -> list[Path]:
    """Return the data sets one or two folders down, where unpacked archives often have them."""
    folders = Glance(path).folders[:_MOST_BELOW]
    for _ in range(2):
        found = [folder for folder in folders if _is_known(folder)]
        if found:
            return found
        folders = [inner for folder in folders for inner in Glance(folder).folders[:_MOST_BELOW]]
    return []


def _is_known(folder: Path) -> bool:
    glance = Glance(folder)
    for kind in FORMATS:
        try:
            if kind.recognise(glance):
                return True
        except (DataError, OSError):
            continue
    return False
