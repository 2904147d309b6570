"""Where the parts of an RT-DETR stand among a model's rows, under the names of the official repository.

RT-DETR, arXiv 2304.08069, figure 4; names as in lyuwenyu/RT-DETR (Apache-2.0), to which transformers' are brought first.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.models.names import row_name
from nextdetr.weights.layouts.names import Rules, renamed, rules

__all__ = ["official_to_rows"]

#: RT-DETR's head, from the projection of the coarsest map on: layer, and the official name of what it is.
_HEAD = (
    ("Conv", "encoder.input_proj.2"),
    ("AIFI", "encoder.encoder.0.layers.0"),
    ("Conv", "encoder.lateral_convs.0"),
    ("Upsample", None),
    ("Conv", "encoder.input_proj.1"),
    ("Concat", None),
    ("RepC3", "encoder.fpn_blocks.0"),
    ("Conv", "encoder.lateral_convs.1"),
    ("Upsample", None),
    ("Conv", "encoder.input_proj.0"),
    ("Concat", None),
    ("RepC3", "encoder.fpn_blocks.1"),
    ("Conv", "encoder.downsample_convs.0"),
    ("Concat", None),
    ("RepC3", "encoder.pan_blocks.0"),
    ("Conv", "encoder.downsample_convs.1"),
    ("Concat", None),
    ("RepC3", "encoder.pan_blocks.1"),
    ("RTDETRDecoder", "decoder"),
)


# Inside a part: its official names to ours. A projection's norm is `1` in the first release and `norm` in the second.
_CONV = rules((r"^(0|conv)\.", "conv."), (r"^(1|norm)\.", "bn."))
_AIFI = rules((r"^self_attn\.", "ma."), (r"^linear([12])\.", r"fc\1."))
_REP_C3 = rules((r"\.norm\.", ".bn."), (r"^conv([123])\.", r"cv\1."), (r"^bottlenecks\.", "m."))
_DECODER = rules(
    (r"^(input_proj\.\d+)\.(0|conv)\.", r"\1.conv."),
    (r"^(input_proj\.\d+)\.(1|norm)\.", r"\1.bn."),
    (r"^enc_output\.proj\.", "enc_output.0."),
    (r"^enc_output\.norm\.", "enc_output.1."),
    (r"^tgt_embed\.", "query_embed."),
)
_INSIDE: Mapping[str, Rules] = {"Conv": _CONV, "AIFI": _AIFI, "RepC3": _REP_C3, "RTDETRDecoder": _DECODER}


def official_to_rows(tensors: Mapping[str, Tensor], model: DetectionModel) -> dict[str, Tensor]:
    """Bring official names to a model's ``rows.<k>.…``.

    Args:
        tensors: official name -> tensor. Those of the backbone may have any of our names after ``backbone.``.
        model: its head must be RT-DETR's.

    Returns:
        Name in the model -> tensor; a tensor that belongs to no part of RT-DETR keeps its name.

    Raises:
        WeightsError: the model's head has other rows than RT-DETR's.
    """
    parts = _parts(model)
    result = {}
    for name, tensor in tensors.items():
        part = next((part for part in parts if name.startswith(f"{part}.")), None)
        if part is None:
            result[name] = tensor
            continue
        row, layer = parts[part]
        inside = name.removeprefix(f"{part}.")
        result[row_name(row, renamed(inside, _INSIDE.get(layer, ())))] = tensor
    return result


def _parts(model: DetectionModel) -> dict[str, tuple[int, str]]:
    """Return for each official part its row and the row's layer."""
    first = model.backbone_rows
    layers = [info.name.removeprefix("nn.") for info in model.row_infos]
    if layers[first:] != [layer for layer, _ in _HEAD]:
        raise WeightsError(
            f"the model's head is {', '.join(layers[first:])}, which is not RT-DETR's: it cannot take the file's "
            "encoder and decoder; take a shipped model, rtdetr-r50vd for example."
        )
    parts = {part: (first + k, layer) for k, (layer, part) in enumerate(_HEAD) if part is not None}
    if first == 1:
        parts["backbone"] = (0, "")
    return parts
