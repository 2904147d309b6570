"""The splits of a YOLO data set, and the locations of their images.

- a ``data.yaml``: its entries are folders, list files, patterns, or lists of these, relative to ``path`` or to the file;
- darknet's ``obj.data``, which names list files and a list of classes;
- neither, but a list of classes (``classes.txt``, ``obj.names``): splits are folders or list files with such names, else
  all images are one, ``train``.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from nextdetr.data.confidence import least_confidence
from nextdetr.data.listing import is_foreign, subfolders
from nextdetr.data.moved import split_words
from nextdetr.data.objects import split_called
from nextdetr.data.raw import RawSplit, parse_yaml, read_lines
from nextdetr.data.records import Problem
from nextdetr.data.yolo import YoloImages, find_yolo_images, read_yolo, yolo_names
from nextdetr.data.yolo_labels import LabelFiles, keypoint_values
from nextdetr.errors import DataError
from nextdetr.pictures import is_picture_name

__all__ = ["darknet_file", "looks_like_yolo", "names_file", "yolo_readers"]

Reader: TypeAlias = Callable[[Sequence[str] | None], RawSplit]

_SPLITS = ("train", "val", "valid", "validation", "test", "minival")
_NAMES = ("classes.txt", "obj.names", "classes.names", "labels/classes.txt", "data/obj.names", "_darknet.labels")
_LONE = "train"
_ENOUGH = 200  # images searched for a label file


@dataclass(frozen=True, slots=True)
class _Layout:
    """A data set before its splits are read.

    Attributes:
        source: file that names the classes.
        root: base of relative entries and image ids.
        names: class index -> name.
        entries: by split, the value in its file.
        keypoints: result of ``keypoint_values``.
        count: ``nc``, as written.
        min_confidence: as in ``RawSplit``.
    """

    source: Path
    root: Path
    names: Mapping[int, str]
    entries: Mapping[str, Any]
    keypoints: int = 0
    count: Any = None
    min_confidence: float = 0.0


def yolo_readers(path: Path) -> dict[str, Reader]:
    """Return one reader per split.

    Args:
        path: a ``data.yaml``, an ``obj.data``, or a folder without either.

    Raises:
        DataError: a file is malformed, or classes have no names.
        OSError: a folder cannot be listed.
    """
    if path.suffix.lower() in {".yaml", ".yml"}:
        layout = _from_yaml(path)
    else:
        darknet = path if path.is_file() else darknet_file(path)
        layout = _from_folder(path) if darknet is None else _from_darknet(darknet, path)
    return {split: partial(_read, layout, split) for split in layout.entries}


def _read(layout: _Layout, split: str, classes: Sequence[str] | None) -> RawSplit:
    found = _split_images(layout, split)
    raw = read_yolo(
        found, layout.names, root=layout.root, source=layout.source, classes=classes, keypoints=layout.keypoints
    )
    raw.min_confidence = layout.min_confidence
    if layout.count and layout.count != str(len(layout.names)):
        message = f"nc is {layout.count}, but there are {len(layout.names)} names; the names count"
        raw.problems.append(Problem(str(layout.source), "nc", message, "class count differs"))
    return raw


def _from_yaml(path: Path) -> _Layout:
    content = parse_yaml(path)
    names, root = yolo_names(content, path), _root(content, path)
    return _Layout(
        path, root, names, _entries(content) or _split_folders(root), keypoint_values(content, path), content.get("nc"),
        least_confidence(content, path),
    )  # fmt: skip


def _entries(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the splits; CVAT writes subsets as they are called in its projects (``Train``)."""
    return {key: value for key, value in content.items() if value and _is_split(key)}


def _is_split(name: str) -> bool:
    return bool(split_called(name)) or name.lower() in _SPLITS


def _root(content: Mapping[str, Any], source: Path) -> Path:
    """Return the base folder of the entries of a ``data.yaml``.

    ``path`` is tried relative to the file, then to a folder ``datasets`` beside or above it, as ultralytics keeps its sets,
    then, as ultralytics does, to the working folder and to the one named in its settings. If none exists (it is often a
    path on its author's machine), the file's own folder is used.
    """
    path = content.get("path")
    if isinstance(path, str) and path.strip():
        own = source.absolute().parent
        above = (folder / "datasets" for folder in (own, *own.parents[:2], Path.cwd()))
        for base in (source.parent, *above, Path.cwd(), *_settings_folder()):
            root = base / os.path.expanduser(path)  # noqa: PTH111 - which raises nothing
            if root.is_dir():
                return root
    return source.parent


