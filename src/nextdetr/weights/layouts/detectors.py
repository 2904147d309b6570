"""Whole detectors of other sources, brought to the names of our models: which they are, which model fits, what differs.

Sources: official RT-DETR and RT-DETRv2, transformers' ``rt_detr`` and ``rt_detr_v2``, and ultralytics' RT-DETR state dicts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from nextdetr.errors import WeightsError
from nextdetr.models.detection import DetectionModel
from nextdetr.models.graph import available_models, build_skeleton
from nextdetr.weights.layouts.rtdetr_official import from_official
from nextdetr.weights.layouts.rtdetr_transformers import to_official
from nextdetr.weights.layouts.rtdetr_ultralytics import DECODER, from_ultralytics
from nextdetr.weights.layouts.sizes import backbone_size, known_size

__all__ = ["KINDS", "detector_classes", "detector_kind", "detector_notes", "detector_to_ours", "shipped_model_for"]

#: Kinds, each with the epsilon of its BatchNorms.
KINDS: Mapping[str, float] = {
    "rtdetr-official": 1e-5,
    "rtdetrv2-official": 1e-5,
    "rtdetr-transformers": 1e-5,
    "rtdetrv2-transformers": 1e-5,
    "rtdetr-ultralytics": 1e-3,
}

_TRANSFORMERS = re.compile(r"(?P<prefix>.*?)model\.decoder\.layers\.0\.encoder_attn\.sampling_offsets\.weight")
_OFFICIAL = re.compile(r"(?P<prefix>.*?)decoder\.decoder\.layers\.0\.cross_attn\.sampling_offsets\.weight")
_RESNETS: Mapping[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "r18vd",
    ((3, 4, 6, 3), False): "r34vd",
    ((3, 4, 6, 3), True): "r50vd",
    ((3, 4, 23, 3), True): "r101vd",
}


def detector_kind(names: Iterable[str]) -> str | None:
    """Return which of ``KINDS`` a state dict's names are; None for none of them."""
    listed = list(names)
    if any(DECODER.fullmatch(name) for name in listed):
        return "rtdetr-ultralytics"
    second = any(name.endswith("points_scale") for name in listed)
    if any(_TRANSFORMERS.fullmatch(name) for name in listed):
        return "rtdetrv2-transformers" if second else "rtdetr-transformers"
    if any(_OFFICIAL.fullmatch(name) for name in listed):
        # The second release names the parts of enc_output; files without the derived buffers are still told apart by it.
        second = second or any(name.endswith("decoder.enc_output.proj.weight") for name in listed)
        return "rtdetrv2-official" if second else "rtdetr-official"
    return None


def detector_classes(kind: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a detector; None if it has no class head."""
    heads = ("enc_score_head.weight", "dec_score_head.0.weight", "class_embed.0.weight")
    _check_kind(kind)
    return next((tensor.shape[0] for name, tensor in tensors.items() if name.endswith(heads)), None)


def detector_to_ours(
    kind: str, tensors: Mapping[str, Tensor], model: DetectionModel, config: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Bring a detector's tensors to a model's names; nothing is copied but what changes its shape.

    Args:
        kind: one of ``KINDS``.
        tensors: name in the file -> tensor.
        model: where they are to go; it may be on the meta device.
        config: transformers' ``config.json``.

    Returns:
        Name in the model -> tensor. What the model has no part for keeps its name in the file, so that a report shows it;
        buffers that follow from the structure (anchors, points' scales) are left out.

    Raises:
        WeightsError: the kind is unknown, or the model's structure cannot take the file's.

    Warns:
        UserWarning: for each of ``detector_notes``.
    """
    for note in detector_notes(kind, tensors, model, config):
        warnings.warn(note, stacklevel=2)
    if kind == "rtdetr-ultralytics":
        return from_ultralytics(tensors, model)
    return from_official(_official(kind, tensors, config), model)


def detector_notes(
    kind: str, tensors: Mapping[str, Tensor], model: DetectionModel, config: Mapping[str, Any] | None = None
) -> list[str]:
    """Return a sentence for each thing that names and shapes do not show, and by which outputs will differ.

    Args:
        kind: one of ``KINDS``.
        tensors: name in the file -> tensor.
        model: where they are to go.
        config: transformers' ``config.json``.

    Raises:
        WeightsError: the kind is unknown.
    """
    _check_kind(kind)
    settings = config or {}
    notes = []
    theirs = float(settings.get("batch_norm_eps", KINDS[kind]))
    ours = next((module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)), theirs)
    if ours != theirs:
        notes.append(
            f"the file's BatchNorms add {theirs:g} to the variance and the model's {ours:g}: its outputs will differ a "
            f"little; batch_norm_eps: {theirs:.1e} in the model file makes them equal."
        )
    if settings.get("decoder_method", "default") == "discrete":
        notes.append(
            "the file's decoder reads the nearest cell of a map (decoder_method discrete), ours interpolates between them: "
            "its outputs will differ a little."
        )
    if any(".hidden_states_norms." in name for name in tensors):
        notes.append(
            "the file's backbone norms each map that it returns (hidden_states_norms), ours does not: "
            "its outputs will differ until it is trained."
        )
    return notes


