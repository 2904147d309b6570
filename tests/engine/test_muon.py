from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nextdetr.engine import muon
from nextdetr.engine.muon import Muon, hidden_matrices, orthogonalize
from nextdetr.engine.optim import build_optimizer, parameter_groups
from nextdetr.models.graph import build_model, load_model_file


@pytest.fixture(scope="module")
def model():
    return build_model(load_model_file("nextdetr-zepto"), num_classes=80)


def test_steps_equal_those_of_torch():
    """Reference: torch.optim.Muon, whose iterations are in bfloat16; hence the tolerance, a 50th of the steps' norm."""
    torch.manual_seed(0)
    for shape in ((64, 256), (256, 64), (96, 96), (40, 50)):
        ours = nn.Parameter(torch.randn(shape))
        theirs = nn.Parameter(ours.detach().clone())
        first = Muon([{"params": [ours], "orthogonal": True}], lr=1e-2, weight_decay=0.1)
        reference = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        before = ours.detach().clone()
        for _ in range(5):
            ours.grad = torch.randn(shape)
            theirs.grad = ours.grad.clone()
            first.step()
            reference.step()
        difference, moved = (ours - theirs).detach().norm(), (theirs - before).detach().norm()
        assert float(difference) < 0.02 * float(moved)


@pytest.mark.parametrize("shape", [(3, 32, 64), (2, 48, 48), (2, 96, 40), (1, 33, 50)])
def test_all_singular_values_come_near_one(shape):
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert float(values.max()) < 1.25
    if shape[1] != shape[2]:  # a square one of random numbers has singular values near zero, which grow more slowly
        assert float(values.min()) > 0.5


@pytest.mark.parametrize("spread", [0, 3])
def test_iterating_on_the_gram_matrix_is_the_same(spread):
    torch.manual_seed(2)
    wide = torch.randn(2, 40, 160) @ torch.diag(torch.logspace(0, -spread, 160))
    wide = wide / wide.norm(dim=(1, 2), keepdim=True)
    expected = muon._iterated(wide.double())
    assert float((muon._by_gram(wide) - expected).abs().max()) < 1e-4


def test_a_zero_gradient_gives_no_step():
    assert torch.equal(orthogonalize(torch.zeros(2, 32, 64)), torch.zeros(2, 32, 64))


def test_matrices_are_those_between_hidden_layers(model):
    ids = hidden_matrices(model)
    names = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in ids}
    assert sum(parameter.numel() for parameter in names.values()) > 0.9 * sum(p.numel() for p in model.parameters())
    assert any("pwconv1" in name for name in names)
    assert any("in_proj_weight" in name for name in names)
    assert any(parameter.ndim == 4 for parameter in names.values())
    for name, parameter in names.items():
        assert parameter.ndim in (2, 4)
        assert not any(part in name for part in ("dwconv", "score", "class_embed", "grn", "norm", "bias", "offsets")), name
    assert "rows.0.downsample_layers.0.0.weight" not in names  # of pixels


@pytest.mark.parametrize("name", ["rtdetr-r18vd", "dfine-n", "deimv2-pico", "rtdetr-l-convnextv2-atto"])
def test_other_models_have_matrices_too(name):
    model = build_model(load_model_file(name), num_classes=3)
    ids = hidden_matrices(model)
    covered = sum(parameter.numel() for parameter in model.parameters() if id(parameter) in ids)
    assert covered > 0.8 * sum(parameter.numel() for parameter in model.parameters())


def test_groups_tell_matrices_apart_and_keep_rates_and_decay(model):
    ids = hidden_matrices(model)
    groups = parameter_groups(model, 1e-3, 0.05, 0.1, orthogonal=True)
    for group in groups:
        assert {id(parameter) in ids for parameter in group["params"]} == {group["orthogonal"]}
        assert group["peak_rate"] == pytest.approx(1e-4 if group["backbone"] else 1e-3)
        assert group["weight_decay"] == 0.05 or not group["orthogonal"]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert all("orthogonal" not in group for group in parameter_groups(model, 1e-3, 0.05, 0.1))


def test_other_parameters_follow_adamw(model):
    options = {"learning_rate": 1e-3, "weight_decay": 1e-4, "backbone_factor": 1.0}
    moved = []
    for kind in ("adamw", "muon"):
        fresh = copy.deepcopy(model)
        optimizer = build_optimizer(fresh, optimizer=kind, **options)
        torch.manual_seed(0)
        for parameter in fresh.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        ids = hidden_matrices(fresh)
        moved.append({name: (p.detach().clone(), id(p) in ids) for name, p in fresh.named_parameters()})
    for name, (value, matrix) in moved[0].items():
        assert torch.equal(value, moved[1][name][0]) != matrix, name


def test_its_state_can_be_kept(model):
    torch.manual_seed(0)
    gradients = [[torch.randn(48, 64) for _ in range(4)], [torch.randn(64) for _ in range(4)]]

    def run(stops: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        parameters = [nn.Parameter(torch.randn(48, 64)), nn.Parameter(torch.randn(64))]

        def build() -> Muon:
            groups = [{"params": parameters[:1], "orthogonal": True}, {"params": parameters[1:], "orthogonal": False}]
            return Muon(groups, lr=1e-2, weight_decay=0.0)

        optimizer = build()
        for step in range(4):
            if stops and step == 2:
                state = optimizer.state_dict()
                optimizer = build()
                optimizer.load_state_dict(state)
            for parameter, drawn in zip(parameters, gradients, strict=True):
                parameter.grad = drawn[step].clone()
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    for kept, expected in zip(run(True), run(False), strict=True):
        assert torch.equal(kept, expected)
