"""What the recipe asks of a model before it is built."""

from __future__ import annotations

from pathlib import Path

from nextdetr.config import TrainConfig
from nextdetr.engine import model_facts
from nextdetr.engine.fine_tune import plan_fine_tuning
from nextdetr.engine.model_facts import gflop_of, stride_of, with_image_size
from nextdetr.weights.layouts.table import Identity
from nextdetr.weights.reader import WeightsFile
from tests.engine.test_recipe import LAPTOP
from tests.helpers import TINY_MODEL, tiny_model


def test_a_model_is_built_once_to_know_it_until_its_file_changes(tmp_path, monkeypatch):
    built, build = [], model_facts.build_skeleton
    monkeypatch.setattr(model_facts, "build_skeleton", lambda file: built.append(file) or build(file))
    path = tiny_model(tmp_path)
    config = TrainConfig(model=str(path))
    tuning = plan_fine_tuning(["cell"], Identity("deimv2", "deimv2-atto", ["car"]), config.model)
    file, other = WeightsFile(Path("w.safetensors"), "safetensors", {}, {}), Identity("deimv2", "deimv2-atto")
    for size in (64, 96):
        path.write_text(TINY_MODEL.replace("image_size: 64", f"image_size: {size}"))
        for _ in range(3):
            assert stride_of(config.model) == 32
            assert gflop_of(config, LAPTOP, None) == gflop_of(config, LAPTOP, tuning) > 0
            assert with_image_size(tuning, file, other, config).image_size == size
    assert len(built) == 2
