"""Build a ``DetectionModel`` from a model file; the only place that does."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nextdetr.errors import ConfigError
from nextdetr.layers.conv import BATCH_NORM_EPS
from nextdetr.models.detection import DetectionModel, RowInfo
from nextdetr.models.modelfile import ModelFile, Row, available_models, load_model_file, parse_model_text
from nextdetr.models.rows import DECODERS, LAYERS, Built, RowContext, RowError
from nextdetr.models.sizes import nearest_size, size_problem

__all__ = [
    "BackboneLoader", "available_models", "build_model", "build_skeleton", "load_model_file", "parse_model_text",
    "skip_backbone", "with_memory",
]  # fmt: skip

IMAGE = -1  # index of the image in the list of maps
# Generous limits that keep a typo from filling the memory.
MOST_REPEATS = 1000
MOST_SCALE = 100.0

# Building takes about six torch calls per tensor, for our largest model 6,000; a file may hold few of its tensors.
MOST_CALLS, CALLS_A_TENSOR = 8000, 20
RANDOM = frozenset(
    ("normal_", "uniform_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")
)

#: Loads the file named by a backbone row. ``nextdetr.weights`` provides it; it is above this package.
BackboneLoader = Callable[[DetectionModel, Path], object]


def skip_backbone(model: DetectionModel, path: Path) -> None:
    """Load nothing for a backbone row with weights: a ``BackboneLoader`` for callers that load the whole model later."""


class _Builder:
    """Builds the rows of one file, and tracks channels and strides of the maps so far."""

    def __init__(self, file: ModelFile, num_classes: int, drop_path: float) -> None:
        self.file, self.num_classes, self.drop_path = file, num_classes, drop_path
        self.depth, self.width, self.max_channels = _scale(file)
        self.eps = _epsilon(file)
        self.channels: dict[int, int] = {IMAGE: 3}
        self.strides: dict[int, int] = {IMAGE: 1}
        self.latest = IMAGE
        self.weights: str | None = None

    def row(self, row: Row) -> tuple[nn.Module, RowInfo]:
        """Build the next row."""
        file = self.file
        if row.name not in LAYERS:
            close = difflib.get_close_matches(row.name, LAYERS, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(LAYERS)}."
            raise file.error(f"there is no layer {row.name!r}; {hint}", row)
        layer = LAYERS[row.name]
        if row.name in DECODERS and row is not file.rows[-1]:
            raise file.error("the decoder must be the last row.", row)
        reads = tuple(self._resolve(row, source) for source in row.sources)
        repeats = max(round(row.repeats * self.depth), 1) if row.repeats > 1 else 1
        if repeats > MOST_REPEATS:
            raise file.error(f"{repeats} repeats are more than the {MOST_REPEATS} that a row may have.", row)
        arguments = list(row.arguments)
        context = RowContext(
            [self.channels[index] for index in reads], [self.strides[index] for index in reads], repeats,
            self.num_classes, self.width, self.max_channels, self.eps, self.drop_path, first=row.number == 0,
        )  # fmt: skip
        try:
            layer.check(arguments, len(reads))
            built = layer.build(context, arguments)
        except (RowError, ConfigError) as error:
            raise file.error(str(error), row) from error
        except (RuntimeError, MemoryError) as error:  # torch could not allocate the tensors
            reason = str(error).strip().split("\n", 1)[0]
            raise file.error(f"the layer cannot be built with these arguments ({reason}).", row) from error
        if repeats > 1 and not layer.repeatable:
            raise file.error(f"this layer cannot be repeated; write 1 in place of {row.repeats}.", row)
        writes = self._publish(row, built)
        origin = row.sources[0] if len(row.sources) == 1 else list(row.sources)
        strides = tuple(built.strides), tuple(self.strides[index] for index in reads)
        wiring = (reads, writes, *strides, tuple(built.channels))
        return built.module, RowInfo(layer.title or row.name, origin, repeats, built.arguments, *wiring)

    def _resolve(self, row: Row, source: int) -> int:
        """Convert ``from`` to the index of an existing map."""
        index = self.latest + 1 + source if source < 0 else source
        if row.number == 0 and source == -1:
            return IMAGE
        if index in self.channels and index != IMAGE:
            return index
        known = f"maps so far are {_ranges(self.channels)}" if len(self.channels) > 1 else "there is no map yet"
        if index > self.latest:
            raise self.file.error(f"from {source} points forward, to a map that is not built yet; {known}.", row)
        raise self.file.error(f"from {source} points to nothing; {known}.", row)

    def _publish(self, row: Row, built: Built) -> tuple[int, ...]:
        """Assign indices to a row's maps: a first row with several maps takes 1, 2, …, and leaves 0 unused."""
        first = 1 if row.number == 0 and len(built.channels) > 1 else self.latest + 1
        writes = tuple(range(first, first + len(built.channels)))
        self.channels.update(zip(writes, built.channels, strict=True))
        self.strides.update(zip(writes, built.strides, strict=True))
        self.latest = writes[-1] if writes else self.latest
        self.weights = built.weights if self.weights is None else self.weights
        return writes


