"""The table of layouts: what each must define, and that names are unique."""

from __future__ import annotations

import pytest

from nextdetr.errors import WeightsError
from nextdetr.weights.layouts.base import layout_table
from nextdetr.weights.layouts.table import LAYOUTS

KINDS = [
    "nextdetr-backbone", "nextdetr-detector", "rtdetr-ultralytics", "deimv2-transformers", "deimv2-official",
    "dfine-transformers", "dfine-official", "rtdetr-transformers", "rtdetrv2-transformers", "rtdetr-official",
    "rtdetrv2-official", "convnextv2-fcmae-sparse", "convnextv2-original", "convnext-v1-original", "convnextv2-timm",
    "convnext-v1-timm", "convnextv2-transformers", "convnext-v1-transformers", "convnext-v1-dinov3",
    "convnext-v1-torchvision",
]  # fmt: skip


def test_the_table_lists_what_there_is():
    assert list(LAYOUTS) == KINDS
    for kind, layout in LAYOUTS.items():
        licence, remarks = layout.licence(1000)
        assert licence in ("unknown", "Apache-2.0", "AGPL-3.0", "CC-BY-NC-4.0", "dinov3-license"), kind
        assert all(remark.endswith(".") for remark in remarks)
        assert layout.matches(["something.weight"], {}) is None
        expected = {True: 1e-6, False: 1e-3 if "ultralytics" in kind else 1e-5}[layout.is_backbone]
        assert layout.types or not kind.endswith("-transformers"), f"which model_type is {kind} for?"
        assert layout.eps == (None if kind == "nextdetr-detector" else expected)


def test_two_layouts_of_one_name_and_a_name_of_none_are_refused():
    first = LAYOUTS["rtdetr-official"]
    with pytest.raises(ValueError, match="two layouts rtdetr-official"):
        layout_table(first, LAYOUTS["convnextv2-timm"], first)
    with pytest.raises(WeightsError, match=r"no layout 'x'; there are nextdetr-backbone, nextdetr-detector, rtdetr-ultra"):
        LAYOUTS["x"]
