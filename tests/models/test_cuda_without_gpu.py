"""CUDA without a GPU: training, evaluation, losses and post-processing on torch's fake CUDA tensors.

A fake tensor has shape, type and device but no numbers, and an operation on two devices fails as it would on a GPU;
autocast casts as it does there. What depends on numbers is fixed: who is matched with whom, whether something was found.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from nextdetr.export.best import best_detections
from nextdetr.layers import attention
from nextdetr.losses import criterion as criterion_module
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher, Matches
from nextdetr.models import decoder as decoder_module
from nextdetr.models.convnextv2 import convnextv2
from nextdetr.models.fcmae import FCMAE
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.structures import Target

MODEL = """
nc: 3
normalize: imagenet
backbone:
  - [-1, 1, convnextv2_atto, []]
head:
  - [-1, 1, Conv, [32, 1, 1]]
  - [-1, 1, AIFI, [64, 4]]
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [3, 1, Conv, [32, 1, 1]]
  - [[-2, -1], 1, Concat, []]
  - [-1, 1, RepC3, [32]]
  - [[10, 6], 1, {decoder}, [nc, 32, 20, [2, 3], 4, 2, 64, {{dense: True}}]]
"""
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def autocast(precision):
    """``torch.autocast("cuda")``, which turns itself off where there is no GPU."""
    kept = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", precision is not None)
    torch.set_autocast_dtype("cuda", precision or kept)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", kept)
        torch.clear_autocast_cache()


@pytest.fixture
def mode():
    return FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)


def on_cuda(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Move parameters and buffers as ``model.to("cuda")`` does; what is neither stays where it is."""
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    fake = mode.from_tensor(tensor.detach())
                    with mode:
                        moved = fake.to("cuda")
                    store[name] = nn.Parameter(moved) if store is module._parameters else moved
    return model


def in_order(cost, counts):
    """Query k for target k, as ``HungarianMatcher.assign`` returns it."""
    rows = [(layer, image, k, k) for layer in range(cost.shape[0]) for image, n in enumerate(counts) for k in range(n)]
    assert isinstance(cost, FakeTensor)
    assert cost.device.type == "cuda"
    assert cost.dtype == torch.float32
    return np.asarray(rows, dtype=np.int64).T.copy()


def first_layers(matches, queries, most):
    """What ``united`` makes of these matches; the real one runs too, for devices and types."""
    real = united(matches, queries, most)
    fields = ("layer_index", "batch_index", "query_index", "target_index")
    assert all(getattr(real, name).device.type == "cuda" for name in fields)
    assert all(getattr(real, name).dtype == torch.int64 for name in fields)
    layers = 4  # two of the decoder, its first plain boxes, the encoder's proposals
    return Matches(*(getattr(matches, name)[: len(matches) // layers] for name in fields))


united = criterion_module.united


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors(item)]
    names = getattr(value, "__dataclass_fields__", {})
    return [tensor for name in names for tensor in tensors(getattr(value, name))]


def check_training(model, images, targets):
    output = model(images, targets)
    assert all(tensor.device.type == "cuda" for tensor in tensors(output))
    floats = [tensor for tensor in tensors(output) if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.float32 for tensor in floats)
    losses = Criterion(3, HungarianMatcher())(output, targets)
    assert all(value.device.type == "cuda" and value.dtype == torch.float32 for value in losses.values())
    assert all(value.shape == () for value in losses.values())


def check_evaluation(model, images):
    output = model(images)
    assert {tensor.dtype for tensor in tensors(output)} == {torch.float32}
    boxes, scores, labels = found = best_detections(output, torch.ones(2, 2, device="cuda"), max_detections=30)
    assert {tensor.device.type for tensor in found} == {"cuda"}
    assert (boxes.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int64)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("decoder", ["RTDETRDecoder", "DFINEDecoder"])
def test_a_detector(decoder, precision, mode, monkeypatch):
    model = on_cuda(build_model(parse_model_text(MODEL.format(decoder=decoder), "tiny.yaml")), mode)
    monkeypatch.setattr(HungarianMatcher, "assign", staticmethod(in_order))
    monkeypatch.setattr(criterion_module, "united", first_layers)
    with mode, autocast(PRECISIONS[precision]):
        images = torch.rand(2, 3, 64, 64, device="cuda")
        for counts in ((3, 2), (0, 0)):
            targets = [
                Target(torch.rand(n, 4, device="cuda"), torch.zeros(n, dtype=torch.int64, device="cuda")) for n in counts
            ]
            check_training(model.train(), images, targets)
        with torch.no_grad():
            check_evaluation(model.eval(), images)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pretraining(precision, mode):
    model = on_cuda(FCMAE(convnextv2("atto"), decoder_depth=2), mode)
    with mode, autocast(PRECISIONS[precision]):
        images = torch.rand(2, 3, 96, 64, device="cuda")
        for training in (True, False):
            loss = model.train(training)(images)
            assert loss.device.type == "cuda"
            assert loss.dtype == torch.float32
        pictures = model.reconstruct(images)
        assert {(tensor.device.type, tensor.dtype) for tensor in pictures} == {("cuda", torch.float32)}


# --- the test itself: each of these would fail on a GPU ---


def _index_on_cpu(denoising_count, group_size, matching, device=None):
    index = torch.arange(denoising_count + matching)
    return (index[:, None] == index) | torch.ones(len(index), dtype=torch.bool, device=device)


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        ("decoder", "denoising_mask", _index_on_cpu),
        ("attention", "sincos_position_2d", lambda h, w, d, device: torch.zeros(1, h * w, d)),
        ("decoder", "make_anchors", lambda shapes, device: (torch.zeros(sum(h * w for h, w in shapes), 4), None)),
    ],
)
def test_a_tensor_on_the_processor_is_found(owner, name, broken, mode, monkeypatch):
    model = on_cuda(build_model(parse_model_text(MODEL.format(decoder="RTDETRDecoder"), "tiny.yaml")), mode)
    monkeypatch.setattr({"decoder": decoder_module, "attention": attention}[owner], name, broken)
    with mode:
        target = Target(torch.rand(2, 4, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda"))
        images = torch.rand(1, 3, 64, 64, device="cuda")
        with pytest.raises(Exception, match="cpu"):
            model.train()(images, [target])


def test_a_tensor_in_the_wrong_type_is_found(mode, monkeypatch):
    """Logits that nobody raises to float32 come out of autocast in its type."""
    model = on_cuda(build_model(parse_model_text(MODEL.format(decoder="RTDETRDecoder"), "tiny.yaml")), mode)
    monkeypatch.setattr(decoder_module, "at_least_float32", lambda tensor: tensor)
    with mode, autocast(torch.bfloat16), torch.no_grad():
        images = torch.rand(1, 3, 64, 64, device="cuda")
        assert model.eval()(images).logits.dtype == torch.bfloat16
