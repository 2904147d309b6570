from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nextdetr import ConfigError, Detector
from nextdetr.config import ExportConfig, build_config
from nextdetr.export import winograd
from nextdetr.export.winograd import WinogradConv, map_sizes, use_winograd
from nextdetr.inference.contract import Contract
from nextdetr.layers.winograd import Conv3x3
from nextdetr.models.fuse import fuse
from nextdetr.models.graph import build_model
from tests.export.helpers import assert_same_detections, detections, needs_runtimes, pictures


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 2), (20, 5)])
def test_it_is_the_convolution(size):
    conv = Conv3x3(5, 3).eval()
    x = torch.randn(1, 5, *size)
    expected = functional.conv2d(x, conv.weight, conv.bias, padding=1)
    with torch.no_grad():
        got = WinogradConv(conv, *size)(x)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_wide_convolutions_are_replaced_where_they_stand(monkeypatch):
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 4)
    monkeypatch.setattr(winograd, "LEAST_PIXELS", 54)
    model = torch.nn.Sequential(
        Conv3x3(3, 4), torch.nn.Sequential(Conv3x3(4, 6), torch.nn.ReLU()), Conv3x3(6, 4, bias=False)
    )
    x = torch.randn(1, 3, 9, 6)  # 54 pixels
    with torch.no_grad(), map_sizes(model) as sizes:
        expected = model(x)
    assert sizes == {"0": (9, 6), "1.0": (9, 6), "2": (9, 6)}
    assert use_winograd(model, sizes) == 1  # the first is narrow, the last has no bias to fold
    assert isinstance(model[1][0], WinogradConv)
    with torch.no_grad():
        assert (model(x) - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert use_winograd(torch.nn.Sequential(Conv3x3(4, 6)), {"0": (9, 5)}) == 0


def test_the_reference_has_them_where_they_pay():
    model = fuse(build_model("rtdetr-l-convnextv2-atto", num_classes=3))
    with torch.inference_mode(), map_sizes(model) as sizes:
        model(torch.rand(1, 3, 320, 320))
    assert use_winograd(model, sizes) == 9  # three fusion blocks on 40 x 40 and 20 x 20, three each; 10 x 10 is too small


def wide_kernels(file):
    """Kernels of 3 x 3 over 64 channels and more that the ONNX file's own convolutions have, of stride 1."""
    import onnx

    graph = onnx.load(str(file)).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    strides = {
        node.input[1]: next((list(a.ints) for a in node.attribute if a.name == "strides"), [1, 1])
        for node in graph.node
        if node.op_type == "Conv"
    }
    return [
        name
        for name, stride in strides.items()
        if stride == [1, 1] and shapes[name][2:] == [3, 3] and shapes[name][0] >= 64
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_export_has_them_unless_it_is_told_otherwise(compact, kind, tmp_path, monkeypatch):
    needs_runtimes()
    monkeypatch.setattr(winograd, "LEAST_PIXELS", 16)  # of maps of 8 x 8 and 4 x 4
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 64)
    original, images = Detector(compact["RTDETRDecoder"]), pictures()
    files = {}
    for choice in (None, False):
        given = {} if choice is None else {"winograd": choice}
        result = original.export(kind, output=tmp_path / str(choice), images=2, quiet=True, **given)
        assert result.passed, result.failures
        exported = Detector(result.file)
        assert exported.opened.metadata["winograd"] == ("no" if choice is False else "yes")
        assert_same_detections(detections(original, images), detections(exported, images))
        files[choice] = result
    if kind == "onnx":
        assert not wide_kernels(files[None].file)
        assert len(wide_kernels(files[False].file)) == 3
        # The file holds 3 x 3 kernels, not their 36 points: it is no larger for the change.
        assert files[None].bytes < 1.05 * files[False].bytes


@pytest.mark.parametrize(
    "given", [{"half": True}, {"int8": True, "data": "d"}, {"dynamic": True}, {"portable": True}, {"format": "pt2"}]
)
def test_it_is_offered_where_it_can_be(given):
    assert not build_config(ExportConfig, given).can_winograd
    with pytest.raises(ConfigError, match=r"--winograd is for float32 ONNX and OpenVINO files"):
        build_config(ExportConfig, {**given, "winograd": True})


def test_the_terms_travel_and_earlier_files_have_none():
    terms = Contract(["a"], 64, 10, winograd=True).to_metadata()
    assert Contract.from_metadata(terms, "file").winograd
    del terms["winograd"]
    assert not Contract.from_metadata(terms, "file").winograd
