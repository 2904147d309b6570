"""What the doctor reports for a data set with every kind of fault and one without, on the command line and in Python."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import nextdetr
from nextdetr.cli.main import run
from nextdetr.data.sources import load_data
from nextdetr.engine import statistics
from nextdetr.errors import ConfigError, DataError, WriteError
from tests.pictures import scene

SIZE = 160


class Coco:
    """A COCO folder that is built step by step."""

    def __init__(self, folder: Path, classes=("cat", "dog")) -> None:
        self.folder, self.classes = folder, classes
        self.splits: dict[str, tuple[list, list]] = {}

    def add(self, split: str, name: str, image: Image.Image, *boxes) -> Path:
        """Write an image; each box is (class number, x, y, width, height)."""
        images, annotations = self.splits.setdefault(split, ([], []))
        path = self.folder / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        number = len(images) + 1
        images.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
        for label, *box in boxes:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "bbox": box, "iscrowd": 0}
            )
        return path

    def write(self) -> Path:
        (self.folder / "annotations").mkdir(exist_ok=True)
        categories = [{"id": at + 1, "name": name} for at, name in enumerate(self.classes)]
        for split, (images, boxes) in self.splits.items():
            content = {"images": images, "annotations": boxes, "categories": categories}
            (self.folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return self.folder


def picture(seed: int) -> Image.Image:
    return scene(seed).resize((SIZE, SIZE))


def healthy(folder: Path, *, images=(52, 21)) -> Coco:
    """Two classes, with different images and boxes."""
    coco, generator = Coco(folder), np.random.default_rng(0)
    for split, count, first in (("train", images[0], 0), ("val", images[1], 1000)):
        for number in range(count):
            boxes = [
                (label, *generator.uniform(0, 60, 2).round(2), *generator.uniform(60, 90, 2).round(2)) for label in (0, 1)
            ]
            coco.add(split, f"{number}.jpg", picture(first + number), *boxes)
    return coco


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return healthy(tmp_path_factory.mktemp("sound")).write()


@pytest.fixture(scope="module")
def ill(tmp_path_factory) -> Path:
    """Every fault that can be found without a detector."""
    coco = healthy(tmp_path_factory.mktemp("ill"))
    coco.classes = ("cat", "dog", "Cats", "bird", "fish", "cow")
    box = (0, 20, 20, 80, 80)
    for number in range(4):  # leaks: the file, a mirrored crop, and two more
        coco.add(
            "val", f"leak{number}.jpg", ImageOps.mirror(picture(number)).crop((0, 0, 150, 150)), (0, 9 + number, 20, 80, 80)
        )
    coco.add("train", "again.jpg", picture(5), (0, 30, 30, 50, 50), (1, 40, 40, 60, 60))
    shutil.copy(coco.folder / "train" / "5.jpg", coco.folder / "train" / "again.jpg")
    coco.add("train", "other.jpg", picture(6), (0, 20, 21, 80, 80))
    shutil.copy(coco.folder / "train" / "6.jpg", coco.folder / "train" / "other.jpg")  # it has one box less
    coco.add("train", "near.jpg", picture(7).resize((120, 120)), (0, 10, 12, 50, 52), (1, 42, 41, 60, 60))
    coco.add(
        "train",
        "twice.jpg",
        picture(100),
        (0, 20, 22, 80, 80),
        (0, 21, 22, 80, 80),
        (1, 100, 101, 50, 50),
        (0, 100, 101, 50, 51),
    )
    coco.add("train", "blank.png", Image.new("RGB", (SIZE, SIZE), (90, 90, 90)), (0, 40, 40, 66, 67))
    coco.add("train", "icon.png", picture(101).resize((24, 24)))
    coco.add("train", "strip.png", picture(102).resize((800, 100)))
    coco.add("train", "outside.jpg", picture(103), (0, 200, 200, 20, 20), (1, 140, 140, 40, 40))
    coco.add("train", "broken.jpg", picture(104), (0, 1, 2, 80, 80))
    for number in range(6):
        coco.add("train", f"default{number}.jpg", picture(110 + number), box, (2, 3 + number, 30, 70 + number, 60))
    coco.add("val", "bird.jpg", picture(120), (3, 11, 20, 80, 81))
    coco.add("train", "fish.jpg", picture(121), (4, 10, 20, 81, 81))
    coco.write()
    (coco.folder / "train" / "broken.jpg").write_bytes((coco.folder / "train" / "broken.jpg").read_bytes()[:900])
    return coco.folder


def by_kind(result) -> dict:
    return {finding.kind: finding for finding in result.findings}


def names(finding) -> set[str]:
    return {Path(image).name for image in finding.images}


def test_a_sound_data_set_has_no_findings(sound, capsys):
    result = nextdetr.doctor(sound)
    assert result.findings == []
    assert result.passed
    assert result.splits == {"train": {"images": 52, "boxes": 104}, "val": {"images": 21, "boxes": 42}}
    assert any(line.startswith("--model ") for line in result.recipe)
    assert run(["doctor", str(sound)]) == 0
    said = capsys.readouterr().out
    assert "no problems found; training is worthwhile." in said
    assert result.recipe[0] in said


def test_the_text_names_a_few_files_of_a_finding(ill, tmp_path, capsys):
    finding = by_kind(nextdetr.doctor(ill))["doubled boxes"]
    assert len(finding.images) == 1
    run(["doctor", str(ill)])
    assert f"{finding.message}\n         {finding.images[0]}\n" in capsys.readouterr().out
    run(["doctor", str(ill), "--output", str(tmp_path / "page.html")])  # the page shows them
    assert f"\n         {finding.images[0]}\n" not in capsys.readouterr().out


def test_every_fault_is_found(ill):
    result = nextdetr.doctor(ill)
    found = by_kind(result)
    leak = found["image in two splits"]
    assert leak.severity == "error"
    assert names(leak) == {f"leak{number}.jpg" for number in range(4)}
    assert leak.message.startswith("4 of the 26 images of val (15%) have a copy in train")
    assert leak.details[0]["change"] == "mirrored, cropped"
    assert not result.passed
    assert names(found["same file twice"]) == {"5.jpg", "again.jpg", "6.jpg", "other.jpg"}
    assert names(found["near duplicates"]) == {"7.jpg", "near.jpg"}
    assert names(found["copies with other labels"]) == {"6.jpg", "other.jpg"}
    assert names(found["doubled boxes"]) == names(found["box of two classes"]) == {"twice.jpg"}
    assert names(found["image without content"]) == {"blank.png"}
    assert names(found["tiny image"]) == {"icon.png"}
    assert names(found["long image"]) == {"strip.png"}
    assert names(found["damaged image"]) == {"broken.jpg"}
    assert found["box outside image"].severity == "warning"
    assert found["box partly outside image"].severity == "note"
    assert names(found["equal boxes"]) == {f"default{number}.jpg" for number in range(6)}
    assert [entry["class_name"] for entry in found["rare class"].details] == ["fish", "Cats"]
    assert found["class not in train"].details == [{"split": "val", "class_name": "bird"}]
    assert {entry["class_name"] for entry in found["class not in val"].details} == {"Cats", "fish"}
    assert found["class without boxes"].details == [{"class_name": "cow"}]
    assert found["names nearly alike"].details == [{"class_names": ["Cats", "cat"]}]
    order = [finding.severity for finding in result.findings]
    assert order == sorted(order, key=["error", "warning", "note"].index)


def test_the_command_exits_with_3_and_prints_what_python_returns(ill, tmp_path, capsys, monkeypatch):
    # The recipe's line on the cache names the free memory, which other programs change between the two calls.
    monkeypatch.setattr(statistics, "_free_memory", lambda: 2**33)
    page, fixed = tmp_path / "doctor.html", tmp_path / "fixed.yaml"
    before = sorted((path, path.stat().st_mtime_ns) for path in ill.rglob("*"))
    assert run(["doctor", str(ill), "--output", str(page), "--fix", str(fixed), "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() >= {"command", "data", "splits", "findings"}
    assert {"kind", "severity", "images", "message"} <= printed["findings"][0].keys()
    expected = nextdetr.doctor(ill).to_json()
    assert {**printed, "output": None, "fixed": None} == json.loads(json.dumps(expected))
    assert sorted((path, path.stat().st_mtime_ns) for path in ill.rglob("*")) == before
    text = page.read_text(encoding="utf-8")
    assert text.count("<section") == len(printed["findings"])
    assert "data:image/jpeg;base64," in text
    assert not re.search(r"(?:src|href)\s*=\s*\"?(?:https?:|//)", text)
    assert "leak0.jpg" in text


def test_the_fixed_data_set_is_sound_where_images_were_the_fault(ill, tmp_path):
    fixed = tmp_path / "fixed.yaml"
    nextdetr.doctor(ill, fix=fixed)
    kept = {record.path.name for record in load_data(fixed, "train").records}
    assert kept.isdisjoint({"0.jpg", "1.jpg", "2.jpg", "3.jpg", "again.jpg", "other.jpg", "broken.jpg"})
    assert {"4.jpg", "5.jpg", "6.jpg", "7.jpg", "near.jpg"} <= kept
    assert len(load_data(fixed, "val").records) == 26
    again = by_kind(nextdetr.doctor(fixed))
    assert again.keys().isdisjoint({"image in two splits", "same file twice", "damaged image"})
    second = tmp_path / "second.yaml"  # of our own YAML, too
    nextdetr.doctor(fixed, fix=second)
    assert {record.path.name for record in load_data(second, "train").records} == kept


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_other_formats_are_fixed_too(ill, tmp_path, kind):
    nextdetr.convert(ill, kind, tmp_path / kind)
    result = nextdetr.doctor(tmp_path / kind, fix=tmp_path / "fixed.yaml")
    assert result.fixed == str(tmp_path / "fixed.yaml")
    parts = [load_data(path, "train") for path in (tmp_path / kind, tmp_path / "fixed.yaml")]
    assert len(parts[0].records) - len(parts[1].records) == 6
    boxes = {record.path.name: record.boxes.tolist() for record in parts[0].records}
    assert all(boxes[record.path.name] == record.boxes.tolist() for record in parts[1].records)


def test_what_cannot_be_fixed_is_said_and_the_rest_is_told(tmp_path):
    coco = Coco(tmp_path / "set")
    for split in ("train", "val"):
        for number in range(4):
            coco.add(split, f"{number}.jpg", picture(number), (0, 20 + number, 20, 80, 80))
    result = nextdetr.doctor(coco.write(), fix=tmp_path / "fixed.yaml")
    found = by_kind(result)
    assert found["image in two splits"].message.startswith("4 of the 4 images of val (100%)")
    assert "nothing would be left" in found["not fixed"].message
    assert result.verdict == "training would be wasted: see the errors"
    assert result.fixed is None
    assert not (tmp_path / "fixed.yaml").exists()


def test_small_boxes_are_measured_at_the_size_of_training(tmp_path):
    coco, generator = Coco(tmp_path / "set"), np.random.default_rng(0)
    for number in range(10):
        boxes = [(0, *generator.uniform(0, 150, 2).round(2), 3, 3) for _ in range(4)]
        coco.add("train", f"{number}.jpg", picture(number), *boxes, (0, 20 + number, 30, 60, 70 + number))
    data = coco.write()
    found = by_kind(nextdetr.doctor(data, image_size=160))["small boxes"]
    assert found.message.startswith("40 of the 50 boxes of train (80%) are smaller than ")
    assert found.severity == "warning"
    assert by_kind(nextdetr.doctor(data, image_size=64))["small boxes"].severity == "error"  # 1.2 pixels, stride 4
    assert "small boxes" not in by_kind(nextdetr.doctor(data, image_size=640))


def test_no_val_and_no_labels(tmp_path):
    coco = Coco(tmp_path / "empty")
    for number in range(3):
        coco.add("train", f"{number}.jpg", picture(number))
    found = by_kind(nextdetr.doctor(coco.write()))
    assert found["nothing to learn"].severity == "error"
    coco = Coco(tmp_path / "other")
    for number in range(3):
        coco.add("train", f"{number}.jpg", picture(number), (0, 20 + number, 20, 70, 70))
    result = nextdetr.doctor(coco.write())
    assert by_kind(result)["few images"].severity == "warning"
    assert result.recipe[0].startswith("--split-off 0.2")
    found = by_kind(result)["few images to score"]
    assert found.severity == "warning"
    assert found.message.startswith("there is no val, and train sets 1 of its 3 images aside: their score is mostly noise")
    (tmp_path / "other" / "annotations" / "instances_val.json").write_text("{")  # there is one, which cannot be read
    assert {"few images", "unreadable split"} <= set(by_kind(nextdetr.doctor(coco.folder)))
    assert "few images to score" not in by_kind(nextdetr.doctor(coco.folder))


def test_without_val_the_settings_are_those_for_the_images_that_are_left(tmp_path):
    coco, generator = Coco(tmp_path / "set"), np.random.default_rng(0)
    for number in range(110):  # 88 of them to train on, fewer than the 100 from which images are not turned
        coco.add("train", f"{number}.jpg", picture(number), (0, *generator.uniform(0, 60, 2).round(2), 80, 80))
    result = nextdetr.doctor(coco.write(), device="cpu")
    recipe = result.recipe
    assert "few images to score" not in by_kind(result)
    assert any(line.startswith("--batch-size 4: 22 steps an epoch") for line in recipe)
    assert any(line.startswith("--auto-turn: ") for line in recipe)


def test_a_split_made_of_others_is_no_leak(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "set")
    for split in ("train", "val"):
        shutil.copytree(sound / split, tmp_path / "set" / "minival", dirs_exist_ok=True)
    lines = "".join(
        f"{split}: {{images: {split}, annotations: annotations/instances_{split}.json}}\n" for split in ("train", "val")
    )
    both = "trainval: {images: train, annotations: annotations/instances_train.json}\n"
    (tmp_path / "set.yaml").write_text(f"format: coco\nroot: set\n{lines}{both}")
    result = nextdetr.doctor(tmp_path / "set.yaml")
    assert [finding.kind for finding in result.findings] == ["split of other splits"]
    assert list(result.splits) == ["train", "val"]


def test_mistakes_are_one_sentence(sound, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"end the name in \.html"):
        nextdetr.doctor(sound, output=tmp_path / "page.pdf")
    (tmp_path / "there.yaml").write_text("")
    with pytest.raises(ConfigError, match="is not touched"):
        nextdetr.doctor(sound, fix=tmp_path / "there.yaml")
    for settings in ({"output": tmp_path / "there.yaml" / "page.html"}, {"fix": tmp_path / "there.yaml" / "new.yaml"}):
        with pytest.raises(WriteError, match=r"there\.yaml is a file"):  # before anything is read
            nextdetr.doctor(tmp_path / "missing", **settings)
    with pytest.raises(DataError, match="there is no such"):
        nextdetr.doctor(tmp_path / "missing")
    assert run(["doctor", str(tmp_path / "missing"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "DataError"


def test_a_fix_that_cannot_be_written_says_nothing_of_the_training(tmp_path):
    shape = {"label": "cat", "points": [[1, 2], [30, 40]], "shape_type": "rectangle"}
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.json").write_text(json.dumps({"shapes": [shape], "imagePath": f"{number}.png"}))
    result = nextdetr.doctor(tmp_path, fix=tmp_path / "fixed.yaml")
    assert "of the format labelme" in by_kind(result)["not fixed"].message
    assert not result.passed
    assert result.verdict == "training is worthwhile, but nothing was fixed"


def test_grey_of_few_of_16_bits_is_seen(tmp_path):
    coco = Coco(tmp_path)
    for split, seed in (("train", 1), ("train", 2), ("val", 1)):
        values = np.asarray(picture(seed).convert("L")).astype(np.uint16) * 4  # 10 bits
        values = values if split == "train" else values[5:-3, 4:-6]
        coco.add(split, f"{seed}.png", Image.fromarray(values), (0, 10, 10, 60, 60))
    found = {finding.kind for finding in nextdetr.doctor(coco.write()).findings}
    assert "image in two splits" in found
    assert "image without content" not in found
