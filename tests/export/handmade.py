"""Exported files made by hand in milliseconds: one convolution, then detections that depend on its mean."""

from __future__ import annotations

import numpy as np

from nextdetr.inference.contract import Contract

SIDE, FOUND, CLASSES = 64, 4, ["cat", "dog", "bird"]


def terms(**given):
    return Contract(
        CLASSES, SIDE, FOUND, max_detections=FOUND, details={"nextdetr_version": "0.0", "trained": "yes"}, **given
    )


def handmade(path, contract=None, *, written=None, scores=(0.9, 0.8, 0.5, 0.2), labels=(0, 1, 2, 0), logits=None):
    """Write ``path`` (ONNX, or OpenVINO for ``*.xml``) after ``contract``, with the metadata of ``written``."""
    import onnx
    import openvino
    from onnx import TensorProto, helper, numpy_helper

    from nextdetr.export.onnx import save_checked
    from nextdetr.export.openvino import save_openvino

    contract = contract or terms()
    generator = np.random.default_rng(0)
    count = contract.queries if contract.raw else contract.max_detections
    batch, side = ("batch", "side") if contract.dynamic else (1, contract.image_size)
    constants = {
        "kernels": generator.normal(size=(32, 3, 5, 5)).astype(np.float32),
        "one": np.ones(1, np.float32),
        "boxes_": generator.uniform(0.1, 0.9, (1, count, 4)).astype(np.float32),
        "logits_": generator.normal(size=(1, count, len(contract.classes))).astype(np.float32)
        if logits is None
        else logits,
        "scores_": np.array([scores], np.float32),
        "labels_": np.array([labels], np.int64),
        "number": np.array([[1, 1]], np.int64),
    }
    nhwc, pixels = contract.layout == "nhwc", contract.input_type == "uint8"
    nodes = []
    if nhwc:
        nodes.append(helper.make_node("Transpose", ["images"], ["first"], perm=[0, 3, 1, 2]))
    if pixels:
        nodes.append(helper.make_node("Cast", ["first" if nhwc else "images"], ["floats"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Div", ["floats", "range"], ["fractions"]))
    planes = "fractions" if pixels else "first" if nhwc else "images"
    nodes += [
        helper.make_node("Conv", [planes, "kernels"], ["map"], pads=[2, 2, 2, 2]),
        helper.make_node("Sigmoid", ["map"], ["active"]),
        helper.make_node("ReduceMean", ["active"], ["mean_"], keepdims=0),
        helper.make_node("Reshape", ["mean_", "shape"], ["mean"]),
    ]
    constants |= {"shape": np.array([1], np.int64), "range": np.array([255], np.float32)}
    kind = TensorProto.UINT8 if pixels else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("images", kind, [batch, side, side, 3] if nhwc else [batch, 3, side, side])]
    if contract.raw:
        nodes += [helper.make_node("Mul", [f"{name}_", "mean"], [name]) for name in ("logits", "boxes")]
        outputs = [("logits", TensorProto.FLOAT, [1, count, len(contract.classes)])]
    else:
        inputs.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, [batch, 2]))
        nodes += [
            helper.make_node("ReduceMax", ["sizes"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["extent"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["boxes_", "extent"], ["scaled"]),
            helper.make_node("Mul", ["scaled", "mean"], ["boxes"]),
            helper.make_node("Mul", ["scores_", "mean"], ["scores"]),
            helper.make_node("Identity", ["labels_"], ["labels"]),
        ]
        outputs = [("scores", TensorProto.FLOAT, [1, count]), ("labels", TensorProto.INT64, [1, count])]
    outputs.insert(1 if contract.raw else 0, ("boxes", TensorProto.FLOAT, [1, count, 4]))
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info(*output) for output in outputs], weights)
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])
    file = path.with_suffix(".onnx")
    save_checked(model, written or contract, file)
    if path.suffix == ".xml":
        save_openvino(openvino.Core().read_model(file), written or contract, path)
        file.unlink()
    return onnx.load(str(path)) if path.suffix == ".onnx" else None
