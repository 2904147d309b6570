"""Positions of the parts of an RT-DETR among a model's rows, under the official names.

RT-DETR, arXiv 2304.08069, figure 4; names as in lyuwenyu/RT-DETR (Apache-2.0), to which transformers' are converted first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.models.names import row_name
from nextdetr.weights.layouts.names import Rules, renamed, rules

__all__ = ["DECODER", "INSIDE", "Family", "Head", "official_to_rows"]

#: A head, starting with the projection of the coarsest map: layer, and official name.
Head = Sequence[tuple[str, str | None]]

_RTDETR: Head = (
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


# Inside a part: official names to ours. A projection's norm is `1` in the first release and `norm` in the second.
_CONV = rules((r"^(0|conv)\.", "conv."), (r"^(1|norm)\.", "bn."))
_AIFI = rules((r"^self_attn\.", "ma."), (r"^linear([12])\.", r"fc\1."))
_REP_C3 = rules((r"\.norm\.", ".bn."), (r"^conv([123])\.", r"cv\1."), (r"^bottlenecks\.", "m."))
DECODER = rules(
    (r"^(input_proj\.\d+)\.(0|conv)\.", r"\1.conv."),
    (r"^(input_proj\.\d+)\.(1|norm)\.", r"\1.bn."),
    (r"^enc_output\.proj\.", "enc_output.0."),
    (r"^enc_output\.norm\.", "enc_output.1."),
    (r"^tgt_embed\.", "query_embed."),
)
INSIDE: Mapping[str, Rules] = {"Conv": _CONV, "AIFI": _AIFI, "RepC3": _REP_C3, "RTDETRDecoder": DECODER}


class Family(NamedTuple):
    """Detectors whose files use the same names.

    Attributes:
        title: name of the family, for messages.
        example: a shipped model of the family.
        heads: heads by their layers.
        inside: layer -> renaming from official names to ours.
    """

    title: str
    example: str
    heads: Sequence[Head]
    inside: Mapping[str, Rules]


RTDETR = Family("RT-DETR", "rtdetr-r50vd", (_RTDETR,), INSIDE)


def official_to_rows(tensors: Mapping[str, Tensor], model: DetectionModel, family: Family = RTDETR) -> dict[str, Tensor]:
    """Convert official names to a model's ``rows.<k>.…``.

    Args:
        tensors: official name -> tensor. Those of a one-row backbone may have any of our names after ``backbone.``.
        model: target model; its head must belong to the family.
        family: family of the file.

    Returns:
        Name in the model -> tensor; tensors that belong to no part keep their names.

    Raises:
        WeightsError: the model's head has other rows.
    """
    first = model.backbone_rows
    layers = [info.name.removeprefix("nn.") for info in model.row_infos]
    head = next((head for head in family.heads if [layer for layer, _ in head] == layers[first:]), None)
    if head is None:
        raise WeightsError(
            f"the model's head is {', '.join(layers[first:])}, which is not {family.title}'s: it cannot take the file's "
            f"encoder and decoder; take a shipped model, {family.example} for example."
        )
    parts = _backbone_parts(layers[:first])
    parts |= {part: (first + k, layer) for k, (layer, part) in enumerate(head) if part is not None}
    result = {}
    for name, tensor in tensors.items():
        part = next((part for part in parts if name.startswith(f"{part}.")), None)
        if part is None:
            result[name] = tensor
            continue
        row, layer = parts[part]
        result[row_name(row, renamed(name.removeprefix(f"{part}."), family.inside.get(layer, ())))] = tensor
    return result


def _backbone_parts(layers: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return for each official part of a backbone its row and layer: the whole backbone, or HGNetV2's blocks."""
    if len(layers) == 1:
        return {"backbone": (0, "")}
    parts, stage, block = {}, 0, 0
    for row, layer in enumerate(layers):
        if layer == "HGStem":
            parts["backbone.stem"] = (row, layer)
        elif layer == "HGBlock":
            parts[f"backbone.stages.{stage}.blocks.{block}"] = (row, layer)
            block += 1
        else:
            stage, block = stage + 1, 0
            parts[f"backbone.stages.{stage}.downsample"] = (row, layer)
    return parts
