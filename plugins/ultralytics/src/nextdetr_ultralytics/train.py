"""Training: ultralytics' own RT-DETR trainer, with models that may begin with a ConvNeXt V2 row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics.models.rtdetr.train import RTDETRTrainer as StockTrainer
from ultralytics.nn.tasks import RTDETRDetectionModel
from ultralytics.utils import RANK

from nextdetr_ultralytics.model import build_model

__all__ = ["RTDETRTrainer"]


class RTDETRTrainer(StockTrainer):
    """ultralytics' trainer of RT-DETR; only the model that it builds may be ours.

    It stands at the top of a module, so that the processes of a training on several devices find it by its name.
    """

    def get_model(
        self, cfg: str | Path | Mapping[str, Any] | None = None, weights: nn.Module | None = None, verbose: bool = True
    ) -> RTDETRDetectionModel:
        """Build the model for the data's classes, and load what is given.

        Args:
            cfg: model file, or its mapping.
            weights: a model whose tensors are taken over; without one, the weights that the backbone's row names are.
            verbose: print the table of rows.
        """
        model = build_model(
            cfg, self.data["channels"], self.data["nc"], verbose and RANK == -1, load=weights is None
        )  # fmt: skip
        model = self.set_model_names_for_load(model)  # before loading: rows of classes are carried over by these names
        if weights is not None:
            model.load(weights)
        return model
