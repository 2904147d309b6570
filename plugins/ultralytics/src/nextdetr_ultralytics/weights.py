"""Weights of other programs, by NextDETR's reader, which runs nothing in a file: backbones, and whole detectors."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.utils import LOGGER

from nextdetr.errors import WeightsError
from nextdetr.weights.convert import backbone_state, ultralytics_checkpoint
from nextdetr.weights.load import open_weights
from nextdetr.weights.reader import read_tensors

__all__ = ["load_backbone", "open_detector"]


def load_backbone(backbone: nn.Module, source: str | Path, *, beside: str | Path | None = None) -> None:
    """Load a backbone's weights, and the classifier if both have one.

    Args:
        backbone: a ``ConvNeXtV2``.
        source: a file of any layout that NextDETR knows (original, timm, transformers, FCMAE, its own, a detector's), or a
            name: of ``nextdetr weights list``, or ``owner/name`` of the Hugging Face Hub.
        beside: the model file, to whose folder a relative path belongs; where there is no such file, the working folder.

    Raises:
        WeightsError: the file is missing, damaged, or of another size.
    """
    near = Path(beside).parent / source if beside else Path(source)
    file, identity = open_weights(near if near.exists() else source)
    state, own = backbone_state(file, identity), backbone.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    # A V1 backbone has no GRN, which is the identity at zero; a feature extractor has no classifier.
    optional = re.compile(r"norm\.|head\.|.*\.grn\.")
    missing = [name for name in own if name not in fitting and not optional.match(name)]
    if missing:
        raise WeightsError(
            f"{source}: {len(missing)} tensors of the backbone are missing in it or have another shape (such as "
            f"{missing[0]}): it is a {identity.size}."
        )
    backbone.load_state_dict(fitting, strict=False)
    LOGGER.info(
        f"{source}: {len(fitting)} of the backbone's {len(own)} tensors loaded; licence of the weights: {identity.licence}."
    )


def open_detector(path: str | Path) -> dict[str, Any] | None:
    """Return a detector that ultralytics cannot open by itself, as entries of one of its checkpoints.

    Those are NextDETR's checkpoints, what ``nextdetr weights convert --to ultralytics`` writes, and checkpoints of the
    recipe's patched source, whose classes are in no installed package.

    Returns:
        ``model`` (state dict), ``yaml``, ``names`` and ``train_args``; None for what ultralytics opens by itself.

    Raises:
        WeightsError: a safetensors file is damaged, or its model has rows that ultralytics does not have.
    """
    path = Path(path)
    if path.suffix.lower() not in (".safetensors", ".pt", ".pth") or not path.is_file():
        return None
    try:
        extra = read_tensors(path).extra
    except WeightsError:
        if path.suffix.lower() == ".safetensors":
            raise
        return None  # ultralytics may open it, or says why not
    if "pickled_class" in extra and all(map(_is_there, extra["stubs"])):
        return None
    return ultralytics_checkpoint(path)


def _is_there(name: str) -> bool:
    """Whether a pickle's class can be imported, as far as it is one of ultralytics' or of this package."""
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] not in ("ultralytics", "nextdetr_ultralytics"):
        return True
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False
