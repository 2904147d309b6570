from __future__ import annotations

import contextlib
import json
import logging
import sys

import numpy as np
import pytest
import torch

from nextdetr import ConfigError, Detector
from nextdetr.cli.main import run
from nextdetr.errors import ModelFileError, WeightsError
from nextdetr.export.gate import compare
from nextdetr.export.onnx import quiet
from nextdetr.inference.exported import open_export
from nextdetr.postprocess import postprocess
from nextdetr.tensors import as_outputs
from tests.export.helpers import (
    CLASSES,
    ORIGINAL_SIZES,
    SIZE,
    assert_same_detections,
    checkpoint,
    detections,
    needs_runtimes,
    pictures,
)
from tests.helpers import squares

needs_runtimes()
pytestmark = pytest.mark.slow

FEW_LAYERS = """
nc: 3
image_size: 128
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
head:
  - [3, 1, Conv, [32, 1, 1]]
  - [4, 1, Conv, [32, 1, 1]]
  - [[5, 6], 1, RTDETRDecoder, [nc, 32, 50, 2, 4, 2, 64]]
"""


@pytest.fixture(scope="module")
def small(compact):
    return compact["DFINEDecoder"]


def test_the_outputs_inside_the_graph_are_detections_in_pixels(small, tmp_path):
    import onnxruntime

    original = Detector(small)
    path = original.export("onnx", output=tmp_path, images=1, input_type="uint8", layout="nhwc", quiet=True).file
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = pictures(count=1)
    pixels = (image * 255).round().byte().permute(0, 2, 3, 1).numpy()
    names = ["boxes", "scores", "labels"]
    boxes, scores, labels = session.run(names, {"images": pixels, "sizes": np.array(ORIGINAL_SIZES[:1], np.int64)})
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)
    with torch.inference_mode():
        expected = postprocess(as_outputs(original.opened.model(image)), ORIGINAL_SIZES[:1])[0]
    assert np.abs(boxes[0, :20] - expected.boxes[:20]).max() < 0.05
    assert np.abs(scores[0] - expected.scores).max() < 1e-3
    assert (labels[0, :20] == expected.labels[:20]).all()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_dynamic_raw_export_takes_any_batch_and_size(small, kind, tmp_path):
    original = Detector(small)
    folder = tmp_path / "of today, dynamic"  # OpenVINO's converter parts a path at its commas
    exported = Detector(original.export(kind, output=folder, images=1, dynamic=True, raw=True, quiet=True).file)
    for size in (160, 448):  # above 400 px some anchors are invalid
        images = pictures(size)
        assert_same_detections(detections(original, images), detections(exported, images))
    exact = exported.opened.model(images[:1]).logits
    assert exact.shape == (1, original.opened.model.rows[-1].num_queries, len(CLASSES))


def test_the_same_predictor_serves_both(small, tmp_path):
    original = Detector(small)
    exported = Detector(original.export("onnx", output=tmp_path, images=1, quiet=True).file)
    picture = np.random.default_rng(3).integers(0, 255, (90, 140, 3), np.uint8)
    settings = {"confidence": 0.0, "max_detections": 7}
    first, second = (detector.predict([picture, picture], **settings) for detector in (original, exported))
    assert [len(found) for found in second] == [7, 7]
    assert np.abs(first[0].confidence - second[0].confidence).max() < 1e-3
    best = str(first[0].data["class_name"][0])  # the filter of an export picks from the 300 best of all classes
    assert set(exported.predict(picture, classes=[best], confidence=0.0)[0].data["class_name"]) == {best}


def test_val_of_an_export_equals_vals_of_the_checkpoint(tmp_path):
    from tests.helpers import tiny_model

    data = squares(tmp_path / "data", images=3)
    detector = Detector(tiny_model(tmp_path))
    detector.train(data=data, epochs=1, image_size=64, batch_size=2, workers=0, output=tmp_path / "run", quiet=True)
    result = detector.export("openvino", data=data, quiet=True)
    assert result.passed, result.failures
    assert result.metrics["after"] == pytest.approx(result.metrics["before"], abs=1e-3, nan_ok=True)
    again = Detector(tmp_path / "run" / "best_openvino").val(data=data, quiet=True)
    assert again.metrics == result.metrics["after"]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("decoder", ["DFINEDecoder", "RTDETRDecoder"])
