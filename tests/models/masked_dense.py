"""FCMAE's encoder as SparK (arXiv 2301.03580) computes it: dense maps, and the mask multiplied in after every layer that
could carry something from a hidden position to a visible one. The reference of the sparse encoder, in tests and benchmark.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from nextdetr.layers.response import grn_linear


def mask_of(ids, grid):
    """[B, 1, rows, columns], 1 where the patches ``ids`` [B, V] are."""
    mask = torch.zeros(ids.shape[0], grid[0] * grid[1])
    return mask.scatter_(1, ids, 1.0).view(-1, 1, *grid)


def encode_dense(encoder, images, mask, block_forward=None):
    """Return the last stage's map [B, C, H / 32, W / 32], zero where hidden; ``images`` are normalised."""
    block_forward = block_forward or plain_block
    x = images.contiguous(memory_format=torch.channels_last)
    for downsample, stage in zip(encoder.downsample_layers, encoder.stages, strict=True):
        x = downsample(x)
        here = functional.interpolate(mask, size=x.shape[2:], mode="nearest")
        x = x * here
        for block in stage:
            x = block_forward(block, x, here)
    return x


def plain_block(block, x, mask):
    """A block written out from the paper, statistics over the visible positions of each image."""
    y = functional.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding=3, groups=x.shape[1]) * mask
    y, here = y.permute(0, 2, 3, 1), mask.permute(0, 2, 3, 1)
    y = functional.layer_norm(y, y.shape[-1:], block.norm.weight, block.norm.bias, block.norm.eps)
    y = functional.gelu(functional.linear(y, block.pwconv1.weight, block.pwconv1.bias)) * here
    if not isinstance(block.grn, nn.Identity):
        norms = (y.square().sum(dim=(1, 2), keepdim=True) + 1e-30).sqrt()
        response = norms / (norms.mean(dim=-1, keepdim=True) + block.grn.eps)
        y = block.grn.gamma * (y * response) + block.grn.beta + y
    y = functional.linear(y, block.pwconv2.weight, block.pwconv2.bias)
    if block.gamma is not None:
        y = y * block.gamma
    return (x + y.permute(0, 3, 1, 2)) * mask


def tuned_block(block, x, mask):
    """The same with the detector's own fast layers and as few products with the mask as will do."""
    y = block.dwconv(x).permute(0, 2, 3, 1)
    y = block.act(block.pwconv1(block.norm(y)))
    y = grn_linear(y * mask.permute(0, 2, 3, 1), block.grn, block.pwconv2)
    return (x + y.permute(0, 3, 1, 2)) * mask
