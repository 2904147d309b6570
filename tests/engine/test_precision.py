"""Half precision: the model's products are half, the matcher's costs and the losses float32, the weights float32."""

from __future__ import annotations

import pytest
import torch

from nextdetr.config import TrainConfig
from nextdetr.engine import train as train_module
from nextdetr.engine.train import train
from nextdetr.losses import criterion as criterion_module
from nextdetr.losses.matcher import HungarianMatcher
from tests.helpers import squares, tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.mark.parametrize(
    ("precision", "accelerator", "half"),
    [
        ("32-true", "cpu", torch.float32),
        ("bf16-mixed", "cpu", torch.bfloat16),
        ("16-mixed", "cpu", torch.bfloat16),  # CPUs have no float16 training: lightning-fabric takes bfloat16 instead
        pytest.param(
            "16-mixed", "cuda", torch.float16, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
        ),
    ],
)
def test_matcher_and_losses_are_float32(data, tmp_path, monkeypatch, precision, accelerator, half):
    seen = {"model": set(), "cost": set(), "losses": set(), "inside": set()}

    def watch(owner, name, key, select):
        original = getattr(owner, name)

        def watched(*arguments, **options):
            result = original(*arguments, **options)
            seen[key] |= {value.dtype for value in select(arguments, result)}
            return result

        monkeypatch.setattr(owner, name, watched)

    watch(torch.nn.functional, "linear", "model", lambda arguments, result: [result])
    watch(HungarianMatcher, "cost", "cost", lambda arguments, result: [result])
    watch(criterion_module, "varifocal_loss", "inside", lambda arguments, result: [arguments[0], result])
    watch(criterion_module, "pair_terms", "inside", lambda arguments, result: [*arguments, result.l1, result.giou])
    watch(train_module.Criterion, "__call__", "losses", lambda arguments, result: result.values())
    settings = {"epochs": 1, "image_size": 64, "batch_size": 2, "workers": 0, "output": tmp_path / "run"}
    model = str(tiny_model(tmp_path))
    result = train(
        TrainConfig(data=str(data), model=model, precision=precision, accelerator=accelerator, **settings), quiet=True
    )
    assert half in seen["model"]
    assert seen["cost"] == seen["losses"] == seen["inside"] == {torch.float32}
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert {value.dtype for value in state["model"].values() if value.is_floating_point()} == {torch.float32}
    assert result.best["metrics"]["AP"] is not None
