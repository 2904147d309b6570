"""The data sets that real tools wrote, in ../shared/cases/datasets, come out as their README says.

Each picture has a size of its own, by which it is recognised. The formats of other tools are in test_public_formats.py.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from nextdetr.data.check import require_boxes
from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import DataError

from .test_public_formats import GIVEN

ALL = ("train", "val")
LONE = ("train",)
LOST = {"poly", "crowd", "rot"}
SHIFTED = r"do not fit the names: .* occur \(such as .*\), and named are 0 zebra, 1 apple, 2 traffic light"


class Expected(NamedTuple):
    """What is right for a set: its splits, kinds of objects that its tool lost or drew otherwise, or a message."""

    splits: tuple[str, ...] = ALL
    lost: frozenset[str] = frozenset()
    kinds: tuple[str, ...] = ()
    refused: str = ""
    path: str = ""
    tolerance: float = 1.0


def like(**changes) -> Expected:
    return Expected(**{key: frozenset(value) if key == "lost" else value for key, value in changes.items()})


MOVED = ("path of another computer",)
SETS = {
    "u_pose_12x2_tiger": like(),
    "u_pose_17x3_coco": like(),
    "u_pose_24x3_dog": like(),
    "dm_coco_masks": like(),
    "yolo_conf": like(kinds=("confidence in labels",)),
    "sahi_yolo": like(refused=SHIFTED),
    "pylabel_yolo_nosplit": like(refused=SHIFTED, path="training"),
    "ultra_convert_ids0_false": like(refused=SHIFTED),
    "yaml_u_noyaml_labels": like(lost={"crowd"}),
    "yaml_objects365": like(),
    "dm_voc_detection": like(lost=LOST),
    "globox_voc": like(),
    "roboflow_voc": like(),
    "labelimg_voc": like(splits=LONE),
    "kaggle_voc": like(splits=LONE),
    # supervision 0.31.2 adds 1 to the left and upper edges alone, and rounds
    "sv_voc": like(splits=LONE, tolerance=1.5),
    "roboflow_coco": like(),
    "coco_single_json_root": like(splits=LONE),
    "lsdk_coco": like(splits=LONE, lost={"rot"}, kinds=MOVED),
    "cvat_coco": like(splits=LONE),
    "dm_coco_nosubset": like(splits=LONE, lost={"rot"}),
    "lvis": like(),
    "objects365": like(),
    "moved_lsdk_coco": like(lost={"rot"}, kinds=MOVED, path="a/b/set.yaml"),
    "labelme2coco_one_moved": like(kinds=MOVED),
    "labelme2coco_win": like(kinds=MOVED),
    "u_abs_stale": like(lost={"crowd"}, kinds=MOVED),
    "u_lists_stale": like(lost={"crowd"}, kinds=MOVED),
    "u_glob": like(lost={"crowd"}),
    "u_datasets_dir": like(lost={"crowd"}, path="cfg/data.yaml"),
    "u_noyaml": like(lost={"crowd"}),
    "flat_yolo_classes_txt": like(splits=LONE, lost={"crowd"}),
    "darknet": like(lost={"crowd"}),
    "cvat_yolo11": like(lost={"crowd"}),
    "lsdk_yolo": like(splits=LONE, lost={"rot"}),
    "sv_yolo": like(),
    "ext_case": like(),
    "nfd_coco": like(),
}
WHOLE = {"labelme2coco_one_moved", "labelme2coco_win"}  # both splits are written to hold every picture


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data.parent / "cases" / "datasets"


@pytest.fixture(scope="module")
def truth(folder):
    content = json.loads((folder / "gt.json").read_text(encoding="utf-8"))
    return {(image["width"], image["height"]): image for image in content["images"]}


def corners(x, y, width, height):
    return x, y, x + width, y + height


def differences(data, truth, expected: Expected) -> list[str]:
    found = []
    for record in data.records:
        image = truth[record.width, record.height]
        wanted = [(item["kind"], item["label"], corners(*item["bbox"])) for item in image["anns"]]
        for label, box in zip(record.labels.tolist(), record.boxes.tolist(), strict=True):
            hits = [
                item for item in wanted if item[1] == data.classes[label]
                and max(abs(a - b) for a, b in zip(box, item[2], strict=True)) <= expected.tolerance
            ]  # fmt: skip
            hits = hits or [item for item in wanted if item[1] == data.classes[label] and item[0] in expected.lost]
            if hits:
                wanted.remove(hits[0])
            else:
                found.append(f"{image['name']} has {data.classes[label]} {box}")
        found += [f"{image['name']} lacks {item}" for item in wanted if item[0] not in expected.lost]
    return found


@pytest.mark.shared_data
@pytest.mark.parametrize("name", SETS)
def test_set_comes_out_as_its_readme_says(folder, truth, name):
    expected = SETS[name]
    path = folder / name / expected.path
    assert tuple(available_splits(path)) == expected.splits
    for split in expected.splits:
        if expected.refused:
            with pytest.raises(DataError, match=expected.refused):
                load_data(path, split)
            continue
        data = load_data(path, split)
        assert differences(data, truth, expected) == []
        assert [problem.kind for problem in data.problems] == list(expected.kinds)
        own = [
            image["name"] for image in truth.values() if name in WHOLE or expected.splits != ALL or image["split"] == split
        ]
        assert sorted(truth[record.width, record.height]["name"] for record in data.records) == sorted(own)
        assert sorted(data.classes) == ["apple", "traffic light", "zebra"]


SAME_NAMES = ("same_names_coco_include_base", "same_names_yolo_include", "same_names_yolo_labels")


@pytest.mark.shared_data
def test_every_set_has_a_test(folder):
    assert sorted([*SETS, *SAME_NAMES, *GIVEN]) == sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.mark.shared_data
@pytest.mark.parametrize("name", SAME_NAMES)
def test_each_entry_is_its_own_picture(folder, truth, name):
    data = load_data(folder / name, "val")
    assert [truth[record.width, record.height]["name"] for record in data.records] == ["e5.jpg"]
    assert data.classes[data.records[0].labels[0]] == "apple"
    assert data.records[0].boxes[0].tolist() == pytest.approx([15, 20, 75, 60], abs=1)
    if name == "same_names_yolo_include":
        data = load_data(folder / name, "train")
        assert [truth[record.width, record.height]["name"] for record in data.records] == ["a1.jpg"]
        assert data.records[0].boxes.tolist() == [pytest.approx([0, 0, 12, 10], abs=1)]
    else:
        with pytest.raises(DataError, match=r"0001\.jpg may be any of cam1/0001\.jpg, cam2/0001\.jpg|nothing says whose"):
            load_data(folder / name, "train")


@pytest.mark.shared_data
def test_training_refuses_masks_that_are_all_crowds(folder):
    with pytest.raises(DataError, match="no box to learn from: all 9 are crowds"):
        require_boxes(load_data(folder / "dm_coco_masks", "train"))
