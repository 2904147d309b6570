"""Objects and class names in Hugging Face data sets: see ``imagefolder.py`` and ``parquet.py``.

A row's objects are a mapping of lists (``{"bbox": [[x, y, width, height], …], "category": [0, …]}``) or a list of mappings,
in a column ``objects`` or as separate columns. Boxes are COCO's: x, y, width, height in pixels. Categories are names, or
numbers named by a ``ClassLabel`` feature: in the ``dataset_info`` of a ``README.md``, or in the Parquet file itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nextdetr.data.objects import Annotated, Marked, split_called
from nextdetr.data.raw import read_lines
from nextdetr.data.records import Problem

__all__ = ["BOX_KEYS", "CATEGORY_KEYS", "RowReader", "class_names", "readme_names"]

BOX_KEYS = ("bbox", "bboxes", "boxes")
CATEGORY_KEYS = (
    "category", "categories", "category_id", "category_ids", "label", "labels", "class", "classes", "class_label", "name",
    "names",
)  # fmt: skip
_ALSO_OF_A_LABEL = ("name", "names", "class_label")  # keys that every description of a ClassLabel has


class RowReader:
    """Converts rows to objects, and collects their classes.

    Attributes:
        names: names of the numbers, if the set has them.
        used: position of each category, in order of appearance.
        problems: problems found.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.used: dict[int | str, int] = {}
        self.problems: list[Problem] = []

    def add(self, item: Annotated, row: Mapping[str, Any]) -> None:
        """Add the objects of a row to an image; labels are positions in ``used``."""
        for (x, y, width, height), category, crowd in self._objects(item, row):
            position = self.used.setdefault(category, len(self.used))
            item.objects.append(Marked(position, (x, y, x + width, y + height), item.where, crowd))

    def classes(self) -> tuple[dict[int, str], dict[int, int]]:
        """Return (own id -> name, position in ``used`` -> own id): numbers in order, names in order of appearance."""
        numbers = sorted(category for category in self.used if isinstance(category, int))
        if self.names and all(0 <= number < len(self.names) for number in numbers):
            own = dict(enumerate(self.names))
        else:
            own = {number: str(number) for number in numbers}
        ids = {name: number for number, name in own.items()}
        for category in self.used:
            if isinstance(category, str) and category not in ids:
                ids[category] = max(own, default=-1) + 1
                own[ids[category]] = category
        return own, {
            position: category if isinstance(category, int) else ids[category] for category, position in self.used.items()
        }

    def unnamed(self, source: str, remedy: str) -> list[Problem]:
        """Return a problem if categories are numbers without names."""
        numbers = sorted(category for category in self.used if isinstance(category, int))
        if not numbers or (self.names and numbers[0] >= 0 and numbers[-1] < len(self.names)):
            return []
        shown = ", ".join(str(number) for number in numbers[:8]) + (", …" if len(numbers) > 8 else "")
        message = f"its categories are numbers that nothing names, so the classes are called {shown}; {remedy}"
        return [Problem(source, "", message, "class without a name")]

    def _objects(
        self, item: Annotated, row: Mapping[str, Any]
    ) -> Iterable[tuple[tuple[float, float, float, float], int | str, bool]]:
        columns = _columns(row)
        if columns is None:
            self._bad(item, "its objects are not lists of boxes and categories of one length; dropped")
            return
        boxes, categories, crowds = columns
        for number, (box, category, crowd) in enumerate(zip(boxes, categories, crowds, strict=True), start=1):
            try:
                x, y, width, height = (float(value) for value in box)
            except (TypeError, ValueError, OverflowError):
                self._bad(item, f"the box of object {number} is {str(box)[:60]}, not x, y, width, height; dropped")
                continue
            if isinstance(category, float) and category.is_integer():
                category = int(category)
            if isinstance(category, bool) or not isinstance(category, int | str) or category == "":
                self._bad(
                    item, f"the category of object {number} is {str(category)[:60]!r}, no name and no number; dropped"
                )
                continue
            yield (x, y, width, height), category, crowd in (True, 1, "1")

    def _bad(self, item: Annotated, message: str) -> None:
        self.problems.append(Problem(item.file, item.where, message, "malformed box"))


