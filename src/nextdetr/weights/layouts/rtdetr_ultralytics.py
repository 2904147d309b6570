"""State dicts of the framework with the same model file dialect: layer i there is row i here, with the same inner names.

Layer names were read from published checkpoints; no code of that framework (AGPL-3.0) is used. A checkpoint that
includes its model file, as a pickled model does, states its model by it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml
from torch import Tensor

from nextdetr.errors import ModelFileError, WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.models.modelfile import KEYS, parse_model_text
from nextdetr.models.names import inside_row, row_name, row_of
from nextdetr.weights.layouts.base import Config, Layout, State, always
from nextdetr.weights.layouts.names import renamed, rules
from nextdetr.weights.layouts.rtdetr_official import convnext_model

__all__ = ["DECODER", "LAYOUTS", "from_ultralytics", "model_text", "to_ultralytics"]

#: The decoder's first class head shows where layer numbers are in the names, and which is the last.
DECODER = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<row>\d+)\.dec_score_head\.0\.weight")

_LAST = rules((r"^(input_proj\.\d+)\.0\.", r"\1.conv."), (r"^(input_proj\.\d+)\.1\.", r"\1.bn."))
_LAST_BACK = rules((r"^(input_proj\.\d+)\.conv\.", r"\1.0."), (r"^(input_proj\.\d+)\.bn\.", r"\1.1."))


def from_ultralytics(tensors: Mapping[str, Tensor], model: DetectionModel) -> dict[str, Tensor]:
    """Convert ``model.<i>.…`` to ``rows.<i>.…``.

    Args:
        tensors: name -> tensor.
        model: built from the model file with which the checkpoint was trained.

    Returns:
        Name in the model -> tensor; other names are kept.

    Raises:
        WeightsError: the file has no decoder, or it is at another row than the model's.
    """
    found = next((match for name in tensors if (match := DECODER.fullmatch(name))), None)
    if found is None:
        raise WeightsError("the file has no RT-DETR decoder: no name ends in dec_score_head.0.weight.")
    last = int(found["row"])
    if last != len(model.rows) - 1:
        raise WeightsError(
            f"the file's decoder is its layer {last} and the model's is row {len(model.rows) - 1}: it was trained from "
            "another model file; give that one as the model."
        )
    prefix = re.compile(re.escape(found["prefix"]) + r"(\d+)\.(.*)")
    result = {}
    for name, tensor in tensors.items():
        match = prefix.fullmatch(name)
        if match is None:
            result[name] = tensor
            continue
        inside = renamed(match[2], _LAST) if int(match[1]) == last else match[2]
        result[row_name(int(match[1]), inside)] = tensor
    return result


def to_ultralytics(tensors: Mapping[str, Tensor], last: int) -> dict[str, Tensor]:
    """Bring ``rows.<i>.…`` to ``model.<i>.…``, the inverse of ``from_ultralytics``; ``last`` is the decoder's row."""
    result = {}
    for name, tensor in tensors.items():
        row, inside = row_of(name), inside_row(name)
        result[f"model.{row}.{renamed(inside, _LAST_BACK) if row == last else inside}"] = tensor
    return result


def model_text(recipe: Mapping[str, Any]) -> str | None:
    """Return the mapping of a model file there as the text of one of ours, without a backbone's weights.

    Keys that our model files do not have (``channels``, ``yaml_file``, ``activation``, …) are left out.

    Returns:
        The text; None if the mapping is no model file.
    """
    scales = recipe.get("scales")
    lines = []
    for key in KEYS:
        value = recipe.get(key)
        if key == "scale" and not (isinstance(scales, dict) and isinstance(value, str) and value in scales):
            continue
        if key not in ("backbone", "head"):
            lines += [] if value is None else [f"{key}: {_flow(value)}"]
            continue
        if not isinstance(value, list):
            return None
        rows = [_without_weights(row) for row in value] if key == "backbone" else value
        lines += [f"{key}:" if rows else f"{key}: []", *(f"  - {_flow(row)}" for row in rows)]
    text = "\n".join(lines) + "\n"
    try:
        parse_model_text(text, "the checkpoint's model file")
    except ModelFileError:
        return None
    return text


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1 << 16).strip().removesuffix("\n...")


def _without_weights(row: Any) -> Any:
    whole = isinstance(row, list) and len(row) == 4 and isinstance(row[2], str) and row[2].startswith("convnextv2_")
    return [*row[:3], []] if whole else row


def _stated(extra: Mapping[str, Any]) -> str | None:
    """Return the model file that a checkpoint holds: ours to the letter, if NextDETR wrote it, or the mapping of theirs."""
    own, theirs = extra.get("nextdetr"), extra.get("yaml")
    if isinstance(own, dict) and isinstance(own.get("model"), str):
        return str(own["model"])
    return model_text(theirs) if isinstance(theirs, dict) else None


def _shipped(tensors: State, config: Config) -> str | None:
    """Return the shipped model with an ultralytics file's backbone."""
    found = next((match for name in tensors if (match := DECODER.fullmatch(name))), None)
    if found is None:
        return None
    named = {name.removeprefix(found["prefix"]): tensor for name, tensor in tensors.items()}
    stem = named.get("0.stem4.conv.weight")
    if stem is not None:
        return {48: "rtdetr-l", 64: "rtdetr-x"}.get(stem.shape[0])
    convnext = convnext_model({name[2:]: tensor for name, tensor in named.items() if name.startswith("0.")})
    if convnext is not None:
        return convnext
    blocks = {int(match[1]) for name in named if (match := re.match(r"3\.layer\.(\d+)\.", name))}
    return {6: "rtdetr-resnet50", 23: "rtdetr-resnet101"}.get(len(blocks))


def _matches(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
    return "" if any(DECODER.fullmatch(name) for name in names) else None


def _to_ours(state: State, model: DetectionModel | None, config: Config = None) -> dict[str, Tensor]:
    assert model is not None  # a detector's tensors have their names from its rows
    return from_ultralytics(state, model)


_AGPL = "the framework that wrote it, and its published weights, are AGPL-3.0: what is trained from them inherits that."
LAYOUTS = (
    Layout(
        "rtdetr-ultralytics", False, always("AGPL-3.0", _AGPL), 1e-3, _matches, _to_ours, shipped=_shipped, stated=_stated
    ),
)  # fmt: skip
