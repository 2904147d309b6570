"""Models of transformers that we cannot open, by the names that transformers gives their tensors: named, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForObjectDetection

from nextdetr.errors import WeightsError
from nextdetr.weights.layouts.detectors import detector_kind
from nextdetr.weights.layouts.table import LAYOUTS, identify
from nextdetr.weights.reader import WeightsFile

KINDS = {  # model_type -> what the sentence says with a config.json, and without one
    "deformable_detr": (r"Deformable DETR \(deformable_detr\)", "Deformable DETR"),
    "pp_doclayout_v2": (r"PP-DocLayoutV2 \(pp_doclayout_v2\)", "PP-DocLayout"),
    "pp_doclayout_v3": (r"PP-DocLayoutV3 \(pp_doclayout_v3\)", "PP-DocLayout"),
    "rf_detr": (r"RF-DETR \(rf_detr\)", "RF-DETR"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_cannot_open_is_named(kind):
    with_config, without = KINDS[kind]
    if kind not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    config = CONFIG_MAPPING[kind]()
    with torch.device("meta"):
        state = AutoModelForObjectDetection.from_config(config).state_dict()
    assert detector_kind(state) is None
    folder = WeightsFile(Path("folder"), "folder", state, extra={"config": config.to_dict()})
    with pytest.raises(WeightsError, match=f"^folder: its config.json says {with_config}, which NextDETR cannot") as caught:
        identify(folder)
    assert all(kind in str(caught.value) for kind in ("rt_detr", "rt_detr_v2", "convnextv2"))
    with pytest.raises(
        WeightsError, match=f"^x.pth: by the names of its tensors {without}.*cannot open; it opens "
    ) as caught:
        identify(WeightsFile(Path("x.pth"), "torch", state))
    assert all(layout in str(caught.value) for layout in LAYOUTS)