def _columns(row: Mapping[str, Any]) -> tuple[list[Any], list[Any], list[Any]] | None:
    """Return the boxes, categories and crowd flags of a row; None if they do not match."""
    objects = row.get("objects", row)
    if objects is None:
        return [], [], []
    if isinstance(objects, list):
        if not all(isinstance(entry, dict) for entry in objects):
            return None
        objects = {key: [entry.get(key) for entry in objects] for key in dict.fromkeys(key for e in objects for key in e)}
        if not objects:
            return [], [], []
    if not isinstance(objects, Mapping):
        return None
    boxes = next((objects[key] for key in BOX_KEYS if key in objects), None)
    categories = next((objects[key] for key in CATEGORY_KEYS if key in objects), None)
    boxes, categories = [] if boxes is None else boxes, [] if categories is None else categories
    if not isinstance(boxes, list) or not isinstance(categories, list) or len(boxes) != len(categories):
        return None
    crowds = objects.get("iscrowd")
    return boxes, categories, crowds if isinstance(crowds, list) and len(crowds) == len(boxes) else [0] * len(boxes)


def class_names(features: Any) -> list[str]:
    """Return the names of the objects' categories in a description of features, in JSON or YAML; else an empty list.

    They are those of the column that ``RowReader`` reads, as an image may have classes of its own; without such a column,
    those of the first ``ClassLabel``.
    """
    objects = _column(features, "objects", set())
    scope = features if objects is None else objects
    columns = (_column(scope, key, set()) for key in CATEGORY_KEYS if key not in _ALSO_OF_A_LABEL)
    return _class_names(next((column for column in columns if column is not None), scope), set())


def _column(features: Any, name: str, seen: set[int]) -> Any:
    """Return the description of the first column with a name, at any depth; None if there is none."""
    if id(features) in seen:  # an alias: a few lines of nested aliases would take forever
        return None
    seen.add(id(features))
    if isinstance(features, Mapping):
        if features.get("name") == name:
            return features
        if isinstance(features.get(name), Mapping | list):
            return features[name]
        features = list(features.values())
    if not isinstance(features, list):
        return None
    return next((found for entry in features if (found := _column(entry, name, seen)) is not None), None)


def _class_names(features: Any, seen: set[int]) -> list[str]:
    if id(features) in seen:  # an alias: a few lines of nested aliases would take forever
        return []
    seen.add(id(features))
    if isinstance(features, list):
        return next((names for entry in features if (names := _class_names(entry, seen))), [])
    if not isinstance(features, Mapping):
        return []
    if features.get("_type") == "ClassLabel" or set(features) == {"names"}:
        return _in_order(features.get("names"))
    return next((found for value in features.values() if (found := _class_names(value, seen))), [])


def _in_order(names: Any) -> list[str]:
    if isinstance(names, Mapping):
        try:
            numbered = sorted((int(key), str(value)) for key, value in names.items())
        except ValueError:
            return []
        return [name for _, name in numbered] if [n for n, _ in numbered] == list(range(len(numbered))) else []
    return [str(name) for name in names] if isinstance(names, list) else []


def readme_names(root: Path) -> list[str]:
    """Return the class names in the ``dataset_info`` of the ``README.md`` in the folder or its parent."""
    is_part = root.name == "data" or split_called(root.name)
    for folder in (root, root.parent) if is_part else (root,):
        file = folder / "README.md"
        if not file.is_file():
            continue
        lines = read_lines(file)
        if lines[0].strip() != "---":
            continue
        end = next((number for number, line in enumerate(lines[1:], start=1) if line.strip() == "---"), 0)
        try:
            content = yaml.load("\n".join(lines[1:end]), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError, ValueError):
            continue
        if isinstance(content, dict) and (names := class_names(content.get("dataset_info"))):
            return names
    return []
