"""Data sets of annotation tools: each is read as its tool intends; unreadable content is reported with file and line."""

from __future__ import annotations

import json
import math

import pytest

from .cases import CAT, DOG, Case, H, W, check_case, rows

META = "<task><labels><label><name>cat</name></label><label><name>dog</name></label></labels></task>"
LABELS = "<task><labels>" + "".join(
    f"<label><name>{name}</name><type>{kind}</type><attributes></attributes>{more}</label>\n"
    for name, kind, more in (
        ("cat", "rectangle", ""), ("dog", "skeleton", "<svg></svg>"), ("1", "points", "<parent>dog</parent>"),
        ("2", "polygon", "<parent>dog</parent>"), ("blurred", "tag", ""), ("nose", "points", ""),
    )
) + "</labels></task>"  # fmt: skip


def cvat(*images: str, meta: str = META) -> str:
    return (
        f"<?xml version='1.0' encoding='utf-8'?>\n<annotations><version>1.1</version><meta>{meta}</meta>\n"
        + "\n".join(images)
        + "\n</annotations>"
    )


def cvat_image(name: str, *shapes: str, subset: str = "", size=(W, H)) -> str:
    subset = f' subset="{subset}"' if subset else ""
    body = "\n".join(shapes)
    return f'<image id="0" name="{name}"{subset} width="{size[0]}" height="{size[1]}">\n{body}\n</image>'


def on_frame(frame: int | str, *, outside: int = 0, keyframe: int = 1, xtl: float = 24, xbr: float = 36) -> str:
    return (
        f'<box frame="{frame}" keyframe="{keyframe}" outside="{outside}" occluded="0" xtl="{xtl}" ytl="12.00" xbr="{xbr}" '
        'ybr="28.00" z_order="0"></box>'
    )


def track(*shapes: str, label: str = "cat", task_id: int = 1) -> str:
    return f'<track id="0" label="{label}" source="manual" task_id="{task_id}">\n' + "\n".join(shapes) + "\n</track>"


DOG_POINTS = "12.00,16.00;18.00,20.00;15.00,24.00"
BOX = '<box label="cat" occluded="0" xtl="24.00" ytl="12.00" xbr="36.00" ybr="28.00" z_order="0"></box>'
POLYGON = f'<polygon label="dog" points="{DOG_POINTS}"><attribute name="a">1</attribute></polygon>'
TURN = 5 * math.sqrt(2)  # half of a square of 10, turned by 45 degrees

