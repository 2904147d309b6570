"""ConvNeXt V2, and V1 from the same block.

Papers: "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders", arXiv 2301.00808 (block: section 3,
figure 5; sizes: table 14 and section 4), and "A ConvNet for the 2020s", arXiv 2201.03545 (V1). Parameter names are those of
the published checkpoints. Stochastic depth: arXiv 1603.09382.

Differences, and reasons:

- Maps are in channels-last memory after the stem, so that the two permutations of a block are views.
- The feature extractor ends with its last requested stage and has neither final norm nor head: every parameter gets a
  gradient.
- A size below the published ones, zepto, has an expansion of three instead of four. Its depths and widths made the best use
  of the milliseconds that the smallest YOLO takes as an exported file.
- GRN and the depthwise convolution have hand-written gradients (``layers/norm.py``, ``layers/depthwise.py``), and GRN is
  fused with the linear layers around it (``layers/response.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nextdetr.errors import ConfigError
from nextdetr.layers.depthwise import DepthwiseConv2d
from nextdetr.layers.norm import GRN, LayerNorm2d
from nextdetr.layers.response import by_rows, grn_linear, grn_mlp
from nextdetr.models.sizes import check_sides

__all__ = ["PUBLISHED", "SIZES", "Block", "ConvNeXtV2", "SizeSpec", "convnextv2"]

EPS = 1e-6
EXPANSION = 4  # width inside a block as a multiple of its channels, in the paper


class SizeSpec(NamedTuple):
    """Blocks and channels of each stage, and the expansion inside a block."""

    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    expansion: int = EXPANSION


SIZES: Mapping[str, SizeSpec] = MappingProxyType(
    {
        "zepto": SizeSpec((1, 1, 3, 1), (16, 48, 128, 256), 3),  # ours, chosen by timing exported files
        "atto": SizeSpec((2, 2, 6, 2), (40, 80, 160, 320)),
        "femto": SizeSpec((2, 2, 6, 2), (48, 96, 192, 384)),
        "pico": SizeSpec((2, 2, 6, 2), (64, 128, 256, 512)),
        "nano": SizeSpec((2, 2, 8, 2), (80, 160, 320, 640)),
        "tiny": SizeSpec((3, 3, 9, 3), (96, 192, 384, 768)),
        "base": SizeSpec((3, 3, 27, 3), (128, 256, 512, 1024)),
        "large": SizeSpec((3, 3, 27, 3), (192, 384, 768, 1536)),
        "huge": SizeSpec((3, 3, 27, 3), (352, 704, 1408, 2816)),
    }
)

#: The sizes of the paper, which other programs also have.
PUBLISHED = tuple(size for size, spec in SIZES.items() if spec.expansion == EXPANSION)


class Block(nn.Module):
    """One residual block on [B, C, H, W].

    Depthwise 7x7, LayerNorm, Linear to 4C (in zepto 3C), GELU, GRN (V2), Linear to C, LayerScale (V1), stochastic depth,
    residual.

    Args:
        channels: C.
        expansion: width inside as a multiple of C, 4 in the paper.
        grn: GRN after the activation, as in V2.
        layer_scale: initial value of V1's LayerScale (the parameter ``gamma`` [C]); None for none, as in V2.
        drop_path: probability, in [0, 1), that an image of the batch skips the block in training.
    """

    def __init__(
        self,
        channels: int,
        *,
        expansion: int = EXPANSION,
        grn: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.dwconv = DepthwiseConv2d(channels, 7)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.pwconv1 = nn.Linear(channels, expansion * channels)
        self.act = nn.GELU()
        self.grn = GRN(expansion * channels) if grn else nn.Identity()
        self.pwconv2 = nn.Linear(expansion * channels, channels)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x`` [B, C, H, W]; in channels-last memory nothing is copied."""
        y = self.dwconv(x).permute(0, 2, 3, 1)  # [B, H, W, C], a view
        if self._goes_by_rows(y):
            layers = (self.pwconv1, self.act, self.grn, self.pwconv2)
            return grn_mlp(y, *layers, norm=self.norm, residual=x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.drop(self.pointwise(y))
        out: Tensor = x + y.permute(0, 3, 1, 2)  # [B, C, H, W], a view
        return out

    def pointwise(self, x: Tensor) -> Tensor:
        """Run the layers after the depthwise convolution on [B, M, N, C]; GRN's statistics are over M and N."""
        y: Tensor = self.norm(x)
        y = self.act(self.pwconv1(y))
        y = grn_linear(y, self.grn, self.pwconv2)  # pwconv2(grn(y))
        return y if self.gamma is None else y * self.gamma

    def drop(self, y: Tensor) -> Tensor:
        """In training, drop the residual branch [B, ...] of some images (stochastic depth)."""
        if not self.training or self.drop_path <= 0.0:
            return y
        keep = 1.0 - self.drop_path
        # Kept images are scaled by 1 / keep, so that the expectation is that of evaluation.
        return y * y.new_empty(y.shape[0], 1, 1, 1).bernoulli_(keep).div_(keep)

    def _goes_by_rows(self, y: Tensor) -> bool:
        """Whether ``pointwise`` and the sum are computed in blocks of rows, as in evaluation on a CPU."""
        plain = self.gamma is None and not self.training and not isinstance(self.grn, nn.Identity)
        return plain and by_rows(y, self.norm, self.pwconv1, self.act, self.grn, self.pwconv2)

    def extra_repr(self) -> str:
        """Return the text for ``print``."""
        return f"drop_path={self.drop_path:.3g}"


class ConvNeXtV2(nn.Module):
    """ConvNeXt V2 as a feature extractor or, with ``num_classes``, as a classifier.

    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        expansion: see ``Block``.
        grn: False for V1.
        layer_scale: initial LayerScale of V1 (1e-6 in the paper); None for none.
        drop_path: stochastic depth of the last block; it increases linearly from 0 at the first.
        out_indices: stages whose maps are returned, in ascending order. Later stages are not built. A classifier always has
            all stages.
        num_classes: classes of the head; None for a feature extractor, without final norm and head.

    Attributes:
        channels: channels of the maps of ``out_indices``.
        strides: their strides: 4, 8, 16, 32.

    Raises:
        ConfigError: the arguments contradict each other.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *,
        expansion: int = EXPANSION,
        grn: bool = True,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        _check(depths, dims, drop_path, out_indices, num_classes)
        self.out_indices = tuple(out_indices)
        self.num_classes = num_classes
        self.channels = [dims[i] for i in self.out_indices]
        self.strides = [4 * 2**i for i in self.out_indices]

        stages = len(dims) if num_classes is not None else self.out_indices[-1] + 1
        last_block = max(sum(depths) - 1, 1)
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        for i in range(stages):
            first_block = sum(depths[:i])
            self.downsample_layers.append(_stem(dims[0]) if i == 0 else _downsample(dims[i - 1], dims[i]))
            blocks = (
                Block(
                    dims[i],
                    expansion=expansion,
                    grn=grn,
                    layer_scale=layer_scale,
                    drop_path=drop_path * (first_block + j) / last_block,
                )
                for j in range(depths[i])
            )
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.Identity() if num_classes is None else nn.LayerNorm(dims[-1], eps=EPS)
        self.head = nn.Identity() if num_classes is None else nn.Linear(dims[-1], num_classes)
        self.apply(_initialise)

    def check_size(self, height: int, width: int | None = None) -> None:
        """Check that images of this size fill the coarsest map: ``--image-size``, or height and width, in pixels.

        Raises:
            ConfigError: a side is not a multiple of the last stage's stride.
        """
        check_sides(height, width, 4 * 2 ** (len(self.stages) - 1), "the backbone's largest stride")

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """Run the stages.

        Args:
            x: [B, 3, H, W] images, H and W at least 4 * 2**(stages - 1); a remainder at the right and bottom edge is cut
                off.

        Returns:
            The maps of ``out_indices``, each [B, channels[k], H // strides[k], W // strides[k]] in channels-last memory, as
            they leave their stage, without a norm. A classifier returns logits [B, num_classes].
        """
        maps = []
        x = x.contiguous(memory_format=torch.channels_last)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            maps.append(x)
        if self.num_classes is None:
            return [maps[i] for i in self.out_indices]
        logits: Tensor = self.head(self.norm(x.mean(dim=(2, 3))))
        return logits


def convnextv2(size: str, **options: Any) -> ConvNeXtV2:
    """Build a published or own size by its name.

    Args:
        size: a key of ``SIZES``.
        **options: keywords of ``ConvNeXtV2``.

    Raises:
        ConfigError: there is no such size.
    """
    if size not in SIZES:
        raise ConfigError(f"there is no ConvNeXt V2 of size {size!r}: choose one of {', '.join(SIZES)}.")
    spec = SIZES[size]
    return ConvNeXtV2(spec.depths, spec.dims, expansion=spec.expansion, **options)


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, kernel_size=4, stride=4), LayerNorm2d(channels, eps=EPS))


def _downsample(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(LayerNorm2d(channels_in, eps=EPS), nn.Conv2d(channels_in, channels_out, kernel_size=2, stride=2))


def _initialise(module: nn.Module) -> None:
    """Initialise convolutions and linear layers as published: standard deviation 0.02, biases 0.

    The published code truncates the normal distribution at -2 and 2, which is a hundred standard deviations away: a plain
    normal distribution is equivalent, and several times faster to draw.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(
    depths: Sequence[int], dims: Sequence[int], drop_path: float, out_indices: Sequence[int], num_classes: int | None
) -> None:
    if len(depths) != len(dims) or not depths:
        raise ConfigError(f"ConvNeXt V2 needs as many depths as dims, one a stage; it got {len(depths)} and {len(dims)}.")
    if not 0.0 <= drop_path < 1.0:
        raise ConfigError(f"drop_path of ConvNeXt V2 is a probability below 1; it got {drop_path}.")
    if (
        not out_indices
        or list(out_indices) != sorted(set(out_indices))
        or not 0 <= out_indices[0] <= out_indices[-1] < len(dims)
    ):
        raise ConfigError(
            f"out_indices of ConvNeXt V2 are stages from 0 to {len(dims) - 1}, each once and in rising order; "
            f"it got {list(out_indices)}."
        )
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes of ConvNeXt V2 is at least 1, or None for no head; it got {num_classes}.")
