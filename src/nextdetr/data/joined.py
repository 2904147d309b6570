"""Several data sets as one: those given together, or listed by a dataset YAML.

```yaml
format: joined
sets: [photos, corrected]    # relative to this file
```

Classes are joined by name, and so are the splits: each consists of those of the sets that have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import yaml
from numpy.typing import NDArray

from nextdetr.data.dataset_yaml import JOINED
from nextdetr.data.folders import YAML_NAMES
from nextdetr.data.leak import same_files, same_paths
from nextdetr.data.raw import parse_yaml, plural
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.errors import DataError

__all__ = ["DataSets", "is_part_of", "join", "joined_yaml", "listed", "name_of", "sets_of", "sets_text", "without"]

#: One data set, several, or a YAML that lists several.
DataSets: TypeAlias = str | Path | Sequence[str | Path]


def sets_of(data: DataSets) -> list[Path]:
    """Return the path of each data set, each once, in order.

    Raises:
        DataError: a YAML with ``format: joined`` has an error.
    """
    paths = [Path(each).expanduser() for each in ([data] if isinstance(data, str | Path) else data)]
    found = [inner for path in paths for inner in _members(path) or [path]]
    if len(found) == 1:
        return found
    unique: dict[Path, Path] = {}
    for path in found:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def sets_text(data: DataSets) -> str:
    """Return data sets as the user named them, for messages."""
    return str(data) if isinstance(data, str | Path) else listed([str(each) for each in data])


def name_of(data: DataSets) -> str:
    """Return the names of data sets without their paths: of a folder, of a YAML, or of the folder of a ``data.yaml``."""
    found = [(path, path.resolve()) for path in sets_of(data)]
    return listed([whole.parent.name if path.stem == "data" and path.suffix else whole.stem for path, whole in found])


def is_part_of(data: DataSets, name: str) -> bool:
    """Whether all of these data sets are among those that ``name_of`` named so."""
    theirs = {name, *name.replace(" and ", ", ").split(", ")}
    return all(name_of(path) in theirs for path in sets_of(data))


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def joined_yaml(data: DataSets) -> str:
    """Return the text of a YAML that lists data sets by their absolute paths."""
    sets = [str(path.resolve() if ".." in path.parts else path.absolute()) for path in sets_of(data)]
    return yaml.safe_dump({"format": JOINED, "sets": sets}, sort_keys=False, allow_unicode=True)


def join(
    parts: Sequence[DetectionData],
    names: Sequence[str],
    classes: Sequence[str] | None = None,
    *,
    numbers: Sequence[int] | None = None,
) -> DetectionData:
    """Return the same split of several data sets as one.

    An image that is in several of them counts once, with the labels of the last one: corrections follow what they correct.
    Image ids get the number of the set in front, as two sets may have the same; for the ids in the files of COCO sets see
    ``identity.describe_identity``.

    Args:
        parts: the split in each set, read with its own classes.
        names: their names for messages.
        classes: names in the order of a model's indices; objects of others are left out. None for all of theirs, in the
            order in which they come first.
        numbers: number of each set, the same in all splits; by default its position here, from 1.

    Returns:
        The split; ``notes`` says which images and classes are only in some of the sets.

    Raises:
        DataError: no set has any of ``classes``.
    """
    own = list(dict.fromkeys(name for part in parts for name in part.classes))
    wanted = own if classes is None else list(classes)
    if own and not set(own) & set(wanted):
        raise DataError(
            f"{listed(names)}: have none of the classes asked for ({', '.join(wanted[:8])}); their own are "
            f"{', '.join(own[:8])}. Names must be spelt the same."
        )
    index = {name: position for position, name in enumerate(wanted)}
    records: list[ImageRecord] = []
    notes = [note for part in parts for note in part.notes]
    numbers = range(1, len(parts) + 1) if numbers is None else numbers
    for place, (part, number) in enumerate(zip(parts, numbers, strict=True)):
        later = [record for other in parts[place + 1 :] for record in other.records]
        again = [path is not None for path in same_files(later, part.records)]
        labels = np.array([index.get(name, -1) for name in part.classes], dtype=np.int64)
        records += [
            _relabelled(replace(record, image_id=f"{number}/{record.image_id}"), labels)
            for record, repeated in zip(part.records, again, strict=True) if not repeated
        ]  # fmt: skip
        if any(again):
            many = sum(again) > 1
            notes.append(
                f"{plural(sum(again), 'image')} of {names[place]} {'are' if many else 'is'} also in "
                f"{' or '.join(names[place + 1 :])}, whose labels are used for {'them' if many else 'it'}"
            )
    missing = {name: [c for c in own if c not in part.classes] for name, part in zip(names, parts, strict=True)}
    if any(missing.values()):
        notes.append(_missing_classes(missing))
    first = parts[0]
    return DetectionData(
        listed(list(dict.fromkeys(part.name for part in parts))), first.split, wanted, _category_ids(parts, wanted),
        records, [problem for part in parts for problem in part.problems], reading=first.reading,
        recognised=listed([f"{part.recognised} ({name})" for name, part in zip(names, parts, strict=True)]),
        notes=tuple(notes),
    )  # fmt: skip


def without(part: DetectionData, name: str, others: Sequence[tuple[str, Sequence[Path]]]) -> DetectionData:
    """Return the training images of a set without those that other sets keep for scores.

    Args:
        part: the training split.
        name: name of its set, for messages.
        others: name, and images of all other splits, of each other set.
    """
    for other, held in others:
        out = [path is not None for path in same_paths(held, [record.path for record in part.records])]
        if any(out):
            note = f"{plural(sum(out), 'image')} of {name} left out: {other} has the same in a split for scores"
            kept = [record for record, leave in zip(part.records, out, strict=True) if not leave]
            part = replace(part, records=kept, notes=(*part.notes, note))
    return part


def _relabelled(record: ImageRecord, labels: NDArray[np.int64]) -> ImageRecord:
    """Return an image with its labels replaced, and without the objects whose label becomes -1."""
    found = labels[record.labels]
    keep = found >= 0
    return replace(
        record, boxes=record.boxes[keep], labels=found[keep], crowd=record.crowd[keep], areas=record.areas[keep],
        confidence=None if record.confidence is None else record.confidence[keep],
    )  # fmt: skip


def _missing_classes(missing: Mapping[str, Sequence[str]]) -> str:
    told = [
        f"{name} has no {' or '.join(classes[:5])}{' or others' * (len(classes) > 5)}"
        for name, classes in missing.items() if classes
    ]  # fmt: skip
    return (
        f"Not every class is in every data set: {'; '.join(told)}. Such an object has no box there, so where an image "
        "shows one, the detector learns that it is background: label it there too."
    )


def _category_ids(parts: Sequence[DetectionData], wanted: Sequence[str]) -> list[int | str]:
    """Return an id for each class, none twice; -1 for a class that no set has.

    It is that of the first COCO file that has the class, so that results fit at least the first file; the numbers of other
    formats mean nothing. An id that is taken is replaced by the next free number.
    """
    ids: dict[str, int | str] = {}
    for part in sorted(parts, key=lambda part: not part.own_ids):
        for name, number in zip(part.classes, part.category_ids, strict=True):
            if number == -1 or name in ids:
                continue
            taken = set(ids.values())
            free = 1 + max((each for each in taken if isinstance(each, int)), default=-1)
            ids[name] = free if number in taken else number
    return [ids.get(name, -1) for name in wanted]


def _members(path: Path) -> list[Path]:
    """Return what a YAML with ``format: joined`` lists, or one in a folder; empty for anything else."""
    try:
        names: Iterable[Path] = [path / name for name in YAML_NAMES] if path.is_dir() else [path]
        file = next((each for each in names if each.suffix in (".yaml", ".yml") and each.is_file()), None)
        content = {} if file is None else parse_yaml(file)
    except (DataError, OSError):  # reported when it is opened as a data set
        return []
    if file is None or content.get("format") != JOINED:
        return []
    sets = content.get("sets")
    if not isinstance(sets, list) or not sets or not all(isinstance(each, str) and each for each in sets):
        raise DataError(f"{file}: sets must be a list of data sets, the paths of their folders or files.")
    other = next((key for key in content if key not in ("format", "sets")), None)
    if other is not None:
        raise DataError(f"{file}: format joined takes sets, and no {other}: write that into a dataset YAML of the set.")
    return [file.parent / Path(each).expanduser() for each in sets]
