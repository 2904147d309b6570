"""Where the decoder reads: the points of its deformable attention, drawn around the most confident detections.

Deformable DETR, arXiv 2010.04159, section 4.1 and figure 6 of its appendix; RT-DETR, arXiv 2304.08069, has it too. Each
query reads a few points of each feature map, placed relative to the box that it has so far. A point's weight is its share
in what the query reads: a softmax over the points of a head, averaged over the heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from nextdetr.array_boxes import cxcywh_to_xyxy
from nextdetr.errors import ConfigError, DataError
from nextdetr.files import atomic_write, path_text
from nextdetr.inference.drawing import COLOURS
from nextdetr.inference.exported import OpenedExport
from nextdetr.inference.fonts import font, legible
from nextdetr.inference.opened import Settled
from nextdetr.inference.sources import Sources, find_images
from nextdetr.inference.writers.names import free_stem
from nextdetr.layers.deformable import MSDeformableAttention
from nextdetr.models.detection import DetectionModel
from nextdetr.tensors import as_outputs, resize_to_tensor

__all__ = ["AttentionPicture", "ReadPoints", "analyze_attention", "draw_points", "read_points"]

#: Panels in a row, the longer side of a panel, and the height of the line above it, in pixels.
COLUMNS, SIDE, TITLE = 3, 420, 22
#: Colours of the maps, finest first; they start over after the last.
LEVELS = ("#ffd600", "#ff2d95", "#00d5d5", "#a4de02")


@dataclass(frozen=True, slots=True)
class ReadPoints:
    """Where the query of one detection read in one layer of the decoder.

    Attributes:
        box: [4] float32, xyxy in pixels of the image.
        score: confidence, 0 to 1.
        label: index of the class.
        points: [K, 2] float32, (x, y) in pixels of the image; some may lie outside it, where only zeros are read.
        weights: [K] float32, which sum to 1.
        levels: [K] int64, the map of each point, 0 the finest.
    """

    box: NDArray[np.float32]
    score: float
    label: int
    points: NDArray[np.float32]
    weights: NDArray[np.float32]
    levels: NDArray[np.int64]

    def shares(self) -> list[float]:
        """Return the share of each map in what was read; they sum to 1."""
        return [float(self.weights[self.levels == level].sum()) for level in np.unique(self.levels)]


@dataclass(frozen=True, slots=True)
class AttentionPicture:
    """What was drawn of one image.

    Attributes:
        path: the image.
        picture: the file that was written.
        layer: the decoder layer, from 1.
        detections: most confident first.
    """

    path: str
    picture: Path
    layer: int
    detections: list[ReadPoints]

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the JSON result; without the points themselves, of which there are hundreds."""
        found = [
            {
                "class": classes[read.label], "confidence": round(read.score, 4), "box": read.box.round(2).tolist(),
                "shares": [round(share, 4) for share in read.shares()],
            }
            for read in self.detections
        ]  # fmt: skip
        return {"path": path_text(self.path), "picture": str(self.picture), "layer": self.layer, "detections": found}


class _Reads:
    """The calls of deformable attention in one forward pass, in the order of the decoder's layers."""

    def __init__(self) -> None:
        self.places: list[tuple[Tensor, Tensor, Sequence[int]]] = []

    def wrap(self, attention: MSDeformableAttention) -> Any:
        """Return a ``sample`` that notes where it reads."""
        plain = attention.sample

        def sample(value: Tensor, shapes: Any, locations: Tensor, weights: Tensor, points: Sequence[int]) -> Tensor:
            self.places.append((locations, weights, points))
            return plain(value, shapes, locations, weights, points)

        return sample


@contextmanager
def _watching(model: nn.Module) -> Iterator[_Reads]:
    reads = _Reads()
    modules = [module for module in model.modules() if isinstance(module, MSDeformableAttention)]
    for module in modules:
        module.sample = reads.wrap(module)  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        for module in modules:
            del module.sample


@torch.inference_mode()
def read_points(
    model: DetectionModel,
    image: Image.Image,
    *,
    image_size: int,
    device: str | torch.device = "cpu",
    most: int = 6,
    layer: int | None = None,
) -> tuple[int, list[ReadPoints]]:
    """Detect in one image, and return where the queries of the best detections read.

    Args:
        model: the detector, on ``device`` and in evaluation mode.
        image: RGB.
        image_size: side of the square input in pixels.
        device: where to run.
        most: detections, the most confident; one for each query.
        layer: of the decoder, from 1; by default the last that runs.

    Returns:
        The number of the layer, and the detections, most confident first.

    Raises:
        ConfigError: the decoder has no such layer.
    """
    tensor = resize_to_tensor(image, image_size).unsqueeze(0).to(device)
    with _watching(model) as reads:
        output = as_outputs(model(tensor))
    count = len(reads.places)
    number = count if layer is None else layer
    if not 1 <= number <= count:
        raise ConfigError(f"--layer {number}: this decoder runs {count} layers; choose one from 1 to {count}.")
    locations, weights, points = reads.places[number - 1]
    heads = locations.shape[2]
    extent = np.array(image.size, np.float32)
    levels = np.tile(np.repeat(np.arange(len(points)), points), heads)  # [heads * K]
    logits, boxes = output.logits[0], cxcywh_to_xyxy(output.boxes[0]).clip(0, 1) * np.tile(extent, 2)
    best = np.argsort(-logits.max(axis=1), kind="stable")[:most]
    return number, [
        ReadPoints(
            box=boxes[query], score=float(1 / (1 + np.exp(-logits[query].max()))), label=int(logits[query].argmax()),
            points=locations[0, query].reshape(-1, 2).float().cpu().numpy() * extent,
            weights=(weights[0, query].flatten() / heads).float().cpu().numpy(), levels=levels,
        )
        for query in best
    ]  # fmt: skip


