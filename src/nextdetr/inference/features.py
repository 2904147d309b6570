"""Pictures of what a detector computes: the maps of each backbone stage and of each fusion level, as grids.

The maps come from the very forward pass that predicts: hooks look on, and keep of each map only what is drawn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from nextdetr.files import atomic_write
from nextdetr.inference.fonts import font
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.names import free_stem
from nextdetr.models.detection import DetectionModel

_Latest = dict[int, tuple[int, Tensor]]  # index of a map -> row and map, of the pass under way

__all__ = ["FeatureMap", "FeatureRecorder", "draw_features", "save_features"]

#: Channels in a grid, columns, and the side of a cell, the gap and the lines of text above it in pixels.
MOST_CHANNELS, COLUMNS, CELL, GAP, TITLE, LABEL = 16, 6, 160, 6, 30, 18
#: Shares of a map's values that are drawn as the darkest and the brightest colour: a single peak must not hide the rest.
LOW, HIGH = 1.0, 99.0


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """What is drawn of one map of one image.

    Attributes:
        kind: ``stage`` (of the backbone) or ``level`` (of the fusion: what the decoder reads).
        position: of the stage or level, from 1, the finest first.
        row: number of the row that yields it.
        name: the row's name.
        stride: pixels of the input that a place of the map stands for.
        channels: C, of which ``chosen`` are drawn.
        chosen: indices of the channels of highest variance over the map's places, the highest first.
        maps: [len(chosen), H, W] float32, their values.
        mean: [H, W] float32, the mean over all C channels.
    """

    kind: str
    position: int
    row: int
    name: str
    stride: int
    channels: int
    chosen: list[int]
    maps: NDArray[np.float32]
    mean: NDArray[np.float32]

    @property
    def title(self) -> str:
        """What stands above the grid."""
        kind = f"backbone stage {self.position}" if self.kind == "stage" else f"fusion level {self.position}"
        height, width = self.mean.shape
        return (
            f"{kind}: row {self.row} {self.name}, stride {self.stride}, {self.channels} channels, {width} x {height} places"
        )


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


def draw_features(features: FeatureMap, image: Image.Image | None = None) -> Image.Image:
    """Draw one map as a grid: the image, the mean of all channels, then the channels of highest variance.

    Each cell has colours of its own, from its 1st to its 99th percentile; places are drawn as squares, not smoothed. Cells
    have the image's shape, as the model sees it stretched to a square.

    Args:
        features: what to draw.
        image: the image, RGB, for the first cell; None leaves it out.

    Returns:
        The picture, RGB.
    """
    width, height = (CELL, CELL) if image is None else _fitted(image.size)
    cells = [] if image is None else [("image", image.resize((width, height), Image.Resampling.LANCZOS))]
    cells.append(("mean of all channels", _coloured(features.mean, width, height)))
    cells += [
        (f"channel {number}", _coloured(values, width, height))
        for number, values in zip(features.chosen, features.maps, strict=True)
    ]
    rows = -(-len(cells) // COLUMNS)
    across = min(COLUMNS, len(cells))
    size = (max(across * (width + GAP) + GAP, 5 * CELL), TITLE + rows * (height + LABEL + GAP) + GAP)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, 8), features.title, fill="black", font=font(14))
    for number, (label, cell) in enumerate(cells):
        x, y = GAP + number % COLUMNS * (width + GAP), TITLE + number // COLUMNS * (height + LABEL + GAP)
        draw.text((x, y + 1), label, fill="#444444", font=font(11))
        picture.paste(cell, (x, y + LABEL))
    return picture


def save_features(predictions: Iterable[Prediction], output: str | Path) -> Iterator[Prediction]:
    """Pass predictions on, and write the pictures of each image as it comes.

    Under ``output``: ``<stem>/stage-1-row-0.png``, … and ``<stem>/level-1-row-12.png``, …, a folder for each image. An
    unreadable image leaves none. Of an image in tiles, the maps of its view as a whole are drawn.

    Args:
        predictions: from a ``Predictor`` with a recorder.
        output: folder, made if need be.
    """
    taken: set[str] = set()
    for prediction in predictions:
        if prediction.maps is not None:
            folder = Path(output) / free_stem(prediction.path, taken)
            for features in prediction.maps:
                name = f"{features.kind}-{features.position}-row-{features.row}.png"
                with atomic_write(folder / name) as temporary:
                    draw_features(features, prediction.image).save(temporary, format="PNG")
        yield prediction


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height in pixels of a cell of the image's shape, with room for its label; very long images are cut."""
    factor = max(CELL / max(size), 0.75 * CELL / min(size))
    return min(3 * CELL, round(size[0] * factor)), min(3 * CELL, round(size[1] * factor))


def _coloured(values: NDArray[np.float32], width: int, height: int) -> Image.Image:
    low, high = np.percentile(values, [LOW, HIGH])
    if high <= low:  # fewer places than a hundredth, or all but a few the same
        low, high = float(values.min()), float(values.max())
    scaled = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    pixels = (mpl.colormaps["viridis"](scaled)[..., :3] * 255).round().astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
