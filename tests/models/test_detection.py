from __future__ import annotations

import weakref

import pytest
import torch

from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.structures import Target
from tests.helpers import TINY_MODEL


def target(boxes: int, classes: int) -> Target:
    return Target(0.2 + 0.3 * torch.rand(boxes, 4), torch.randint(0, classes, (boxes,)))


SMALL = ["nextdetr-atto", *(f"rtdetr-l-convnextv2-{size}" for size in ("atto", "femto", "pico", "nano", "tiny"))]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("boxes", [(3, 0), (0, 0)])
def test_every_parameter_gets_a_gradient(name, boxes):
    model = build_model(name, num_classes=4).train()
    targets = [target(count, 4) for count in boxes]
    terms = Criterion(4, HungarianMatcher())(model(torch.rand(2, 3, 96, 96), targets), targets)
    sum(terms.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("classes", [1, 1000])
def test_extreme_numbers_of_classes_and_boxes(classes):
    model = build_model("nextdetr-atto", num_classes=classes).train()
    targets = [target(320, classes), target(1, classes)]
    terms = Criterion(classes, HungarianMatcher())(model(torch.rand(2, 3, 160, 160), targets), targets)
    assert all(value.isfinite() for value in terms.values())


def test_normalisation_happens_inside():
    plain = build_model(parse_model_text(TINY_MODEL, "x")).eval()
    normal = build_model(parse_model_text("normalize: imagenet\n" + TINY_MODEL, "x")).eval()
    normal.load_state_dict(plain.state_dict())  # the same names: mean and deviation are not among them
    images = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = (images - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normal(images).logits, plain(by_hand).logits)


def test_more_and_fewer_queries():
    model = build_model("nextdetr-atto", num_classes=2).eval()
    with torch.inference_mode():
        for queries in (10, 300, 400):
            output = model(torch.rand(1, 3, 160, 160), queries=queries)
            assert output.boxes.shape == (1, queries, 4)
            assert output.training is None
            assert output.boxes.min() >= 0
            assert output.boxes.max() <= 1


def test_maps_do_not_outlive_their_last_use():
    """At the decoder, only the three maps that it reads are left; stride 4, which nothing reads, went first."""
    model = build_model("nextdetr-atto").eval()
    alive: dict[str, weakref.ref[torch.Tensor]] = {}
    model.backbone.register_forward_pre_hook(lambda _, inputs: alive.update(image=weakref.ref(inputs[0])))
    model.backbone.register_forward_hook(
        lambda _, __, maps: alive.update({f"stride {4 << i}": weakref.ref(m) for i, m in enumerate(maps)})
    )
    for number, row in list(enumerate(model.rows))[1:-1]:
        row.register_forward_hook(lambda _, __, out, number=number: alive.update({f"row {number}": weakref.ref(out)}))
    seen: list[set[str]] = []

    def note(*_):
        seen.append({name for name, ref in alive.items() if ref() is not None})

    model.rows[2].register_forward_pre_hook(note)
    model.rows[-1].register_forward_pre_hook(note)
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    assert seen == [{"stride 8", "stride 16", "row 1"}, {"row 12", "row 15", "row 18"}]