def shipped_model_for(kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> str | None:
    """Return the shipped model that a detector fits tensor by tensor, at its own number of classes; None if there is none.

    Args:
        kind: one of ``KINDS``.
        tensors: name in the file -> tensor.
        config: transformers' ``config.json``.

    Raises:
        WeightsError: the kind is unknown.
    """
    _check_kind(kind)
    ultralytics = kind == "rtdetr-ultralytics"
    name = _ultralytics_model(tensors) if ultralytics else _resnet_model(_official(kind, tensors, config))
    classes = detector_classes(kind, tensors)
    if name not in available_models() or classes is None:
        return None
    model = build_skeleton(name, num_classes=classes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = detector_to_ours(kind, tensors, model, config)
    except WeightsError:
        return None
    own = {key: value for key, value in model.state_dict().items() if not key.endswith(".num_batches_tracked")}
    return name if all(key in given and given[key].shape == value.shape for key, value in own.items()) else None


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise WeightsError(f"there is no kind of detector {kind!r}; there are {', '.join(KINDS)}.")


def _official(kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Bring a file's names to official ones, without what stands before them (``module.`` of DDP, say)."""
    pattern = _TRANSFORMERS if kind.endswith("-transformers") else _OFFICIAL
    found = next((match for name in tensors if (match := pattern.fullmatch(name))), None)
    prefix = found["prefix"] if found else ""
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return to_official(plain, config) if kind.endswith("-transformers") else plain


def _resnet_model(named: Mapping[str, Tensor]) -> str | None:
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
    return _convnext_model({name.removeprefix("backbone."): tensor for name, tensor in named.items()})


def _ultralytics_model(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the shipped model with an ultralytics file's backbone."""
    found = next((match for name in tensors if (match := DECODER.fullmatch(name))), None)
    if found is None:
        return None
    named = {name.removeprefix(found["prefix"]): tensor for name, tensor in tensors.items()}
    stem = named.get("0.stem4.conv.weight")
    if stem is not None:
        return {48: "rtdetr-l", 64: "rtdetr-x"}.get(stem.shape[0])
    convnext = _convnext_model({name[2:]: tensor for name, tensor in named.items() if name.startswith("0.")})
    if convnext is not None:
        return convnext
    blocks = {int(match[1]) for name in named if (match := re.match(r"3\.layer\.(\d+)\.", name))}
    return {6: "rtdetr-resnet50", 23: "rtdetr-resnet101"}.get(len(blocks))


def _convnext_model(state: Mapping[str, Tensor]) -> str | None:
    size = known_size(*backbone_size(state))
    return None if size is None else f"rtdetr-l-convnextv2-{size}"