CVAT = {
    "boxes, polygons and what has no box": Case(
        "cvat: annotations.xml",
        {"annotations.xml": cvat(
            cvat_image("a.jpg", BOX, POLYGON, '<tag label="cat"></tag>', '<tag label="dog"></tag>',
                       '<points label="cat" points="1,2"></points>'),
            cvat_image("sub/b.jpg"),
         ), "images/a.jpg": None, "images/sub/b.jpg": None},
        {"a.jpg": [CAT, DOG], "sub/b.jpg": []}, ("tag skipped", "point shape skipped"),
    ),
    "shapes of all kinds": Case(
        "cvat: task.xml",
        {"task.xml": cvat(cvat_image(
            "a.jpg",
            '<box label="cat" xtl="25" ytl="15" xbr="35" ybr="25" rotation="45"></box>',
            '<ellipse label="cat" cx="30" cy="20" rx="10" ry="5" rotation="90.0"></ellipse>',
            '<ellipse label="cat" cx="30" cy="20" rx="6" ry="6" rotation="45"></ellipse>',
            '<polyline label="dog" points="1,2;3,9"></polyline>',
            '<mask label="dog" rle="3, 4" left="10" top="11" width="3" height="4"></mask>',
            '<cuboid label="dog" xtl1="5" ytl1="6" xbl1="5" ybl1="9" xtr1="8" ytr1="6" xbr1="8" ybr1="9" '
            'xtl2="7" ytl2="5" xbl2="7" ybl2="8" xtr2="11" ytr2="5" xbr2="11" ybr2="8"></cuboid>',
            '<skeleton label="dog"><points label="1" outside="0" points="1,2"></points>\n'
            '<points label="2" outside="0" points="9,4"></points>'
            '<points label="3" outside="1" points="50,30"></points></skeleton>',
        )), "a.jpg": None},
        {"a.jpg": [("cat", 30 - TURN, 20 - TURN, 30 + TURN, 20 + TURN), ("cat", 25, 10, 35, 30), ("cat", 24, 14, 36, 26),
                   ("dog", 1, 2, 3, 9), ("dog", 10, 11, 13, 15), ("dog", 5, 5, 11, 9), ("dog", 1, 2, 9, 4)]},
    ),
    "labels of points of a skeleton, of points and of tags, which are no classes": Case(
        "cvat: a.xml",
        {"a.xml": cvat(
            cvat_image("a.jpg", BOX, '<skeleton label="dog"><points label="1" outside="0" points="12,16"></points>\n'
                       '<points label="2" outside="0" points="18,24"></points></skeleton>', '<tag label="blurred"></tag>'),
            meta=LABELS,
         ), "a.jpg": None},
        {"a.jpg": [CAT, DOG]}, ("tag skipped",),
    ),
    "a project with subsets, in whose folders the images lie": Case(
        "cvat: annotations.xml",
        {"annotations.xml": cvat(
            cvat_image("a.jpg", BOX, subset="Train"), cvat_image("a.jpg", POLYGON, subset="Validation"),
            meta="<project><tasks><task><name>one</name></task></tasks><labels><label><name>cat</name></label></labels></project>",
         ), "images/Train/a.jpg": None, "images/Validation/a.jpg": None},
        {"a.jpg": [CAT]}, splits=("train", "val"),
    ),
    "two tasks, each in its folder": Case(
        "cvat: one/annotations.xml, two/annotations.xml",
        {"one/annotations.xml": cvat(cvat_image("a.jpg", BOX), meta=""), "one/images/a.jpg": None,
         "two/annotations.xml": cvat(cvat_image("a.jpg", POLYGON), meta=""), "two/images/a.jpg": None},
        {"a.jpg": [CAT], "a.jpg (2)": [DOG]},
    ),
    "numbers that are none": Case(
        "cvat: a.xml",
        {"a.xml": cvat(cvat_image("a.jpg", BOX.replace("12.00", "x"), '<box label="cat" xtl="1"></box>', POLYGON)),
         "images/a.jpg": None},
        {"a.jpg": [DOG]}, ("malformed box", "malformed box"),
    ),
    "a video without its frames": Case(
        "cvat: a.xml", {"a.xml": cvat(track(on_frame(0)), meta=f"{META}<source>yard.mp4</source>"), "a.jpg": None},
        r'"CVAT for video", and .* has none of its frames \(frame_000000.png, …\).*ffmpeg -i yard.mp4 -start_number 0',
    ),
    "a video, with frames in which nothing is": Case(
        "cvat: annotations.xml",
        {"annotations.xml": cvat(
            track(on_frame(0), on_frame(1, keyframe=0, xtl=26, xbr=38), on_frame(2, outside=1)),
            track(f'<polygon frame="2" keyframe="1" outside="0" points="{DOG_POINTS}"></polygon>',
                  '<points frame="3" keyframe="1" outside="0" points="1,2"></points>', label="dog"),
            meta=f"{META}<original_size><width>60</width><height>40</height></original_size>",
         ), **{f"images/frame_{n:06d}.PNG": None for n in range(4)}},
        {"frame_000000.PNG": [CAT], "frame_000001.PNG": [("cat", 26, 12, 38, 28)], "frame_000002.PNG": [DOG],
         "frame_000003.PNG": []}, ("point shape skipped",),
    ),
    "a video in which only points are of another label": Case(
        "cvat: a.xml",
        {"a.xml": cvat(track(on_frame(0)), track('<points frame="0" outside="0" points="1,2"></points>', label="nose"),
                       meta=LABELS), "frame_000000.png": None},
        {"frame_000000.png": [CAT]}, ("point shape skipped",),
    ),
    "a video of another split": Case(
        "cvat: a.xml",
        {"a.xml": cvat(track(on_frame(0)), meta=f"{META}<subset>Validation</subset>"), "frame_000000.png": None},
        "there is no split train; available: val",
    ),
    "a video in which every second frame was annotated, and key frames alone are written": Case(
        "cvat: annotations.xml",
        {"annotations.xml": cvat(
            track(on_frame(2), on_frame(6, xtl=28, xbr=40), on_frame(10, outside=1)),
            meta=f"{META}<start_frame>2</start_frame><stop_frame>8</stop_frame><frame_filter>step=2</frame_filter>",
         ), **{f"images/frame_{n:06d}.png": None for n in range(12) if n != 6}},
        {"frame_000002.png": [CAT], "frame_000004.png": [("cat", 26, 12, 38, 28)],
         "frame_000008.png": [("cat", 28, 12, 40, 28)]},
        ("box between key frames", "missing image"),
    ),
    "a video whose frames were numbered from 1": Case(
        "cvat: a.xml",
        {"a.xml": cvat(track(on_frame(0), on_frame(1)), meta=f"{META}<start_frame>0</start_frame><stop_frame>1</stop_frame>"
         ),
         "frame_000001.png": None, "frame_000002.png": None},
        r"its frames are numbered from 1, and those of .*a.xml from 0",
    ),
    "a project of two videos": Case(
        "cvat: a.xml",
        {"a.xml": cvat(track(on_frame(0), task_id=1), track(on_frame(0), task_id=2)), "frame_000000.png": None},
        "it holds tracks of several tasks, whose frames have the same numbers",
    ),
    "a frame twice": Case(
        "cvat: a.xml", {"a.xml": cvat(track(on_frame(0))), "images/1/frame_000000.png": None, "images/2/frame_0.png": None},
        "may be its frame 0; keep one",
    ),
    "a frame without a number": Case(
        "cvat: a.xml", {"a.xml": cvat(track(on_frame("x"), on_frame(0))), "frame_000000.png": None},
        {"frame_000000.png": [CAT]}, ("malformed box",),
    ),
    "no end": Case("cvat: a.xml", {"a.xml": cvat(BOX)[:-20], "a.jpg": None}, r"a.xml, line \d: not valid XML"),
    "a DOCTYPE": Case(
        "cvat: a.xml", {"a.xml": "<!DOCTYPE annotations [<!ENTITY a 'b'>]>\n" + cvat(BOX).split("\n", 1)[1], "a.jpg": None},
        "a.xml, line 1: it declares a DOCTYPE",
    ),
}  # fmt: skip


