"""Bad labels and bad YAML for ``reliability_bad.py``: each must be refused. All of them are harmless."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reliability_runs import make_data

Content = dict[str, Any]
Bad = tuple[str, list[str]]  # a name, and the command line that reads it

DEEP = 100_000
YAML_OF_CODE = "!!python/object/apply:os.system ['touch {marker}']"


def _first(key: str, **changes: Any) -> Callable[[Content], None]:
    return lambda content: content[key][0].update(changes)


def _without(key: str, name: str) -> Callable[[Content], None]:
    return lambda content: content[key][0].pop(name)


def _double(key: str) -> Callable[[Content], None]:
    return lambda content: content[key].append(dict(content[key][0]))


def _replaced(key: str, value: Any) -> Callable[[Content], Any]:
    return lambda content: content.update({key: value})


COCO: dict[str, Callable[[Content], Any]] = {
    "images is text": _replaced("images", "1.png"),
    "images is null": _replaced("images", None),
    "no images": _replaced("images", []),
    "an image is a number": _replaced("images", [5]),
    "categories is a number": _replaced("categories", 3),
    "categories are names": _replaced("categories", ["a", "b"]),
    "annotations is text": _replaced("annotations", "none"),
    "annotations are lists": _replaced("annotations", [[1, 2]]),
    "image without id": _without("images", "id"),
    "image without name": _without("images", "file_name"),
    "image id is a list": _first("images", id=[1]),
    "two images of one id": _double("images"),
    "file name is a number": _first("images", file_name=7),
    "file name is above": _first("images", file_name="../../x.png"),
    "file is missing": _first("images", file_name="missing.png"),
    "file name has a zero": _first("images", file_name="a\0b.png"),
    "category without id": _without("categories", "id"),
    "category without name": _without("categories", "name"),
    "category id is text": _first("categories", id="one"),
    "two categories of one id": _double("categories"),
    "unknown image": _first("annotations", image_id=999),
    "unknown category": _first("annotations", category_id=999),
    "image id is text": _first("annotations", image_id="zero"),
    "no category": _without("annotations", "category_id"),
    "no box": _without("annotations", "bbox"),
    "box of three": _first("annotations", bbox=[1, 2, 3]),
    "box of text": _first("annotations", bbox=["a", "b", "c", "d"]),
    "box is a number": _first("annotations", bbox=5),
    "box is not a number": _first("annotations", bbox=[1, 1, float("nan"), 5]),
    "box is infinite": _first("annotations", bbox=[1, 1, float("inf"), 5]),
    "box of negative width": _first("annotations", bbox=[50, 5, -20, 5]),
    "box of no area": _first("annotations", bbox=[5, 5, 0, 0]),
    "box outside": _first("annotations", bbox=[500, 500, 9, 9]),
    "box of nulls": _first("annotations", bbox=[None] * 4),
    "box of huge numbers": _first("annotations", bbox=[10**400, 0, 1, 1]),
}

COCO_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda text: b"",
    "half": lambda text: text[: len(text) // 2],
    "all but the end": lambda text: text[:-2],
    "a list": lambda text: b"[]",
    "a number": lambda text: b"17",
    "null": lambda text: b"null",
    "words": lambda text: b"boxes",
    "deep": lambda text: b"[" * DEEP,
    "latin-1": lambda text: text.replace(b"square", b"carr\xe9"),
    "zero bytes": lambda text: bytes(200),
    "a page": lambda text: b"<!DOCTYPE html><html></html>",
    "half a letter": lambda text: b'{"images": [{"id": 1, "file_name": "\xc3"}]}',
    "cut UTF-16": lambda text: b"\xff\xfe{",
}

YOLO_LINES = {
    "words": "square here",
    "one number": "0",
    "three numbers": "0 0.5 0.5",
    "four numbers": "0 0.5 0.5 0.1",
    "nan": "0 nan 0.5 0.1 0.1",
    "inf": "0 0.5 inf 0.1 0.1",
    "overflow": "0 1e400 0.5 0.1 0.1",
    "negative class": "-1 .5 .5 .1 .1",
    "unknown class": "9 0.5 0.5 0.1 0.1",
    "huge class": "9" * 40 + " .5 .5 .1 .1",
    "half a class": "0.5 0.5 0.5 0.1 0.1",
    "pixels": "0 50 50 10 10",
    "negative width": "0 0.5 0.5 -0.1 0.1",
    "no width": "0 0.5 0.5 0 0.1",
    "outside": "0 3 3 .1 .1",
    "named class": "square 0.5 0.5 0.1 0.1",
    "odd polygon": "0 .1 .1 .2 .2 .3 .3 .4",
    "JSON": '{"class": 0}',
}

_OBJECT = (
    "<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>"
    "</bndbox></object>"
)


def _voc(*box: str, name: str = "square") -> str:
    return f"<annotation>{_OBJECT.format(name=name, box=box)}</annotation>"


VOC = {
    "empty": "",
    "words": "boxes",
    "half": _voc("1", "1", "9", "9")[:40],
    "no end": "<annotation>",
    "JSON": "{}",
    "other root": "<svg/>",
    "words for numbers": _voc("a", "b", "c", "d"),
    "nan": _voc("nan", "1", "9", "9"),
    "inf": _voc("1", "1", "inf", "9"),
    "turned round": _voc("50", "50", "10", "10"),
    "outside": _voc("900", "900", "950", "950"),
    "no name": "<annotation><object><bndbox/></object></annotation>",
    "no box": "<annotation><object><name>square</name></object></annotation>",
    "an entity": '<!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>',
    "entities of entities": '<!DOCTYPE a [<!ENTITY e "xx"><!ENTITY f "&e;&e;">]><annotation>&f;</annotation>',
    "a file": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation>&e;</annotation>',
    "unknown encoding": '<?xml version="1.0" encoding="klingon"?><annotation/>',
    "deep": "<a>" * DEEP,
}


def labels(home: Path) -> Iterator[Bad]:
    """Yield bad label files of COCO, YOLO and VOC; ``--on-bad-data error`` drops nothing."""
    small = make_data(home / "small", images=3, without_boxes=())
    file = small / "annotations" / "instances_train.json"
    good = file.read_bytes()
    whole = [(f"COCO, {name}", change(good)) for name, change in COCO_BYTES.items()]
    for name, spoil in COCO.items():
        content = copy.deepcopy(json.loads(good))
        spoil(content)
        whole.append((f"COCO, {name}", json.dumps(content).encode()))
    for number, (name, text) in enumerate(whole):
        folder = home / f"coco-{number}"
        shutil.copytree(small, folder, dirs_exist_ok=True)
        (folder / "annotations" / "instances_train.json").write_bytes(text)
        yield name, _train(folder)
    for number, (name, line) in enumerate(YOLO_LINES.items()):
        folder = _yolo(small, home / f"yolo-{number}")
        (folder / "labels" / "train" / "1.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
        (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [square, bar]\n")
        yield f"YOLO, {name}", _train(folder)
    for number, (name, text) in enumerate(VOC.items()):
        folder = home / f"voc-{number}"
        shutil.copytree(small / "images" / "train", folder / "JPEGImages", dirs_exist_ok=True)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        for image in range(3):
            (folder / "Annotations" / f"{image}.xml").write_text(text if image == 1 else _voc("1", "1", "20", "20"))
        (folder / "ImageSets" / "Main" / "train.txt").write_text("0\n1\n")
        (folder / "ImageSets" / "Main" / "val.txt").write_text("2\n")
        yield f"VOC, {name}", _train(folder)


def _yolo(small: Path, folder: Path) -> Path:
    """Copy the images into a folder, and give each a good label."""
    shutil.copytree(small / "images", folder / "images", dirs_exist_ok=True)
    for split in ("train", "val"):
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        for image in range(3):
            (folder / "labels" / split / f"{image}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    return folder


def _train(data: Path) -> list[str]:
    folder = data.parent if data.is_file() else data
    return [
        "train", "--data", str(data), "--on-bad-data", "error", "--model", "nextdetr-zepto", "--image-size", "64",
        "--epochs", "1", "--workers", "0", "--accelerator", "cpu", "--output", str(folder / "run"),
    ]  # fmt: skip


MODEL = """nc: 2
backbone:
  - [-1, 1, convnextv2_atto, []]
