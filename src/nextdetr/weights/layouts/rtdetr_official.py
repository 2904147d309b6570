"""Official RT-DETR and RT-DETRv2 checkpoints (lyuwenyu/RT-DETR, Apache-2.0), converted to ours.

RT-DETRv2 (arXiv 2407.17140) places its points as RT-DETR does: an offset is multiplied by half the box's side and divided
by the number of points of its level. All published files have the same number of points on every level, so one decoder
serves both; files with different numbers are refused. "Discrete" sampling leaves no trace in a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.weights.layouts.base import Config, Layout, State, always
from nextdetr.weights.layouts.names import renamed, rules
from nextdetr.weights.layouts.rtdetr_head import official_to_rows
from nextdetr.weights.layouts.sizes import backbone_size, known_size

__all__ = ["APACHE", "EPS", "LAYOUTS", "convnext_model", "from_official", "resnet_model", "without_derived"]

EPS = 1e-5  # of its BatchNorms
APACHE = always("unknown", "the published files are Apache-2.0; this one does not state its licence.")
_FIRST = re.compile(r"(.*?)decoder\.decoder\.layers\.0\.cross_attn\.sampling_offsets\.weight")
_RESNETS: Mapping[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "r18vd",
    ((3, 4, 6, 3), False): "r34vd",
    ((3, 4, 6, 3), True): "r50vd",
    ((3, 4, 23, 3), True): "r101vd",
}

#: Parts of the decoder. D-FINE's and DEIM's has more, with otherwise the same names.
_PARTS = re.compile(
    r"(?:input_proj|decoder\.layers|denoising_class_embed|tgt_embed|query_pos_head|enc_output|enc_score_head|enc_bbox_head"
    r"|dec_score_head|dec_bbox_head)\.|anchors|valid_mask"
)
_ATTENTION = "decoder.layers.0.cross_attn.value_proj.weight"

#: Buffers derived from the model's structure and the image size.
_DERIVED = ("anchors", "valid_mask", "num_points_scale", "n_points_scale")
_HEAD_OF_CLASSES = "decoder.dec_score_head.0.weight"
_DENOISING = "decoder.denoising_class_embed.weight"


def from_official(tensors: Mapping[str, Tensor], model: DetectionModel) -> dict[str, Tensor]:
    """Convert an official state dict to a model's names.

    Args:
        tensors: official name (``backbone.…``, ``encoder.…``, ``decoder.…``) -> tensor.
        model: target model.

    Raises:
        WeightsError: the model's head is not RT-DETR's, or the file has different numbers of points on its levels.
    """
    for name, tensor in tensors.items():
        if name.endswith("points_scale"):
            _check_points(name, tensor)
    return official_to_rows(_placed(without_derived(tensors), model), model)


def without_derived(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the buffers derived from structure and image size, and the padding row of the denoising embedding."""
    kept = {}
    for name, tensor in tensors.items():
        last = name.rpartition(".")[2]
        if last not in _DERIVED and not last.startswith("pos_embed"):
            kept[name] = tensor
    if _DENOISING in kept and _HEAD_OF_CLASSES in kept and len(kept[_DENOISING]) == len(kept[_HEAD_OF_CLASSES]) + 1:
        kept[_DENOISING] = kept[_DENOISING][:-1]  # we pad with zeros
    return kept


def _check_points(name: str, scale: Tensor) -> None:
    if not scale.is_meta and not torch.allclose(scale, scale[:1].expand_as(scale)):
        counts = sorted({round(1 / value) for value in scale.flatten().tolist() if value > 0})
        raise WeightsError(
            f"the decoder reads {' and '.join(map(str, counts))} points on its levels ({name}); "
            "only decoders with the same number on every level can be loaded."
        )


# A shortcut of stride 2 has a pooling layer before its convolution, and so one more level in its names.
_ONE_SPELLING = rules((r"\.short\.(?:conv|1)\.(conv|norm|bn)\.", r".short.\1."), (r"\.norm\.", ".bn."))


def _placed(tensors: Mapping[str, Tensor], model: DetectionModel) -> dict[str, Tensor]:
    """Convert the backbone's names to the model's spelling; the others, and unknown ones, are kept."""
    places = {f"backbone.{renamed(name, _ONE_SPELLING)}": f"backbone.{name}" for name in model.backbone.state_dict()}
    return {
        places.get(renamed(name, _ONE_SPELLING), name) if name.startswith("backbone.") else name: tensor
        for name, tensor in tensors.items()
    }


def resnet_model(named: Mapping[str, Tensor]) -> str | None:
    """Return the shipped model with an official file's backbone."""
    blocks: dict[int, int] = {}
    for name in named:
        match = re.match(r"backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.branch2a\.", name)
        if match:
            stage = int(match[1])
            blocks[stage] = max(blocks.get(stage, 0), int(match[2]) + 1)
    if blocks:
        deep = any(".branch2c." in name for name in named)
        size = _RESNETS.get((tuple(blocks[stage] for stage in sorted(blocks)), deep))
        return None if size is None else f"rtdetr-{size}"
    return convnext_model({name.removeprefix("backbone."): tensor for name, tensor in named.items()})


def convnext_model(state: Mapping[str, Tensor]) -> str | None:
    """Return the reference model with a ConvNeXt backbone that has our names."""
    size = known_size(*backbone_size(state))
    return None if size is None else f"rtdetr-l-convnextv2-{size}"


def _layout(kind: str, second: bool) -> Layout:
    def matches(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
        found = next((match for name in names if (match := _FIRST.fullmatch(name))), None)
        if found is None or _is_second(names) != second:
            return None
        prefix = f"{found[1]}decoder."
        inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        return str(found[1]) if _ATTENTION in inside and all(_PARTS.match(name) for name in inside) else None

    def to_ours(state: State, model: DetectionModel | None, config: Config = None) -> dict[str, Tensor]:
        assert model is not None  # a detector's tensors have their names from its rows
        return from_official(state, model)

    return Layout(kind, False, APACHE, EPS, matches, to_ours, shipped=lambda state, config: resnet_model(state))


def _is_second(names: Collection[str]) -> bool:
    """Whether it is RT-DETRv2: the parts of ``enc_output`` have names there, also in files without derived buffers."""
    return any(name.endswith(("points_scale", "decoder.enc_output.proj.weight")) for name in names)


LAYOUTS = (_layout("rtdetr-official", second=False), _layout("rtdetrv2-official", second=True))