def build_model(
    model: str | Path | ModelFile,
    *,
    num_classes: int | None = None,
    drop_path: float = 0.0,
    load_backbone: BackboneLoader | None = None,
) -> DetectionModel:
    """Build a detector with random weights, or with those named by its file's backbone row.

    Args:
        model: a shipped name, a path, or a parsed file.
        num_classes: number of classes of the data, instead of the file's ``nc``.
        drop_path: stochastic depth of the backbone's last block, 0 to 1.
        load_backbone: loads the file named by a backbone row; ``nextdetr.weights.start`` passes one.

    Raises:
        ModelFileError: the file cannot be built (the message names file, row and cause), or its backbone row names weights
            but there is no ``load_backbone``.
        WeightsError: the file named by the backbone row cannot be loaded.
    """
    file = load_model_file(model)
    classes = _integer(file, "nc", 80, 1, 1 << 16) if num_classes is None else num_classes
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise file.error(f"a detector needs a whole number of at least 1 class, not {classes!r}.")
    if file.rows[-1].name not in DECODERS:
        raise file.error(f"the last row must be the decoder, {' or '.join(DECODERS)}.", file.rows[-1])
    if drop_path > 0 and not file.rows[0].name.startswith("convnextv2_"):
        raise file.error("only ConvNeXt V2 backbones have stochastic depth; leave drop_path at 0.", file.rows[0])
    builder = _Builder(file, classes, drop_path)
    rows = [builder.row(row) for row in file.rows]
    normalize = file.mapping.get("normalize", "none")
    if normalize not in ("none", "imagenet"):
        raise file.error(f"normalize must be none or imagenet, not {normalize!r}.")
    weights = None if builder.weights is None else Path(file.source).parent / builder.weights
    licence = file.mapping.get("licence")
    detector = DetectionModel(
        [module for module, _ in rows], [info for _, info in rows], num_classes=classes,
        backbone_rows=len(file.mapping["backbone"]), text=file.text, normalize=normalize,
        backbone_weights=weights, licence=None if licence is None else str(licence),
    )  # fmt: skip
    detector.image_size = _image_size(file, detector.stride)
    if weights is not None:
        named = bool(str(builder.weights).strip())  # an empty name would be the model file's own folder
        if load_backbone is not skip_backbone and not (named and weights.exists()):
            raise file.error(f"the backbone's weights {weights if named else repr('')} do not exist.", file.rows[0])
        if load_backbone is None:
            raise file.error(
                "it names weights; nextdetr.weights.start.start_model builds and loads such a file.", file.rows[0]
            )
        load_backbone(detector, weights)
    return detector


class _NoInitialisation(TorchFunctionMode):
    """Skips random initialisation of new tensors, and slow arithmetic on the meta device.

    Args:
        file: the model file, for messages.
        tensors: number of tensors of the weights file whose metadata hold the model; None for a user's own file.
    """

    def __init__(self, file: ModelFile, tensors: int | None = None) -> None:
        super().__init__()
        self.file, self.tensors, self.calls = file, tensors, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        if self.tensors is not None and self.calls > MOST_CALLS + CALLS_A_TENSOR * self.tensors:
            raise self.file.error(f"it has far more layers than the weights file has tensors ({self.tensors:,}).")
        keywords = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in RANDOM:  # methods of tensors, or of torch.nn.init
            tensor = args[0] if args else keywords.get("tensor")
            if isinstance(tensor, Tensor):
                return tensor
        elif name in ("arange", "linspace", "tensor"):  # results computed from these are small
            keywords = {**keywords, "device": keywords.get("device") or "cpu"}
        return func(*args, **keywords)