head:
  - [-1, 1, Conv, [32, 1, 1]]
  - [3, 1, Conv, [32, 1, 1]]
  - [[6, 5], 1, RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]]
"""

MODELS = {
    "empty": "",
    "a list": "- 1\n",
    "a word": "model",
    "no head": MODEL.split("head")[0],
    "head is null": "backbone: []\nhead:\n",
    "unknown key": f"{MODEL}heads: 1\n",
    "key twice": f"{MODEL}nc: 3\n",
    "unknown layer": MODEL.replace("Conv,", "Convolve,"),
    "row of three": MODEL.replace("[-1, 1, Conv, [32, 1, 1]]", "[-1, 1, Conv]"),
    "points forward": MODEL.replace("[3, 1", "[30, 1"),
    "points nowhere": MODEL.replace("[3, 1", "[-90, 1"),
    "no repeats": MODEL.replace("[3, 1", "[3, 0"),
    "many repeats": MODEL.replace("[3, 1", "[3, 99999"),
    "huge channels": MODEL.replace("[32, 1, 1]", "[9999999999, 1, 1]"),
    "negative channels": MODEL.replace("[32, 1, 1]", "[-32, 1, 1]"),
    "channels are text": MODEL.replace("[32, 1", "[wide, 1"),
    "arguments are a word": MODEL.replace("[32, 1, 1]", "wide"),
    "decoder first": MODEL.replace("convnextv2_atto", "RTDETRDecoder"),
    "an anchor": MODEL.replace("nc: 2", "nc: &a 2"),
    "an alias": MODEL.replace("[nc, 32", "[*nc, 32"),
    "a tag": "nc: !!float 2\n",
    "code": f"nc: {YAML_OF_CODE}\n{MODEL}",
    "a date": MODEL.replace("nc: 2", "nc: 2026-99-99"),
    "not YAML": "backbone: [\n",
    "a tab": "backbone:\n\t- 1\n",
    "deep": "backbone: " + "[" * DEEP,
    "no classes": MODEL.replace("nc: 2", "nc: 0"),
    "classes are text": MODEL.replace("nc: 2", "nc: two"),
    "bad scale": f"{MODEL}scales: {{l: [1, 1, 512]}}\nscale: q\n",
    "half a size": f"{MODEL}image_size: 0.5\n",
}

DATA = {
    "empty": "",
    "no names": "train: images/train\nval: images/val\n",
    "names is a number": "train: images/train\nnames: 5\n",
    "no such folder": "train: nowhere\nval: nowhere\nnames: [a]\n",
    "train is a number": "train: 5\nval: 5\nnames: [a]\n",
    "a name twice": "train: images/train\nval: images/val\nnames: [a, a]\n",
    "nc differs": "train: images/train\nnc: 3\nnames: [a]\n",
    "indices are words": "train: images/train\nnames: {one: a}\n",
    "not YAML": "names: [a\n",
    "deep": "names: " + "[" * DEEP,
    "code": f"train: {YAML_OF_CODE}\nnames: [a]\n",
    "unknown format": "format: photos\nroot: .\n",
    "no such root": "format: coco\nroot: nowhere\n",
    "a bad date": "names: 2026-99-99\ntrain: images/train\n",
    "long number": f"names: {'9' * 5000}\ntrain: images/train\n",
    "a list as key": "? [a, b]\n: c\n",
}

SETTINGS = {
    "a list": "- epochs\n",
    "a word": "epochs",
    "unknown setting": "epoch: 3\n",
    "negative": "epochs: -3\n",
    "text": "epochs: many\n",
    "both lengths": "epochs: 3\nminutes: 3\n",
    "not YAML": "epochs: [\n",
    "code": f"epochs: {YAML_OF_CODE}\n",
    "deep": "epochs: " + "[" * DEEP,
    "a bad date": "epochs: 2026-99-99\n",
    "long number": f"epochs: {'9' * 5000}\n",
    "nan": "learning_rate: .nan\n",
    "a list as key": "? [a, b]\n: c\n",
    "zero byte": "epochs: 3\0\n",
}


def yamls(home: Path, marker: Path) -> Iterator[Bad]:
    """Yield bad model files, dataset YAML files and settings files."""
    small = make_data(home / "small", images=3, without_boxes=())
    for kind, texts in (("model", MODELS), ("data", DATA), ("settings", SETTINGS)):
        for number, (name, text) in enumerate(texts.items()):
            folder = home / f"{kind}-{number}"
            folder.mkdir(exist_ok=True)
            file = folder / "data.yaml"
            file.write_text(text.replace("{marker}", str(marker)))
            if kind == "data":
                _yolo(small, folder)
            tokens = {
                "model": ["info", str(file)], "data": _train(file),
                "settings": [*_train(small)[:-2], "--config", str(file), "--output", str(folder / "run")],
            }[kind]  # fmt: skip
            if kind == "settings":  # an option would override the file's
                place = tokens.index("--epochs")
                del tokens[place : place + 2]
            yield f"{kind} YAML, {name}", tokens
