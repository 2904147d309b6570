"""A ConvNeXt V2 backbone that stores the maps of an image and updates them where the image changed.

The image is a grid of patches with the side of the backbone's largest stride. Only changed patches are computed, as FCMAE
computes the visible ones (``layers/sparse.py``); but their surroundings are read from the stored maps, where FCMAE assumes
zeros.

- The depthwise convolution reads its margin from the stored input of its block.
- GRN's statistics are sums over the whole map. They are stored per patch; an updated patch replaces its own, and the total
  is that of the current map.
- The outputs of the other patches are kept, although their surroundings and GRN's scale have changed a little. This is the
  approximation; only a full computation removes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextdetr.errors import ConfigError
from nextdetr.layers.norm import LayerNorm2d
from nextdetr.layers.sparse import StoredMap, VisiblePatches, downsample_patches, patches_of
from nextdetr.models.convnextv2 import Block, ConvNeXtV2

__all__ = ["StoredBackbone"]

# Elements of the widened map that pass through the layers together, as in ``layers/response.py``.
_AT_ONCE = 2**20


@dataclass(slots=True)
class _BlockState:
    """Stored state of a block: its input, and each patch's sum of squares of the widened map [patches, D]."""

    x: StoredMap
    squares: Tensor


class StoredBackbone:
    """The maps of a sequence of images, each computed in full or from the previous ones.

    Args:
        backbone: a feature extractor; its parameters are used as they are.

    Attributes:
        patch: side of a patch in pixels.

    Raises:
        ConfigError: the backbone is not a ConvNeXt V2.
    """

    def __init__(self, backbone: nn.Module) -> None:
        if not isinstance(backbone, ConvNeXtV2):
            raise ConfigError(
                "only a ConvNeXt V2 backbone can compute what has changed in a picture: leave --static-camera out, or take "
                "a model that has one, such as the nextdetr-* models."
            )
        self.backbone = backbone
        self.patch = 4 * 2 ** (len(backbone.stages) - 1)
        self._blocks: list[list[_BlockState]] = []
        self._maps: list[StoredMap] = []

    @property
    def maps(self) -> list[Tensor]:
        """The stored maps, as the backbone returns them; ``update`` changes them in place, ``full`` creates new ones."""
        return [self._maps[index].map for index in self.backbone.out_indices]

    def squares(self) -> list[Tensor]:
        """GRN's sums of squares over the stored map [D], block by block."""
        return [state.squares.sum(dim=0) for stage in self._blocks for state in stage]

    def full(self, image: Tensor) -> list[Tensor]:
        """Compute everything of an image [1, 3, H, W], H and W multiples of ``patch``; return the maps."""
        self._blocks, self._maps = [], []
        x, side = image.contiguous(memory_format=torch.channels_last), self.patch
        for downsample, stage in zip(self.backbone.downsample_layers, self.backbone.stages, strict=True):
            before = x.shape[-1]
            x = downsample(x)
            side = side * x.shape[-1] // before
            states = []
            assert isinstance(stage, nn.Sequential)
            for block in stage:
                assert isinstance(block, Block)
                stored = StoredMap(x, side, block.dwconv.kernel_size[0] // 2)
                y, places = block.dwconv(x).permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
                widened, squares = _widen(block, y, side)
                x = _narrow(block, widened, squares.sum(dim=0), places).permute(0, 3, 1, 2)
                states.append(_BlockState(stored, squares))
            self._blocks.append(states)
            self._maps.append(StoredMap(x, side, 0))
        return self.maps

    def update(self, image: Tensor, visible: VisiblePatches) -> list[Tensor]:
        """Update some patches of the stored maps; return the maps.

        Args:
            image: [1, 3, H, W], of the same size as the previous one.
            visible: the patches to compute.
        """
        side, x = self.patch, _pixels(image, visible, self.patch)  # [1, V, P * P, 3]
        for number, stage in enumerate(self.backbone.stages):
            x, side = _downsampled(self.backbone.downsample_layers[number], x, side)
            assert isinstance(stage, nn.Sequential)
            for block, state in zip(stage, self._blocks[number], strict=True):
                assert isinstance(block, Block)
                state.x.put(x, visible)
                shape = (1, -1, side, x.shape[-1])  # patches stacked vertically
                y = state.x.depthwise(block.dwconv.weight, block.dwconv.bias, visible)
                widened, squares = _widen(block, y.view(shape), side)
                state.squares.index_copy_(0, visible.ids[0], squares)
                x = _narrow(block, widened, state.squares.sum(dim=0), x.view(shape)).view(x.shape)
            self._maps[number].put(x, visible)
        return self.maps


def _widen(block: Block, y: Tensor, side: int) -> tuple[list[Tensor], Tensor]:
    """Run norm, first linear layer and activation on [1, H, W, C] in blocks of rows.

    Returns:
        The widened rows, each [1, h, W, D], and their sums of squares over each patch, [patches, D].
    """
    width, inside = y.shape[2], block.pwconv1.out_features
    rows = max(1, _AT_ONCE // (width * inside * side)) * side
    widened, squares = [], []
    for part in torch.split(y, rows, dim=1):
        wide: Tensor = block.act(_linear(block.norm(part), block.pwconv1.weight, block.pwconv1.bias))
        widened.append(wide)
        sums = functional.avg_pool2d(wide.square().permute(0, 3, 1, 2), side, divisor_override=1)
        squares.append(sums.permute(0, 2, 3, 1).reshape(-1, inside))
    return widened, torch.cat(squares)


def _narrow(block: Block, widened: list[Tensor], squares: Tensor, residual: Tensor) -> Tensor:
    """Add the block's last layers on the widened rows, with GRN from these sums [D], to ``residual`` [1, H, W, C]."""
    weight: Tensor = block.pwconv2.weight
    bias: Tensor = block.pwconv2.bias
    if not isinstance(block.grn, nn.Identity):
        gamma, beta, eps = block.grn.gamma, getattr(block.grn, "beta", None), block.grn.eps
        assert isinstance(gamma, Tensor)
        assert isinstance(eps, float)
        response = squares.sqrt()
        if isinstance(beta, Tensor):
            bias = torch.addmv(bias, weight, beta.flatten())
        weight = weight * (gamma.flatten() * (response / (response.mean() + eps)) + 1)
    if block.gamma is not None:
        weight, bias = weight * block.gamma[:, None], bias * block.gamma
    out, row = residual.new_empty(residual.shape), 0
    for wide in widened:
        place = slice(row, row + wide.shape[1])
        torch.add(residual[:, place], _linear(wide, weight, bias), out=out[:, place])
        row += wide.shape[1]
    return out


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``linear`` on [1, H, W, C] as a convolution, whose kernel adds the bias on the fly."""
    return functional.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def _downsampled(downsample: nn.Module, x: Tensor, side: int) -> tuple[Tensor, int]:
    """Run a stage's first layers (norms and convolutions with kernel = stride) on patches [1, V, side * side, C]."""
    assert isinstance(downsample, nn.Sequential)
    for layer in downsample:
        if isinstance(layer, nn.Conv2d):
            x = downsample_patches(x, layer.weight, layer.bias, side)
            side //= layer.stride[0]
        else:
            assert isinstance(layer, LayerNorm2d)
            x = functional.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    return x, side


def _pixels(image: Tensor, visible: VisiblePatches, side: int) -> Tensor:
    """Return the pixels of the patches, [1, V, side * side, 3]."""
    return patches_of(image, side)[visible.places()].reshape(1, -1, side * side, 3)