def test_a_portable_export_has_neither_gridsample_nor_topk(compact, decoder, kind, tmp_path):
    original = Detector(compact[decoder])
    result = original.export(kind, output=tmp_path / kind, images=2, portable=True, quiet=True)
    assert result.passed, result.failures
    assert not {"GridSample", "TopK", "GatherElements", "GatherND"} & set(result.operators)
    assert result.operators["MatMul"] > 10
    exported = Detector(tmp_path / kind)
    assert exported.opened.metadata["portable"] == "yes"
    images = pictures()
    assert_same_detections(detections(original, images), detections(exported, images))


def test_the_command_shows_its_results_in_a_column(small, tmp_path, capsys):
    assert run(["export", str(small), "--output", str(tmp_path), "--images", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:2] for line in lines if line.startswith("  in ")] == [["in", "openvino"]]
    assert {line[22:24].strip() != "" for line in lines} == {False}
    assert all(line[24] != " " for line in lines)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_early_exit_needs_no_training(small, kind, tmp_path, recwarn):
    original = Detector(small)
    settings = {"decoder_layers": 1, "queries": 40}
    result = original.export(kind, output=tmp_path, images=2, quiet=True, **settings)
    assert result.passed, result.failures
    assert (result.queries, result.decoder_layers) == (40, 1)
    assert original.opened.model.rows[-1].eval_layer == 2
    assert not [warning for warning in recwarn if "complete tensor" in str(warning.message)]
    if kind == "onnx":
        whole = original.export("onnx", output=tmp_path / "whole", images=2, quiet=True)
        dropped = original.opened.model.rows[-1].decoder.layers[1:].parameters()
        assert result.bytes < whole.bytes - 0.9 * sum(4 * weight.numel() for weight in dropped)
        with pytest.raises(ConfigError, match="--queries 50"):
            Detector(result.file).predict(np.zeros((9, 9, 3), np.uint8), queries=50)


def check_stored_weights(file):
    """Weights of float products are stored in 8 bits and opened as float32, the same numbers; anchors are float."""
    import openvino

    from nextdetr.inference.openvino import OpenVinoSession, _unpack_weights, compile_on_cpu

    core = openvino.Core()
    models = [core.read_model(file) for _ in range(2)]
    _unpack_weights(models[1])
    constants = [[node for node in model.get_ops() if node.get_type_name() == "Constant"] for model in models]
    unsigned = [[node for node in nodes if node.get_element_type() == openvino.Type.u8] for nodes in constants]
    users = {target.get_node().get_type_name() for node in unsigned[0] for target in node.output(0).get_target_inputs()}
    assert users == {"Convert"}
    assert len(unsigned[0]) - len(unsigned[1]) >= 2 * 3 * 8  # with the zero points of as many products
    shapes = [list(node.get_output_shape(0)) for node in unsigned[0]]
    assert not [shape for shape in shapes if len(shape) == 2 and shape[1] == 4 and shape[0] == 8 * 8 + 4 * 4]
    inputs = {"images": pictures(count=1).numpy(), "sizes": np.array(ORIGINAL_SIZES[:1], np.int64)}
    first, second = (OpenVinoSession(compile_on_cpu(core, model)).run(inputs) for model in models)
    assert np.abs(first["scores"] - second["scores"]).max() < 1e-4


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_int8_quantises_backbone_and_encoder_and_leaves_the_decoder_float(kind, small, tmp_path, capfd):
    pytest.importorskip("nncf", reason="the extra export is not installed")
    data = squares(tmp_path / "data", images=4)
    small = checkpoint(tmp_path, small.with_suffix(".yaml"), SIZE, classes=["square", "bar"])
    detector = Detector(small)
    result = detector.export(kind, output=tmp_path, data=data, int8=True, calibration_images=9, images=2, quiet=True)
    assert capfd.readouterr() == ("", "")  # nothing of PyTorch's, onnxscript's and NNCF's
    weights = [weight for row in detector.opened.model.rows[:-1] for weight in row.parameters() if weight.dim() > 1]
    assert result.bytes < small.stat().st_size - 0.6 * sum(4 * weight.numel() for weight in weights)
    assert result.comparison.finite
    if kind == "onnx":  # both runtimes compute the same, to a step of their own rounding
        first, second = (open_export(result.file, runtime=name).model for name in ("onnxruntime", "openvino"))
        assert compare(first, second, list(pictures(count=4)), 1e-2).matched > 0.9
    # The decoder's two input projections at most, none of the backbone's and encoder's 20 convolutions.
    assert result.float_operators["convolution"] <= 2
    assert result.float_operators["matrix product"] >= 3 * 8
    runtimes = {"onnxruntime", "openvino"}
    assert set(result.deploy.seconds["float32"]) == runtimes
    assert set(result.deploy.seconds["int8"]) == (runtimes if kind == "onnx" else {"openvino"})
    assert json.loads((tmp_path / "report.json").read_text())["deploy"]["sentence"] == result.deploy.sentence
    exported = Detector(result.file)
    assert exported.opened.metadata["precision"] == "int8"
    assert exported.opened.metadata["calibrated_on"] == "4 images of data"  # there are no more
    if kind == "openvino":
        check_stored_weights(result.file)
    assert len(exported.predict(np.zeros((50, 60, 3), np.uint8), confidence=0.0)[0]) == 2 * 50


