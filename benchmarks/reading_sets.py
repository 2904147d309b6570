"""Writes data sets of any size for ``reading.py``: one small image under many names, with three boxes per image."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

__all__ = ["BOXES", "FORMATS", "SIZE", "Layout", "link_images"]

SIZE = 640, 480
BOXES = 3  # in each image
CLASSES = [f"class {number}" for number in range(10)]
LINKS = 60_000  # maximum number of hard links to a file on some file systems

Box = tuple[str, int, tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Layout:
    """A format: a function that writes its annotations, and the paths of its images and of ``--data`` in the folder."""

    write: Callable[[Path, int], None]
    images: str
    data: str = "."


def link_images(folder: Path, count: int) -> None:
    """Create a folder of ``count`` images."""
    folder.mkdir(parents=True)
    first = folder
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if number % LINKS == 0:
            first = path
            Image.new("RGB", SIZE).save(path, quality=10)
        else:
            os.link(first, path)


def objects(count: int) -> Iterator[tuple[str, list[tuple[int, tuple[int, int, int, int]]]]]:
    """Yield (stem, [(class, xyxy)]) of each image."""
    for number in range(count):
        rows = []
        for index in range(BOXES):
            x, y = (number * 7 + index * 131) % 500, (number * 13 + index * 89) % 350
            rows.append(((number + index) % len(CLASSES), (x, y, x + 20 + number % 100, y + 30 + number % 90)))
        yield f"{number:06d}", rows


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def coco(root: Path, count: int) -> None:
    images, rows = [], []
    for number, (stem, found) in enumerate(objects(count), start=1):
        images.append({"id": number, "file_name": f"{stem}.jpg", "width": SIZE[0], "height": SIZE[1]})
        for label, (x1, y1, x2, y2) in found:
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            rows.append({"id": len(rows) + 1, "image_id": number, "category_id": label + 1, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    (root / "annotations").mkdir()
    content = {"images": images, "annotations": rows, "categories": categories}
    _text(root / "annotations" / "instances_train.json", json.dumps(content))


def fractions(box: tuple[int, int, int, int]) -> list[float]:
    x1, y1, x2, y2 = box
    return [(x1 + x2) / 2 / SIZE[0], (y1 + y2) / 2 / SIZE[1], (x2 - x1) / SIZE[0], (y2 - y1) / SIZE[1]]


def yolo(root: Path, count: int) -> None:
    (root / "labels" / "train").mkdir(parents=True)
    for stem, found in objects(count):
        rows = (f"{label} {' '.join(f'{value:.6f}' for value in fractions(box))}\n" for label, box in found)
        _text(root / "labels" / "train" / f"{stem}.txt", "".join(rows))
    _text(root / "data.yaml", f"train: images/train\nnames: {json.dumps(CLASSES)}\n")


def voc(root: Path, count: int) -> None:
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for stem, found in objects(count):
        text = "".join(
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>\n"
            for label, (x1, y1, x2, y2) in found
        )
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
        name = f"<filename>{stem}.jpg</filename>"
        _text(root / "Annotations" / f"{stem}.xml", f"<annotation>\n{name}\n{size}\n{text}</annotation>\n")
    _text(root / "ImageSets" / "Main" / "train.txt", "".join(f"{stem}\n" for stem, _ in objects(count)))


def cvat(root: Path, count: int) -> None:
    with (root / "annotations.xml").open("w", encoding="utf-8") as file:
        labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
        file.write(f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>\n")
        for number, (stem, found) in enumerate(objects(count)):
            file.write(f'<image id="{number}" name="{stem}.jpg" width="{SIZE[0]}" height="{SIZE[1]}">\n')
            for label, (x1, y1, x2, y2) in found:
                corners = f'xtl="{x1}.00" ytl="{y1}.00" xbr="{x2}.00" ybr="{y2}.00"'
                file.write(f'<box label="{CLASSES[label]}" source="manual" occluded="0" {corners} z_order="0"></box>\n')
            file.write("</image>\n")
        file.write("</annotations>\n")


def labelme(root: Path, count: int) -> None:
    for stem, found in objects(count):
        shapes = [
            {"label": CLASSES[label], "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle", "flags": {}}
            for label, (x1, y1, x2, y2) in found
        ]
        size = {"imageHeight": SIZE[1], "imageWidth": SIZE[0]}
        _text(root / "images" / f"{stem}.json", json.dumps({"shapes": shapes, "imagePath": f"{stem}.jpg", **size}))


def hf_objects(count: int) -> Iterator[tuple[str, dict[str, list[object]]]]:
    for stem, found in objects(count):
        boxes: list[object] = [[x1, y1, x2 - x1, y2 - y1] for _, (x1, y1, x2, y2) in found]
        yield f"{stem}.jpg", {"bbox": boxes, "category": [CLASSES[label] for label, _ in found]}


def imagefolder(root: Path, count: int) -> None:
    rows = (json.dumps({"file_name": name, "objects": found}) + "\n" for name, found in hf_objects(count))
    _text(root / "train" / "metadata.jsonl", "".join(rows))


def parquet(root: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(hf_objects(count))
    image = pa.array(
        [{"bytes": None, "path": f"images/{name}"} for name, _ in rows],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    pq.write_table(pa.table({"image": image, "objects": [found for _, found in rows]}), root / "train-00000.parquet")


def csv_tensorflow(root: Path, count: int) -> None:
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for stem, found in objects(count):
        for label, box in found:
            lines.append(f"{stem}.jpg,{SIZE[0]},{SIZE[1]},{CLASSES[label]},{','.join(map(str, box))}")
    _text(root / "train_labels.csv", "\n".join(lines) + "\n")


def csv_open_images(root: Path, count: int) -> None:
    lines = [
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    ]
    for stem, found in objects(count):
        for label, (x1, y1, x2, y2) in found:
            across, down = f"{x1 / SIZE[0]:.6f},{x2 / SIZE[0]:.6f}", f"{y1 / SIZE[1]:.6f},{y2 / SIZE[1]:.6f}"
            lines.append(f"{stem},xclick,/m/0{label},1,{across},{down},0,0,0,0,0")
    _text(root / "train-annotations-bbox.csv", "\n".join(lines) + "\n")
    _text(root / "class-descriptions-boxable.csv", "".join(f"/m/0{n},{name}\n" for n, name in enumerate(CLASSES)))


def ndjson(root: Path, count: int) -> None:
    lines = [json.dumps({"type": "dataset", "task": "detect", "class_names": dict(enumerate(CLASSES))})]
    for stem, found in objects(count):
        boxes = [[label, *fractions(box)] for label, box in found]
        entry = {"type": "image", "file": f"{stem}.jpg", "width": SIZE[0], "height": SIZE[1], "split": "train"}
        lines.append(json.dumps({**entry, "annotations": {"boxes": boxes}}))
    _text(root / "set.ndjson", "\n".join(lines) + "\n")


def kitti(root: Path, count: int) -> None:
    (root / "training" / "label_2").mkdir()
    for stem, found in objects(count):
        rows = (
            f"{CLASSES[label].replace(' ', '_')} 0.00 0 -1.57 {' '.join(f'{v:.2f}' for v in box)} 1 1 1 0 0 0 0\n"
            for label, box in found
        )
        _text(root / "training" / "label_2" / f"{stem}.txt", "".join(rows))


def visdrone(root: Path, count: int) -> None:
    folder = root / "VisDrone2019-DET-train" / "annotations"
    folder.mkdir()
    for stem, found in objects(count):
        rows = (f"{x1},{y1},{x2 - x1},{y2 - y1},1,{label + 1},0,0\n" for label, (x1, y1, x2, y2) in found)
        _text(folder / f"{stem}.txt", "".join(rows))


def crowdhuman(root: Path, count: int) -> None:
    lines = []
    for stem, found in objects(count):
        boxes = [{"tag": "person", "fbox": [x1, y1, x2 - x1, y2 - y1], "extra": {}} for _, (x1, y1, x2, y2) in found]
        lines.append(json.dumps({"ID": stem, "gtboxes": boxes}))
    _text(root / "annotation_train.odgt", "\n".join(lines) + "\n")


FORMATS = {
    "coco": Layout(coco, "train"),
    "yolo": Layout(yolo, "images/train"),
    "voc": Layout(voc, "JPEGImages"),
    "cvat": Layout(cvat, "images"),
    "labelme": Layout(labelme, "images"),
    "imagefolder": Layout(imagefolder, "train"),
    "parquet": Layout(parquet, "images"),
    "csv (TensorFlow)": Layout(csv_tensorflow, "images"),
    "csv (Open Images)": Layout(csv_open_images, "train"),
    "ndjson": Layout(ndjson, "images/train"),
    "kitti": Layout(kitti, "training/image_2"),
    "visdrone": Layout(visdrone, "VisDrone2019-DET-train/images"),
    "crowdhuman": Layout(crowdhuman, "Images"),
}
