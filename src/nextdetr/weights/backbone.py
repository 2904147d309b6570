"""A backbone by itself, from weights of any known layout: as an encoder, or as a model of one row that describes images."""

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
#: What the published backbones, and ours, are trained at.
BACKBONE_IMAGE_SIZE = 224


def open_encoder(source: str | Path, *, drop_path: float = 0.0, num_classes: int | None = None) -> ConvNeXtV2:
    """Build the backbone that a file holds, and load it.

    Args:
        source: a backbone's or detector's weights (see ``open_weights``), whose final norm and classifier are left out; or
            ``convnextv2-atto`` and the like for a backbone with random weights.
        drop_path: stochastic depth of the last block, 0 to 1.
        num_classes: build a classifier of so many classes, with a new head; None for a feature extractor.

    Returns:
        The backbone, with GRN if the file has it. It has the stages that the file has.

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
    """Open what can describe images: all that ``open_detector`` takes, and a backbone's weights (see ``open_weights``).

    A backbone alone becomes a model of one row, which has no decoder: it can only run ``row_maps``. It takes images with
    ImageNet's mean and deviation, as published backbones do, and ours.

    Raises:
        ModelFileError: neither a shipped name, nor a readable model file.
        WeightsError: a weights file is damaged, or no ConvNeXt V2 of a published size.
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
    """Whether a safetensors file says that it is a detector of ours; damaged ones are left to who reads them whole."""
    if path.suffix != ".safetensors":
        return False
    try:
        return "model" in read_metadata(path)
    except WeightsError:
        return False
