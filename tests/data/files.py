"""Writes small data sets of each kind, for the tests of the readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def make_image(path: Path, size=(60, 40), mode="RGB", orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("L" if mode.startswith("I") else "RGB")
    image = image.convert(mode) if mode != "I;16" else Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, **({"exif": exif} if orientation is not None else {}))
    return path


def image_entry(number, name, size=(60, 40), **extra):
    return {"id": number, "file_name": name, "width": size[0], "height": size[1], **extra}


def box_entry(number, image, category, bbox, **extra):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **extra}


def write_coco(path: Path, images, annotations, categories=((1, "cat"), (2, "dog"))) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def object_xml(name, box, extra="") -> str:
    corners = "".join(f"<{k}>{v}</{k}>\n" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>\n<name>{name}</name>\n{extra}<bndbox>\n{corners}</bndbox>\n</object>\n"


def write_xml(path: Path, objects="", *, filename="", size=(60, 40), head="") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    text = (
        f"{head}<annotation>\n<filename>{filename}</filename>\n"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n{objects}</annotation>\n"
    )
    path.write_text(text, encoding="utf-8")
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def make_voc(root: Path, names=("a", "b"), splits=(("train", ("a", "b")),), objects=None) -> Path:
    """Every image holds one cat unless ``objects`` has another text for its name."""
    for name in names:
        make_image(root / "JPEGImages" / f"{name}.jpg")
        text = (objects or {}).get(name, object_xml("cat", (5, 6, 25, 36)))
        write_xml(root / "Annotations" / f"{name}.xml", text, filename=f"{name}.jpg")
    for split, members in splits:
        write_text(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(members) + "\n")
    return root


def make_yolo(root: Path, labels, *, split="train", size=(60, 40), yaml="names: [cat, dog]\n") -> Path:
    """``labels``: image stem -> text of the label file, or None for none. Returns the data.yaml."""
    for stem, text in labels.items():
        make_image(root / "images" / split / f"{stem}.jpg", size)
        if text is not None:
            write_text(root / "labels" / split / f"{stem}.txt", text)
    return write_text(root / "data.yaml", f"path: .\n{split}: images/{split}\n{yaml}")


def kinds(data) -> list[str]:
    return [problem.kind for problem in data.problems]
