"""State dicts of the framework whose model files ours are like: layer i there is row i here, with the same names inside.

The layers' names are read off published checkpoints; no code of that framework (AGPL-3.0) is used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.models.names import row_name
from nextdetr.weights.layouts.base import Config, Layout, State, always
from nextdetr.weights.layouts.names import renamed, rules
from nextdetr.weights.layouts.rtdetr_official import convnext_model

__all__ = ["DECODER", "LAYOUTS", "from_ultralytics"]

#: The decoder's first class head tells where the layers' numbers stand in the names, and which is the last.
DECODER = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<row>\d+)\.dec_score_head\.0\.weight")

_LAST = rules((r"^(input_proj\.\d+)\.0\.", r"\1.conv."), (r"^(input_proj\.\d+)\.1\.", r"\1.bn."))


def from_ultralytics(tensors: Mapping[str, Tensor], model: DetectionModel) -> dict[str, Tensor]:
    """Bring ``model.<i>.…`` to ``rows.<i>.…``.

    Args:
        tensors: name -> tensor.
        model: built from the model file that the checkpoint was trained from.

    Returns:
        Name in the model -> tensor; a name of another form stays as it is.

    Raises:
        WeightsError: there is no decoder in the file, or it stands at another row than the model's.
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
    Layout("rtdetr-ultralytics", False, always("AGPL-3.0", _AGPL), 1e-3, _matches, _to_ours, shipped=_shipped),
)  # fmt: skip