class Told(contextlib.nullcontext):
    """What an export shows."""

    def __init__(self):
        self.lines, self.updates = [], []

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def line(self, text):
        self.lines.append(text)

    def update(self, *given):
        self.updates.append(given)


def test_of_other_libraries_only_errors_are_shown(capfd, monkeypatch):
    monkeypatch.delitem(sys.modules, "nncf", raising=False)
    monkeypatch.delitem(logging.Logger.manager.loggerDict, "nncf", raising=False)
    loggers = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "onnxscript.optimizer", "onnx_ir")]
    levels = [logger.getEffectiveLevel() for logger in loggers]
    with quiet():
        sys.stdout.write("a bar")
        assert [logger.getEffectiveLevel() for logger in loggers] == [logging.ERROR] * 3
    assert [logger.getEffectiveLevel() for logger in loggers] == levels
    assert "nncf" not in logging.Logger.manager.loggerDict  # NNCF makes it, with methods of its own
    assert capfd.readouterr() == ("", "")


def test_a_depthwise_convolution_behind_another_one_runs_in_8_bits(tmp_path):
    """As in D-FINE's and DEIMv2's backbones: ONNX Runtime refused to count the channels between them one by one."""
    pytest.importorskip("nncf", reason="the extra export is not installed")
    from nextdetr.export.quantize import quantize

    light = "  - [-1, 1, Conv, [32, 1, 1, None, 1, 1, False]]\n  - [-1, 1, Conv, [32, 3, 1, None, 32]]\n  - [[5, 8]"
    (tmp_path / "light.yaml").write_text(FEW_LAYERS.replace("  - [[5, 6]", light))
    file = checkpoint(tmp_path, tmp_path / "light.yaml", SIZE)
    exported = open_export(Detector(file).export("onnx", output=tmp_path, images=1, quiet=True).file)
    told = Told()
    target = quantize(
        tmp_path / "model.onnx", exported.model.contract, tmp_path / "q.onnx", list(pictures(count=3)), 9, progress=told
    )
    assert told.lines == ["8 bits: calibrating on 3 images."]
    assert told.updates[:3] == [("calibrating", (i + 1) / 3, f"image {i + 1}/3, pass 1") for i in range(3)]
    picture = np.zeros((50, 60, 3), np.uint8)
    assert len(Detector(target, runtime="onnxruntime").predict(picture, confidence=0.0)[0]) == 3 * 50


