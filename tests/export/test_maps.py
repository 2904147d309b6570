"""8-bit maps in the form that both runtimes compute correctly."""

from __future__ import annotations

import numpy as np
import pytest

from nextdetr.export.quantize import make_maps_unsigned
from tests.export.helpers import needs_runtimes

needs_runtimes()


def convolution_behind_a_concat(generator, least, zero, kind=np.int8):
    """Two convolutions on 8-bit maps, concatenated, and a 1 x 1 convolution on both: a small encoder."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights = [], []

    def constant(name, value):
        weights.append(numpy_helper.from_array(value, name))
        return name

    def quantized(name, scale):
        parts = [constant(f"{name}_scale", np.float32(scale)), constant(f"{name}_zero", kind(zero))]
        nodes.append(helper.make_node("QuantizeLinear", [name, *parts], [f"{name}_8"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_8", *parts], [f"{name}_back"]))
        return f"{name}_back"

    def convolution(x, name, outputs, inputs, side):
        values = generator.normal(size=(outputs, inputs, side, side)).astype(np.float32) / np.sqrt(inputs * side * side)
        scale = np.abs(values).max(axis=(1, 2, 3)) / -least
        stored = np.rint(values / scale[:, None, None, None]).clip(least, -least - 1).astype(np.int8)
        parts = [constant(f"{name}_stored", stored), constant(f"{name}_scales", scale.astype(np.float32))]
        parts.append(constant(f"{name}_none", np.zeros(outputs, np.int8)))
        nodes.append(helper.make_node("DequantizeLinear", parts, [f"{name}_kernels"], axis=0))
        inputs = [x, f"{name}_kernels", constant(f"{name}_bias", generator.normal(size=outputs).astype(np.float32))]
        nodes.append(helper.make_node("Conv", inputs, [name], pads=[side // 2] * 4))
        return name

    x = quantized("x", 8 / 255)
    parts = [quantized(convolution(x, name, 32, 16, side), 10 / 255) for name, side in (("a", 3), ("b", 1))]
    nodes.append(helper.make_node("Concat", parts, ["joined"], axis=1))
    convolution("joined", "y", 24, 64, 1)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
              (("x", [1, 16, 12, 12]), ("y", [1, 24, 12, 12]))]  # fmt: skip
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("zero", [0, -9])
def test_unsigned_maps_are_the_same_numbers_in_both_runtimes(zero):
    import onnxruntime
    import openvino

    generator = np.random.default_rng(0)
    model = convolution_behind_a_concat(generator, -64, zero)
    x = generator.normal(size=(1, 16, 12, 12)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # as ONNX defines it

    def run():
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return session.run(None, {"x": x})[0], compiled(x)[0]

    before, _ = run()
    make_maps_unsigned(model)
    zeros = [tensor for tensor in model.graph.initializer if tensor.name.endswith("_zero_unsigned")]
    assert [int(np.frombuffer(tensor.raw_data, np.uint8)[0]) for tensor in zeros] == [128 + zero] * 3
    assert not [tensor for tensor in model.graph.initializer if tensor.name.endswith("_zero")]
    after, in_openvino = run()
    assert np.array_equal(before, after)
    assert np.abs(in_openvino - after).max() < 1e-4  # signed, it is 1.2 off
