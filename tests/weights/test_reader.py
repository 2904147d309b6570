"""Files of all formats give the tensors that were saved, to the bit, and what else they say."""

from __future__ import annotations

import json
import os
import pathlib
import struct
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nextdetr.errors import WeightsError
from nextdetr.weights.reader import check_finite, read_tensors
from tests.weights.torch_files import ordered, ultralytics


def same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def all_kinds():
    base = torch.arange(24.0).reshape(4, 6)
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool)
    kinds = {f"t.{dtype}": torch.randn(3, 5).mul(3).to(dtype) for dtype in dtypes}
    return kinds | {
        "parameter": nn.Parameter(torch.randn(2, 3)).detach(),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "transposed": base.t(),
        "slice": base[1:3, 2:5],
        "tied": base,
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor_comes_back(tmp_path, zipped):
    state = all_kinds()
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    file = read_tensors(tmp_path / "a.pt")
    assert file.format == ("torch" if zipped else "torch-legacy")
    same(file.tensors, state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path, protocol):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.save(model.state_dict(), tmp_path / "a.pt", pickle_protocol=protocol)
    same(read_tensors(tmp_path / "a.pt").tensors, model.state_dict())
    torch.save(model, tmp_path / "b.pt", pickle_protocol=protocol)
    file = read_tensors(tmp_path / "b.pt")
    same(file.tensors, model.state_dict())
    assert file.extra["pickled_class"] == "torch.nn.modules.container.Sequential"


def test_float8_is_read(tmp_path):
    state = {"w": torch.randn(4, 4).to(torch.float8_e4m3fn)}
    torch.save(state, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt").tensors["w"]
    assert found.dtype == torch.float8_e4m3fn
    assert torch.equal(found.float(), state["w"].float())


PLACES = {
    "": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "ema.module": lambda state: {"model": {"w": torch.zeros(1)}, "ema": {"module": state, "updates": 7}},
    "ema": lambda state: {"model": {"w": torch.zeros(1)}, "ema": state},
    "state_dict": lambda state: {"state_dict": state, "date": "today"},
    "model_ema": lambda state: {"state_dict": {"w": torch.zeros(1)}, "model_ema": state},
}


@pytest.mark.parametrize("place", PLACES)
def test_wrapped_state_dicts_are_unwrapped(tmp_path, place):
    state = ordered(**{"a.weight": torch.randn(3), "b.weight": torch.randn(2)})
    torch.save(PLACES[place](state), tmp_path / "a.pth")
    file = read_tensors(tmp_path / "a.pth")
    same(file.tensors, state)
    assert file.extra["unwrapped"] == place
    if place == "model":
        assert file.extra["epoch"] == 3
        assert file.extra["keys"] == ["model", "epoch", "optimizer"]


def test_another_place_can_be_asked_for(tmp_path):
    torch.save({"model": {"w": torch.zeros(1)}, "ema": {"module": {"w": torch.ones(1)}}}, tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt").tensors["w"] == 1
    assert read_tensors(tmp_path / "a.pt", key="model").tensors["w"] == 0
    with pytest.raises(WeightsError, match="no weights under 'head'"):
        read_tensors(tmp_path / "a.pt", key="head")


def test_prefixes_of_wrappers_are_taken_off(tmp_path):
    torch.save({"model": {"module.a": torch.ones(1), "module.b": torch.ones(2)}}, tmp_path / "a.pt")
    file = read_tensors(tmp_path / "a.pt")
    assert list(file.tensors) == ["a", "b"]
    assert file.extra["prefix"] == "module."


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_ultralytics_model_is_walked_without_it(tmp_path, average, zipped):
    with ultralytics() as detection_model:
        model, averaged = detection_model().half(), detection_model().half()
        content = {
            "epoch": -1,
            "best_fitness": np.float64(0.625),
            "model": model,
            "ema": averaged if average else None,
            "updates": None,
            "train_args": {"imgsz": 640, "data": pathlib.PosixPath("/data/coco.yaml"), "close_mosaic": [1, 2]},
            "opt": types.SimpleNamespace(lr=0.1),
            "license": "AGPL-3.0",
        }
        torch.save(content, tmp_path / "rtdetr.pt", _use_new_zipfile_serialization=zipped)
        expected = (averaged if average else model).state_dict()
    before = set(sys.modules)
    file = read_tensors(tmp_path / "rtdetr.pt")
    assert not any(name.startswith("ultralytics") for name in sys.modules)
    assert not {name for name in set(sys.modules) - before if "pickle" in name}
    same(file.tensors, expected)
    assert "model.0.stem1.weight" in file.tensors
    assert "model.0.grid" not in file.tensors
    assert file.tensors["model.0.bn.running_mean"].dtype == torch.float16
    extra = file.extra
    assert extra["unwrapped"] == ("ema" if average else "model")
    assert extra["pickled_class"] == "ultralytics.nn.tasks.RTDETRDetectionModel"
    assert extra["names"] == {0: "coin", 1: "key"}
    assert extra["yaml"]["backbone"] == [[-1, 1, "HGStem", [32, 48]]]
    assert extra["train_args"] == {"imgsz": 640, "data": "/data/coco.yaml", "close_mosaic": [1, 2]}
    assert (extra["best_fitness"], extra["epoch"], extra["license"]) == (0.625, -1, "AGPL-3.0")
    assert extra["opt"] == {"lr": 0.1}
    assert "ultralytics.nn.modules.block.HGStem" in extra["stubs"]


def test_entries_that_are_no_tensors_are_told(tmp_path):
    torch.save({"w": torch.ones(1), "version": 3}, tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt").extra["not_tensors"] == ["version"]


def test_safetensors_keep_their_metadata(tmp_path):
    state = {"a": torch.randn(2, 3), "b": torch.randn(4).to(torch.bfloat16)}
    save_file(state, tmp_path / "a.safetensors", metadata={"kind": "backbone"})
    file = read_tensors(str(tmp_path / "a.safetensors"))
    same(dict(sorted(file.tensors.items())), state)
    assert (file.format, file.metadata) == ("safetensors", {"kind": "backbone"})


def test_a_safetensors_header_may_begin_like_a_pickle_or_a_program(tmp_path):
    for length in (640, 0x5A4D):
        header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(length)
        (tmp_path / "a.bin").write_bytes(struct.pack("<Q", length) + header + b"\2")
        assert read_tensors(tmp_path / "a.bin").tensors["w"] == 2


def test_folders_of_transformers(tmp_path):
    state = {"a": torch.randn(2), "b": torch.randn(3)}
    (tmp_path / "config.json").write_text('{"model_type": "rt_detr"}')
    save_file({"a": state["a"]}, tmp_path / "model-1.safetensors")
    save_file({"b": state["b"]}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    file = read_tensors(tmp_path)
    same(file.tensors, state)
    assert (file.format, file.extra["config"], file.path) == ("folder", {"model_type": "rt_detr"}, tmp_path)
    for name, cause in (("../model-1.safetensors", "not in this folder"), ("model-1.safetensors", "none of its files")):
        index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": name}}))
        with pytest.raises(WeightsError, match=cause):
            read_tensors(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    same(read_tensors(tmp_path).tensors, state)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=r"config\.json: not a readable JSON"):
        read_tensors(tmp_path)


def test_a_folder_with_a_torch_file(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert read_tensors(tmp_path).tensors["a"].sum() == 2


def test_numbers_that_are_not_finite_are_found(tmp_path):
    state = {"w": torch.ones(3, 4).t(), "anchors": torch.full((2,), float("inf")), "steps": torch.tensor(3)}
    torch.save(state, tmp_path / "a.pt")
    check_finite(read_tensors(tmp_path / "a.pt"))
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for value in (float("nan"), float("inf"), float("-inf")):
            bad = torch.ones(3, 4, dtype=dtype)
            bad[1, 2] = value
            torch.save(state | {"head.weight": bad}, tmp_path / "a.pt")
            with pytest.raises(WeightsError, match=r"a\.pt: its tensor head\.weight holds NaN or infinity"):
                check_finite(read_tensors(tmp_path / "a.pt"))


def test_writing_to_a_tensor_leaves_the_file_as_it_is(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    read_tensors(tmp_path / "a.pt").tensors["a"].zero_()
    assert (tmp_path / "a.pt").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_checkpoint_of_22_million_parameters_is_quick_and_lean(tmp_path, suffix):
    state = {f"rows.{k}.weight": torch.randn(1_000_000) for k in range(22)}
    path = tmp_path / f"a.{suffix}"
    if suffix == "pt":
        torch.save({"model": state}, path)
    else:
        save_file(state, path)
    size = os.path.getsize(path)  # noqa: PTH202
    del state
    script = """
        import sys, time, torch, safetensors.torch, numpy
        from nextdetr.weights.reader import check_finite, read_tensors
        def memory(which):
            line = next(line for line in open("/proc/self/status") if line.startswith(which))
            return int(line.split()[1]) * 1024
        before, seconds, peaks = memory("VmRSS"), [], []
        for _ in range(3):  # the quickest counts: other work on the machine only adds
            file = model = None
            start = time.perf_counter()
            file = read_tensors(sys.argv[1])
            model = {name: torch.empty_like(tensor) for name, tensor in file.tensors.items()}
            check_finite(file)
            for name, tensor in file.tensors.items():
                model[name].copy_(tensor)
            seconds.append(time.perf_counter() - start)
            peaks.append(memory("VmHWM") - before)
        print(min(seconds), peaks[0])  # later peaks would count what the loop still holds of the load before
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, check=True
    )
    seconds, memory = map(float, done.stdout.split())
    assert seconds < 1.0
    assert memory < 2.2 * size  # the model itself included
