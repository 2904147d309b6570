"""A model built on the meta device and allocated later is the model; a file of few tensors cannot claim a huge one."""

from __future__ import annotations

import time

import pytest
import torch

from nextdetr.errors import ModelFileError
from nextdetr.models.graph import build_model, build_skeleton, parse_model_text, with_memory

NAMES = ["nextdetr-atto", "nextdetr-atto-p2", "nextdetr-zepto-p2", "nextdetr-atto-rtdetr", "rtdetr-l", "rtdetr-r18vd"]


@pytest.mark.parametrize("name", NAMES)
def test_a_skeleton_with_memory_is_the_model(name):
    built = build_model(name, num_classes=3).eval()
    hollow = with_memory(build_skeleton(name, num_classes=3))
    assert [(n, t.shape, t.dtype) for n, t in hollow.state_dict().items()] == [
        (n, t.shape, t.dtype) for n, t in built.state_dict().items()
    ]
    assert [(n, p.requires_grad) for n, p in hollow.named_parameters()] == [
        (n, p.requires_grad) for n, p in built.named_parameters()
    ]
    hollow.load_state_dict(built.state_dict())
    for (name_, buffer), (_, other) in zip(built.named_buffers(), hollow.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name_
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(built(images).logits, hollow.eval()(images).logits)


def test_a_file_of_few_tensors_makes_no_model_of_many():
    row = "  - [-1, 1000, Conv, [64, 1, 1]]\n"
    text = "backbone:\n  - [-1, 1, convnextv2_atto, []]\nhead:\n" + 300 * row
    text += "  - [[2, 3, 4], 1, RTDETRDecoder, [nc, 32]]\n"
    started = time.monotonic()
    with pytest.raises(ModelFileError, match=r"more layers than the weights file has tensors \(4\)"):
        build_skeleton(parse_model_text(text, "m.yaml"), tensors=4)
    assert time.monotonic() - started < 20  # it would take minutes
