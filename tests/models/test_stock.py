"""The stock models: totals of REFERENCE (sections 1 and 3), a training pass of each, names of tensors, mistakes in rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nextdetr.engine.optim import parameter_groups
from nextdetr.errors import ConfigError, ModelFileError
from nextdetr.layers.conv import DWConv
from nextdetr.models.graph import build_model, parse_model_text
from nextdetr.models.resnet import resnetvd
from nextdetr.models.summary import count_gflop
from nextdetr.structures import Target
from tests.helpers import TINY_MODEL

DIALECT = {  # parameters and GFLOP at 640, 80 classes
    "rtdetr-l": (32_970_476, 109.54),
    "rtdetr-x": (67_467_852, 233.83),
    "rtdetr-resnet50": (42_925_132, 131.73),
    "rtdetr-resnet101": (61_917_260, 192.34),
}
# In transformers, whose denoising embedding has one row of 256 more. R34's total, and the second one of R18 and R50, leaves
# out the backbone's BatchNorms, which are frozen there. R101's is in tests/reference/test_stock_parity.py.
OFFICIAL = {"rtdetr-r18vd": 20_184_464, "rtdetr-r50vd": 42_944_620}
# The authors' table has 4, 10, 19, 31 and 62 M parameters. tests/reference/test_dfine_parity.py compares with transformers.
EDGES = {
    "dfine-n": 3_782_563, "dfine-s": 10_321_619, "dfine-m": 19_589_806, "dfine-l": 31_289_590, "dfine-x": 62_715_222,
}  # fmt: skip
# The authors' table has 0.5, 1.0, 1.5 and 3.6 M.
DEIM = {"deimv2-atto": 508_919, "deimv2-femto": 983_847, "deimv2-pico": 1_539_425, "deimv2-n": 3_600_291}
OFFICIAL_FROZEN = {"rtdetr-r18vd": 20_174_608, "rtdetr-r34vd": 31_424_388, "rtdetr-r50vd": 42_891_372}
STOCK = [*DIALECT, "rtdetr-r18vd", "rtdetr-r34vd", "rtdetr-r50vd", "rtdetr-r101vd"]


def on_meta(name, **settings):
    with torch.device("meta"):
        return build_model(name, **settings)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", DIALECT)
def test_totals_of_the_dialects_models(name):
    parameters, gflop = DIALECT[name]
    model = on_meta(name)
    assert count(model) == parameters
    assert count_gflop(model, 640) == pytest.approx(gflop, rel=1e-3)
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


@pytest.mark.parametrize("name", OFFICIAL)
def test_totals_of_the_official_models(name):
    assert count(on_meta(name)) == OFFICIAL[name] - 256


@pytest.mark.parametrize("name", EDGES)
def test_totals_of_dfine(name):
    model = on_meta(name)
    assert count(model) == EDGES[name]
    assert count(on_meta(name.replace("dfine", "deim"))) == EDGES[name]
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize("name", DEIM)
def test_totals_of_deimv2(name):
    assert count(on_meta(name)) == DEIM[name]


@pytest.mark.parametrize("name", ["dfine-n", "deim-n", "deimv2-atto", "deimv2-femto", "deimv2-pico", "deimv2-n"])
def test_maps_and_gradients_of_the_small_ones(name):
    """Two maps of strides 16 and 32; what is at the edges of boxes is trained too."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=3).train()
    assert model.row_infos[-1].strides_read == (16, 32)
    targets = [Target(torch.rand(n, 4) * 0.4 + 0.2, torch.randint(3, (n,))) for n in (2, 0)]
    training = model(torch.rand(2, 3, 96, 96), targets, queries=20).training
    parts = [training.layer_logits, training.layer_boxes, training.encoder_logits, training.encoder_boxes]
    parts += [e for edges in (training.edges, training.denoising.edges) for e in (edges.bins, edges.first_boxes)]
    sum(part.square().mean() for part in [*parts, training.edges.first_logits]).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_what_sets_deim_apart():
    model = on_meta("deimv2-pico")
    heads = model.rows[-1].dec_bbox_head
    assert len(heads) == 3
    assert len(set(heads)) == 1
    assert not model.rows[-1].follows_boxes
    assert on_meta("dfine-n").rows[-1].follows_boxes
    norms = [module for module in model.rows[-1].decoder.modules() if isinstance(module, nn.RMSNorm)]
    assert len(norms) == 9
    names = {key for key in on_meta("deimv2-n").state_dict() if "gateway.norm" in key}
    assert len(names) == 3
    silu = [row for row in on_meta("deim-s").rows[-1].modules() if isinstance(row, nn.SiLU)]
    assert silu
    text = SMALL.replace("RTDETRDecoder, [nc, 32, 20, 2, 4, 1, 64]", "DFINEDecoder, [nc, 32, 20, {{act: gelu}}]")
    with pytest.raises(ModelFileError, match="act is one of relu, silu, not 'gelu'"):
        build_model(parse_model_text(text.format("Conv, [16, 3, 2]"), "bad.yaml"))


