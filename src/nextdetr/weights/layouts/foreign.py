"""Weights of other models that we cannot read, so that the error can name them.

When a model becomes supported, it gets a layout and its lines here are removed: layouts are tried first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["foreign_name", "is_of_type", "model_title", "stated_type"]

#: transformers' ``model_type`` -> its common name. Other types are shown unchanged.
_TITLES = {
    "conditional_detr": "Conditional DETR", "dab-detr": "DAB-DETR", "d_fine": "D-FINE",
    "deformable_detr": "Deformable DETR", "deimv2": "DEIMv2", "deta": "DETA", "detr": "DETR", "dinov2": "DINOv2",
    "dinov3_vit": "DINOv3's vision transformer", "grounding-dino": "Grounding DINO", "lw_detr": "LW-DETR",
    "mm-grounding-dino": "MM Grounding DINO", "omdet-turbo": "OmDet-Turbo", "owlv2": "OWLv2", "owlvit": "OWL-ViT",
    "pp_doclayout_v2": "PP-DocLayoutV2", "pp_doclayout_v3": "PP-DocLayoutV3", "pp_doclayout_v4": "PP-DocLayoutV4",
    "resnet": "ResNet", "rf_detr": "RF-DETR", "rt_detr_resnet": "RT-DETR's ResNet alone", "swin": "Swin Transformer",
    "table-transformer": "Table Transformer", "vit": "ViT", "yolos": "YOLOS",
}  # fmt: skip

#: Names unique to one kind of model, for files without a config.json.
_SIGNATURES = tuple(
    (re.compile(pattern), title)
    for pattern, title in (
        (r"\.lqe_layers\.|(^|\.)pre_bbox_head\.", "D-FINE, DEIM or a detector built on them"),
        (
            r"(^|\.)(reading_order|decoder_global_pointer|mask_query_head|successor_order_head)\.",
            "PP-DocLayout, which reads the layout of documents",
        ),
        (r"(^|\.)enc_out_(class|bbox)_embed\.", "RF-DETR or LW-DETR"),
        (
            r"encoder\.layers\.\d+\.(self_attn|deformable_layer\.self_attn)\.sampling_offsets\.",
            "Deformable DETR or a relative",
        ),
        (r"(^|\.)query_(position_)?embed(dings)?\.weight", "DETR or a relative"),
        (r"(^|\.)\d+\.cv[23]\.0\.0\.conv\.weight", "a YOLO of ultralytics"),
        (r"(^|\.)rpn\.head\.", "a Faster R-CNN"),
        (
            r"(^|\.)blocks\.0\.attn\.qkv\.weight|encoder\.layer\.0\.attention\.attention\.query\.weight",
            "a vision transformer",
        ),
        (r"(^|\.)layer1\.0\.conv1\.weight|resnet\.embedder\.embedder\.convolution\.weight", "a ResNet"),
    )
)


def stated_type(config: Mapping[str, Any] | None) -> str | None:
    """Return the model stated in a ``config.json``.

    Args:
        config: its content; None without one.

    Returns:
        transformers' ``model_type``, or timm's ``architecture``; None if it states neither.
    """
    if config is None:
        return None
    kind, architecture = config.get("model_type"), config.get("architecture")
    from_timm = isinstance(architecture, str) and (kind == "timm_wrapper" or "pretrained_cfg" in config)
    stated = architecture if from_timm else kind
    return stated[:80] if isinstance(stated, str) and stated else None


def is_of_type(stated: str, types: Collection[str]) -> bool:
    """Whether a stated model is one of ``types``, where timm's are patterns such as ``convnext_*``."""
    return any(fnmatchcase(stated, pattern) for pattern in types)


def model_title(stated: str) -> str:
    """Return the name of a stated model for messages."""
    title = _TITLES.get(stated)
    return f"{title} ({stated})" if title else stated


def foreign_name(names: Collection[str]) -> str | None:
    """Return the model that these tensor names belong to, if known but unsupported; otherwise None."""
    return next((title for pattern, title in _SIGNATURES if any(pattern.search(name) for name in names)), None)
