"""Half precision: the model's products are half, the matcher's costs and the losses float32, the weights float32."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn

from nextdetr.config import TrainConfig
from nextdetr.engine import train as train_module
from nextdetr.engine.launch import scaler_of
from nextdetr.engine.optim import build_optimizer
from nextdetr.engine.pretrain_setup import build_pretraining_optimizer
from nextdetr.engine.train import train
from nextdetr.losses import criterion as criterion_module
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.models import decoder as decoder_module
from nextdetr.models import denoising as denoising_module
from nextdetr.models.graph import build_model
from tests.helpers import squares, tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.mark.parametrize("pretraining", [False, True])
def test_float16s_loss_scaler_lets_the_gradients_be_clipped(tmp_path, pretraining):
    """As train and pretrain do it on a GPU: scale, clip, step."""
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    fabric = Fabric(accelerator="cpu", plugins=[precision])
    assert scaler_of(fabric) is not None
    fused = scaler_of(fabric) is None
    if pretraining:
        model: nn.Module = nn.Conv2d(3, 4, 1)
        optimizer = build_pretraining_optimizer(model, 1e-3, 0.05, fused=fused)
    else:
        model = build_model(tiny_model(tmp_path), num_classes=2)
        optimizer = build_optimizer(model, learning_rate=1e-3, weight_decay=1e-4, backbone_factor=1.0, fused=fused)
    wrapped, optimizer = fabric.setup(model, optimizer)
    weights = list(model.parameters())
    before = [weight.detach().clone() for weight in weights]
    loss = torch.stack([weight.square().sum() for weight in weights]).sum()  # no float16 products, which few CPUs have
    fabric.backward(loss, model=wrapped)
    fabric.clip_gradients(wrapped, optimizer, max_norm=0.1, error_if_nonfinite=False)
    norm = torch.stack([weight.grad.norm() for weight in weights]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-3)
    optimizer.step()
    assert any(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_targets_are_not_rounded_on_their_way_to_the_queries(data, tmp_path, monkeypatch):
    seen = []
    build = denoising_module.contrastive_denoising

    def watched(targets, *arguments, **options):
        seen.extend(target.boxes for target in targets)
        return build(targets, *arguments, **options)

    monkeypatch.setattr(decoder_module, "contrastive_denoising", watched)
    settings = {"epochs": 1, "image_size": 64, "batch_size": 2, "workers": 0, "output": tmp_path / "run"}
    model = str(tiny_model(tmp_path))
    train(TrainConfig(data=str(data), model=model, precision="bf16-mixed", accelerator="cpu", **settings), quiet=True)
    boxes = torch.cat(seen)
    assert boxes.dtype == torch.float32
    assert not torch.equal(boxes, boxes.bfloat16().float())


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