def labelme(name: str, *shapes: dict, **more) -> str:
    return json.dumps({"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": name, "imageData": "aGVsbG8=",
                       "imageHeight": H, "imageWidth": W} | more, indent=1)  # fmt: skip


def shape(label: str, *points, kind="rectangle") -> dict:
    return {"label": label, "points": [list(point) for point in points], "group_id": None, "shape_type": kind, "flags": {}}


RECTANGLE = shape("cat", (36, 28), (24, 12))  # drawn from the lower right corner
OUTLINE = shape("dog", (12, 16), (18, 20), (15, 24), kind="polygon")

LABELME = {
    "shapes": Case(
        "labelme: a.json",
        {"a.json": labelme("a.jpg", RECTANGLE, OUTLINE, shape("cat", (30, 20), (33, 24), kind="circle"),
                           shape("dog", (1, 2), (9, 4), kind="line"), shape("dog", (1, 2), (9, 4), kind="mask"),
                           shape("cat", (5, 5), kind="point")),
         "a.jpg": None, "sub/b.json": labelme("..\\\\b.jpg".replace("..\\\\", "")), "sub/b.jpg": None},
        {"a.jpg": [CAT, DOG, ("cat", 25, 15, 35, 25), ("dog", 1, 2, 9, 4)], "sub/b.jpg": []},
        ("point shape skipped", "box given twice"),
    ),
    "folders as splits": Case(
        "labelme: train/a.json",
        {"train/a.json": labelme("a.jpg", OUTLINE), "train/a.jpg": None, "val/b.json": labelme("b.jpg", RECTANGLE),
         "val/b.jpg": None},
        {"train/a.jpg": [DOG]}, classes=("dog", "cat"), splits=("train", "val"),
    ),
    "folders that are no splits, and files in none": Case(
        "labelme: stray.json",
        {"train/a.json": labelme("a.jpg", RECTANGLE), "train/a.jpg": None, "stray.json": labelme("b.jpg", OUTLINE),
         "b.jpg": None},
        {"train/a.jpg": [CAT]}, ("annotations without a split",), ("dog", "cat"),
    ),
    "files beside folders of splits other than train": Case(
        "labelme: a.json",
        {"a.json": labelme("a.jpg", RECTANGLE), "a.jpg": None, "b.jpg": None, "test/c.json": labelme("c.jpg", OUTLINE),
         "test/c.jpg": None, "test/d.jpg": None},
        {"a.jpg": [CAT]}, ("image without annotations",), splits=("train", "test"),
    ),
    "another program's file beside folders of splits other than train": Case(
        "labelme: test/c.json",
        {"notes.json": "{}", "test/c.json": labelme("c.jpg", OUTLINE), "test/c.jpg": None}, "there is no split train",
    ),
    "a folder with the word test in its name": Case(
        "labelme: crash test 2/a.json", {"crash test 2/a.json": labelme("a.jpg", RECTANGLE), "crash test 2/a.jpg": None},
        {"crash test 2/a.jpg": [CAT]}, classes=("cat",),
    ),
    "parts of one object, and rectangles that someone has grouped": Case(
        "labelme: a.json",
        {"a.json": labelme(
            "a.jpg", shape("dog", (12, 16), (14, 16), (13, 24), kind="polygon") | {"group_id": 1},
            shape("cat", (24, 12), (36, 12), (30, 28), kind="polygon") | {"group_id": 1},
            shape("dog", (15, 17), (18, 20), (16, 22), kind="polygon") | {"group_id": 1},
            shape("cat", (1, 2), (3, 4)) | {"group_id": 2}, shape("cat", (5, 6), (9, 8)) | {"group_id": 2}), "a.jpg": None},
        {"a.jpg": [DOG, CAT, ("cat", 1, 2, 3, 4), ("cat", 5, 6, 9, 8)]}, ("parts of one object",), ("dog", "cat"),
    ),
    "a path of another computer, and images in another folder": Case(
        "labelme: json/a.json",
        {"json/a.json": labelme("..\\images\\a.jpg", RECTANGLE), "images/a.jpg": None,
         "json/b.json": labelme("C:\\Users\\me\\b.jpg", OUTLINE), "json/b.jpg": None},
        {"images/a.jpg": [CAT], "json/b.jpg": [DOG]},
    ),
    "an image that nobody has annotated, and broken files": Case(
        "labelme: a.json",
        {"a.json": labelme("a.jpg", RECTANGLE, shape("", (1, 2), (3, 4)), shape("cat", (1,)), shape("cat", (1, 2))),
         "a.jpg": None,
         "b.jpg": None, "c.json": '{"shapes": [\n', "other.json": "[]"},
        {"a.jpg": [CAT]},
        ("malformed box",) * 3 + ("unreadable annotation file", "image without annotations"), ("cat",),
    ),
}  # fmt: skip


