"""What a model knows about its tensor names: the row of each, and which have one row per class."""

import pytest
import torch

from nextdetr.models.graph import available_models, build_skeleton, load_model_file, parse_model_text
from nextdetr.models.names import inside_row, row_name, row_of


def test_a_name_is_taken_apart_and_put_together() -> None:
    assert row_of("rows.17.m.0.conv1.conv.weight") == 17
    assert inside_row("rows.17.m.0.conv1.conv.weight") == "m.0.conv1.conv.weight"
    assert row_name(17, "m.0.conv1.conv.weight") == "rows.17.m.0.conv1.conv.weight"


@pytest.mark.parametrize("name", ["backbone.rows.3.weight", "rows.x.weight", "rows.3", "mean", "rows." + "9" * 5000 + ".w"])
def test_a_name_of_no_row_is_none(name: str) -> None:
    assert row_of(name) is None
    assert inside_row(name) == name


@pytest.mark.parametrize("decoder", ["RTDETRDecoder", "DFINEDecoder"])
@pytest.mark.parametrize("dense", [False, True])
def test_class_parameters_are_those_whose_shape_follows_the_classes(decoder: str, dense: bool) -> None:
    text = f"""
backbone: [[-1, 1, convnextv2_atto, []]]
head: [[[2, 3], 1, {decoder}, [nc, 32, 7, 1, 2, 2, 48, {{dense: {dense}}}]]]
"""
    few, more = (build_skeleton(parse_model_text(text, "tiny.yaml"), num_classes=count) for count in (13, 29))
    grown = [name for name, tensor in few.state_dict().items() if more.state_dict()[name].shape != tensor.shape]
    assert sorted(few.class_parameters()) == sorted(grown)
    assert all(few.state_dict()[name].shape[0] == 13 for name in grown)
    assert ("rows.1.dense_head.score.weight" in grown) == dense


def test_class_parameters_of_every_shipped_model_exist() -> None:
    for name in available_models():
        if "huge" in name or "large" in name:
            continue
        model = build_skeleton(load_model_file(name), num_classes=3)
        state = model.state_dict()
        assert model.class_parameters()
        assert {state[key].shape[0] for key in model.class_parameters()} == {3}
        assert all(
            isinstance(state[key], torch.Tensor) and row_of(key) == len(model.rows) - 1 for key in model.class_parameters()
        )
