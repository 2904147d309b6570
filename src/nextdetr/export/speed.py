"""Time settings of a detector as deployed: exported, in the faster of the installed runtimes."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from nextdetr.config import ExportConfig
from nextdetr.errors import ExportError, ModelFileError
from nextdetr.export.run import write_graph
from nextdetr.extras import is_installed
from nextdetr.inference.exported import open_export
from nextdetr.inference.pytorch.latency import eager_point, steady_ms
from nextdetr.inference.runtimes import possible_runtimes
from nextdetr.inference.speed import Setting, SpeedPoint, processor_name, read_table
from nextdetr.inference.times import Meter
from nextdetr.models.cut import choices, possible_queries, whole_queries
from nextdetr.weights.checkpoint import OpenedModel

__all__ = ["meter", "points_of", "time_file"]

logger = logging.getLogger(__name__)

GRID = (0.5, 0.75, 1.0, 1.25)  # relative image sizes to measure for a model without a table


def meter(threads: int | None = None) -> Meter:
    """Return a function that times a setting in milliseconds per image, batch 1, float32.

    The graph is exported to ONNX and opened in each installed runtime; the faster one counts. If none is installed, or the
    model cannot be exported, PyTorch is timed.

    Args:
        threads: threads of the runtime; by default as many as PyTorch uses.
    """

    def measure(opened: OpenedModel, setting: Setting) -> SpeedPoint:
        before = torch.get_num_threads()
        count = threads or before
        torch.set_num_threads(count)
        try:
            return _exported_point(opened, setting, count) or eager_point(opened, setting)
        except (ExportError, ModelFileError) as error:
            logger.warning("%s PyTorch is measured instead.", error)
            return eager_point(opened, setting)
        finally:
            torch.set_num_threads(before)

    return measure


def _exported_point(opened: OpenedModel, setting: Setting, threads: int) -> SpeedPoint | None:
    """Time in the faster runtime; None if none is installed."""
    if not possible_runtimes(Path("model.onnx")) or not all(is_installed(name) for name in ("onnx", "onnxscript")):
        return None
    size, queries, layers = setting
    config = ExportConfig(image_size=size, queries=queries, decoder_layers=layers)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows cannot delete an open file
        path = Path(folder) / "model.onnx"
        write_graph(opened, config, path)
        return time_file(path, setting, threads)


def time_file(path: Path, setting: Setting, threads: int) -> SpeedPoint:
    """Time an ONNX file of a setting in each installed runtime, and return the faster one's point."""
    taken: dict[str, float] = {}
    image = np.random.default_rng(0).random((1, 3, setting.image_size, setting.image_size), dtype=np.float32)
    for name in possible_runtimes(path):
        model = open_export(path, threads=threads, runtime=name).model
        taken[name] = steady_ms(partial(model, image))
        del model
    fastest = min(taken, key=lambda name: taken[name])
    return SpeedPoint(*setting, None, taken[fastest], fastest, processor_name(), threads, True)


def points_of(
    opened: OpenedModel, *, again: bool, threads: int, tell: Callable[[str], None], measure: Meter | None = None
) -> list[SpeedPoint]:
    """Return the points of a detector's speed table, measured here; without ``again``, the stored ones.

    A detector without a table has none unless ``again``: then a grid is measured, from which others can be estimated.

    Args:
        opened: the detector.
        again: measure them.
        threads: threads of the runtime.
        tell: called with a line before each measurement.
        measure: times a setting; by default ``meter``.
    """
    table = read_table(opened.metadata, opened.source)
    if not again:
        return [] if table is None else list(table.points)
    known = {} if table is None else {point.setting: point.AP for point in table.points}
    measure = measure or meter(threads)
    points = []
    for setting in known or _grid(opened):
        tell(f"measuring {setting.text}")
        points.append(replace(measure(opened, setting), AP=known.get(setting)))
    return points


def _grid(opened: OpenedModel) -> list[Setting]:
    (queries, layers), step = choices(opened.model), opened.model.stride
    sizes = sorted({max(1, round(share * opened.image_size / step)) * step for share in GRID})
    whole = whole_queries(opened.model)
    ends = dict.fromkeys(((queries[0], layers[0]), (whole, layers[-1])))
    return [Setting(size, possible_queries(opened.model, size, number), count) for size in sizes for number, count in ends]
