"""The same predictions over Ray Data: workers read, detect and hand back rows; the table is written where it was asked for.

Each worker opens the model by its path, so that path and the images' paths must mean the same on all machines. Rows come in
the order in which they are done. https://docs.ray.io/en/latest/data/batch_inference.html
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nextdetr.config import PredictConfig
from nextdetr.errors import ConfigError, DataError, missing_extra
from nextdetr.files import is_local
from nextdetr.inference.look import look, settings_of
from nextdetr.inference.objects import Objects
from nextdetr.inference.opened import settle
from nextdetr.inference.predictor import Prediction, tell_unreadable

__all__ = ["stream_on_ray"]


def stream_on_ray(
    paths: Iterable[str], opens: Mapping[str, Any], config: PredictConfig, skipped: Counter[str] | None = None
) -> Iterator[Prediction]:
    """Yield a prediction for each image, as it is done, without the image itself.

    Args:
        paths: of the images.
        opens: how a worker opens the model: the arguments of ``open_any``; ``model`` is a file or folder.
        config: the settings; ``workers`` processes share the work, on the cluster that ``RAY_ADDRESS`` names, or here.
        skipped: counts what cannot be read.

    Raises:
        ConfigError: ray is not installed, or the model is no file.
        DataError: not one image can be read.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "ray", "--engine ray") from error
    if not Path(opens["model"]).exists():
        raise ConfigError(
            f"--engine ray opens the model on each worker: name a checkpoint or an exported file, not {opens['model']}."
        )
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    paths_of = {name: opens.get(name) for name in ("model", "weights", "backbone_weights")}
    here = {name: str(Path(path).absolute()) for name, path in paths_of.items() if path is not None and is_local(path)}
    absolute = {**opens, **here}
    return _collect(ray, list(paths), absolute, config, skipped)


def _collect(
    ray: Any, paths: list[str], opens: dict[str, Any], config: PredictConfig, skipped: Counter[str] | None
) -> Iterator[Prediction]:
    if not paths:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Links stay links, as a file's ending says what it is, and those of the Hub's cache lead to names without one.
    # Bytes, since Arrow's text is UTF-8, and names need not be; a row a name, also where two names lead to one file.
    items = [{"path": os.fsencode(Path(path).absolute()), "given": os.fsencode(path)} for path in paths]
    rows = ray.data.from_items(items, override_num_blocks=_blocks(len(paths), config))
    rows = rows.map_batches(
        _Worker, fn_constructor_args=(opens, config.model_dump()), batch_size=config.batch_size,
        concurrency=min(config.workers, len(paths)),
    )  # fmt: skip
    found = (_prediction(json.loads(row["row"]), os.fsdecode(bytes(row["given"]))) for row in rows.iter_rows())
    yield from tell_unreadable(found, skipped)


def _blocks(images: int, config: PredictConfig) -> int:
    """Pieces of the work: several a worker, so that none waits long for the others, of at least a batch."""
    return max(1, min(images // config.batch_size, max(8 * config.workers, images // 10_000)))


class _Worker:
    """Opens the model once and looks at batches of images."""

    def __init__(self, opens: dict[str, Any], settings: dict[str, Any]) -> None:
        from nextdetr.inference.exported import open_any

        self.config = PredictConfig.model_validate(settings)
        config = self.config
        self.predictor = settle(
            open_any(**opens)[0], device=config.device, image_size=config.image_size, bits=config.bits,
            max_pixels=config.max_pixels, tiled=config.tile is not None, latency=config.latency,
            latency_of=config.latency_of,
        ).predictor()  # fmt: skip

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        paths = [os.fsdecode(bytes(path)) for path in batch["path"]]
        rows: list[str] = []
        try:
            found = look(self.predictor, paths, self.config, settings_of(self.config))
            rows.extend(json.dumps(prediction.to_json()) for prediction in found)
        except DataError:  # raised at the end where none of them can be read, each of which has its row by then
            if len(rows) < len(paths):
                raise
        return {"row": rows, "given": [bytes(path) for path in batch["given"]]}


def _prediction(row: Mapping[str, Any], path: str) -> Prediction:
    found = row["detections"]
    objects = Objects(
        xyxy=np.array([item["box"] for item in found], np.float32).reshape(-1, 4),
        confidence=np.array([item["confidence"] for item in found], np.float32),
        class_id=np.array([item["class_id"] for item in found], np.int64),
        data={"class_name": np.array([item["class_name"] for item in found], dtype=str)},
    )
    return Prediction(
        path, row["width"], row["height"], objects, problem=row.get("problem"), unlikeness=row.get("unlikeness")
    )  # fmt: skip