def build_skeleton(
    model: str | Path | ModelFile,
    *,
    num_classes: int | None = None,
    tensors: int | None = None,
    drop_path: float = 0.0,
    load_backbone: BackboneLoader = skip_backbone,
) -> DetectionModel:
    """Build a detector on the meta device, to inspect names and shapes.

    Args:
        model: as for ``build_model``.
        num_classes: as for ``build_model``.
        tensors: number of tensors of the file whose metadata hold the model; limits the size of the model.
        drop_path: as for ``build_model``.
        load_backbone: called with the file named by a backbone row.

    Raises:
        ModelFileError: the file cannot be built, or has far more parts than ``tensors``.
    """
    file = load_model_file(model)
    with torch.device("meta"), _NoInitialisation(file, tensors):
        return build_model(file, num_classes=num_classes, drop_path=drop_path, load_backbone=load_backbone)


def with_memory(skeleton: DetectionModel) -> DetectionModel:
    """Allocate the weights of a skeleton and return it; every tensor must then be loaded.

    This takes a fraction of the time of ``build_model``, most of which is spent on random numbers.
    """
    given: dict[int, Tensor] = {}
    for module in skeleton.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is None or not tensor.is_meta:
                    continue
                assert name not in module._non_persistent_buffers_set, f"{name} follows from the model file, on the CPU"
                if id(tensor) not in given:
                    empty = torch.empty(
                        tensor.shape, dtype=tensor.dtype, device="cpu"
                    )  # empty_like would import the compiler
                    is_parameter = isinstance(tensor, nn.Parameter)
                    given[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                kind[name] = given[id(tensor)]  # type: ignore[assignment]
    return skeleton


def _scale(file: ModelFile) -> tuple[float, float, int]:
    """Return depth, width and max_channels of the chosen scale, by default the first."""
    scales = file.mapping.get("scales")
    if scales is None:
        return 1.0, 1.0, 2**31
    if not isinstance(scales, dict) or not scales:
        raise file.error("scales must map names to [depth, width, max_channels].")
    chosen = file.mapping.get("scale", next(iter(scales)))
    if isinstance(chosen, (list, dict)) or chosen not in scales:
        raise file.error(f"there is no scale {chosen!r}; there are {', '.join(map(str, scales))}.")
    values = scales[chosen]
    limits = (MOST_SCALE, MOST_SCALE, 1 << 31)
    if not (isinstance(values, list) and len(values) == 3 and all(map(_within, values, limits)) and values[2] >= 1):
        raise file.error(
            f"the scale {chosen} must be three numbers above 0, [depth, width, max_channels], the first two at most "
            f"{MOST_SCALE:g} and the last at least 1, not {values!r}."
        )
    return float(values[0]), float(values[1]), int(values[2])


def _integer(file: ModelFile, key: str, default: int, least: int, most: int) -> int:
    """Return a top-level integer."""
    value = file.mapping.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise file.error(f"{key} must be a whole number from {least} to {most}, not {value!r}.")
    return value


def _image_size(file: ModelFile, stride: int) -> int:
    size = _integer(file, "image_size", nearest_size(640, stride), 1, 1 << 14)
    problem = size_problem(size, stride)
    if problem is not None:
        raise file.error(f"image_size {problem}.")
    return size


def _epsilon(file: ModelFile) -> float:
    value = file.mapping.get("batch_norm_eps", BATCH_NORM_EPS)
    if isinstance(value, str):  # YAML 1.1 reads 1e-5, without a decimal point, as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise file.error(f"batch_norm_eps must be a number between 0 and 1, not {value!r}.")
    return float(value)


def _within(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= most


def _ranges(channels: dict[int, int]) -> str:
    known = sorted(index for index in channels if index != IMAGE)
    return f"{known[0]} to {known[-1]}"
