"""Feature collapse: are the channels of a layer redundant?

"ConvNeXt V2", arXiv 2301.00808, section 3 ("Feature collapse", "Feature cosine distance analysis", figures 3 and 4). With
X_i the map of channel i as a vector, the distance of a layer is the mean over all pairs of (1 - cos(X_i, X_j)) / 2: 0 if
all channels are alike, 0.5 if they are unrelated. The layer is the expanded one of a block, where the paper found the
collapse: the activation, after GRN if there is one, that the second linear layer reads.

The paper shows dead and saturated maps without a definition; ours, per image: a channel is dead if its root mean square is
below 1 % of the layer's, and saturated if it is not dead and its standard deviation is below 10 % of the magnitude of its
mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor, nn

from nextdetr.data.check import summarize_problems
from nextdetr.data.raw import plural
from nextdetr.data.unlabelled import find_unlabelled
from nextdetr.errors import ConfigError
from nextdetr.files import atomic_write
from nextdetr.inference.fonts import plot_fonts, plot_text
from nextdetr.layers.normalize import imagenet_statistics
from nextdetr.models.convnextv2 import Block, ConvNeXtV2
from nextdetr.preprocess import load_image
from nextdetr.tensors import resize_to_tensor
from nextdetr.weights.backbone import open_encoder

__all__ = ["CollapseReport", "LayerCollapse", "analyze_collapse", "channel_statistics", "measure_layers"]

DEAD, SATURATED = 0.01, 0.1
TILES = 8  # per side of a grid of maps


@dataclass(frozen=True, slots=True)
class LayerCollapse:
    """The expanded layer of one block, means over the images.

    Attributes:
        name: its location, such as ``stages.2.4``.
        channels: number of channels.
        distance: mean pairwise cosine distance of the channels, 0 (all alike) to 1.
        dead, saturated: fractions of the channels, 0 to 1.
    """

    name: str
    channels: int
    distance: float
    dead: float
    saturated: float


@dataclass(frozen=True, slots=True)
class CollapseReport:
    """Result of ``analyze collapse``.

    Attributes:
        images: number of images.
        image_size: side of the square input in pixels.
        layers: by weights as given by the user, the blocks in order.
        curve: picture of distance, and dead and saturated fractions, over depth.
        grids: picture of activation maps, by weights.
    """

    images: int
    image_size: int
    layers: dict[str, list[LayerCollapse]]
    curve: str
    grids: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        weights = [
            {"weights": name, "layers": [asdict(layer) for layer in layers], "grid": self.grids[name]}
            for name, layers in self.layers.items()
        ]
        return {
            "command": "analyze collapse", "images": self.images, "image_size": self.image_size, "curve": self.curve,
            "weights": weights,
        }  # fmt: skip


def analyze_collapse(
    weights: Sequence[str | Path],
    images: str | Path | Sequence[str | Path],
    *,
    image_size: int = 224,
    limit: int = 200,
    output: str | Path = "runs/collapse",
    tell: Callable[[str], None] = lambda line: None,
) -> CollapseReport:
    """Measure and draw the collapse of several backbones on the same images.

    Args:
        weights: files of any known layout, or ``convnextv2-atto`` etc. for random weights.
        images: as for ``pretrain``.
        image_size: side of the square input in pixels.
        limit: maximum number of images, evenly spaced.
        output: folder for the pictures.
        tell: prints a line for the user.

    Raises:
        ConfigError: an invalid size or limit.
        DataError: no image can be used.
        WeightsError: a file cannot be read or has no ConvNeXt backbone.
    """
    if limit < 1:
        raise ConfigError(f"--limit must be at least 1 (given: {limit}).")
    data = find_unlabelled([images] if isinstance(images, str | Path) else images)
    if data.problems:
        tell(summarize_problems(data.problems))
    records = data.records
    count = min(limit, len(records))
    paths = [records[index * len(records) // count].path for index in range(count)]
    folder, layers, grids = Path(output), {}, {}
    for number, source in enumerate(dict.fromkeys(weights)):
        tell(f"{source}: {plural(count, 'image')}")
        torch.manual_seed(0)  # reproducible random weights
        encoder = open_encoder(source).eval()
        encoder.check_size(image_size)
        inputs = (_input(path, image_size) for path in paths)
        layers[str(source)], maps = measure_layers(encoder, inputs)
        target = folder / f"maps-{number}-{Path(source).stem}.png"
        with mpl.rc_context(plot_fonts(str(source))):
            _draw_grids(maps, str(source), target)
        grids[str(source)] = str(target)
    curve = folder / "collapse.png"
    with mpl.rc_context(plot_fonts(*layers)):
        _draw_curves(layers, curve)
    return CollapseReport(count, image_size, layers, str(curve), grids)


def measure_layers(encoder: ConvNeXtV2, inputs: Iterable[Tensor]) -> tuple[list[LayerCollapse], dict[str, Tensor]]:
    """Run images through a backbone and measure every block.

    Args:
        encoder: in evaluation mode.
        inputs: normalised images, each [1, 3, H, W]; at least one.

    Returns:
        The layers, and for the first image the expanded maps [C, H, W] of the last block of each stage.
    """
    blocks = {name: block for name, block in encoder.named_modules() if isinstance(block, Block)}
    last = {f"stages.{number}.{length - 1}" for number, length in enumerate(_lengths(encoder))}
    sums: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, values: tuple[Tensor, ...]) -> None:
            x = values[0][0]  # [H, W, C]
            found = channel_statistics(x.flatten(0, 1))
            sums[name] = sums.get(name, torch.zeros(3, dtype=torch.float64)) + torch.tensor(found, dtype=torch.float64)
            if name in last and name not in maps:
                maps[name] = x.permute(2, 0, 1).clone()

        return look

    handles = [block.pwconv2.register_forward_pre_hook(watch(name)) for name, block in blocks.items()]
    count = 0
    try:
        with torch.no_grad():
            for image in inputs:
                encoder(image)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    means = {name: (total / count).tolist() for name, total in sums.items()}
    layers = [LayerCollapse(name, blocks[name].pwconv2.in_features, *values) for name, values in means.items()]
    return layers, maps


def channel_statistics(x: Tensor) -> tuple[float, float, float]:
    """Return (distance, dead fraction, saturated fraction) of channels [N, C], N positions; see the top of this file.

    The mean cosine over all pairs is the squared norm of the mean of the unit vectors, so no C x C matrix is needed.
    """
    x = x.double()
    energy = x.square().mean(dim=0)  # [C]
    unit = x / x.norm(dim=0).clamp_min(1e-30)
    distance = (1 - unit.mean(dim=1).square().sum()) / 2
    dead = energy.sqrt() < DEAD * energy.mean().sqrt()
    dead |= energy == 0
    mean = x.mean(dim=0)
    saturated = ~dead & ((energy - mean.square()).clamp_min(0).sqrt() < SATURATED * mean.abs())
    return float(distance), float(dead.double().mean()), float(saturated.double().mean())


def _lengths(encoder: ConvNeXtV2) -> list[int]:
    return [len(stage) for stage in encoder.stages if isinstance(stage, nn.Sequential)]


def _input(path: Path, size: int) -> Tensor:
    image = resize_to_tensor(load_image(path), size)[None]
    mean, std = imagenet_statistics()
    return (image - mean) / std


def _draw_curves(layers: dict[str, list[LayerCollapse]], target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    names = [layer.name.removeprefix("stages.") for layer in max(layers.values(), key=len)]
    measures = (
        ("distance", "Mean pairwise cosine distance", 0.55), ("dead", "Dead channels", 1.0),
        ("saturated", "Saturated channels", 1.0),
    )  # fmt: skip
    for axis, (field, title, top) in zip(figure.subplots(1, 3), measures, strict=True):
        for weights, found in layers.items():
            axis.plot([getattr(layer, field) for layer in found], marker=".", label=plot_text(weights))
        axis.set(title=title, xlabel="block (stage.number)", ylim=(-0.02 * top, top))
        axis.set_xticks(range(len(names)), names, rotation=90 if len(names) > 14 else 0)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    with atomic_write(target) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_grids(maps: dict[str, Tensor], title: str, target: Path) -> None:
    """Draw 64 evenly spaced channels of the last block of each stage, each scaled to its layer's largest magnitude."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(maps), 4.4), layout="constrained")
    figure.suptitle(plot_text(title))
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for axis, (name, channels) in zip(axes, maps.items(), strict=True):
        count = min(TILES * TILES, channels.shape[0])
        chosen = channels[torch.arange(count) * channels.shape[0] // count]  # [count, H, W]
        height, width = chosen.shape[1:]
        sheet = torch.full((TILES * (height + 1), TILES * (width + 1)), float("nan"))
        for index, tile in enumerate(chosen):
            row, column = divmod(index, TILES)
            sheet[row * (height + 1) :, column * (width + 1) :][:height, :width] = tile
        limit = float(chosen.abs().max()) or 1.0
        axis.imshow(sheet.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set(title=f"{name} ({channels.shape[0]} channels)", xticks=[], yticks=[])
    with atomic_write(target) as temporary:
        figure.savefig(temporary, dpi=110)
