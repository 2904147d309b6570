"""ONNX: one file of opset 18, checked by onnx, with its contract in ``metadata_props``."""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nextdetr.errors import ExportError, missing_extra
from nextdetr.export.graph import Traced
from nextdetr.files import atomic_write
from nextdetr.inference.contract import Contract

__all__ = ["OPSET", "quiet", "save_checked", "write_onnx"]

OPSET = 18  # GridSample needs 16, LayerNormalization 17; 18 is written by torch's exporter without conversion
LARGEST = 1 << 31  # bytes; limit of a protobuf message


def write_onnx(traced: Traced, contract: Contract, path: Path) -> Path:
    """Write the graph atomically.

    Args:
        traced: the traced graph.
        contract: its contract.
        path: target, ``*.onnx``.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
        ExportError: the graph cannot be expressed in ONNX, fails its check, or is larger than one file can be.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export", "the export to ONNX") from error
    size = sum(tensor.numel() * tensor.element_size() for tensor in traced.program.state_dict.values())
    if size > LARGEST - (1 << 26):
        raise ExportError(
            f"{path}: {size / 2**30:.1f} GiB of weights do not fit one ONNX file (2 GiB): export with --half."
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / "graph.onnx"
        with quiet():
            torch.onnx.export(
                traced.program, (), str(temporary), dynamo=True, opset_version=OPSET, verbose=False, external_data=False,
                input_names=traced.input_names, output_names=traced.output_names,
            )  # fmt: skip
        model = onnx.load(str(temporary))
    _tidy(model, traced)
    return save_checked(model, contract, path)


def save_checked(model: Any, contract: Contract, path: Path) -> Path:
    """Write an ONNX model with its contract, if it passes onnx's check.

    Raises:
        ExportError: it does not.
    """
    import onnx

    metadata, texts = contract.to_metadata(), contract.describe()
    onnx.helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "nextdetr", metadata.get("nextdetr_version", "")
    model.doc_string = (
        f"An object detector by NextDETR. Classes, in the order of their indices: {', '.join(contract.classes)}."
    )
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = texts.get(value.name, "")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: onnx rejects the graph: {' '.join(str(error).split())}") from error
    with atomic_write(path) as temporary:
        onnx.save(model, str(temporary))
    return path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show nothing of what the exporters print and log for developers, such as NNCF's progress bars, but errors.

    Meanwhile, whatever other threads print on standard output is lost, too.
    """
    names = ["onnxscript", "onnx_ir", "torch", "torch.onnx"]
    names += ["nncf"] if "nncf" in sys.modules else []  # made by NNCF itself, of a class of its own
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _module(node: Any) -> str:
    """Name of the module of a node (``rows.0.stages.2.1``), or ``graph`` for pre- and postprocessing."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    # A module list sliced in a forward appears as "slice(None, 3, None)" in the middle of the name.
    owner = re.sub(r"\.slice\([^)]*\)", "", str(scopes[-2])) if len(scopes) > 1 else ""
    return owner.removeprefix("model.") if owner.startswith("model.rows") else "graph"


def _tidy(model: Any, traced: Traced) -> None:
    """Name nodes after their modules, drop the exporter's notes, and name dynamic axes."""
    graph = model.graph
    for node in graph.node:
        node.name = f"{_module(node)}/{node.name}"
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    del graph.value_info[:]
    for value in graph.input:
        for axis, name in traced.dynamic.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for value in graph.output:
        if traced.dynamic:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
