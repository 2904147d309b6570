from __future__ import annotations

import pytest
import torch
from torch import nn

from nextdetr.layers.rep import RepC3, RepConv


def randomise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
                part.weight.normal_()
                part.bias.normal_()


@pytest.mark.parametrize(("c1", "c2"), [(6, 6), (4, 6)])
def test_fused_equals_the_two_branches(c1, c2):
    block = RepConv(c1, c2).eval()
    randomise(block)
    x = torch.randn(2, c1, 7, 7)
    fused = block.fuse()
    torch.testing.assert_close(fused(x), block(x), rtol=1e-5, atol=1e-5)
    assert sum(isinstance(part, nn.Conv2d) for part in fused.modules()) == 1


def test_rep_c3_is_the_sum_of_two_ways():
    block = RepC3(8, 4, 2).eval()
    randomise(block)
    x = torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(block(x), block.m(block.cv1(x)) + block.cv2(x))
    assert isinstance(block.cv3, nn.Identity)


def test_rep_c3_with_another_width_inside_projects_back():
    block = RepC3(8, 6, 1, 0.5)
    assert block.cv1.conv.out_channels == 3
    assert block(torch.randn(2, 8, 5, 5)).shape == (2, 6, 5, 5)


def test_parameters_of_the_reference_row():
    assert sum(p.numel() for p in RepC3(512, 256, 3).parameters()) == 2_232_320
