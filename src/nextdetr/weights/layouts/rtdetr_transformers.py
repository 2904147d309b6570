"""transformers' ``rt_detr`` and ``rt_detr_v2`` folders: names, attention layers and settings converted to official ones.

The names of releases 4 and 5 differ (``encoder.encoder.0`` and ``encoder.aifi.0``, ``fc1`` and ``mlp.fc1``, ``out_proj``
and ``o_proj``); both kinds of files exist. ``config.json`` has what names do not show: the range of a v2 decoder's offsets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from nextdetr.models.detection import DetectionModel
from nextdetr.weights.layouts.base import Config, Layout, State, number_of
from nextdetr.weights.layouts.convnext import fold_v1
from nextdetr.weights.layouts.convnext_transformers import from_dinov3, from_transformers
from nextdetr.weights.layouts.foreign import foreign_name
from nextdetr.weights.layouts.names import renamed, rules
from nextdetr.weights.layouts.rtdetr_official import APACHE, EPS, from_official, resnet_model

__all__ = ["LAYOUTS", "OFFSET_SCALE", "to_official", "transformers_backbone"]

_FIRST = re.compile(r"(.*?)model\.decoder\.layers\.0\.encoder_attn\.sampling_offsets\.weight")
OFFSET_SCALE = 0.5  # of RT-DETR: an offset of 1 at one point per level is half a box's side
_BACKBONE = "model.backbone.model."
#: Name of a ConvNeXt backbone's stem there, and the conversion of such a backbone.
_CONVNEXTS = (
    ("embeddings.patch_embeddings.weight", from_transformers),
    ("stages.0.downsample_layers.0.weight", from_dinov3),
    ("model.stages.0.downsample_layers.0.weight", from_dinov3),
)
#: Parts of a model, and of its decoder. PP-DocLayout and D-FINE, with otherwise the same names, have more.
_PARTS = re.compile(
    r"(?:backbone|encoder_input_proj|encoder|decoder_input_proj|enc_output|enc_score_head|enc_bbox_head|weight_embedding"
    r"|denoising_class_embed|decoder\.(?:layers|query_pos_head|class_embed|bbox_embed))\.|anchors|valid_mask"
)

_NORMS = ((r"\.convolution\.", ".conv."), (r"\.normalization\.", ".norm."))
_RULES = rules(
    (r"^model\.", ""),
    # backbone
    (r"^backbone\.model\.embedder\.embedder\.0\.", "backbone.conv1.conv1_1."),
    (r"^backbone\.model\.embedder\.embedder\.1\.", "backbone.conv1.conv1_2."),
    (r"^backbone\.model\.embedder\.embedder\.2\.", "backbone.conv1.conv1_3."),
    (r"^backbone\.model\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"backbone.res_layers.\1.blocks.\2."),
    (r"^(backbone\.res_layers\..*)\.layer\.0\.", r"\1.branch2a."),
    (r"^(backbone\.res_layers\..*)\.layer\.1\.", r"\1.branch2b."),
    (r"^(backbone\.res_layers\..*)\.layer\.2\.", r"\1.branch2c."),
    (r"^(backbone\.res_layers\..*)\.shortcut\.1\.", r"\1.short.conv."),
    (r"^(backbone\.res_layers\..*)\.shortcut\.", r"\1.short."),
    *_NORMS,
    # encoder
    (r"^encoder_input_proj\.", "encoder.input_proj."),
    (r"^encoder\.aifi\.", "encoder.encoder."),
    (r"^(encoder\.encoder\.\d+\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(encoder\.encoder\.\d+\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"^((?:encoder\.encoder\.\d+|decoder)\.layers\.\d+)\.(?:mlp\.)?fc([12])\.", r"\1.linear\2."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    # decoder
    (r"^(decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
    (r"^decoder\.layers\.(\d+)\.encoder_attn\.", r"decoder.layers.\1.cross_attn."),
    (r"^decoder\.layers\.", "decoder.decoder.layers."),
    (r"^(?:decoder\.)?class_embed\.", "decoder.dec_score_head."),
    (r"^(?:decoder\.)?bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^decoder_input_proj\.", "decoder.input_proj."),
    (r"^(enc_output|enc_score_head|enc_bbox_head|denoising_class_embed)\.", r"decoder.\1."),
    (r"^weight_embedding\.", "decoder.tgt_embed."),
)
_QUERY = re.compile(r"(.*\.self_attn)\.q_proj\.(weight|bias)")


def to_official(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Convert a transformers state dict to official names and shapes.

    Args:
        tensors: ``model.…`` (and the heads' copies, ``class_embed.…``) -> tensor.
        config: ``config.json``.

    Returns:
        Official name -> tensor; query, key and value merged into one tensor, and the range of offsets into their weights.

    Raises:
        WeightsError: ``config`` states no number for the range.
    """
    backbone = _convnext(tensors, _BACKBONE)
    named = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    for name, tensor in tensors.items():
        if not backbone or not name.startswith(_BACKBONE) or ".hidden_states_norms." in name:
            # If a head is stored twice, in the model and in its decoder, both copies are the same tensor.
            named.setdefault(name if ".hidden_states_norms." in name else renamed(name, _RULES), tensor)
    for name in [name for name in named if _QUERY.fullmatch(name)]:
        _join(named, name)
    scale = number_of(config or {}, "decoder_offset_scale", OFFSET_SCALE)
    if scale != OFFSET_SCALE:
        for name in named:
            if ".cross_attn.sampling_offsets." in name:
                named[name] = named[name] * (scale / OFFSET_SCALE)
    return named


