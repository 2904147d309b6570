"""Names and shapes of every backbone layout, there and back, to the bit."""

from __future__ import annotations

import pytest
import timm
import torch
from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

from nextdetr.errors import WeightsError
from nextdetr.models.convnextv2 import PUBLISHED, SIZES, convnextv2
from nextdetr.weights.layouts.convnext import fold_v1
from nextdetr.weights.layouts.convnext_original import from_original, to_original
from nextdetr.weights.layouts.convnext_sparse import from_sparse
from nextdetr.weights.layouts.convnext_timm import from_timm, to_timm
from nextdetr.weights.layouts.convnext_transformers import from_transformers, to_transformers
from tests.weights.layouts_of_original import SMALL, original, sparse, v1

BOTH_WAYS = {
    "timm": (to_timm, from_timm),
    "transformers": (to_transformers, from_transformers),
    "original": (to_original, from_original),
}


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def assert_same(found, expected):
    assert list(found.keys() ^ expected.keys()) == []
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_written_layouts_have_the_libraries_own_names_and_shapes(size):
    with torch.device("meta"):
        ours = convnextv2(size, num_classes=1000).state_dict()
        theirs = timm.create_model(f"convnextv2_{size}").state_dict()
        config = ConvNextV2Config(depths=list(SIZES[size].depths), hidden_sizes=list(SIZES[size].dims), num_labels=1000)
        transformers = ConvNextV2ForImageClassification(config).state_dict()
    assert shapes(to_timm(ours)) == shapes(theirs)
    assert shapes(to_transformers(ours)) == shapes(transformers)
    assert shapes(to_original(ours)) == shapes(original(*SIZES[size][:2], device="meta"))
    for there, back in BOTH_WAYS.values():
        assert shapes(back(there(ours))) == shapes(ours)


@pytest.mark.parametrize("size", ["atto", "tiny"])  # 1x1 convolutions in timm, and Linear layers
@pytest.mark.parametrize("layout", BOTH_WAYS)
def test_there_and_back_is_the_same_to_the_bit(size, layout):
    there, back = BOTH_WAYS[layout]
    state = original((1, 1, 1, 1), SIZES[size].dims)
    assert_same(back(there(state)), state)


def test_a_sparse_checkpoint_is_the_dense_one():
    dense = original(*SMALL, classes=None)
    found = from_sparse(sparse(dense))
    assert_same(found, dense)


@pytest.mark.parametrize("size", PUBLISHED)
def test_sparse_checkpoints_of_every_size(size):
    with torch.device("meta"):
        state = sparse(original(*SIZES[size][:2], classes=None, device="meta"))
        assert shapes(from_sparse(state)) == shapes(convnextv2(size).state_dict())


def test_a_dense_pretraining_checkpoint_loses_its_decoder():
    dense = original(*SMALL, classes=None)
    state = {f"encoder.{name}": tensor for name, tensor in dense.items()} | {"mask_token": torch.zeros(1)}
    state |= {"decoder.0.dwconv.weight": torch.zeros(1), "proj.bias": torch.zeros(1), "pred.bias": torch.zeros(1)}
    assert_same(from_original(state), dense)


def test_layer_scale_goes_into_rows_and_bias_and_grn_is_zero():
    state = v1(original(*SMALL, classes=None))
    folded = fold_v1(state)
    scale = state["stages.2.1.gamma"]
    assert torch.allclose(folded["stages.2.1.pwconv2.weight"], state["stages.2.1.pwconv2.weight"] * scale[:, None])
    assert torch.allclose(folded["stages.2.1.pwconv2.bias"], state["stages.2.1.pwconv2.bias"] * scale)
    assert folded["stages.2.1.grn.gamma"].shape == (1, 1, 1, 640)
    assert not folded["stages.2.1.grn.gamma"].any()
    assert shapes(folded) == shapes(original(*SMALL, classes=None))


@pytest.mark.parametrize(
    ("variant", "message"), [("convnext_atto_ols", "overlapping stem"), ("convnext_atto_rms", "no bias")]
)
def test_variants_that_do_not_fold_are_refused(variant, message):
    with torch.device("meta"):
        state = from_timm(timm.create_model(variant).state_dict())
    with pytest.raises(WeightsError, match=message):
        fold_v1(state)


def test_a_sparse_kernel_that_is_not_square_is_refused():
    with pytest.raises(WeightsError, match="not a square"):
        from_sparse({"encoder.stages.0.0.dwconv.kernel": torch.zeros(48, 40)})
