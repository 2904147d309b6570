from __future__ import annotations

import torch
from torch import nn

from nextdetr.engine.ema import ModelEMA


def _model():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_average_follows_the_formula():
    model = _model()
    ema = ModelEMA(model, decay=0.5)
    expected = model[0].weight.detach().clone()
    for step in range(1, 6):
        with torch.no_grad():
            model[0].weight.add_(torch.randn_like(model[0].weight))
        ema.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.module[0].weight, expected)


def test_buffers_follow_too_and_nothing_needs_a_gradient():
    model = _model()
    ema = ModelEMA(model)
    model(torch.randn(8, 3))
    ema.update(model)
    assert ema.module[1].num_batches_tracked == 1
    assert not torch.equal(ema.module[1].running_mean, torch.zeros(2))
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())


def test_resumed_average_goes_on_the_same():
    model = _model()
    ema = ModelEMA(model)
    ema.update(model)
    other = ModelEMA(_model())
    other.load_state_dict(ema.state_dict())
    with torch.no_grad():
        model[0].weight.add_(1.0)
    ema.update(model)
    other.update(model)
    torch.testing.assert_close(ema.module.state_dict(), other.module.state_dict())


def test_a_layer_with_several_names_is_averaged_once():
    """As the box head of small DEIMv2, which all decoder layers share."""
    layer = nn.Linear(3, 2)
    model = nn.ModuleList([layer, layer, layer])
    ema = ModelEMA(model)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    ema.update(model)
    torch.testing.assert_close(ema.module[0].weight, before + 1 - 2 / 11)
    assert ema.module[0].weight is ema.module[2].weight
