"""A detector's head on another backbone: which rows it has, and which tensors are new."""

from __future__ import annotations

import pytest
import torch

from nextdetr.errors import ConfigError
from nextdetr.models.fuse import fuse
from nextdetr.models.graft import build_graft, match_statistics, plan_graft
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.models.names import inside_row, row_name, row_of
from tests.helpers import TINY_MODEL

# The decoder and a sum read the backbone themselves, and so does a convolution that is none of 1 x 1.
DIRECT = """
nc: 2
batch_norm_eps: 1.0e-5
backbone:
  - [-1, 1, convnextv2_zepto, []]
head:
  - [3, 1, Conv, [64, 3, 1]]
  - [[3, 3], 1, Add, []]
  - [-1, 1, Conv, [48, 1, 1]]
  - [[2, 5, 4], 1, DFINEDecoder, [nc, 32, 20, 2, 4, 2, 64]]
"""


def shaken(model):
    """A model whose every number is its own, statistics included."""
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.01 * torch.rand_like(tensor))
    return model.eval()


def new_tensors(source, graft, model):
    """Names of the head's tensors that are not the old detector's."""
    own = source.state_dict()
    back = {new: old for old, new in graft.rows.items()}
    found = []
    for name, tensor in model.state_dict().items():
        row = row_of(name)
        if row == 0 or name.endswith("num_batches_tracked"):
            continue
        old = own.get(row_name(back[row], inside_row(name))) if row in back else None
        if old is None or not torch.equal(old, tensor):
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("name", "joints"), [("rtdetr-r18vd", 3), ("dfine-n", 2), ("deimv2-pico", 1), ("nextdetr-zepto", 3)]
)
def test_only_the_projections_are_new(name, joints):
    source = shaken(build_model(name, num_classes=3))
    graft = plan_graft(source, "atto", name)
    model = build_graft(graft, source).eval()
    assert len(graft.joints) == joints
    statistics = ("conv.weight", "bn.running_mean", "bn.running_var")
    assert new_tensors(source, graft, model) == [row_name(row, part) for row in graft.joints for part in statistics]
    assert (model.row_infos[0].name, model.backbone_rows, model.normalize) == ("convnextv2_atto", 1, "imagenet")
    assert (model.image_size, len(model.rows) - 1) == (source.image_size, len(source.rows) - source.backbone_rows)
    for old, new in graft.rows.items():
        assert model.row_infos[new].strides_read == source.row_infos[old].strides_read
    again = build_model(parse_model_text(model.text, "again"), num_classes=3)  # the file stands for itself
    assert [info.writes for info in again.row_infos] == [info.writes for info in model.row_infos]
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).logits.shape[-1] == 3


def test_the_head_computes_what_it_did():
    """With the maps that the old joints yield in the place of its own, the graft is the old detector."""
    source = shaken(build_model("dfine-n", num_classes=3))
    graft = plan_graft(source, "femto", "dfine-n")
    model, image = build_graft(graft, source).eval(), torch.rand(1, 3, 96, 96)
    new = {index for _, index in graft.pairs}
    with torch.no_grad():
        maps = source._maps(image, len(source.rows) - 1, kept=tuple(old for old, _ in graft.pairs))
        given = {graft.joints[k]: maps[graft.pairs[k][0]] for k in range(len(graft.joints))}
        for row, found in given.items():
            model.rows[row].forward = lambda x, found=found: found
        torch.testing.assert_close(model(image).logits, source(image).logits)
        others = model._maps(image, len(model.rows) - 1, kept=tuple(new))
    for old, index in graft.pairs:
        torch.testing.assert_close(others[index], maps[old])


def test_what_is_no_projection_gets_an_adapter():
    source = shaken(build_model(parse_model_text(DIRECT, "direct"), num_classes=2))
    graft = plan_graft(source, "atto", "direct\nnew line")
    model = build_graft(graft, source).eval()
    assert graft.joints == (1, 2, 3)  # of maps 3, 2 and 4, before everything else
    wide = [source.channels_of(index) for index in (3, 2, 4)]
    assert [model.channels_of(index) for index in (5, 6, 7)] == wide
    assert graft.pairs == ((3, 5), (2, 6), (4, 7), (5, 8))
    assert all(row_of(name) in (1, 2, 3) for name in new_tensors(source, graft, model))
    with torch.no_grad():
        assert fuse(model)(torch.rand(1, 3, 64, 64)).boxes.shape == (1, 20, 4)


@pytest.mark.parametrize("name", ["direct", "nextdetr-zepto", "tiny"])  # with adapters, without, with activations
def test_the_channels_of_joints_start_with_the_old_mean_and_variance(name):
    text = {"direct": DIRECT, "tiny": TINY_MODEL}.get(name)
    source = shaken(build_model(name if text is None else parse_model_text(text, name), num_classes=2))
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.mul_(1e4)  # as after a short training, not the variance of the maps
    graft = plan_graft(source, "atto", name)
    model, images = build_graft(graft, source).train(), torch.rand(4, 3, 96, 96)
    old_rows, old_maps = ({new: old for old, new in pairs} for pairs in (graft.rows.items(), graft.pairs))
    seen = {}
    for number, rows in (("old", source.rows), ("new", model.rows)):
        for row in graft.joints:
            place = row if number == "new" else old_rows.get(row)
            if place is not None:
                rows[place].bn.register_forward_hook(lambda _, __, out, key=(number, row): seen.update({key: out.clone()}))
    with torch.no_grad():
        match_statistics(graft, source, model, images)
        maps = source._maps(images, len(source.rows) - 1, kept=tuple(index for index, _ in graft.pairs))
        model._maps(images, len(model.rows) - 1)
    for row in graft.joints:
        wanted = seen.get(("old", row))
        wanted = maps[old_maps[model.row_infos[row].writes[0]]] if wanted is None else wanted
        expected, got = (torch.var_mean(values, dim=(0, 2, 3), correction=0) for values in (wanted, seen["new", row]))
        torch.testing.assert_close(got[0], expected[0], rtol=0.3, atol=1e-9)  # the BatchNorm's epsilon takes a part
        torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=1e-5)


def test_what_cannot_be_grafted():
    deeper = TINY_MODEL.replace("convnextv2_atto, []]", "convnextv2_atto, []]\n  - [4, 1, Conv, [32, 3, 2]]")
    deeper = deeper.replace("[3, 1, Conv", "[5, 1, Conv").replace("[[6, 5]", "[[6, 7]")
    source = build_model(parse_model_text(deeper, "deeper"))
    with pytest.raises(ConfigError, match="a map of stride 64, and a ConvNeXt V2 has those of stride 4, 8, 16, 32"):
        plan_graft(source, "atto", "deeper")
    with pytest.raises(ConfigError, match="no ConvNeXt V2 of size mega"):
        plan_graft(source, "mega", "deeper")
