"""Outputs of a decoder at given places: a teacher's own detections, and a student that starts at the same places."""

from __future__ import annotations

import pytest
import torch

from nextdetr.models.answers import nearest_tokens, teach
from nextdetr.models.fuse import fuse
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.structures import Questions, Target
from tests.helpers import TINY_MODEL

DFINE = TINY_MODEL.replace("RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]", "DFINEDecoder, [nc, 32, 20, 2, 4, 2, 64]")


@pytest.fixture(params=[TINY_MODEL, DFINE], ids=["rtdetr", "dfine"])
def model(request):
    torch.manual_seed(0)
    built = build_model(parse_model_text(request.param, "test"))
    for parameter in built.rows[-1].parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return built


def test_places_are_found_on_the_map_of_their_size():
    shapes = ((4, 8), (2, 4), (1, 2))  # anchors of 0.05, 0.1 and 0.2
    points = torch.tensor(
        [
            [
                [0.0, 0.0, 0.05, 0.05],
                [0.99, 0.99, 0.05, 0.05],
                [0.3, 0.6, 0.1, 0.1],
                [0.6, 0.1, 0.5, 0.5],
                [1.0, 1.0, 0.0, 0.0],
            ]
        ]
    )
    assert nearest_tokens(points, shapes).tolist() == [[0, 31, 32 + 4 + 1, 32 + 8 + 1, 31]]


@torch.no_grad()
def test_a_teacher_says_what_it_detects_folded_or_not(model):
    model.eval()
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    output = model(images)
    for taught in (teach(model, images, (8, 32)), teach(fuse(model), images, (8, 32))):
        torch.testing.assert_close(taught.logits, output.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(taught.boxes, output.boxes, atol=1e-4, rtol=1e-4)
        assert {stride: maps.shape[2:] for stride, maps in taught.maps.items()} == {8: (8, 12), 32: (2, 3)}
        torch.testing.assert_close(taught.maps[32], model.row_maps(images, 0)[3], atol=1e-4, rtol=1e-4)
        assert (taught.edges is None) == (type(model.rows[-1]).__name__ == "RTDETRDecoder")
        if taught.edges is not None:
            assert taught.edges.bins.shape == (1, 2, 20, 4, 33)


def test_a_pupil_answers_on_all_layers_and_everything_gets_a_gradient(model):
    model.train()
    images = torch.rand(2, 3, 64, 64)
    targets = [
        Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1])),
        Target(torch.zeros(0, 4), torch.zeros(0).long()),
    ]
    points = torch.rand(2, 7, 4) * 0.4 + 0.3
    output = model(images, targets, questions=Questions(points, (16, 32)))
    answers = output.training.answers
    edges = type(model.rows[-1]).__name__ == "DFINEDecoder"
    assert answers.logits.shape == (4 if edges else 3, 2, 7, 2)
    assert answers.boxes.shape == (4 if edges else 3, 2, 7, 4)
    assert {stride: maps.shape[1] for stride, maps in answers.maps.items()} == {16: 160, 32: 320}
    (answers.logits.square().sum() + answers.boxes.sum() + answers.maps[16].sum()).backward()
    heads = [*model.rows[-1].dec_score_head, model.rows[-1].enc_score_head, model.rows[-1].enc_bbox_head.layers[-1]]
    assert all(head.weight.grad is not None and head.weight.grad.abs().sum() > 0 for head in heads)


def test_the_detections_are_the_same_whether_or_not_somebody_asks(model):
    model.train()
    images = torch.rand(1, 3, 64, 64)
    targets = [Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]))]
    outputs = []
    for questions in (None, Questions(torch.rand(1, 5, 4), (16,))):
        torch.manual_seed(3)
        outputs.append(model(images, targets, questions=questions).training)
    torch.testing.assert_close(outputs[0].layer_logits, outputs[1].layer_logits, rtol=0, atol=1e-5)
    assert outputs[0].answers is None
    assert model(images, targets, questions=Questions(None, ())).training.answers.logits is None
