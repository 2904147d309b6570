"""Recognition of weights files, by metadata or by names and shapes of tensors; nothing is guessed beyond that.

Licences: see ``licence_of``. If nothing is stated, ConvNeXt V2's published weights are CC-BY-NC-4.0, timm's
ImageNet-trained V1 weights Apache-2.0 (REFERENCE, section 2), pickles of ultralytics AGPL-3.0; the rest is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.weights.layouts import (
    convnext_original,
    convnext_sparse,
    convnext_timm,
    convnext_torchvision,
    convnext_transformers,
    nextdetr,
)
from nextdetr.weights.layouts.base import Config, Identity, Layout, State, layout_table, licence_of, teachers_of
from nextdetr.weights.layouts.classes import IMAGENET_HEADS
from nextdetr.weights.layouts.convnext import V1_NOTE, check_stem
from nextdetr.weights.layouts.detectors import DETECTORS, config_of, describe_detector
from nextdetr.weights.layouts.foreign import foreign_name, is_of_type, model_title, stated_type
from nextdetr.weights.layouts.nextdetr import DETECTOR_KIND, FCMAE, own_detector
from nextdetr.weights.layouts.sizes import backbone_size, known_size, size_name
from nextdetr.weights.reader import WeightsFile

__all__ = [
    "DETECTOR_KIND", "FCMAE", "LAYOUTS", "V1_NOTE", "Identity", "backbone_tensors", "identify", "opens_type", "why_refused",
]  # fmt: skip

#: All layouts, in the order in which they are tried.
LAYOUTS = layout_table(
    *nextdetr.LAYOUTS,
    *DETECTORS.values(),
    *convnext_sparse.LAYOUTS,
    *convnext_original.LAYOUTS,
    *convnext_timm.LAYOUTS,
    *convnext_transformers.LAYOUTS,
    *convnext_torchvision.LAYOUTS,
)


def identify(file: WeightsFile) -> Identity:
    """Recognise a file: by the model that its ``config.json`` states, else by the names of its tensors.

    Raises:
        WeightsError: its layout is unknown (the message names the model, if possible), or it is a ConvNeXt that our blocks
            do not support.
    """
    if not file.tensors:
        raise WeightsError(f"{file.path}: there are no tensors in it.")
    stated = stated_type(config_of(file))
    layouts = [layout for layout in LAYOUTS.values() if stated is None or is_of_type(stated, layout.types)]
    for layout in layouts:
        prefix = layout.matches(file.tensors.keys(), file.metadata)
        if prefix is None:
            continue
        if layout.is_backbone:
            return _backbone(file, layout, prefix)
        if layout.kind not in DETECTORS:
            return own_detector(file, *licence_of(file, layout, None))
        return Identity(**describe_detector(file, layout))
    raise WeightsError(f"{file.path}: {_refusal(file)}")


def opens_type(stated: str) -> bool:
    """Whether there is a layout for the model stated in a ``config.json``."""
    return any(is_of_type(stated, layout.types) for layout in LAYOUTS.values())


def why_refused(config: Config) -> str | None:
    """Return why weights with this ``config.json`` are refused, whatever their tensors are; None if they are not."""
    stated = stated_type(config)
    if stated is None or opens_type(stated):
        return None
    types = dict.fromkeys(kind for layout in LAYOUTS.values() for kind in layout.types)
    return (
        f"its config.json says {model_title(stated)}, which NextDETR cannot open; with a config.json, NextDETR opens "
        f"{', '.join(types)}."
    )


def _refusal(file: WeightsFile) -> str:
    """Return what an unsupported file is, and what is supported."""
    shown, stated = ", ".join(list(file.tensors)[:3]), stated_type(config_of(file))
    refused = why_refused(config_of(file))
    if refused is not None:
        return refused
    if stated is not None:
        return (
            f"its config.json says {model_title(stated)}, but its {len(file.tensors)} tensors ({shown}, …) are not "
            "those of such a model; give the folder as its program wrote it."
        )
    foreign = foreign_name(file.tensors)
    if foreign is not None:
        return f"by the names of its tensors {foreign}, which NextDETR cannot open; it opens {', '.join(LAYOUTS)}."
    return f"its {len(file.tensors)} tensors ({shown}, …) are of no known layout; known are {', '.join(LAYOUTS)}."


def backbone_tensors(file: WeightsFile, identity: Identity) -> dict[str, Tensor]:
    """Return a backbone file's tensors under our names, including its final norm and classifier.

    Raises:
        WeightsError: they cannot be converted to our layout (the message names file and cause).
    """
    try:
        return LAYOUTS[identity.kind].to_ours(_without(file.tensors, identity.prefix), None, None)
    except WeightsError as error:
        raise WeightsError(f"{file.path}: {error}") from error
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise WeightsError(f"{file.path}: not a complete {identity.kind} checkpoint ({cause}).") from error


def _backbone(file: WeightsFile, layout: Layout, prefix: str) -> Identity:
    kind, ours = layout.kind, _renamed_only(file, layout, _without(file.tensors, prefix))
    depths, dims = backbone_size(ours)
    size = known_size(depths, dims)
    head = ours.get("head.weight")
    classes = None if head is None or not head.ndim else int(head.shape[0])
    notes = [] if size else [f"its stages ({size_name(depths, dims)}) are of no size that has a name."]
    if classes in IMAGENET_HEADS:
        notes.append(
            f"it has a classifier of {classes:,} classes ({IMAGENET_HEADS[classes]}), which a detector has no use for."
        )
    if kind.startswith("convnext-v1"):
        notes.append(V1_NOTE)
    licence, remarks = licence_of(file, layout, classes)
    # The published sparse files are FCMAE's own; ours say so, except the first ones, recognised by their missing licence.
    alone = kind == "convnextv2-fcmae-sparse" or file.metadata.get("pretraining") == FCMAE
    first = kind == "nextdetr-backbone" and file.metadata.get("weights_licence") == "none"
    alone = alone or first or _tag_of_timm(file) == FCMAE
    return Identity(
        kind, None if size is None else f"convnextv2-{size}", licence=licence, num_classes=classes,
        depths=depths, dims=dims, notes=(*notes, *remarks), prefix=prefix, without_labels=alone, is_backbone=True,
        taught=teachers_of(file),
    )  # fmt: skip


def _tag_of_timm(file: WeightsFile) -> str | None:
    """Return timm's name of the last training: ``fcmae``, or ``fcmae_ft_in1k``."""
    settings = (config_of(file) or {}).get("pretrained_cfg")
    tag = settings.get("tag") if isinstance(settings, dict) else None
    return tag if isinstance(tag, str) else None


def _renamed_only(file: WeightsFile, layout: Layout, state: State) -> dict[str, Tensor]:
    """Convert the names to ours without the arithmetic of the V1 conversion."""
    try:
        ours = layout.rename(state)
        check_stem(ours)
    except (WeightsError, RuntimeError, IndexError, ValueError) as error:
        raise WeightsError(f"{file.path}: {' '.join(str(error).split())}") from error
    return ours


def _without(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors with the prefix, without it; all others keep their names and are reported as unexpected."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
