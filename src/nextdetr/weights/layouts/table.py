"""What a weights file is: recognised by its metadata, or by the names and shapes of its tensors; nothing is guessed beyond.

Licences: a file that states its own is believed. Otherwise ConvNeXt V2's published weights are CC-BY-NC-4.0, timm's
ImageNet-trained V1 weights Apache-2.0 (REFERENCE, section 2), pickles of ultralytics AGPL-3.0; the rest is ``unknown``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nextdetr.errors import WeightsError
from nextdetr.models.modelfile import shipped_name
from nextdetr.weights.layouts.classes import IMAGENET_HEADS
from nextdetr.weights.layouts.convnext import (
    check_stem,
    fold_v1,
    from_original,
    from_sparse,
    from_timm,
    from_torchvision,
    from_transformers,
)
from nextdetr.weights.layouts.detector_identity import describe_detector
from nextdetr.weights.layouts.sizes import backbone_size, known_size, size_name
from nextdetr.weights.reader import WeightsFile

__all__ = ["BACKBONE_KINDS", "DETECTOR_KINDS", "V1_NOTE", "Identity", "backbone_tensors", "identify"]

CC_BY_NC = "CC-BY-NC-4.0"
FCMAE = "fcmae"  # in a file's metadata: what it learnt last, it learnt without labels
V1_NOTE = "ConvNeXt V1: LayerScale is folded into the second pointwise layer, and GRN starts at zero."


def _v1(rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    return lambda state: fold_v1(rename(state))


#: How each backbone layout is brought to our names.
BACKBONE_KINDS: Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "convnextv2-original": from_original,
    "convnextv2-fcmae-sparse": from_sparse,
    "convnextv2-timm": from_timm,
    "convnextv2-transformers": from_transformers,
    "convnext-v1-original": _v1(from_original),
    "convnext-v1-timm": _v1(from_timm),
    "convnext-v1-torchvision": _v1(from_torchvision),
    "convnext-v1-transformers": _v1(from_transformers),
    "nextdetr-backbone": dict,
}

DETECTOR_KINDS = (
    "nextdetr-detector",
    "rtdetr-official",
    "rtdetrv2-official",
    "rtdetr-transformers",
    "rtdetrv2-transformers",
    "rtdetr-ultralytics",
)

# One name that a layout cannot lack, after any prefix (`module.`, `model.`, `encoder.`, `convnextv2.`).
_BACKBONES = (
    ("original", re.compile(r"(.*?)(?:encoder\.)?downsample_layers\.0\.0\.weight")),
    ("timm", re.compile(r"(.*?)stem[._]0\.weight")),
    ("transformers", re.compile(r"(.*?)(?:convnextv2\.|convnext\.)?embeddings\.patch_embeddings\.weight")),
    ("torchvision", re.compile(r"(.*?)features\.0\.0\.weight")),
)
_BLOCK = {
    "original": r"stages\.0\.0\.dwconv\.",
    "timm": r"stages[._]0\.blocks\.0\.conv_dw\.",
    "transformers": r"stages\.0\.layers\.0\.dwconv\.",
    "torchvision": r"features\.1\.0\.block\.0\.",
}
_LAYER_SCALE = re.compile(r"(\.gamma|\.layer_scale|\.layer_scale_parameter)$")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a weights file is.

    Attributes:
        kind: a key of ``BACKBONE_KINDS`` or one of ``DETECTOR_KINDS``.
        model: the model that it fits: ``convnextv2-atto`` for a backbone, a shipped name for a detector; None if unknown.
        classes: class names, if the file states them.
        licence: of the weights, ``unknown`` if nothing is known of it.
        notes: sentences for the user.
        num_classes: width of the classifier, or classes of the detector; None if it has none.
        depths, dims: blocks and channels of a ConvNeXt's stages; empty for others.
        prefix: what stands before every name.
        model_text: the model YAML, if the file holds it.
        without_labels: whether a backbone has learnt from images alone so far (FCMAE).
    """

    kind: str
    model: str | None
    classes: list[str] | None = None
    licence: str = "unknown"
    notes: tuple[str, ...] = ()
    num_classes: int | None = None
    depths: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()
    prefix: str = ""
    model_text: str | None = None
    without_labels: bool = False

    @property
    def is_backbone(self) -> bool:
        """Whether the file holds a backbone alone."""
        return self.kind in BACKBONE_KINDS

    @property
    def size(self) -> str:
        """Size of a ConvNeXt as a sentence names it: ``atto``, or depths and widths."""
        return size_name(self.depths, self.dims)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that ``nextdetr weights inspect --json`` prints."""
        return {
            "kind": self.kind, "for_model": self.model, "classes": self.classes, "num_classes": self.num_classes,
            "weights_licence": self.licence, "notes": list(self.notes),
        }  # fmt: skip


def identify(file: WeightsFile) -> Identity:
    """Recognise a file.

    Raises:
        WeightsError: it is of no layout that is known, or of a ConvNeXt that no block of ours computes.
    """
    if not file.tensors:
        raise WeightsError(f"{file.path}: there are no tensors in it.")
    if file.metadata.get("kind") == "backbone":
        return _backbone(file, "nextdetr-backbone", "", dict(file.tensors))
    if any(name.startswith("rows.") for name in file.tensors):
        return _own_detector(file)
    detector = describe_detector(file)
    if detector is not None:
        return Identity(**detector)
    for layout, pattern in _BACKBONES:
        found = next((match for name in file.tensors if (match := pattern.fullmatch(name))), None)
        if found and any(re.search(_BLOCK[layout], name) for name in file.tensors):
            prefix = found.group(1)
            return _backbone(file, _kind(layout, file.tensors), prefix, _without(file.tensors, prefix))
    shown = ", ".join(list(file.tensors)[:3])
    raise WeightsError(
        f"{file.path}: its {len(file.tensors)} tensors ({shown}, …) are of no known layout; known are "
        f"{', '.join((*BACKBONE_KINDS, *DETECTOR_KINDS))}."
    )


def backbone_tensors(file: WeightsFile, identity: Identity) -> dict[str, Tensor]:
    """Return a backbone file's tensors under our names, its final norm and classifier included.

    Raises:
        WeightsError: they cannot be brought to our layout (the message names file and cause).
    """
    try:
        return BACKBONE_KINDS[identity.kind](_without(file.tensors, identity.prefix))
    except WeightsError as error:
        raise WeightsError(f"{file.path}: {error}") from error
    except (KeyError, RuntimeError, IndexError) as error:
        cause = " ".join(str(error).split())[:200]
        raise WeightsError(f"{file.path}: not a complete {identity.kind} checkpoint ({cause}).") from error


def _backbone(file: WeightsFile, kind: str, prefix: str, state: Mapping[str, Tensor]) -> Identity:
    draft = Identity(kind, None, prefix=prefix)
    ours = _renamed_only(file, draft, state)
    depths, dims = backbone_size(ours)
    size = known_size(depths, dims)
    head = ours.get("head.weight")
    classes = None if head is None else int(head.shape[0])
    notes = [] if size else [f"its stages ({size_name(depths, dims)}) are of no size that has a name."]
    if classes in IMAGENET_HEADS:
        notes.append(
            f"it has a classifier of {classes:,} classes ({IMAGENET_HEADS[classes]}), which a detector has no use for."
        )
    if kind.startswith("convnext-v1"):
        notes.append(V1_NOTE)
    licence, remark = _backbone_licence(file, kind, classes)
    # The published sparse files are FCMAE's own; files of ours say it, but for the first ones, known by having no licence.
    alone = kind == "convnextv2-fcmae-sparse" or file.metadata.get("pretraining") == FCMAE
    alone = alone or (kind == "nextdetr-backbone" and licence == "none")
    return Identity(
        kind, None if size is None else f"convnextv2-{size}", licence=licence, num_classes=classes,
        depths=depths, dims=dims, notes=(*notes, *remark), prefix=prefix, without_labels=alone,
    )  # fmt: skip


def _renamed_only(file: WeightsFile, draft: Identity, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the names to ours without the arithmetic of the fold."""
    rename = {
        "original": from_original,
        "timm": from_timm,
        "transformers": from_transformers,
        "torchvision": from_torchvision,
    }
    try:
        if not draft.kind.startswith("convnext-v1"):
            ours = BACKBONE_KINDS[draft.kind](state)
        else:
            ours = rename[draft.kind.removeprefix("convnext-v1-")](state)
        check_stem(ours)
    except (WeightsError, RuntimeError, IndexError) as error:
        raise WeightsError(f"{file.path}: {' '.join(str(error).split())}") from error
    return ours


