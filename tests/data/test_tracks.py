"""YOLO rows that end in the number of a track, and boxes with a confidence and polygons that look like them."""

from __future__ import annotations

import pytest

from .small_sets import CAT, CAT_BOX, DOG, DOG_BOX, Case, check_case

YAML = "train: images\nnames: [cat, dog]\n"

TRACKS = {
    "boxes with a confidence and the number of a track": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT} 0.98 1\n{DOG} 0.5 12\n"},
        {"images/a.jpg": [CAT_BOX, DOG_BOX]}, ("track numbers", "confidence in labels"),
    ),
    "tracks in some frames, and none in others": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "images/b.jpg": None, "labels/a.txt": f"{CAT} 0.98 2\n",
         "labels/b.txt": f"{DOG} 0.5\n"},
        {"images/a.jpg": [CAT_BOX], "images/b.jpg": [DOG_BOX]}, ("track numbers", "confidence in labels"),
    ),
    "boxes with the number of a track, and one without": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "images/b.jpg": None, "labels/a.txt": f"{DOG}\n{CAT} 0\n",
         "labels/b.txt": f"{CAT} 1\n{DOG} 27\n"},
        {"images/a.jpg": [DOG_BOX, CAT_BOX], "images/b.jpg": [CAT_BOX, DOG_BOX]}, ("track numbers",),
    ),
    "boxes that are all certain": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT} 1\n{DOG} 1.0\n"},
        {"images/a.jpg": [CAT_BOX, DOG_BOX]},
    ),
    "whole confidences among others": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT} 1\n{DOG} 0.25\n{CAT} 0\n"},
        {"images/a.jpg": [DOG_BOX, CAT_BOX]}, ("confidence in labels", "box given twice"),
    ),
    "polygons with a confidence and the number of a track": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": "0 0.4 0.3 0.6 0.3 0.6 0.7 0.4 0.7 0.9 3\n"},
        {"images/a.jpg": [CAT_BOX]}, ("track numbers", "confidence in labels"),
    ),
    "polygons with a confidence": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "images/b.jpg": None,
         "labels/a.txt": "0 0.4 0.3 0.6 0.3 0.6 0.7 0.4 0.7 0.9\n", "labels/b.txt": "0 0.4 0.3 0.6 0.3 0.6 0.7 0.25\n"},
        {"images/a.jpg": [CAT_BOX], "images/b.jpg": [CAT_BOX]}, ("confidence in labels",),
    ),
    "polygons with a confidence, of which some have the number of a track": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "images/b.jpg": None,
         "labels/a.txt": "0 0.4 0.3 0.6 0.3 0.6 0.7 0.4 0.7 0.9 3\n", "labels/b.txt": "0 0.4 0.3 0.6 0.3 0.6 0.7 0.25\n"},
        {"images/a.jpg": [CAT_BOX], "images/b.jpg": [CAT_BOX]}, ("track numbers", "confidence in labels"),
    ),
    "rotated boxes with a confidence": Case(
        {"data.yaml": YAML, "images/a.jpg": None,
         "labels/a.txt": "0 0.4 0.3 0.6 0.3 0.6 0.7 0.4 0.7 0.9\n1 0.1 0.95 0.2 0.9 0.3 0.95 0.2 1 0.4\n"},
        {"images/a.jpg": [CAT_BOX, ("dog", 6, 36, 18, 40)]}, ("confidence in labels",),
    ),
    "polygons with a confidence, or boxes with key points": Case(
        {"data.yaml": YAML, "images/a.jpg": None,
         "labels/a.txt": f"{CAT} 0.5 0.6 0.9\n{DOG}\n{CAT} 0.4 0.6 0.8\n"},
        {"images/a.jpg": [DOG_BOX]}, ("malformed label line", "malformed label line"),
    ),
    "polygons of which some lack a value": Case(
        {"data.yaml": YAML, "images/a.jpg": None,
         "labels/a.txt": "0 0.4 0.3 0.6 0.3 0.5 0.7\n1 0.1 0.9 0.3 0.9 0.2 1 0.3\n1 0.1 0.9 0.3 0.9 0.2 1 0.3 0.5 0.4\n"},
        {"images/a.jpg": [CAT_BOX]}, ("malformed label line", "malformed label line"),
    ),
    "tracks of one number only, or triangles": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT} 0.98 1\n{DOG} 0.5 1\n"},
        r"labels/a.txt, line 1: 2 rows of .* may end in a confidence and the number of a track, 1 here, or be polygons",
    ),
    "a polygon on the lower edge among others": Case(
        {"data.yaml": YAML, "images/a.jpg": None,
         "labels/a.txt": "0 0.4 0.3 0.6 0.3 0.5 0.7\n1 0.1 0.9 0.3 0.9 0.2 1\n1 0.1 0.9 0.3 0.9 0.2 2\n"},
        {"images/a.jpg": [CAT_BOX, ("dog", 6, 36, 18, 40)]}, ("malformed label line",),
    ),
    "key points that nothing announces, and that look like tracks": Case(
        {"data.yaml": YAML, "images/a.jpg": None,
         "labels/a.txt": f"{CAT} 0.5 0.6 2 0.4 0.3 2\n{DOG} 0.3 0.5 0 0.2 0.4 1\n{CAT}\n"},
        r"the row of .*a.txt, line 1, and all like it are boxes with 2 key points .* write kpt_shape: \[2, 3\] into",
    ),
    "an odd number of key points that nothing announces": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT} 0.5 0.6 2\n{DOG}\n"},
        {"images/a.jpg": [DOG_BOX]}, ("malformed label line",),
    ),
    "polygons with corners at the edges": Case(
        {"data.yaml": YAML, "images/a.jpg": None,
         "labels/a.txt": "0 0 0 0.5 0 1 0.5 1 1 0 1\n0 0.4 0.3 0.6 0.3 0.6 0.7 0.4 0.7 0.4 0.5\n"},
        {"images/a.jpg": [CAT_BOX, ("cat", 0, 0, 60, 40)]},
    ),
    "key points that end in a whole number": Case(
        {"data.yaml": f"{YAML}kpt_shape: [1, 2]\n", "images/a.jpg": None, "labels/a.txt": f"{CAT} 0.5 1\n{DOG} 0.5 1\n"},
        {"images/a.jpg": [CAT_BOX, DOG_BOX]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACKS)
def test_tracks_are_told_from_polygons_or_refused(tmp_path, name):
    check_case(TRACKS[name], tmp_path)