@pytest.mark.parametrize("name", OFFICIAL_FROZEN)
def test_totals_without_the_backbones_norms(name):
    model = on_meta(name)
    norms = sum(count(module) for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    assert count(model) - norms == OFFICIAL_FROZEN[name] - 256
    assert {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize("name", STOCK)
def test_what_the_decoder_reads_is_known_without_a_forward(name):
    """Channels and strides as built agree with the maps that come."""
    model = on_meta(name, num_classes=2).eval()
    width = {"rtdetr-x": 384, "rtdetr-r101vd": 384}.get(name, 256)
    assert model.rows[-1].channels == [width] * 3
    seen = {}
    for number, row in enumerate(model.rows[:-1]):
        row.register_forward_hook(lambda _, __, out, number=number: seen.setdefault(number, out))
    model(torch.zeros(1, 3, 64, 64, device="meta"))
    stages = seen[0] if name.endswith("vd") else [seen[k] for k in _stages(name)]
    assert [64 // stage.shape[-1] for stage in stages] == [4, 8, 16, 32]
    if name.endswith("vd"):
        assert [stage.shape[1] for stage in stages] == model.backbone.channels
        assert model.backbone.strides == [4, 8, 16, 32]


def _stages(name):
    return {"rtdetr-l": (1, 3, 7, 9), "rtdetr-x": (1, 4, 10, 13)}.get(name, (1, 2, 3, 4))


@pytest.mark.parametrize("name", STOCK)
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=3).train()
    targets = [Target(torch.rand(n, 4) * 0.4 + 0.2, torch.randint(3, (n,))) for n in (2, 0)]
    training = model(torch.rand(2, 3, 64, 64), targets, queries=20).training
    parts = [training.layer_logits, training.layer_boxes, training.encoder_logits, training.encoder_boxes]
    parts += [training.denoising.logits, training.denoising.boxes]
    sum(part.square().mean() for part in parts).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


NAMES = {
    "rtdetr-l": [
        "0.stem1.conv", "0.stem2a.bn", "0.stem2b.conv", "0.stem3.conv", "0.stem4.bn", "1.m.5.conv", "1.sc.bn", "1.ec.conv",
        "2.conv", "5.m.0.conv1.conv", "7.m.5.conv2.bn",
    ],
    "rtdetr-x": ["0.stem4.conv", "3.m.0.conv", "13.m.5.conv2.conv"],
    "rtdetr-resnet50": [
        "0.layer.0.conv", "0.layer.0.bn", "1.layer.0.shortcut.0.conv", "3.layer.5.cv1.conv", "4.layer.2.cv3.bn",
        "2.layer.0.cv2.conv",
    ],
    "rtdetr-resnet101": ["3.layer.22.cv3.bn"],
    "rtdetr-r18vd": ["0.conv1.conv1_3.conv", "0.res_layers.0.blocks.0.short.conv", "0.res_layers.1.blocks.0.short.conv.bn"],
    "rtdetr-r50vd": ["0.conv1.conv1_1.bn", "0.res_layers.3.blocks.2.branch2c.bn"],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_tensors_have_the_published_files_names(name):
    state = on_meta(name).state_dict()
    for key in NAMES[name]:
        assert f"rows.{key}.weight" in state
    assert not [key for key in state if ".act." in key or ".pool." in key]


def test_convolutions_light_and_full():
    state = on_meta("rtdetr-x").state_dict()
    assert state["rows.4.m.5.conv.weight"].shape == (128, 128, 3, 3)
    assert state["rows.13.m.0.conv2.conv.weight"].shape == (512, 1, 5, 5)
    assert [on_meta("rtdetr-l").rows[k].add for k in (1, 3, 5, 6, 7, 9)] == [False, False, False, True, True, False]


def test_groups_of_a_depthwise_row():
    assert DWConv(12, 12, 3).conv.groups == 12
    assert DWConv(12, 18, 3).conv.groups == 6  # what divides both
    x = torch.randn(1, 12, 8, 8)
    one_hot = x.clone()
    one_hot[:, 1:] = 0
    layer = DWConv(12, 12, 3, 2, 1, False).eval()
    torch.testing.assert_close(layer(one_hot)[:, 0], layer(x)[:, 0])
    assert layer(x).shape == (1, 12, 4, 4)


def test_the_whole_backbone_learns_at_its_own_rate():
    model = on_meta("rtdetr-resnet50", num_classes=2)
    groups = parameter_groups(model, 1.0, 0.1, 0.25)
    slow = sum(p.numel() for group in groups if group["lr"] == 0.25 for p in group["params"])
    assert slow == sum(count(row) for row in model.rows[:5])


# A model of ordinary rows, which these are put in front of.
SMALL = """
nc: 2
backbone:
  - [-1, 1, {}]
head:
  - [-1, 1, Conv, [16, 1, 1]]
  - [-1, 1, RTDETRDecoder, [nc, 32, 20, 2, 4, 1, 64]]
"""


def built(row, **settings):
    return build_model(parse_model_text(SMALL.format(row), "bad.yaml"), num_classes=2, **settings)


def test_arguments_shown_and_scaled():
    text = SMALL.format("Conv, [20, 3, 2]").replace("nc: 2", "nc: 2\nscales: {s: [0.34, 0.5, 64]}")
    rows = (
        "head:\n  - [-1, 1, HGStem, [8, 20]]\n  - [-1, 6, HGBlock, [12, 24, 3, True, False]]\n"
        "  - [-1, 2, DWConv, [24, 3, 2]]\n  - [-1, 1, ResNetLayer, [16, 6, 2, False, 2]]"
    )
    model = build_model(parse_model_text(text.replace("head:", rows), "x.yaml"))
    assert [info.arguments for info in model.row_infos[:5]] == [
        [3, 16, 3, 2], [16, 8, 20], [20, 12, 24, 3, 2, True, False], [24, 16, 3, 2], [16, 6, 2, False, 2],
    ]  # fmt: skip
    assert model.row_infos[5].arguments[0] == 24
    assert model.eval()(torch.rand(1, 3, 256, 256)).boxes.shape[-1] == 4


BAD = {
    "vd not first": ("Conv, [3, 1, 1]]\n  - [-1, 1, resnetvd_18, []", r"row 1 \(resnetvd_18.*must be the first row"),
    "vd of no size": ("resnetvd_20, []", "no layer 'resnetvd_20'; did you mean resnetvd_"),
    "vd weights": ("resnetvd_18, ['none.pt']", r"none\.pt do not exist"),
    "vd arguments": ("resnetvd_18, [3]", "argument weights must be str, not 3"),
    "sum of two widths": (
        "Conv, [8, 1, 1]]\n  - [-1, 1, Conv, [16, 1, 1]]\n  - [[-2, -1], 1, Add, []",
        "channels 8 and 16; they must be equal",
    ),
    "pool's padding": ("nn.AvgPool2d, [3, 2, 2]", "needs a padding of 1"),
    "odd split": ("RepNCSPELAN4, [16, 15, 8]", "15 channels cannot be split into two halves"),
    "stem of one": ("HGStem, [32]", "1 arguments, but the layer takes these: channels inside, channels"),
    "narrow stem": ("HGStem, [1, 8]", "channels inside must be at least 2, not 1"),
    "even kernel": ("HGBlock, [8, 16, 4]", "kernel must be odd, .* it is 4"),
    "light": ("HGBlock, [8, 16, 3, 1]", "argument light must be bool, not 1"),
    "half a channel": ("HGBlock, [8, 1]", "channels must be at least 2, not 1"),
    "no channels": ("DWConv, [0]", "channels must be at least 1, not 0"),
    "activation": ("DWConv, [8, 3, 1, 1, relu]", "activation must be bool, not 'relu'"),
    "other channels": ("ResNetLayer, [64, 64]", "says that 64 channels come in, but there are 3"),
    "first": ("ResNetLayer, [3, 64, 1, 1]", "argument first must be bool, not 1"),
    "blocks": ("ResNetLayer, [3, 64, 1, False, 0]", "blocks must be at least 1, not 0"),
    "many blocks": ("ResNetLayer, [3, 64, 1, False, 100000]", "blocks must be at most 1000"),
    "repeated stem": ("HGStem, [8, 16]", "cannot be repeated"),
    "repeated stage": ("ResNetLayer, [3, 8]", "cannot be repeated"),
}


@pytest.mark.parametrize("kind", BAD)
def test_mistakes(kind):
    row, message = BAD[kind]
    text = SMALL.format(row)
    if kind.startswith("repeated"):
        text = text.replace("[-1, 1, " + row, "[-1, 2, " + row)
    with pytest.raises(ModelFileError, match=message) as error:
        build_model(parse_model_text(text, "bad.yaml"))
    assert str(error.value).startswith("bad.yaml, row ")
    assert "\n" not in str(error.value)


def test_no_stochastic_depth_in_stock_backbones():
    with pytest.raises(ModelFileError, match=r"row 0 \(HGStem.*only ConvNeXt V2 .* leave drop_path at 0"):
        built("HGStem, [8, 16]", drop_path=0.1)
    assert build_model(parse_model_text(TINY_MODEL, "tiny.yaml"), drop_path=0.1).backbone.stages[3][1].drop_path == 0.1


def test_no_such_size():
    with pytest.raises(ConfigError, match="no ResNet-vd of size '152': choose one of 18, 34, 50, 101"):
        resnetvd("152")
