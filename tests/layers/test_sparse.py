from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional

from nextdetr.layers.sparse import VisiblePatches, downsample_patches, sparse_depthwise


def _patches(batch, grid, count):
    ids = torch.stack([torch.randperm(grid[0] * grid[1])[:count].sort().values for _ in range(batch)])
    return VisiblePatches(ids, grid)


def _naive(x, visible, side):
    """Lay patches on a map, one by one."""
    batch, count, _, channels = x.shape
    full = torch.zeros(batch, channels, visible.grid[0] * side, visible.grid[1] * side, dtype=x.dtype)
    for image in range(batch):
        for n in range(count):
            row, column = divmod(int(visible.ids[image, n]), visible.grid[1])
            patch = x[image, n].view(side, side, channels).permute(2, 0, 1)
            full[image, :, row * side : (row + 1) * side, column * side : (column + 1) * side] = patch
    return full


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_scatter_and_gather(side):
    visible = _patches(3, (4, 5), 7)
    x = torch.randn(3, 7, side * side, 6)
    full = visible.scatter(x, side)
    torch.testing.assert_close(full, _naive(x, visible, side), rtol=0, atol=0)
    assert full.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(visible.gather(full, side), x, rtol=0, atol=0)


@pytest.mark.parametrize(("side", "margin"), [(2, 1), (2, 2), (8, 3)])
def test_patches_with_their_margin(side, margin):
    visible = _patches(3, (4, 5), 7)
    x = torch.randn(3, 7, side * side, 6)
    full = functional.pad(_naive(x, visible, side), (margin,) * 4)
    expected = [
        full[image, :, row * side : (row + 1) * side + 2 * margin, column * side : (column + 1) * side + 2 * margin]
        for image in range(3)
        for row, column in (divmod(int(n), 5) for n in visible.ids[image])
    ]
    torch.testing.assert_close(visible.with_margin(x, side, margin), torch.stack(expected), rtol=0, atol=0)


def test_margins_are_for_large_patches_of_which_many_are_hidden():
    visible = _patches(1, (7, 7), 19)
    assert visible.margin_pays(8, 3)
    assert not visible.margin_pays(4, 3)
    assert not _patches(1, (7, 7), 40).margin_pays(8, 3)


@pytest.mark.parametrize("side", [1, 2, 4, 8])  # at 8 with margins
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the hand-written gradient, and autograd's
def test_depthwise_equals_a_masked_dense_convolution(side, dtype):
    visible = _patches(2, (3, 4), 5)
    x = torch.randn(2, 5, side * side, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(6, 1, 7, 7, dtype=dtype, requires_grad=True)
    bias = torch.randn(6, dtype=dtype, requires_grad=True)
    out = sparse_depthwise(x, weight, bias, visible, visible.rows(side))
    expected = visible.gather(functional.conv2d(_naive(x, visible, side), weight, bias, padding=3, groups=6), side)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    seed = torch.randn_like(out)
    got = torch.autograd.grad(out, (x, weight, bias), seed)
    for own, other in zip(got, torch.autograd.grad(expected, (x, weight, bias), seed), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_depthwise_gradient_in_double_precision():
    visible = _patches(2, (2, 3), 3)
    shapes = (2, 3, 4, 2), (2, 1, 3, 3), (2,)
    values = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert gradcheck(lambda x, w, b: sparse_depthwise(x, w, b, visible, visible.rows(2)), values)


@pytest.mark.parametrize(("kernel", "side"), [(2, 2), (2, 6), (4, 8)])
def test_downsampling_equals_a_convolution_of_each_patch(kernel, side):
    x = torch.randn(2, 3, side * side, 5)
    weight, bias = torch.randn(4, 5, kernel, kernel), torch.randn(4)
    maps = x.view(6, side, side, 5).permute(0, 3, 1, 2)
    expected = functional.conv2d(maps, weight, bias, stride=kernel).permute(0, 2, 3, 1).reshape(2, 3, -1, 4)
    torch.testing.assert_close(downsample_patches(x, weight, bias, side), expected, rtol=1e-4, atol=1e-4)
