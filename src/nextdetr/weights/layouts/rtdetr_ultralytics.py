"""State dicts of the framework whose model files ours are like: layer i there is row i here, with the same names inside.

The layers' names are read off published checkpoints; no code of that framework (AGPL-3.0) is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.weights.layouts.rtdetr_head import renamed, rules

__all__ = ["DECODER", "from_ultralytics"]

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
        result[f"rows.{match[1]}.{inside}"] = tensor
    return result
