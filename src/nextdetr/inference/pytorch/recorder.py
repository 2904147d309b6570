"""Looking on at a forward pass for the pictures of ``features``: hooks keep of each map only what is drawn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from nextdetr.inference.feature_map import FeatureMap
from nextdetr.models.detection import DetectionModel

__all__ = ["FeatureRecorder"]

MOST_CHANNELS = 16  # that are kept of a map
_Latest = dict[int, tuple[int, Tensor]]  # index of a map -> row and map, of the current pass


class FeatureRecorder:
    """Looks on while a detector runs, and keeps what is to be drawn of each image.

    Drawn are the last map of each stride of the backbone's rows, and the maps that the decoder reads. Other threads may use
    the same detector meanwhile: only the thread that watches is looked at.

    Args:
        model: the detector.
        most: channels to keep of a map.
    """

    def __init__(self, model: DetectionModel, most: int = MOST_CHANNELS) -> None:
        self.model = model
        self.most = most
        self._rows_of_backbone = model.backbone_rows
        self._levels = model.row_infos[-1].reads

    @contextmanager
    def watch(self) -> Iterator[list[list[FeatureMap]]]:
        """Look on at what the model does inside the ``with``, in this thread.

        Yields:
            a list to which each forward pass adds an entry for each of its images: stages, then levels, the finest first.
        """
        images: list[list[FeatureMap]] = []
        latest: _Latest = {}
        thread = threading.get_ident()
        with ExitStack() as hooks:
            for number, (row, info) in enumerate(zip(self.model.rows, self.model.row_infos, strict=True)):
                if number < self._rows_of_backbone or set(info.writes) & set(self._levels):
                    hooks.callback(row.register_forward_hook(self._keeper(number, latest, thread)).remove)
            hooks.callback(self.model.register_forward_hook(self._finisher(latest, images, thread)).remove)
            yield images

    def _keeper(self, number: int, latest: _Latest, thread: int) -> Any:
        writes = self.model.row_infos[number].writes
        stages = number < self._rows_of_backbone

        def keep(row: nn.Module, inputs: Any, result: Tensor | list[Tensor]) -> None:
            if threading.get_ident() != thread:
                return
            for index, features in zip(writes, result if isinstance(result, list) else [result], strict=True):
                if stages:  # a later map of the same stride takes the place of an earlier one that no level needs
                    same = [i for i, (_, f) in latest.items() if f.shape[2:] == features.shape[2:]]
                    for earlier in set(same) - set(self._levels):
                        del latest[earlier]
                latest[index] = (number, features)

        return keep

    def _finisher(self, latest: _Latest, images: list[list[FeatureMap]], thread: int) -> Any:
        def finish(model: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            if threading.get_ident() == thread:
                images.extend(self._of_images(inputs[0], latest))
                latest.clear()

        return finish

    def _of_images(self, inputs: Tensor, latest: _Latest) -> list[list[FeatureMap]]:
        size = inputs.shape[-1]
        finest: dict[int, int] = {}  # stride -> index of the backbone's last map of it
        for index, (row, features) in latest.items():
            if row < self._rows_of_backbone:
                finest[size // features.shape[-1]] = index
        shown = [("stage", number, finest[stride]) for number, stride in enumerate(sorted(finest), start=1)]
        shown += [("level", number, index) for number, index in enumerate(self._levels, start=1)]
        return [
            [self._reduced(kind, number, *latest[index], image, size) for kind, number, index in shown]
            for image in range(inputs.shape[0])
        ]

    def _reduced(self, kind: str, position: int, row: int, features: Tensor, image: int, size: int) -> FeatureMap:
        values = features[image].detach().float()  # [C, H, W]
        variance = values.flatten(1).var(dim=1, correction=0)
        chosen = variance.topk(min(self.most, len(variance))).indices
        return FeatureMap(
            kind, position, row, self.model.row_infos[row].name, size // values.shape[-1], len(values), chosen.tolist(),
            values[chosen].cpu().numpy(), values.mean(dim=0).cpu().numpy(),
        )  # fmt: skip