def _settings_folder() -> list[Path]:
    """Return the folder of data sets named in ultralytics' settings, if there are any."""
    homes = {"win32": "~/AppData/Roaming", "darwin": "~/Library/Application Support"}
    home = os.environ.get("YOLO_CONFIG_DIR") or f"{homes.get(sys.platform, '~/.config')}/Ultralytics"
    try:
        folder = json.loads(Path(home, "settings.json").expanduser().read_bytes())["datasets_dir"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return []
    return [Path(folder)] if isinstance(folder, str) and folder else []


def _split_images(layout: _Layout, split: str) -> YoloImages:
    """Return the images of a split.

    Raises:
        DataError: an entry is not a path or a list of paths, does not exist, or holds no image.
    """
    value = layout.entries[split]
    problems: list[Problem] = []
    paths: list[Path] = []
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, Path):
            paths.append(entry)
        elif isinstance(entry, str) and entry.strip():
            paths += _resolve(entry.strip(), split, layout, problems)
        else:
            raise DataError(f"{layout.source}: {split} must be a folder, a list file, or a list of these.")
    found = find_yolo_images(paths, layout.root)
    return YoloImages(found.images, found.folders, [*problems, *found.problems])


def _resolve(entry: str, split: str, layout: _Layout, problems: list[Problem]) -> list[Path]:
    """Return the folders and files of an entry: the path itself, or what matches it as a pattern."""
    bases = list(dict.fromkeys((layout.root, layout.source.parent)))
    spelt = os.path.expanduser(entry if "\\" not in entry else entry.replace("\\", "/"))  # noqa: PTH111
    # Roboflow writes ../train/images for train/images; darknet runs in the folder that contains data/
    forms = dict.fromkeys((entry, spelt, spelt.removeprefix("../"), _below_data(spelt, layout)))
    tried = [base / form for form in forms for base in bases]
    first = PurePosixPath(spelt).parts[:1]
    tried += [base.absolute().parent / spelt for base in bases if first == (base.absolute().name,)]  # from the folder above
    found = next((path for path in tried if path.exists()), None)
    if found is not None:
        return [found]
    if glob.has_magic(spelt):
        for base in bases:
            matches = sorted(glob.glob(spelt, root_dir=base, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute ones
            paths = [base / name for name in matches]
            paths = [path for path in paths if is_picture_name(path.name) or path.suffix == ".txt" or path.is_dir()]
            if paths:
                return paths
    tail = _tail(spelt, split, layout, bases) if is_foreign(spelt) else None
    if tail is None:
        looked = ", ".join(dict.fromkeys(str(path) for path in tried))
        raise DataError(f"{layout.source}: {split} names {entry}, which does not exist (looked for {looked}).")
    message = f"{entry} does not exist, as in a file of another computer; {tail} is taken for it"
    problems.append(Problem(str(layout.source), split, message, "path of another computer"))
    return [tail]


def _below_data(entry: str, layout: _Layout) -> str:
    return entry.removeprefix("data/") if layout.source.suffix not in (".yaml", ".yml") else entry


def _tail(entry: str, split: str, layout: _Layout, bases: Sequence[Path]) -> Path | None:
    """Return the ending of a foreign path that exists here, if no other split's path ends the same or lies in it."""
    values = [value if isinstance(value, list) else [value] for key, value in layout.entries.items() if key != split]
    others = [str(item).replace("\\", "/") for value in values for item in value]
    others = [other for other in others if not f"{other}/".startswith(f"{entry}/")]  # the same, or in it where it was made
    parts = [part for part in PurePosixPath(entry).parts if part not in ("..", "/")]
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        if any(f"/{tail}/" in f"/{other}/" for other in others):
            return None
        found = next((base / tail for base in bases if (base / tail).exists()), None)
        if found is not None:
            return found
    return None


def darknet_file(root: Path) -> Path | None:
    """Return the ``obj.data`` of a folder or of ``data`` in it, or the only file there with its suffix; else None."""
    for folder in (root, root / "data"):
        names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - names of which most are images
        files = [folder / name for name in sorted(names) if name.endswith(".data")]
        named = [path for path in files if path.name == "obj.data"] or files
        content = _darknet_content(named[0]) if len(named) == 1 else {}
        if content.get("names") and _entries(content):
            return named[0]
    return None


def _darknet_content(path: Path) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in read_lines(path) if "=" in line and not line.lstrip().startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


def _from_darknet(file: Path, given: Path) -> _Layout:
    content = _darknet_content(file)
    entries = _entries(content)
    missing = [key for key, found in (("names", content.get("names")), ("train", entries)) if not found]
    if missing:
        raise DataError(f"{file}: not an obj.data of darknet: it has no {' and no '.join(missing)}.")
    named = content["names"].replace("\\", "/")
    roots = list(dict.fromkeys((given if given.is_dir() else file.parent, file.parent.parent, file.parent)))
    root = next((root for root in roots if (root / named).is_file()), roots[0])
    tried = [root / named, root / named.removeprefix("data/"), file.parent / PurePosixPath(named).name]
    names = next((path for path in tried if path.is_file()), None)
    if names is None:
        raise DataError(f"{file}: names is {content['names']}, which does not exist (looked for {tried[0]}).")
    return _Layout(names, root, _class_names(names), entries)


def names_file(root: Path) -> Path | None:
    """Return the list of classes of a folder with YOLO labels but no descriptive file; else None."""
    folders = [root, *(path for split in _SPLITS if (path := root / split).is_dir())]
    file = next((path for folder in folders for name in _NAMES if (path := folder / name).is_file()), None)
    return file if file is not None and looks_like_yolo(root) else None


def looks_like_yolo(root: Path) -> bool:
    """Whether images of a folder, where those of a YOLO set may lie, have label files."""
    images = [image for paths in _split_folders(root).values() for image in _first_images(paths[0], root)]
    labels = LabelFiles(images, None, ())
    return any(labels.find(path) for path in images)


def _first_images(path: Path, root: Path) -> list[Path]:
    """Return some images of a folder and its subfolders, or of a list file."""
    if path.is_file():
        lines = [line.strip() for line in read_lines(path)[:_ENOUGH]]
        return [root / line for line in lines if is_picture_name(PurePosixPath(line).name)]
    found: list[Path] = []
    for parent, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        pictures = (name for name in sorted(names) if is_picture_name(name))
        found += [Path(parent, name) for name in itertools.islice(pictures, _ENOUGH - len(found))]
        if len(found) == _ENOUGH:
            break
    return found


def _split_folders(root: Path) -> dict[str, list[Path]]:
    """Find list files or folders named after splits, or the folder of all images; {} if there are none."""
    texts = [name for name in sorted(os.listdir(root)) if name.lower().endswith(".txt") and _is_split(name[:-4])]  # noqa: PTH208
    lists = {name[:-4]: [root / name] for name in texts if _lists_images(root / name)}
    if lists:
        return lists
    images = next((folder for folder in subfolders(root) if folder.name.lower() == "images"), root / "images")
    for folder, below in ((root, "images"), (images, ""), (root, "")):
        found = {path.name: [path / below] for path in _named_after_splits(folder) if _first_images(path / below, root)}
        if "train" in split_words(found) and not (below == "" and _holds_images(folder)):
            return found
    return next(({_LONE: [path]} for path in (images, root) if _first_images(path, root)), {})


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_picture_name(entry.name) for entry in entries)


def _named_after_splits(folder: Path) -> list[Path]:
    return [path for path in subfolders(folder) if split_words([path.name])] if folder.is_dir() else []


def _lists_images(path: Path) -> bool:
    if not path.is_file():
        return False
    first = next((line.strip() for line in read_lines(path) if line.strip()), "")
    return is_picture_name(first.replace("\\", "/").rpartition("/")[2])


def _from_folder(root: Path) -> _Layout:
    file = names_file(root)
    if file is None:
        raise DataError(f"{root}: there is no data.yaml, and no classes.txt beside label files.")
    return _Layout(file, root, _class_names(file), _split_folders(root))


def _class_names(path: Path) -> dict[int, str]:
    """Read a list of classes, one per line.

    Raises:
        DataError: there is none, or an empty line among them.
    """
    names = [line.strip() for line in read_lines(path)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"{path}: there is no name in it; each line names a class, from index 0 on.")
    if not all(names):
        raise DataError(f"{path}, line {names.index('') + 1}: the line is empty; each line names a class, from index 0 on.")
    return dict(enumerate(names))
