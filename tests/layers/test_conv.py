from __future__ import annotations

import pytest
import torch
from torch import nn

from nextdetr.layers.conv import Concat, Conv, autopad


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "expected"), [(1, None, 1, 0), (3, None, 1, 1), (3, None, 2, 2), (7, 0, 1, 0)]
)
def test_autopad(kernel, padding, dilation, expected):
    assert autopad(kernel, padding, dilation) == expected


def test_conv_is_convolution_norm_and_silu():
    layer = Conv(4, 6, 3, 2).eval()
    with torch.no_grad():
        layer.bn.running_mean.normal_()
        layer.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 9, 9)
    expected = nn.functional.silu(layer.bn(nn.functional.conv2d(x, layer.conv.weight, None, 2, 1)))
    torch.testing.assert_close(layer(x), expected)
    assert layer.conv.bias is None
    assert (layer.bn.eps, layer.bn.momentum) == (1e-3, 0.03)


@pytest.mark.parametrize("act", [False, None])
def test_conv_without_activation_can_be_negative(act):
    assert Conv(3, 8, act=act)(torch.randn(2, 3, 8, 8)).min() < -0.3


def test_epsilon_is_an_argument():
    assert Conv(3, 8, eps=1e-5).bn.eps == 1e-5


def test_concat_keeps_the_order():
    a, b = torch.zeros(1, 2, 3, 3), torch.ones(1, 1, 3, 3)
    assert Concat(1)([a, b])[0, :, 0, 0].tolist() == [0, 0, 1]
