"""One vector an image: the average over all places of the map that a row yields (global average pooling).

The map of ConvNeXt V2's last stage, averaged so, is what its classifier reads before the norm (``ConvNeXtV2.forward``); it
is the usual description of a whole image for search, clustering and linear probes. Vectors are not normalised: divide each
by its length for cosine similarity.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextdetr.errors import ConfigError
from nextdetr.files import atomic_write, check_writable, path_text
from nextdetr.inference.pytorch.pooled import pool
from nextdetr.inference.sources import SourceItem, Sources, find_images, none_readable, read_ahead, reading_threads
from nextdetr.models.detection import DetectionModel
from nextdetr.pictures import kind_of
from nextdetr.preprocess import AS_EVER, Reading
from nextdetr.tensors import choose_device, resize_to_tensor

__all__ = ["Embeddings", "check_output", "check_row", "embed_images", "write_embeddings"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of several images.

    Attributes:
        model: what the user named.
        row: number of the row whose map was averaged, as ``nextdetr info`` counts.
        paths: N paths, or names of images that came from memory.
        embeddings: [N, C] float32, in the order of ``paths``; NaN for an image that could not be read.
        problems: why an image could not be read, a sentence by its position.
        skipped: what was passed over, by kind; see ``Predictor.skipped``.
    """

    model: str
    row: int
    paths: list[str]
    embeddings: NDArray[np.float32]
    problems: dict[int, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def normalized(self) -> NDArray[np.float32]:
        """Return the vectors at length 1, so that a product of two is their cosine; a vector of zeros stays as it is."""
        lengths = np.linalg.norm(self.embeddings, axis=1, keepdims=True)
        return (self.embeddings / np.where(lengths == 0, 1, lengths)).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result; an unreadable image has null for its vector, and its ``problem``."""
        images: list[dict[str, Any]] = []
        for position, (path, vector) in enumerate(zip(self.paths, self.embeddings, strict=True)):
            problem = self.problems.get(position)
            entry: dict[str, Any] = {"path": path_text(path), "embedding": None if problem else vector.tolist()}
            images.append(entry if problem is None else entry | {"problem": path_text(problem)})
        return {"model": self.model, "row": self.row, "images": images, "skipped": self.skipped}


@dataclass(frozen=True, slots=True)
class _Read:
    path: str
    tensor: Tensor | None = None
    problem: str | None = None


def check_row(model: DetectionModel, row: int | None) -> int:
    """Return the number of a row that yields maps; by default the last one of the backbone.

    Raises:
        ConfigError: there is no such row, or it is the decoder.
    """
    if row is None:
        return model.backbone_rows - 1
    with_maps = [number for number, info in enumerate(model.row_infos) if info.writes]
    if row not in with_maps:
        what = "yields boxes, no map" if 0 <= row < len(model.row_infos) else "does not exist"
        raise ConfigError(f"--row {row} {what}: choose one from 0 to {with_maps[-1]} (nextdetr info lists them).")
    return row


def embed_images(
    model: DetectionModel,
    sources: Sources,
    *,
    image_size: int,
    row: int | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    name: str = "",
    reading: Reading = AS_EVER,
    recursive: bool = False,
) -> Embeddings:
    """Describe each image by one vector.

    Images are read and run a batch at a time; only the vectors are kept. Rows behind ``row`` are not run.

    Args:
        model: a detector; only the rows up to ``row`` need to be there. It is moved to ``device`` and put into evaluation
            mode.
        sources: see :func:`nextdetr.inference.sources.find_images`.
        image_size: side of the square input in pixels, a multiple of the model's ``stride``.
        row: whose map is averaged; by default the last row of the backbone. Of a row with several maps, the last one.
        batch_size: images a step.
        device: where to run; by default the best there is.
        name: what the user called the model.
        reading: how files are read.
        recursive: whether the subfolders of folders are entered.

    Raises:
        DataError: a path does not exist, nothing was found, or not one image could be read.
        ConfigError: a setting is out of its range.
    """
    model.check_size(image_size)
    if batch_size < 1:
        raise ConfigError(f"--batch-size is at least 1, not {batch_size}.")
    number = check_row(model, row)
    target = choose_device(device)
    model.to(target).eval()
    paths: list[str] = []
    vectors: list[NDArray[np.float32] | None] = []
    problems: dict[int, str] = {}
    skipped: Counter[str] = Counter()
    items = find_images(sources, skipped=skipped, recursive=recursive)
    for batch in _batches(items, image_size, batch_size, target, reading):
        found = iter(_vectors(model, [read.tensor for read in batch if read.tensor is not None], number, target))
        for read in batch:
            if read.problem is not None:
                problems[len(paths)] = read.problem
                skipped[kind_of(read.path) or "unreadable"] += 1
                logger.warning("skipped: %s", read.problem)
            paths.append(read.path)
            vectors.append(None if read.problem is not None else next(found))
    known = next((vector for vector in vectors if vector is not None), None)
    if known is None:
        raise none_readable(list(problems.values()) or ["there is no image to look at."])
    hole = np.full_like(known, np.nan)
    return Embeddings(name, number, paths, np.stack([hole if v is None else v for v in vectors]), problems, dict(skipped))


@torch.inference_mode()
def _vectors(model: DetectionModel, tensors: list[Tensor], row: int, device: torch.device) -> NDArray[np.float32]:
    """Return [B, C] for B images [3, S, S]."""
    if not tensors:
        return np.zeros((0, 0), np.float32)
    return pool(model.row_maps(torch.stack(tensors).to(device), row)[-1])


def _batches(
    items: Iterable[SourceItem], image_size: int, batch_size: int, device: torch.device, reading: Reading
) -> Iterator[list[_Read]]:
    def read(item: SourceItem) -> _Read:
        image, problem, *_ = item.open(reading)
        return _Read(item.path, None if image is None else resize_to_tensor(image, image_size), problem)

    batch: list[_Read] = []
    for result in read_ahead(items, read, ahead=batch_size, threads=reading_threads(str(device))):
        batch.append(result)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def check_output(path: Path) -> None:
    """Raise ConfigError unless the name says how vectors are written, and WriteError if they cannot be."""
    if path.suffix.lower() not in (".npz", ".csv"):
        raise ConfigError(f"--output {path}: vectors are written as .npz (NumPy) or .csv; end the name in one of them.")
    check_writable(path)


def write_embeddings(result: Embeddings, path: str | Path) -> Path:
    """Write the vectors, whole or not at all.

    ``.npz`` holds ``embeddings`` [N, C] float32, ``paths`` [N], ``model`` and ``row``, and opens with
    ``numpy.load(allow_pickle=False)``. ``.csv`` has the columns ``path, 0, 1, …``; cells of an unreadable image are empty.
    A path that is not UTF-8 is written as ``path_text`` has it.

    Raises:
        ConfigError: the name ends in something else.
        WriteError: the file cannot be written.
    """
    path = Path(path)
    check_output(path)
    with atomic_write(path) as temporary:
        if path.suffix.lower() == ".npz":
            names = np.array([path_text(name) for name in result.paths], dtype=np.str_)
            with temporary.open("wb") as file:  # by its name, savez would add a second suffix to .NPZ
                np.savez(file, embeddings=result.embeddings, paths=names, model=result.model, row=result.row)
            return path
        with temporary.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(["path", *range(result.embeddings.shape[1])])
            for position, (name, vector) in enumerate(zip(result.paths, result.embeddings, strict=True)):
                # Nine digits bring a float32 back to the bit.
                writer.writerow(
                    [path_text(name), *("" if position in result.problems else f"{value:.9g}" for value in vector)]
                )
    return path
