"""The gate: no way of loading accepts a tensor that would load but not work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nextdetr.config import PretrainConfig
from nextdetr.engine.pretrain_setup import prepare_pretraining
from nextdetr.errors import WeightsError
from nextdetr.models.convnextv2 import convnextv2
from nextdetr.models.graph import build_model
from nextdetr.weights.backbone import open_encoder, open_features
from nextdetr.weights.checkpoint import open_model, save_detector
from nextdetr.weights.convert import convert
from nextdetr.weights.gate import check_tensor, fill
from nextdetr.weights.load import load_into
from nextdetr.weights.tensorfile import write_tensors
from tests.data.files import make_image

NAN, HUGE = float("nan"), 1e300
KEY = "stages.1.0.pwconv1.weight"
SPOILT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "nan": (lambda tensor: tensor.index_fill(0, torch.tensor([0]), NAN), "NaN or infinity"),
    "infinity": (lambda tensor: tensor.index_fill(0, torch.tensor([0]), float("-inf")), "NaN or infinity"),
    "whole": (lambda tensor: torch.ones_like(tensor, dtype=torch.int64), "of type int64"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "of type complex64"),
    "large": (lambda tensor: tensor.double().index_fill(0, torch.tensor([0]), HUGE), "too large for float32"),
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(convnextv2("atto").state_dict())


@pytest.fixture(params=SPOILT)
def spoilt(request: pytest.FixtureRequest, state: dict[str, Tensor], tmp_path: Path) -> tuple[Path, str]:
    """A published backbone's file with one bad tensor, and what is said of it."""
    change, message = SPOILT[request.param]
    path = tmp_path / f"{request.param}.pt"
    torch.save({"model": state | {KEY: change(state[KEY])}}, path)
    return path, message


def test_no_door_lets_a_bad_tensor_in(spoilt: tuple[Path, str], tmp_path: Path) -> None:
    path, message = spoilt
    pictures = tmp_path / "pictures"
    for number in range(2):
        make_image(pictures / f"{number}.png")
    settings = PretrainConfig(images=(str(pictures),), weights=path, epochs=1)
    doors: dict[str, Callable[[], object]] = {
        "a network of one row": lambda: open_features(path),
        "collapse and probe": lambda: open_encoder(path),
        "train --backbone-weights": lambda: load_into(build_model("nextdetr-atto"), path, part="backbone"),
        "pretrain --weights": lambda: prepare_pretraining(settings, tmp_path, lambda text: None, cpu=True, world=1),
    }
    if "large" not in path.name:  # as a file of float64 it may stay what it is
        doors["convert"] = lambda: convert(path, "nextdetr", tmp_path / "out.safetensors")
    for door, opens in doors.items():
        with pytest.raises(WeightsError, match=message) as caught:
            opens()
        assert str(path) in str(caught.value), door
    assert not (tmp_path / "out.safetensors").exists()


def test_nothing_that_is_not_finite_is_written(tmp_path: Path) -> None:
    target = tmp_path / "a.safetensors"
    for tensor in (torch.tensor([1.0, NAN]), torch.tensor([float("inf")]), torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(WeightsError, match=r"a\.safetensors: the tensor for x"):
            write_tensors(target, {"x": tensor}, {})
    assert list(tmp_path.iterdir()) == []
    write_tensors(target, {"bn.num_batches_tracked": torch.tensor(3), "x": torch.tensor([HUGE], dtype=torch.float64)}, {})


def test_a_checkpoint_of_float64_that_overflows_is_refused(tmp_path: Path) -> None:
    text = "backbone:\n  - [-1, 1, convnextv2_atto, []]\nhead:\n  - [[2, 3, 4], 1, RTDETRDecoder, [nc, 32, 20, 4, 2, 1]]\n"
    (tmp_path / "small.yaml").write_text(text)
    state = {name: tensor.double() if tensor.is_floating_point() else tensor
             for name, tensor in open_model(tmp_path / "small.yaml", num_classes=1).model.state_dict().items()}  # fmt: skip
    path = tmp_path / "wide.safetensors"
    save_detector(path, state, model_text=text, classes=["a"], image_size=64)
    open_model(path)
    state["rows.1.enc_bbox_head.layers.0.weight"][0, 0] = -HUGE
    save_detector(path, state, model_text=text, classes=["a"], image_size=64)
    with pytest.raises(WeightsError, match="too large for float32"):
        open_model(path)


def test_shape_and_rank_are_looked_at_and_a_refused_fill_changes_nothing() -> None:
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    check_tensor("f", "a", torch.ones(5, 3), dtype=torch.float32, shape=(None, 3))
    for wrong in (torch.ones(3, 2), torch.ones(2, 3, 1), torch.ones(6), torch.tensor(1.0)):
        with pytest.raises(WeightsError, match="f: the tensor for a has the shape"):
            fill(own, {"b": torch.ones(4), "a": wrong}, "f")
    assert not own["b"].any()
    fill(own, {"b": torch.ones(4).half(), "a": torch.ones(2, 3)}, "f")
    assert own["a"].all()
    assert own["b"].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_the_numbers_count_as_they_are_after_the_cast(dtype: torch.dtype) -> None:
    largest = torch.tensor([torch.finfo(dtype).max, 0.0]).to(torch.float64)
    check_tensor("f", "a", largest, dtype=dtype)
    check_tensor("f", "a", largest.to(dtype), dtype=torch.float32)
    with pytest.raises(WeightsError):
        check_tensor("f", "a", torch.tensor([NAN]).to(dtype), dtype=torch.float32)
    if dtype is not torch.float8_e4m3fn:  # it has no infinity, and saturates
        with pytest.raises(WeightsError, match="too large"):
            check_tensor("f", "a", 2 * largest, dtype=dtype)
