from __future__ import annotations

import pytest
import torch
from torch import nn

from nextdetr.layers.norm import GRN
from nextdetr.layers.rep import RepConv
from nextdetr.models.fuse import fuse
from nextdetr.models.graph import build_model


def stir(model: nn.Module) -> nn.Module:
    """Give every norm statistics and weights of its own, so that a fold which forgets one of them is seen."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm2d | GRN):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 0.8 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.3)
    return model.eval()


@pytest.mark.parametrize("name", ["nextdetr-atto", "rtdetr-l-convnextv2-atto"])
@torch.no_grad()
def test_a_folded_model_gives_the_same_maps(name):
    model = stir(build_model(name, num_classes=5))
    folded = fuse(model)
    images = torch.rand(2, 3, 96, 96)
    maps, other = {}, {}

    def keep(store, index):
        return lambda module, inputs, output: store.__setitem__(index, output)

    for store, network in ((maps, model), (other, folded)):
        for index, row in enumerate(network.rows[:-1]):
            row.register_forward_hook(keep(store, index))
        for index, projection in enumerate(network.rows[-1].input_proj):
            projection.register_forward_hook(keep(store, f"projection {index}"))
        network(images)
    for index, value in maps.items():
        pairs = zip(value, other[index], strict=True) if isinstance(value, list) else [(value, other[index])]
        for expected, got in pairs:
            assert (expected - got).abs().max() <= 1e-4 * expected.abs().max(), index


def test_nothing_is_left_to_fold_and_the_original_is_untouched():
    model = stir(build_model("nextdetr-atto", num_classes=5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d | RepConv | GRN) for module in folded.modules())
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