def test_weights_on_either_side_are_stored_in_8_bits():
    import onnx
    import onnxruntime

    from nextdetr.export.quantize import store_weights_as_int8

    generator = np.random.default_rng(0)
    left, right = (generator.normal(size=size).astype(np.float32) for size in ((24, 16), (9, 10)))
    left[3] *= 100  # a scale of its own
    right[:, 3] *= 100
    nodes = [onnx.helper.make_node("MatMul", ["l", "x"], ["m"]), onnx.helper.make_node("MatMul", ["m", "r"], ["y"])]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
        for name, size in (("x", [16, 9]), ("y", [24, 10]))
    ]
    weights = [onnx.numpy_helper.from_array(left, "l"), onnx.numpy_helper.from_array(right, "r")]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 18)])
    store_weights_as_int8(model)
    assert sorted(tensor.name for tensor in model.graph.initializer) == ["l_int8", "l_scale", "r_int8", "r_scale"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = generator.normal(size=(16, 9)).astype(np.float32)
    expected, got = left @ x @ right, session.run(None, {"x": x})[0]
    assert np.abs(got - expected)[np.arange(24) != 3][:, np.arange(10) != 3].max() < 0.5
    assert (np.abs(got - expected) < 0.05 * np.abs(expected).max()).all()


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_what_costs_accuracy_goes_back_to_float(kind, tmp_path):
    """On seven layers: wherever a step back makes it worse, NNCF opens the model once more for every layer that is left."""
    pytest.importorskip("nncf", reason="the extra export is not installed")
    from nextdetr.export.operators import float_operators
    from nextdetr.export.quantize import Search, quantize

    (tmp_path / "few.yaml").write_text(FEW_LAYERS)
    original = Detector(checkpoint(tmp_path, tmp_path / "few.yaml", SIZE))
    source = original.export("onnx", output=tmp_path, images=1, raw=True, quiet=True).file
    contract = Detector(source).opened.model.contract
    images = pictures(count=3)
    asked = []

    @torch.inference_mode()
    def scores(model):
        logits = np.sort(as_outputs(model(images)).logits, axis=None)[::-1][:100]
        return 1 / (1 + np.exp(-logits))

    def closeness(opened, numbers):
        asked.append((list(numbers), 1 - float(np.abs(scores(opened.model) - expected).mean())))
        return asked[-1][1]

    expected = scores(original.opened.model)
    target = tmp_path / ("quantized.onnx" if kind == "onnx" else "quantized.xml")

    told = Told()

    def in_float(drop):
        asked.clear()
        search = Search(closeness, 3, drop)
        rows = len(original.opened.model.rows)
        quantize(tmp_path / "model.onnx", contract, target, list(images), rows - 1, search, told)
        return sum(float_operators(target).values())

    before = in_float(1.0)
    assert asked[0][0] == [0]  # how NNCF finds out what it is given
    cost = 1 - min(value for numbers, value in asked if numbers == [0, 1, 2])
    assert cost > 0
    assert in_float(0.5 * cost) > before
    assert asked[-1][1] > 1 - 0.5 * cost
    assert told.lines[-1].startswith("8 bits: calibrating on 3 images; then AP is measured")
    notes = [note for description, _, note in told.updates if description == "measuring"]
    assert notes[-1] == f"AP {asked[-1][1]:.4f}, score {len(asked)}"


def test_half_keeps_what_overflows_in_float32_and_a_gate_that_is_not_met_exits_with_three(small, tmp_path, capsys):
    import onnx

    arguments = ["export", str(small), "--half", "--tolerance", "1e-9", "--images", "2", "--output", str(tmp_path)]
    assert run([*arguments, "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is False
    assert "1e-09" in result["failures"][0]
    assert result["comparison"]["finite"]
    assert json.loads((tmp_path / "report.json").read_text())["failures"] == result["failures"]
    file = tmp_path / "model.onnx"  # nothing is deleted
    assert result["bytes"] == file.stat().st_size
    graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    stored = sum(len(weight.raw_data) for weight in graph.initializer)  # without the nodes, many bytes of so small a model
    assert stored < 0.6 * sum(4 * weight.numel() for weight in Detector(small).opened.model.parameters())
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    for node in graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "ReduceL2", "GridSample"):
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT, node.name
        if node.op_type == "Conv":
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT16, node.name


def test_a_graph_gives_no_detections_of_what_is_no_number(small, tmp_path):
    """A damaged picture stands for a network that overflows: NaN in, and neither runtime may rank it first."""
    original = Detector(small)
    result = original.export("onnx", output=tmp_path, images=2, quiet=True)
    assert result.passed_runtimes == ["onnxruntime", "openvino"]
    image = pictures(count=1)
    image[:] = torch.nan
    for runtime in result.passed_runtimes:
        with pytest.raises(ModelFileError, match="not a number"):
            open_export(result.file, runtime=runtime).model(image)


def test_files_that_are_no_exports_are_refused_in_a_sentence(small, tmp_path):
    import onnx

    with pytest.raises(WeightsError, match="nor an export"):
        Detector(tmp_path)
    with pytest.raises(ModelFileError, match="no exported detector"):
        open_export(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"nothing of that kind")
    with pytest.raises(ModelFileError, match="cannot open"):
        Detector(tmp_path / "broken.onnx")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, ir_version=9, opset_imports=opset), tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match="not a NextDETR export"):
        Detector(tmp_path / "other.onnx")
    (tmp_path / "model.pt2").write_bytes(b"")
    with pytest.raises(ModelFileError, match="can run code"):
        Detector(tmp_path / "model.pt2")
