"""Pictures of what a detector computes: the maps of each backbone stage and of each fusion level, as grids.

The maps come from the very forward pass that predicts: see ``pytorch/recorder.py``. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from nextdetr.files import atomic_write
from nextdetr.inference.feature_map import FeatureMap
from nextdetr.inference.fonts import font
from nextdetr.inference.writers.names import free_stem

if TYPE_CHECKING:
    from nextdetr.inference.predictor import Prediction

__all__ = ["draw_features", "save_features"]

#: Columns of a grid, and the side of a cell, the gap and the lines of text above it in pixels.
COLUMNS, CELL, GAP, TITLE, LABEL = 6, 160, 6, 30, 18
#: Shares of a map's values that are drawn as the darkest and the brightest colour: a single peak must not hide the rest.
LOW, HIGH = 1.0, 99.0


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
    unreadable image leaves none. For an image in tiles, the maps of the whole view are drawn.

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
