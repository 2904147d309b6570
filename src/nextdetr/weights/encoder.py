"""A backbone by itself, from weights of any known layout or as initialised."""

from __future__ import annotations

from pathlib import Path

from nextdetr.errors import WeightsError
from nextdetr.models.convnextv2 import SIZES, ConvNeXtV2, convnextv2
from nextdetr.weights.convert import backbone_state
from nextdetr.weights.load import open_weights
from nextdetr.weights.sizes import backbone_size

__all__ = ["open_encoder"]

PREFIX = "convnextv2-"


def open_encoder(source: str | Path, *, drop_path: float = 0.0, num_classes: int | None = None) -> ConvNeXtV2:
    """Build the backbone that a file holds, and load it.

    Args:
        source: a backbone's or detector's weights of any known layout, whose final norm and classifier are left out; or
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
    encoder = ConvNeXtV2(
        depths, dims, grn=any(".grn." in key for key in state), drop_path=drop_path, num_classes=num_classes,
        out_indices=range(len(dims)),
    )  # fmt: skip
    own = encoder.state_dict()
    wanted = [key for key in own if key.startswith(("downsample_layers.", "stages."))]
    unfit = [key for key in wanted if key not in state or state[key].shape != own[key].shape]
    if unfit:
        raise WeightsError(f"{source}: {len(unfit)} tensors of its backbone are missing or misshapen, such as {unfit[0]}.")
    encoder.load_state_dict({key: state[key] for key in wanted}, strict=False)
    return encoder
