from __future__ import annotations

import pytest
import torch

from nextdetr.engine.optim import WARMUP_STEPS, parameter_groups, rate_factor, set_rate
from nextdetr.models.graph import build_model, load_model_file


@pytest.fixture(scope="module")
def model():
    return build_model(load_model_file("nextdetr-atto"), num_classes=3)


def test_groups_cover_every_parameter_once(model):
    groups = parameter_groups(model, 1e-3, 0.05, 0.1)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())


def test_norms_grn_and_biases_are_not_decayed_and_the_backbone_is_slower(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, 1e-3, 0.05, 0.1):
        in_backbone = {names[id(parameter)].startswith("rows.0.") for parameter in group["params"]}
        assert in_backbone == {group["peak_rate"] == pytest.approx(1e-4)}
        for parameter in group["params"]:
            name = names[id(parameter)]
            spared = parameter.ndim == 1 or ".grn." in name or name.endswith("bias")
            assert group["weight_decay"] == (0.0 if spared else 0.05), name
    assert any(".grn.gamma" in name for name in names.values())


def test_the_rate_decays_from_block_to_block(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, 0.05, 0.5, layer_decay=0.8)
    assert len({id(p) for group in groups for p in group["params"]}) == len(names)
    rates = {names[id(p)]: group["peak_rate"] for group in groups for p in group["params"]}
    last, blocks = 0.5e-3, 12  # 2 + 2 + 6 + 2 blocks
    for name, steps in {
        "rows.0.stages.3.1.pwconv1.weight": 0,
        "rows.0.stages.3.0.grn.gamma": 1,
        "rows.0.downsample_layers.3.1.weight": 1,
        "rows.0.stages.2.5.dwconv.bias": 2,
        "rows.0.stages.0.0.norm.weight": blocks - 1,
        "rows.0.downsample_layers.0.0.weight": blocks,
    }.items():
        assert rates[name] == pytest.approx(last * 0.8**steps), name
    assert {rate for name, rate in rates.items() if not name.startswith("rows.0.")} == {1e-3}


def test_the_rate_decays_in_a_resnet_too():
    model = build_model("rtdetr-r18vd", num_classes=1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, 0.05, 0.1, layer_decay=0.5)
    rates = {names[id(p)]: group["peak_rate"] for group in groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    for name, steps in {
        "rows.0.res_layers.3.blocks.1.branch2a.conv.weight": 0,
        "rows.0.res_layers.3.blocks.0.short.conv.conv.weight": 1,
        "rows.0.res_layers.0.blocks.0.branch2a.conv.weight": 7,
        "rows.0.conv1.conv1_1.conv.weight": 8,
    }.items():
        assert rates[name] == pytest.approx(1e-4 * 0.5**steps), name


def test_rate_rises_stays_and_falls():
    kwargs = {"warmup": 0.1, "flat": 0.5}
    assert rate_factor(0.05, 10, **kwargs) == pytest.approx(0.5)
    assert rate_factor(0.0, 0, **kwargs) >= 1e-3
    assert rate_factor(0.1, 20, **kwargs) == 1.0
    assert rate_factor(0.5, 100, **kwargs) == 1.0
    assert rate_factor(0.75, 150, **kwargs) == pytest.approx(0.505)
    assert rate_factor(1.0, 200, **kwargs) == pytest.approx(0.01)


def test_warmup_is_never_longer_than_two_thousand_steps():
    assert rate_factor(0.001, WARMUP_STEPS - 1, warmup=0.1, flat=0.5) == 1.0


def test_set_rate_keeps_the_ratio_of_the_groups():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.AdamW(
        [{"params": [first], "lr": 1.0, "peak_rate": 1.0}, {"params": [second], "lr": 0.1, "peak_rate": 0.1}]
    )
    assert set_rate(optimizer, 0.5) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
