"""A backbone on its own, from weights of any known layout: as an encoder, or as a one-row model for embeddings."""

from __future__ import annotations

from pathlib import Path

from nextdetr.errors import WeightsError
from nextdetr.files import is_local
from nextdetr.models.convnextv2 import EXPANSION, SIZES, ConvNeXtV2, convnextv2
from nextdetr.models.detection import DetectionModel, RowInfo
from nextdetr.weights.checkpoint import OpenedModel
from nextdetr.weights.convert import backbone_state
from nextdetr.weights.gate import fill
from nextdetr.weights.layouts.sizes import backbone_size, known_size
from nextdetr.weights.load import load_into, open_weights
from nextdetr.weights.published import find_published
from nextdetr.weights.remote import parse_name
from nextdetr.weights.start import open_detector
from nextdetr.weights.tensorfile import read_metadata

__all__ = ["open_encoder", "open_features"]

PREFIX = "convnextv2-"
#: Training size of the published backbones, and of ours.
BACKBONE_IMAGE_SIZE = 224


def open_encoder(source: str | Path, *, drop_path: float = 0.0, num_classes: int | None = None) -> ConvNeXtV2:
    """Build and load the backbone in a file.

    Args:
        source: weights of a backbone or detector (see ``open_weights``), whose final norm and classifier are ignored; or
            ``convnextv2-atto`` etc. for a backbone with random weights.
        drop_path: stochastic depth of the last block, 0 to 1.
        num_classes: build a classifier with this many classes and a new head; None for a feature extractor.

    Returns:
        The backbone with the stages in the file, and with GRN if the file has it.

    Raises:
        WeightsError: the file is missing, cannot be read, or has no whole ConvNeXt backbone.
    """
    name = str(source)
    if name.removeprefix(PREFIX) in SIZES and name.startswith(PREFIX) and not Path(name).exists():
        return convnextv2(name.removeprefix(PREFIX), drop_path=drop_path, num_classes=num_classes)
    state = backbone_state(*open_weights(source))
    depths, dims = backbone_size(state)
    known = known_size(depths, dims)
    expansion = SIZES[known].expansion if known else EXPANSION
    encoder = ConvNeXtV2(
        depths, dims, expansion=expansion, grn=any(".grn." in key for key in state), drop_path=drop_path,
        num_classes=num_classes, out_indices=range(len(dims)),
    )  # fmt: skip
    own = encoder.state_dict()
    wanted = [key for key in own if key.startswith(("downsample_layers.", "stages."))]
    unfit = [key for key in wanted if key not in state or state[key].shape != own[key].shape]
    if unfit:
        raise WeightsError(f"{source}: {len(unfit)} tensors of its backbone are missing or misshapen, such as {unfit[0]}.")
    fill(own, {key: state[key] for key in wanted}, str(source))
    return encoder


def open_features(model: str | Path) -> OpenedModel:
    """Open a model for embeddings: anything that ``open_detector`` takes, or a backbone's weights (see ``open_weights``).

    A backbone becomes a one-row model without decoder: only ``row_maps`` can be run. It normalises images with ImageNet's
    mean and standard deviation, as published backbones do, and ours.

    Raises:
        ModelFileError: neither a shipped name, nor a readable model file.
        WeightsError: a weights file is damaged, or not a ConvNeXt V2 of a published size.
    """
    path = Path(model)
    by_name = not is_local(path) and bool(parse_name(path.as_posix()) or find_published(str(model)))
    if path.suffix.lower() in (".yaml", ".yml") or not (path.is_file() or by_name) or _is_detector(path):
        return open_detector(model)[0]
    file, identity = open_weights(model)
    size = (identity.model or "").removeprefix("convnextv2-")
    if not identity.is_backbone or size not in SIZES:
        raise WeightsError(
            f"{path}: {identity.kind} is neither a NextDETR checkpoint nor a ConvNeXt V2 backbone of a known size; "
            "a detector of another program is opened with its model file: Detector(MODEL, weights=FILE)."
        )
    name = f"convnextv2_{size}"
    backbone = convnextv2(size)
    row = RowInfo(name, -1, 1, [], (-1,), (1, 2, 3, 4), tuple(backbone.strides))
    built = DetectionModel(
        [backbone], [row], num_classes=1, text=f"backbone:\n  - [-1, 1, {name}, []]\nhead: []\n",
        image_size=BACKBONE_IMAGE_SIZE, normalize="imagenet",
    )  # fmt: skip
    report = load_into(built, (file, identity), part="backbone")
    if report.missing:
        raise WeightsError(
            f"{path}: {len(report.missing)} tensors are missing, such as {report.missing[0]}; is it complete?"
        )
    metadata = {"weights_licence": identity.licence, "source_weights": str(file.path)}
    return OpenedModel(built.eval(), [], BACKBONE_IMAGE_SIZE, str(model), metadata)


def _is_detector(path: Path) -> bool:
    """Whether a safetensors file claims to be one of our detectors; damaged ones are left to the full reader."""
    if path.suffix != ".safetensors":
        return False
    try:
        return "model" in read_metadata(path)
    except WeightsError:
        return False
