"""What the recipe needs to know of a run's model before it is built."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, lru_cache

from nextdetr.config import TrainConfig
from nextdetr.engine.fine_tune import FineTuning
from nextdetr.engine.recipe_length import COST
from nextdetr.engine.statistics import Machine
from nextdetr.models.graph import available_models, build_skeleton, load_model_file, parse_model_text, with_memory
from nextdetr.models.modelfile import ModelFile
from nextdetr.models.summary import gflop_near
from nextdetr.weights.checkpoint import read_detector_metadata
from nextdetr.weights.layouts.table import Identity
from nextdetr.weights.reader import WeightsFile
from nextdetr.weights.start import resolve_model

__all__ = ["gflop_of", "stride_of", "with_image_size"]


def stride_of(model: str) -> int:
    """Return the largest stride of the run's model, by building no more than its model file asks for."""
    return 32 if model in available_models() else _facts(model).stride


def gflop_of(config: TrainConfig, machine: Machine, tuning: FineTuning | None) -> float | None:
    """Return the cost of the run's model for an image at 320 px; None on a GPU, or if the recipe knows its cost.

    Args:
        config: the settings.
        machine: the machine of the run.
        tuning: consequences of the detector to start from, if any.
    """
    model = _model(config, tuning)
    network = tuning.model if tuning is not None and model.endswith(".safetensors") else None
    if machine.device != "cpu" or (network or model) in COST:
        return None
    return _facts(model).gflop


def with_image_size(tuning: FineTuning, file: WeightsFile, identity: Identity, config: TrainConfig) -> FineTuning:
    """Return the consequences of a start from the detector ``file`` with the image size that the run then has."""
    stated = file.metadata.get("image_size", "") if identity.kind == "nextdetr-detector" else ""
    if stated.isdecimal() and len(stated) < 6:  # checked when it is loaded
        return replace(tuning, image_size=int(stated))
    return replace(tuning, image_size=_facts(_model(config, tuning)).image_size, size_is_trained=False)


def _model(config: TrainConfig, tuning: FineTuning | None) -> str:
    """Return the run's model: that of the weights if the user leaves it open, as in the recipe."""
    own = None if tuning is None or "model" in config.model_fields_set else tuning.model
    return own if own is not None and own in available_models() else config.model


def _facts(model: str) -> _Facts:
    model = model if model in available_models() else str(resolve_model(model))
    if model.endswith(".safetensors"):
        return _facts_of(read_detector_metadata(model)["model"], model)
    file = load_model_file(model)
    return _facts_of(file.text, file.source)


class _Facts:
    """What is known of a model by building it once, on the meta device.

    Args:
        file: its model file.

    Attributes:
        stride: the largest stride of its maps.
        image_size: side of its square input, pixels.
    """

    def __init__(self, file: ModelFile) -> None:
        self._skeleton = build_skeleton(file)
        self.stride, self.image_size = self._skeleton.stride, self._skeleton.image_size

    @cached_property
    def gflop(self) -> float:
        """Cost of an image at 320 px."""
        allocated = with_memory(self._skeleton)  # some models cannot run on the meta device
        for tensor in allocated.state_dict().values():
            tensor.zero_()  # the values do not matter, but uninitialised memory may hold NaN
        cost = gflop_near(allocated, 320)
        del self._skeleton  # it has memory now
        return cost


@lru_cache(maxsize=1)
def _facts_of(text: str, source: str) -> _Facts:
    """Build a model, unless it is the one that was asked for last: setting up a run asks several times."""
    return _Facts(parse_model_text(text, source))