XYWH = {"cat": [24, 12, 12, 16], "dog": [12, 16, 6, 8]}
README = """---
license: mit
dataset_info:
  features:
  - name: objects
    sequence:
    - name: bbox
      sequence: float32
      length: 4
    - name: category
      dtype:
        class_label:
          names:
            '0': cat
            '1': dog
---
"""
SCENES = """  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': day
          '1': night
"""

IMAGEFOLDER = {
    "numbers that a README names": Case(
        "imagefolder: train/metadata.jsonl",
        {"README.md": README, "train/a.jpg": None, "train/b.jpg": None, "validation/c.jpg": None,
         "train/metadata.jsonl": rows({"file_name": "a.jpg", "objects": {"bbox": list(XYWH.values()), "category": [0, 1]}},
                                      {"file_name": "b.jpg", "objects": {"bbox": [], "category": []}}),
         "validation/metadata.jsonl": rows({"file_name": "c.jpg", "objects": {"bbox": [[1, 2, 3, 4]], "category": [1]}})},
        {"a.jpg": [CAT, DOG], "b.jpg": []}, splits=("train", "val"),
    ),
    "numbers without names": Case(
        "imagefolder: metadata.jsonl",
        {"a.jpg": None,
         "metadata.jsonl": rows({"file_name": "a.jpg", "objects": {"bbox": [XYWH["cat"]], "categories": [3]}})},
        {"a.jpg": [("3", *CAT[1:])]}, ("class without a name",), ("3",),
    ),
    "names, objects as a list, crowds, and one file above the splits": Case(
        "imagefolder: data/metadata.jsonl",
        {"data/train/a.jpg": None, "data/test/b.jpg": None,
         "data/metadata.jsonl": rows(
             {"file_name": "test/b.jpg", "objects": [{"bbox": [1, 2, 3, 4], "category": "dog"}]},
             {"file_name": "train/a.jpg", "objects": [{"bbox": XYWH["cat"], "label": "cat", "iscrowd": 1}]})},
        {"train/a.jpg": [("cat crowd", *CAT[1:])]}, classes=("dog", "cat"), splits=("train", "test"),
    ),
    "a CSV": Case(
        "imagefolder: metadata.csv",
        {"a.jpg": None, "b.jpg": None,
         "metadata.csv": 'file_name,objects\na.jpg,"{""bbox"": [[24, 12, 12, 16]], ""category"": [""cat""]}"\nb.jpg,\n'},
        {"a.jpg": [CAT], "b.jpg": []}, classes=("cat",),
    ),
    "a CSV with a class of each image": Case(
        "imagefolder: metadata.csv",
        {"a.jpg": None, "b.jpg": None,
         "metadata.csv": 'file_name,label,objects\na.jpg,day,"{""bbox"": [[24, 12, 12, 16]], ""category"": [""cat""]}"\n'
                         "b.jpg,night,\n"},
        {"a.jpg": [CAT], "b.jpg": []}, classes=("cat",),
    ),
    "a CSV with boxes and categories in columns of their own": Case(
        "imagefolder: metadata.csv",
        {"a.jpg": None, "b.jpg": None,
         "metadata.csv": 'file_name,bbox,category,label,iscrowd\na.jpg,"[[24, 12, 12, 16]]","[""cat""]",day,[1]\n'
                         "b.jpg,,,night,\n"},
        {"a.jpg": [("cat crowd", *CAT[1:])], "b.jpg": []}, classes=("cat",),
    ),
    "a CSV with a column of texts that has no name": Case(
        "imagefolder: metadata.csv",
        {"a.jpg": None, "metadata.csv": ',file_name,bbox,category\nfirst,a.jpg,"[[24, 12, 12, 16]]","[""cat""]"\n'},
        {"a.jpg": [CAT]}, classes=("cat",),
    ),
    "numbers of objects, and others of images, that a README names": Case(
        "imagefolder: metadata.jsonl",
        {"README.md": README.replace("  features:\n", SCENES), "a.jpg": None,
         "metadata.jsonl": rows({"file_name": "a.jpg", "label": 1, "objects": {"bbox": [XYWH["dog"]], "category": [1]}})},
        {"a.jpg": [DOG]},
    ),
    "what is wrong": Case(
        "imagefolder: metadata.jsonl",
        {"a.jpg": None, "b.jpg": None, "metadata.jsonl": rows(
            {"file_name": "a.jpg", "objects": {"bbox": [XYWH["cat"], [1], [1, 2, 3, 4]], "category": ["cat", "cat", None]}},
            {"file_name": "gone.jpg", "objects": {"bbox": [XYWH["cat"]], "category": []}},
            {"objects": {"bbox": []}}) + "{\n[]\n"},
        {"a.jpg": [CAT]},
        ("malformed box",) * 3 + ("malformed image entry", "malformed row", "malformed row", "image without annotations",
                                  "missing image"), ("cat",),
    ),
}  # fmt: skip

CASES = {
    f"{name}: {title}": case
    for name, cases in (("cvat", CVAT), ("labelme", LABELME), ("imagefolder", IMAGEFOLDER))
    for title, case in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_set_is_read_as_its_tool_means_it(tmp_path, name):
    check_case(CASES[name], tmp_path / "test set")