def transformers_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the ConvNeXt backbone of a transformers detector as a V2 with our names; empty for other backbones.

    The norms of its output maps (``hidden_states_norms``) belong to the detector and are left out.
    """
    stems = [_BACKBONE + stem for stem, _ in _CONVNEXTS]
    found = next((name for name in tensors if name.endswith(tuple(stems))), None)
    return {} if found is None else _convnext(tensors, found[: found.rindex(_BACKBONE)] + _BACKBONE)


def _convnext(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the ConvNeXt under a prefix as a V2 with our names; empty if there is none."""
    bring = next((bring for stem, bring in _CONVNEXTS if prefix + stem in tensors), None)
    if bring is None:
        return {}
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    ours = bring({name: tensor for name, tensor in inside.items() if not name.startswith("hidden_states_norms.")})
    return ours if any(".grn." in name for name in ours) else fold_v1(ours)


def _join(named: dict[str, Tensor], query: str) -> None:
    """Merge query, key and value projections into one tensor, in this order."""
    match = _QUERY.fullmatch(query)
    assert match is not None  # the caller has matched it
    sources = [f"{match[1]}.{letter}_proj.{match[2]}" for letter in "qkv"]
    if all(source in named for source in sources):
        named[f"{match[1]}.in_proj_{match[2]}"] = torch.cat([named.pop(source) for source in sources])


def _layout(kind: str, model_type: str, second: bool) -> Layout:
    def matches(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
        found = next((match for name in names if (match := _FIRST.fullmatch(name))), None)
        if found is None or any(name.endswith("points_scale") for name in names) != second:
            return None
        return str(found[1]) if _is_rtdetr(names, f"{found[1]}model.") else None

    def to_ours(state: State, model: DetectionModel | None, config: Config = None) -> dict[str, Tensor]:
        assert model is not None  # a detector's tensors have their names from its rows
        return from_official(to_official(state, config), model)

    def shipped(state: State, config: Config) -> str | None:
        return resnet_model(to_official(state, config))

    return Layout(
        kind, False, APACHE, EPS, matches, to_ours, shipped=shipped, backbone=_backbone_licence, types=(model_type,)
    )


def _backbone_licence(names: Collection[str]) -> tuple[str, str] | None:
    """Return the licence of the published ConvNeXt from which a detector's backbone may have started."""
    bring = next((bring for stem, bring in _CONVNEXTS for name in names if name.endswith(_BACKBONE + stem)), None)
    if bring is from_dinov3:
        return (
            "dinov3-license",
            "its backbone is DINOv3's ConvNeXt, whose published weights are under Meta's DINOv3 licence.",
        )
    if bring is not None and any(".grn." in name for name in names):
        return "CC-BY-NC-4.0", "its backbone is a ConvNeXt V2, whose published weights are CC-BY-NC-4.0."
    return None


def _is_rtdetr(names: Collection[str], prefix: str) -> bool:
    """Whether names are RT-DETR's and not a relative's: exactly its parts, and its attention."""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    hybrid = any(name.startswith(("encoder.lateral_convs.", "encoder.fpn_blocks.")) for name in inside)
    attention = "decoder.layers.0.encoder_attn.value_proj.weight" in inside
    return hybrid and attention and all(_PARTS.match(name) for name in inside) and foreign_name(names) is None


LAYOUTS = (
    _layout("rtdetr-transformers", "rt_detr", second=False),
    _layout("rtdetrv2-transformers", "rt_detr_v2", second=True),
)
