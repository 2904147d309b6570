"""``RTDETR``: ultralytics' interface to RT-DETR, for models with a ConvNeXt V2 backbone too."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ultralytics.engine.model import Model
from ultralytics.models.rtdetr import RTDETR as StockRTDETR  # noqa: N811
from ultralytics.utils import DEFAULT_CFG_DICT

import nextdetr
from nextdetr.models.modelfile import available_models
from nextdetr_ultralytics.model import RTDETRConvNeXtModel, build_model
from nextdetr_ultralytics.train import RTDETRTrainer
from nextdetr_ultralytics.weights import open_detector

__all__ = ["RTDETR"]

#: The recipe's file, where there is none of this name at hand: the reference architecture on atto.
RECIPE = "rtdetr-l-convnextv2"


class RTDETR(StockRTDETR):
    """ultralytics' ``RTDETR`` with ConvNeXt V2 backbones: everything else is as it is there.

    Args:
        model: a model YAML (``rtdetr-l-ConvNeXtV2.yaml``, or any that ultralytics knows), the name of one of NextDETR's
            ``rtdetr-l-convnextv2-{atto,femto,pico,nano,tiny,base,large,huge}``, a checkpoint of ultralytics or NextDETR,
            or an exported file.
        classifier: False drops the backbone's final norm and classifier (321,640 parameters of atto), which nothing runs;
            None for what the file says, which is True if it says nothing.
        backbone_weights: file or name of the backbone's weights, see ``load_backbone``.

    Raises:
        ValueError: the options do not fit the model.
    """

    def __init__(
        self,
        model: str | Path | Model = f"{RECIPE}-atto.yaml",
        *,
        classifier: bool | None = None,
        backbone_weights: str | Path | None = None,
    ) -> None:
        self._options = {"classifier": classifier, "backbone_weights": backbone_weights}
        given = {name for name, value in self._options.items() if value is not None}
        source = model if isinstance(model, Model) else _found(str(model))
        if given and not str(source).lower().endswith((".yaml", ".yml")):
            raise ValueError(f"{' and '.join(sorted(given))}: only for a model YAML; {model} has its own.")
        super().__init__(source)
        self.__dict__.setdefault("_options", {})  # a model of ultralytics' own class shares its attributes, and has none

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """What builds and trains a detector; predictor and validator are ultralytics' own."""
        (parts,) = super().task_map.values()
        return {"detect": parts | {"model": partial(build_model, **self._options), "trainer": RTDETRTrainer}}

    def train(self, trainer: Any = None, **options: Any) -> Any:
        """Train, with ultralytics' arguments."""
        if not self.ckpt and isinstance(self.model, RTDETRConvNeXtModel):
            # A model of a YAML is built again from that file, which does not know of classifier and backbone_weights; one
            # of a checkpoint from the mapping that it has. Not pretrained: initialised again, under the training's seed.
            self.ckpt = {"model": self.model}
            options.setdefault("pretrained", False)
        return super().train(trainer, **options)

    def embed(self, source: Any = None, stream: bool = False, **options: Any) -> Any:
        """Return a vector for each image: the mean of the map with the index ``embed``, by default of the last one."""
        if not options.get("embed") and isinstance(self.model, RTDETRConvNeXtModel):
            options["embed"] = [self.model.model[-2].i]
        return super().embed(source, stream, **options)

    def _load(self, weights: str, task: str | None = None) -> None:
        """Open a checkpoint; NextDETR's, and those of the patched recipe, by NextDETR's reader."""
        found = open_detector(weights)
        if found is None:
            super()._load(weights, task)
            return
        model = build_model(found["yaml"], nc=len(found["names"]), verbose=False, load=False)
        model.load_state_dict(found["model"])
        model.names, model.task, model.pt_path = found["names"], "detect", str(weights)
        settings = DEFAULT_CFG_DICT | found["train_args"]
        self.model, self.task = model.eval(), "detect"
        self.ckpt = {"model": model, "train_args": settings}
        self.overrides = model.args = self._reset_ckpt_args(settings)
        self.overrides |= {"model": str(weights), "task": "detect"}
        self.ckpt_path = self.model_name = str(weights)


def _found(name: str) -> str:
    """Return the path of one of NextDETR's files of the recipe for its name, with ``.yaml`` or without; else the name."""
    path = Path(name)
    stem = (path.stem if path.suffix.lower() in (".yaml", ".yml") else path.name).lower()
    stem = f"{RECIPE}-atto" if stem == RECIPE else stem
    if path.exists() or not stem.startswith(RECIPE) or stem not in available_models():
        return name
    return str(Path(nextdetr.__file__).parent / "configs" / f"{stem}.yaml")