def _backbone_licence(file: WeightsFile, kind: str, classes: int | None) -> tuple[str, list[str]]:
    stated = stated_licence(file)
    if stated is not None:
        return stated, []
    if kind == "nextdetr-backbone":
        return "unknown", []
    if kind.startswith("convnextv2"):
        return CC_BY_NC, ["the published ConvNeXt V2 weights may not be used commercially (CC BY-NC 4.0)."]
    if kind == "convnext-v1-timm" and classes in IMAGENET_HEADS:
        return "Apache-2.0", []
    if kind == "convnext-v1-timm":
        return "unknown", [
            "timm's ImageNet classifiers are Apache-2.0, but its DINOv3 weights are not: see where it is from."
        ]
    if kind == "convnext-v1-torchvision":
        return "unknown", ["torchvision's code is BSD-3-Clause; of its weights it states no licence."]
    return "unknown", []


def stated_licence(file: WeightsFile) -> str | None:
    """Return the licence that the file itself states."""
    licence: Any = file.metadata.get("weights_licence")
    if licence:
        return str(licence)
    extra = file.extra.get("nextdetr")
    licence = extra.get("weights_licence") if isinstance(extra, dict) else None
    return licence if isinstance(licence, str) and licence else None


def _own_detector(file: WeightsFile) -> Identity:
    metadata = file.metadata
    classes, text, notes = None, metadata.get("model"), []
    try:
        stated = json.loads(metadata["classes"])
        classes = [str(name) for name in stated] if isinstance(stated, list) and stated else None
    except (KeyError, ValueError, RecursionError):
        pass
    if classes is None:
        notes.append("it does not state its classes.")
    if text is None:
        notes.append("it does not hold its model file.")
    state = {name.removeprefix("rows.0."): tensor for name, tensor in file.tensors.items() if name.startswith("rows.0.")}
    depths, dims = backbone_size(state)
    return Identity(
        "nextdetr-detector", None if text is None else shipped_name(text), classes, stated_licence(file) or "unknown",
        tuple(notes), None if classes is None else len(classes), depths, dims, "", text,
    )  # fmt: skip


def _kind(layout: str, names: Mapping[str, Tensor]) -> str:
    if layout == "torchvision":
        return "convnext-v1-torchvision"
    if any(name.endswith(".kernel") for name in names):
        return "convnextv2-fcmae-sparse"
    grn = any(".grn." in name for name in names)
    scaled = any(_LAYER_SCALE.search(name) and ".grn." not in name for name in names)
    return f"convnext-v1-{layout}" if scaled or not grn else f"convnextv2-{layout}"


def _without(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors with the prefix, without it; all others keep their names and are reported as unexpected."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