def draw_points(
    image: Image.Image, reads: Sequence[ReadPoints], classes: Sequence[str], strides: Sequence[int]
) -> Image.Image:
    """Draw a panel for each detection: its box, and the points that its query read, larger where they count more.

    Args:
        image: RGB, what the detections are of.
        reads: at least one.
        classes: class names by index.
        strides: of the maps, finest first, for the line above each panel.

    Returns:
        The picture, RGB.
    """
    factor = SIDE / max(image.size)
    width, height = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    # Grey and paler than it is, so that the points stand out.
    pale = Image.blend(
        image.convert("L").convert("RGB").resize((width, height)), Image.new("RGB", (width, height), "white"), 0.3
    )
    across = min(COLUMNS, len(reads))
    picture = Image.new("RGB", (across * width, -(-len(reads) // COLUMNS) * (height + TITLE)), "white")
    draw = ImageDraw.Draw(picture)
    for number, read in enumerate(reads):
        left, upper = number % COLUMNS * width, number // COLUMNS * (height + TITLE)
        picture.paste(_panel(pale, read, factor), (left, upper + TITLE))
        x = left + 6.0
        name = legible(classes[read.label], f"class {read.label}")
        for text, colour in _legend(f"{name} {read.score:.2f}", read, strides):
            if colour is not None:
                draw.ellipse((x, upper + 7, x + 8, upper + 15), fill=colour, outline="black")
                x += 12
            draw.text((x, upper + 4), text, fill="black", font=font(12))
            x += draw.textlength(text, font=font(12)) + 12
    return picture


def _panel(pale: Image.Image, read: ReadPoints, factor: float) -> Image.Image:
    """One detection's points over its image; the heaviest are drawn last."""
    panel = pale.copy()
    draw = ImageDraw.Draw(panel)
    draw.rectangle(tuple(read.box * factor), outline=COLOURS[read.label % len(COLOURS)], width=2)
    largest = read.weights.max()
    for index in np.argsort(read.weights, kind="stable"):
        x, y = read.points[index] * factor
        radius = 1 + 3.5 * float(read.weights[index] / largest) ** 0.5  # the area goes with the weight
        colour = LEVELS[read.levels[index] % len(LEVELS)]
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="black")
    return panel


def _legend(title: str, read: ReadPoints, strides: Sequence[int]) -> Iterator[tuple[str, str | None]]:
    """Yield the texts above a panel, and the colour of the dot before each."""
    yield title, None
    for level, share in enumerate(read.shares()):
        yield f"stride {strides[level]}: {share:.0%}", LEVELS[level % len(LEVELS)]


def analyze_attention(
    settled: Settled,
    sources: Sources,
    *,
    output: str | Path,
    detections: int = 6,
    layer: int | None = None,
) -> Iterator[AttentionPicture]:
    """Write a picture for each image: where the decoder read for its most confident detections.

    Args:
        settled: the detector, from ``settle``.
        sources: see :func:`nextdetr.inference.sources.find_images`.
        output: folder for ``<stem>.png``, made if need be.
        detections: how many an image.
        layer: of the decoder, from 1; by default the last that runs.

    Raises:
        ConfigError: an exported file, in which no layer can be watched, or see :func:`read_points`.
        DataError: an image cannot be read.
    """
    opened = settled.opened
    if isinstance(opened, OpenedExport):
        raise ConfigError(
            f"{opened.source}: an exported file shows no attention; name the checkpoint that it was made from."
        )
    if detections < 1:
        raise ConfigError(f"--detections is at least 1, not {detections}.")
    strides = opened.model.row_infos[-1].strides_read
    taken: set[str] = set()
    for item in find_images(sources):
        image, problem = item.open(settled.reading)[:2]
        if image is None:
            raise DataError(str(problem))
        number, reads = read_points(
            opened.model, image, image_size=settled.image_size, device=settled.device, most=detections, layer=layer
        )
        path = Path(output) / f"{free_stem(item.path, taken)}.png"
        with atomic_write(path) as temporary:
            draw_points(image, reads, opened.classes, strides).save(temporary, format="PNG")
        yield AttentionPicture(item.path, path, number, reads)
