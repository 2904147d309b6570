"""FCMAE: masked pre-training of a ConvNeXt V2 backbone on unlabelled images.

"ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders", arXiv 2301.00808, section 3; targets as in
"Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377, section 3. Most patches of an image are masked, the
backbone sees the rest, a light decoder reconstructs the masked ones, and the error on these is the loss. Differences:

- The encoder computes only the visible patches (``layers/sparse.py``). It is the detector's own ``ConvNeXtV2``, used as it
  is; the result loads into a detector with no tensor missing.
- GRN's statistics are per image (per batch in the published sparse code), as they will be in the detector.
- Only masked patches are scored, so the decoder's last block, after its depthwise convolution, and the prediction run on
  those alone.
- The decoder is half as wide as the encoder's last stage, at most 512: the published widths for the size base (1024 and
  512), in proportion for the smaller sizes, where a decoder of width 512 would be half of the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nextdetr.errors import ConfigError
from nextdetr.layers.norm import LayerNorm2d
from nextdetr.layers.normalize import imagenet_statistics
from nextdetr.layers.sparse import VisiblePatches, downsample_patches, sparse_depthwise
from nextdetr.models.convnextv2 import Block, ConvNeXtV2
from nextdetr.models.sizes import check_sides
from nextdetr.structures import Uncast

__all__ = ["DECODER_WIDTH", "FCMAE", "Masking", "check_image_size", "encode_visible"]

DECODER_WIDTH = 512


@dataclass(frozen=True, slots=True)
class Masking:
    """One draw of the mask.

    Attributes:
        visible: the V patches of each image that the encoder sees.
        hidden: the M others, which are reconstructed and scored.
    """

    visible: VisiblePatches
    hidden: VisiblePatches

    @classmethod
    def draw(cls, noise: Tensor, grid: tuple[int, int], mask_ratio: float) -> Masking:
        """Mask the patches of each image with the largest noise.

        Args:
            noise: [B, rows * columns], a number for each patch.
            grid: (rows, columns).
            mask_ratio: fraction of masked patches; at least one patch is masked, and at least one visible.
        """
        count = noise.shape[1]
        kept = min(max(1, int(count * (1 - mask_ratio) + 1e-9)), count - 1)
        order = noise.argsort(dim=1, stable=True)
        visible, hidden = order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values
        return cls(VisiblePatches(visible, grid), VisiblePatches(hidden, grid))


class FCMAE(nn.Module):
    """Encoder, decoder and loss.

    Args:
        encoder: a feature extractor with all its stages; trained in place.
        mask_ratio: fraction of masked patches, between 0 and 1.
        patch_size: side of a patch in pixels, a multiple of the last stage's stride.
        decoder_depth: ConvNeXt V2 blocks of the decoder, at least 1.
        decoder_width: channels of these blocks; None for half of the encoder's last stage, at most 512.
        normalise_target: predict patches normalised to mean 0 and variance 1 instead of pixels.

    Raises:
        ConfigError: a setting is out of range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: ConvNeXtV2,
        *,
        mask_ratio: float = 0.6,
        patch_size: int = 32,
        decoder_depth: int = 1,
        decoder_width: int | None = None,
        normalise_target: bool = True,
    ) -> None:
        super().__init__()
        if not 0.0 < mask_ratio < 1.0:
            raise ConfigError(f"--mask-ratio is a share between 0 and 1; it got {mask_ratio}.")
        if decoder_depth < 1:
            raise ConfigError(f"--decoder-depth is at least 1; it got {decoder_depth}.")
        self.stride = encoder.strides[-1]
        _check_patch(patch_size, self.stride)
        self.mask_ratio, self.patch_size, self.normalise_target = mask_ratio, patch_size, normalise_target
        width = decoder_width or min(DECODER_WIDTH, encoder.channels[-1] // 2)
        self.encoder = encoder
        self.proj = nn.Linear(encoder.channels[-1], width)
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.decoder = nn.ModuleList(Block(width) for _ in range(decoder_depth))
        self.pred = nn.Linear(width, 3 * self.stride**2)
        for module in (self.decoder, self.proj, self.pred):
            module.apply(_initialise)
        mean, std = imagenet_statistics()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor | Uncast[Tensor], noise: Tensor | Uncast[Tensor] | None = None) -> Tensor:
        """Return the mean squared error on the hidden patches, a scalar.

        Args:
            images: [B, 3, H, W] float32, RGB, 0 to 1; H and W are multiples of ``patch_size``. In half precision, they and
                the noise come as ``Uncast``: targets are float32, and rounded numbers would be equal.
            noise: [B, patches]; patches with the largest values are masked. None draws it.

        Raises:
            ConfigError: the image size is invalid, or gives a single patch.
        """
        images = (Uncast.of(images) - self.mean) / self.std
        masking = self.draw_mask(images, None if noise is None else Uncast.of(noise))
        predicted = self.predict(images, masking)
        return nn.functional.mse_loss(predicted.float(), self.target(images, masking.hidden))

    def check_size(self, height: int, width: int | None = None) -> None:
        """Check that images of this size have patches to hide: ``--image-size``, or height and width, in pixels.

        Raises:
            ConfigError: a side is not a multiple of the patch size, or the image is a single patch.
        """
        check_image_size(height, width, self.patch_size)

    def draw_mask(self, images: Tensor, noise: Tensor | None = None) -> Masking:
        """Draw which patches of ``images`` [B, 3, H, W] are masked; see ``forward``."""
        height, width = images.shape[2:]
        self.check_size(height, width)
        grid = height // self.patch_size, width // self.patch_size
        if noise is None:
            noise = torch.rand(images.shape[0], grid[0] * grid[1], device=images.device)
        return Masking.draw(noise, grid, self.mask_ratio)

    def predict(self, images: Tensor, masking: Masking) -> Tensor:
        """Reconstruct the masked patches of normalised images; returns [B, M, K * K, 3 * S * S], see ``target``."""
        seen = self.proj(encode_visible(self.encoder, images, masking.visible))  # [B, V, K * K, D]
        return self.decode(seen, masking)

    def decode(self, seen: Tensor, masking: Masking) -> Tensor:
        """Decode the visible patches, [B, V, K * K, D]; the mask token fills in the rest."""
        batch, (rows, columns), side = seen.shape[0], masking.visible.grid, self.patch_size // self.stride
        hidden = self.mask_token.to(seen.dtype).expand(batch, masking.hidden.ids.shape[1], side * side, -1)
        cells = torch.cat((masking.visible.rows(side), masking.hidden.rows(side)))
        tokens = torch.cat((seen.reshape(-1, side * seen.shape[-1]), hidden.reshape(-1, side * seen.shape[-1])))
        full = tokens.index_select(0, cells.argsort())
        x = full.view(batch, rows * side, columns * side, -1).permute(0, 3, 1, 2)  # [B, D, H / S, W / S]
        *body, last = self.decoder
        for block in body:
            x = block(x)
        assert isinstance(last, Block)
        picked = masking.hidden.rows(side)
        y = masking.hidden.gather(last.dwconv(x), side, picked)
        y = masking.hidden.gather(x, side, picked) + last.pointwise(y)
        predicted: Tensor = self.pred(y)
        return predicted

    def target(self, images: Tensor, hidden: VisiblePatches) -> Tensor:
        """Return the target for the masked patches of normalised images.

        Returns:
            [B, M, K * K, 3 * S * S] float32: the K * K cells of a patch, each of S x S pixels, S the encoder's stride;
            with ``normalise_target``, of mean 0 and variance 1 over the whole patch.
        """
        patches = _pixels(images, hidden, self.patch_size)  # [B * M, 3, P, P]
        if self.normalise_target:  # as the paper's (x - mean) / sqrt(unbiased variance + 1e-6), in one fast operation
            count = patches[0].numel()
            biased = (count - 1) / count
            scale = patches.new_full(patches.shape[1:], math.sqrt(biased))
            patches = nn.functional.layer_norm(patches, patches.shape[1:], scale, None, 1e-6 * biased)
        side, cell = self.patch_size // self.stride, self.stride
        cells = patches.view(-1, 3, side, cell, side, cell).permute(0, 2, 4, 1, 3, 5)
        return cells.reshape(*hidden.ids.shape, side * side, 3 * cell * cell)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruct ``images`` [B, 3, H, W], RGB, 0 to 1, for display.

        Returns:
            The images with their masked patches grey, and with them reconstructed; both [B, 3, H, W], 0 to 1. A normalised
            prediction is denormalised with the true mean and variance of its patch, as is usual for such pictures.
        """
        inputs = (images - self.mean) / self.std
        masking = self.draw_mask(images, noise)
        side, cell, size = self.patch_size // self.stride, self.stride, self.patch_size
        cells = self.predict(inputs, masking).float().view(-1, side, side, 3, cell, cell)
        patches = cells.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, size, size)
        if self.normalise_target:
            variance, mean = torch.var_mean(_pixels(inputs, masking.hidden, size), dim=(1, 2, 3), keepdim=True)
            patches = patches * (variance + 1e-6).sqrt() + mean
        pixels = (patches * self.std + self.mean).clamp(0, 1)
        return _painted(images, masking.hidden, torch.full_like(pixels, 0.5)), _painted(images, masking.hidden, pixels)


def encode_visible(encoder: ConvNeXtV2, images: Tensor, visible: VisiblePatches) -> Tensor:
    """Run the encoder's stages on the visible patches only.

    Args:
        encoder: its parameters are used; its own ``forward`` is not.
        images: [B, 3, H, W] normalised; the pixels of masked patches are never read.
        visible: the V patches of each image.

    Returns:
        [B, V, K * K, C] of the last stage, K being the patch's side there.
    """
    side = images.shape[2] // visible.grid[0]
    x = _pixels(images, visible, side)  # [B * V, 3, P, P]
    for number, (downsample, stage) in enumerate(zip(encoder.downsample_layers, encoder.stages, strict=True)):
        assert isinstance(downsample, nn.Sequential)
        first, second = downsample
        convolution, norm = (first, second) if number == 0 else (second, first)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, LayerNorm2d)
        if number > 0:
            x = _normed(norm, x)
            x = downsample_patches(x, convolution.weight, convolution.bias, side)
        else:
            x = _normed(norm, _stem(x, convolution, visible))
        side //= convolution.stride[0]
        rows = visible.rows(side)
        assert isinstance(stage, nn.Sequential)
        for block in stage:
            assert isinstance(block, Block)
            assert block.dwconv.bias is not None
            y = block.pointwise(sparse_depthwise(x, block.dwconv.weight, block.dwconv.bias, visible, rows))
            x = x + block.drop(y)
    return x


def check_image_size(height: int, width: int | None, patch_size: int) -> None:
    """See ``FCMAE.check_size``."""
    check_sides(height, width, patch_size, "the patch size")
    if {height, height if width is None else width} == {patch_size}:
        raise ConfigError(
            f"an image of {height} x {height} pixels is a single patch of {patch_size}, so that nothing would stay "
            f"visible: choose a larger --image-size, {2 * patch_size} at least."
        )


def _check_patch(patch_size: int, stride: int) -> None:
    """Raise ConfigError unless the patch is a multiple of the last stage's stride."""
    if patch_size < stride or patch_size % stride:
        raise ConfigError(
            f"--patch-size must be a multiple of {stride}, the stride of the backbone's last stage, at which the mask is "
            f"drawn; it got {patch_size}."
        )


