"""Write the annotation files of COCO, YOLO and Pascal VOC; ``convert.py`` copies the images.

Numbers are written so that reading them gives the same float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
import yaml

from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.files import path_text

__all__ = ["WRITERS", "Named"]


class Named(NamedTuple):
    """An image in the new data set: its name in the split, and its path below the new folder."""

    name: str
    path: str


def write_coco(folder: Path, parts: Sequence[DetectionData], named: Sequence[Sequence[Named]]) -> None:
    """Write ``annotations/instances_<split>.json``; ids of a COCO set are kept."""
    (folder / "annotations").mkdir()
    for part, names in zip(parts, named, strict=True):
        ids = _category_ids(part)
        image_ids = _image_ids(part)
        images: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        for record, name, image_id in zip(part.records, names, image_ids, strict=True):
            size = {"width": record.width, "height": record.height}
            images.append({"id": image_id, "file_name": name.name, **size})
            for box, label, crowd, area, confidence in zip(
                record.boxes.astype(np.float64).tolist(), record.labels.tolist(), record.crowd.tolist(),
                record.areas.tolist(), _confidences(record), strict=True,
            ):  # fmt: skip
                x1, y1, x2, y2 = box
                rows.append(
                    {"id": len(rows) + 1, "image_id": image_id, "category_id": ids[label],
                     "bbox": [_whole(value) for value in (x1, y1, x2 - x1, y2 - y1)], "area": _whole(area),
                     "iscrowd": int(crowd), **({"score": float(confidence)} if confidence else {})}
                )  # fmt: skip
        categories = [{"id": number, "name": name} for number, name in zip(ids, part.classes, strict=True)]
        info = {"description": f"{part.name}, {part.split}, written by nextdetr convert"}
        content = {"info": info, "licenses": [], "images": images, "annotations": rows, "categories": categories}
        text = json.dumps(content)
        _write(folder / "annotations" / f"instances_{part.split}.json", text)


def write_yolo(folder: Path, parts: Sequence[DetectionData], named: Sequence[Sequence[Named]]) -> None:
    """Write ``data.yaml`` and a label file per image, also for those without objects."""
    for part, names in zip(parts, named, strict=True):
        for record, name in zip(part.records, names, strict=True):
            size = np.array([record.width, record.height] * 2, dtype=np.float64)
            rows = []
            for (label, box), confidence in zip(_objects(record), _confidences(record, crowds=False), strict=True):
                x1, y1, x2, y2 = (np.array(box, dtype=np.float64) / size).tolist()
                last = f" {confidence}" if confidence else ""
                rows.append(f"{label} {(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}{last}\n")
            label_file = PurePosixPath("labels", part.split, name.name).with_suffix(".txt")
            _write(folder / label_file, "".join(rows))
    content = {part.split: f"images/{part.split}" for part in parts} | {"names": dict(enumerate(parts[0].classes))}
    _write(folder / "data.yaml", _yaml(content))


def write_voc(folder: Path, parts: Sequence[DetectionData], named: Sequence[Sequence[Named]]) -> None:
    """Write an XML per image, the lists of the splits, and a ``dataset.yaml`` that keeps the class order.

    Bytes that are not UTF-8, in names of images, are escaped there: no program reads such an XML.
    """
    classes = list(parts[0].classes)
    for part, names in zip(parts, named, strict=True):
        stems = []
        for record, name in zip(part.records, names, strict=True):
            stem = PurePosixPath(name.name).with_suffix("").as_posix()
            stems.append(stem)
            _write(folder / "Annotations" / f"{stem}.xml", _voc_xml(record, name, classes))
        _write(folder / "ImageSets" / "Main" / f"{part.split}.txt", "".join(f"{stem}\n" for stem in stems))
    _write(folder / "dataset.yaml", _yaml({"format": "voc", "root": ".", "classes": classes}))


def _voc_xml(record: ImageRecord, name: Named, classes: Sequence[str]) -> str:
    objects = []
    for label, box in _objects(record):
        corners = "".join(
            f"<{tag}>{_short(value)}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        objects.append(
            f"  <object>\n    <name>{escape(classes[label])}</name>\n    <pose>Unspecified</pose>\n"
            f"    <truncated>0</truncated>\n    <difficult>0</difficult>\n    <bndbox>{corners}</bndbox>\n  </object>\n"
        )
    file = escape(path_text(PurePosixPath(name.name).name))
    size = f"<width>{record.width}</width><height>{record.height}</height><depth>3</depth>"
    return (
        f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{file}</filename>\n"
        f"  <size>{size}</size>\n  <segmented>0</segmented>\n{''.join(objects)}</annotation>\n"
    )


def _objects(record: ImageRecord) -> list[tuple[int, list[np.float32]]]:
    """Return (label, xyxy) of all boxes except crowds."""
    rows = zip(record.labels, record.boxes, record.crowd, strict=True)
    return [(int(label), list(box)) for label, box, crowd in rows if not crowd]


def _confidences(record: ImageRecord, *, crowds: bool = True) -> list[str]:
    """Return the confidence of each box as text; "" if it has none."""
    if record.confidence is None:
        return [""] * (len(record.labels) if crowds else int((~record.crowd).sum()))
    values = record.confidence if crowds else record.confidence[~record.crowd]
    return ["" if np.isnan(value) else _short(value) for value in values]


def _category_ids(part: DetectionData) -> list[int]:
    """Return the ids of a COCO set's classes, or 1 to C."""
    ids = [number for number in part.category_ids if isinstance(number, int) and number >= 0]
    keep = part.own_ids and len(set(ids)) == len(part.classes)
    return ids if keep else list(range(1, len(part.classes) + 1))


def _image_ids(part: DetectionData) -> list[int]:
    ids = [record.image_id for record in part.records if isinstance(record.image_id, int)]
    keep = part.own_ids and len(set(ids)) == len(part.records)
    return ids if keep else list(range(1, len(part.records) + 1))


def _whole(value: float) -> float | int:
    """Return a whole number as an integer, as most tools write it."""
    return int(value) if value.is_integer() else value


def _short(value: np.float32) -> str:
    """Return the shortest text that parses to the same float32."""
    return str(int(value)) if float(value).is_integer() else np.format_float_positional(value, trim="-")


def _yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), allow_unicode=True, sort_keys=False, default_flow_style=False)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


WRITERS: dict[str, Callable[[Path, Sequence[DetectionData], Sequence[Sequence[Named]]], None]] = {
    "coco": write_coco, "yolo": write_yolo, "voc": write_voc,
}  # fmt: skip
