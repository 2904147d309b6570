from __future__ import annotations

import torch

from nextdetr.layers.attention import AIFI
from nextdetr.layers.position import sincos_position_2d


def test_position_of_one_cell_by_hand():
    code = sincos_position_2d(3, 5, 8)[0, 2 * 5 + 4]  # row 2, column 4
    omega = torch.tensor([1.0, 10000.0**-0.5])
    expected = torch.cat([(2 * omega).sin(), (2 * omega).cos(), (4 * omega).sin(), (4 * omega).cos()])
    torch.testing.assert_close(code, expected)


def test_position_enters_queries_and_keys_only():
    """With equal tokens, attention returns the value of any token, whatever the positions are."""
    layer = AIFI(8, 16, 2).eval()
    x = torch.randn(1, 8, 1, 1).expand(1, 8, 4, 6)
    out = layer(x)
    torch.testing.assert_close(out, out[:, :, :1, :1].expand_as(out))


def test_position_matters():
    layer = AIFI(8, 16, 2).eval()
    x = torch.randn(1, 8, 4, 4)
    assert not torch.allclose(layer(x.flip(3)).flip(3), layer(x), atol=1e-4)


def test_inference_then_training():
    """The kept position must not be an inference tensor."""
    layer = AIFI(8, 16, 2)
    with torch.inference_mode():
        layer(torch.randn(1, 8, 4, 4))
    layer(torch.randn(1, 8, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_state_dict_has_parameters_only():
    layer = AIFI(8, 16, 2)
    layer(torch.randn(1, 8, 4, 4))
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