def _stem(pixels: Tensor, convolution: nn.Conv2d, visible: VisiblePatches) -> Tensor:
    """Convolve each patch [B * V, 3, P, P] with kernel = stride K, as one matrix product; [B, V, (P / K) ** 2, C]."""
    count, channels, side, _ = pixels.shape
    kernel = convolution.kernel_size[0]
    cells = side // kernel
    pieces = pixels.view(count, channels, cells, kernel, cells, kernel).permute(0, 2, 4, 1, 3, 5)
    flat = pieces.reshape(*visible.ids.shape, cells * cells, channels * kernel * kernel)
    return nn.functional.linear(flat, convolution.weight.flatten(1), convolution.bias)


def _normed(norm: LayerNorm2d, x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _pixels(images: Tensor, patches: VisiblePatches, size: int) -> Tensor:
    """Copy patches of ``size`` pixels out of [B, 3, H, W]; returns [B * V, 3, size, size]."""
    flat = images.reshape(-1, size)  # each row of a patch is contiguous
    return flat.index_select(0, _pixel_rows(patches, size)).view(-1, 3, size, size)


def _painted(images: Tensor, patches: VisiblePatches, pixels: Tensor) -> Tensor:
    """Return a copy of ``images`` [B, 3, H, W] with the patches replaced by ``pixels`` [B * M, 3, P, P]."""
    size = pixels.shape[-1]
    flat = images.reshape(-1, size).index_copy(0, _pixel_rows(patches, size), pixels.reshape(-1, size))
    return flat.view(images.shape)


def _pixel_rows(patches: VisiblePatches, size: int) -> Tensor:
    """Rows of [B * 3 * H * columns, size], the memory of [B, 3, H, W], that form the patches: [B * V * 3 * size]."""
    rows, columns = patches.grid
    plane = rows * size * columns
    inside = torch.arange(size, device=patches.ids.device) * columns
    first = torch.div(patches.ids, columns, rounding_mode="floor") * size * columns + patches.ids % columns  # [B, V]
    image = torch.arange(3 * len(patches.ids), device=patches.ids.device).view(-1, 1, 3) * plane  # [B, 1, 3]
    return ((first[:, :, None] + image)[..., None] + inside).flatten()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
