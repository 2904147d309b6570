"""Whether a float32 or an 8-bit file is recommended, and where that is reported."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from nextdetr.export.advice import advise, compare_files, instructions_for_8_bits
from nextdetr.export.gate import drawn_images
from nextdetr.export.measure import in_turn
from tests.export.handmade import SIDE, handmade, terms
from tests.export.helpers import needs_runtimes

FLOAT = {"onnxruntime": 0.060, "openvino": 0.040}


def test_eight_bits_are_recommended_where_they_are_faster():
    found = advise({"float32": FLOAT, "int8": {"onnxruntime": 0.090, "openvino": 0.030}}, {}, 2, "avx512_vnni")
    assert (found.precision, found.runtime, found.warning) == ("int8", "openvino", None)
    assert found.ratio == pytest.approx(0.75)
    assert found.sentence == (
        "deploy the 8-bit file in OpenVINO on this machine: 30.0 ms an image, 0.75 x the 40.0 ms of the float32 file in "
        "OpenVINO."
    )
    assert "avx512_vnni" in found.elsewhere
    assert "not measured here" in found.elsewhere
    assert found.lines()[0] == (
        "measured with 2 threads: float32 in ONNX Runtime 60.0 ms, float32 in OpenVINO 40.0 ms, 8-bit in ONNX Runtime 90.0 "
        "ms, 8-bit in OpenVINO 30.0 ms"
    )


def test_slower_eight_bits_are_warned_of():
    found = advise({"float32": FLOAT, "int8": {"openvino": 0.050}}, {"int8": ["openvino"]}, 2, "none")
    assert (found.precision, found.runtime) == ("float32", "openvino")
    assert "50.0 ms in OpenVINO against 40.0 ms in OpenVINO, 1.25 x" in found.warning
    assert found.lines()[1].startswith("WARNING: 8 bits are slower than float32 on this machine")
    assert "no instructions for 8-bit products" in found.elsewhere


def test_a_runtime_without_a_passed_gate_is_not_recommended():
    int8 = {"onnxruntime": 0.050, "openvino": 0.010}
    found = advise({"float32": FLOAT, "int8": int8}, {"int8": ["onnxruntime"]}, 2, "unknown")
    assert (found.precision, found.runtime) == ("float32", "openvino")
    assert found.ratio == pytest.approx(0.050 / 0.040)
    assert found.seconds["int8"] == int8
    none = advise({"float32": FLOAT, "int8": int8}, {"int8": []}, 2, "unknown")
    assert none.ratio is None
    assert "in no runtime" in none.warning
    assert "is not known" in none.elsewhere
    assert advise({"float32": FLOAT, "int8": {}}, {}, 2, "none") is None


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx_vnni": True, "avx512_vnni": True, "amx_int8": False}, "avx512_vnni"),
        ({"avx_vnni": True, "avx512_vnni": False, "amx_int8": True}, "amx_int8"),
        ({"avx_vnni": False, "avx512_vnni": False}, "none"),
        ({"neon": True, "i8mm": False, "dot": True}, "dot"),
        ({"architecture": "ppc64"}, "unknown"),
    ],
)
def test_instructions_of_a_processor(has, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert instructions_for_8_bits() == expected


def test_an_older_pytorch_does_not_know(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert instructions_for_8_bits() == "unknown"


def test_files_are_measured_in_every_runtime(tmp_path, monkeypatch, caplog):
    needs_runtimes()
    monkeypatch.setattr("nextdetr.export.advice.SECONDS", 0.01)
    handmade(tmp_path / "float.onnx")
    shutil.copy(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    files = {"float32": tmp_path / "float.onnx", "int8": tmp_path / "int8.onnx"}
    image = drawn_images(1, SIDE)[0]
    found = compare_files(files, terms(), image, {"int8": ["openvino"]})
    assert {precision: set(times) for precision, times in found.seconds.items()} == {
        "float32": {"onnxruntime", "openvino"},
        "int8": {"onnxruntime", "openvino"},
    }
    assert found.ratio == found.seconds["int8"]["openvino"] / min(found.seconds["float32"].values())
    assert dataclasses.asdict(found)["threads"] == 2
    files["int8"].write_bytes(b"damaged")
    assert compare_files(files, terms(), image, {}) is None
    assert "not measured" in caplog.text


def test_runs_take_turns_and_the_second_call_is_timed():
    calls = []
    found = in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, 0.0, least=2)
    assert "".join(calls) == "ababaabbaabb"
    assert set(found) == {"a", "b"}
