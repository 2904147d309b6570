"""Official and ultralytics checkpoints, made here with their exact names and shapes: every tensor reaches its place.

The names are those of lyuwenyu/RT-DETR (Apache-2.0) and of published ultralytics files; neither package is needed.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from nextdetr.errors import WeightsError
from nextdetr.models.graph import build_model
from nextdetr.models.modelfile import available_models, load_model_file
from nextdetr.weights.layouts.detectors import (
    detector_classes,
    detector_kind,
    detector_notes,
    detector_to_ours,
    shipped_model_for,
)
from nextdetr.weights.start import start_model

CLASSES = 3
OFFICIAL = {  # blocks, bottleneck, hidden width of the encoder, its feed-forward width, expansion, decoder layers
    "rtdetr-r18vd": ((2, 2, 2, 2), False, 256, 1024, 0.5, 3),
    "rtdetr-r34vd": ((3, 4, 6, 3), False, 256, 1024, 0.5, 4),
    "rtdetr-r50vd": ((3, 4, 6, 3), True, 256, 1024, 1.0, 6),
    "rtdetr-r101vd": ((3, 4, 23, 3), True, 384, 2048, 1.0, 6),
}
needs_stock = pytest.mark.skipif("rtdetr-r18vd" not in available_models(), reason="the stock models are not in this tree")


class _State(dict):
    """Names with tensors on the meta device, or each filled with a number of its own."""

    def __init__(self, device="meta"):
        super().__init__()
        self.device, self.numbers = device, itertools.count(1)

    def add(self, name, *shape):
        self[name] = torch.full(shape, float(next(self.numbers)), device=self.device)

    def linear(self, name, inputs, outputs):
        self.add(f"{name}.weight", outputs, inputs)
        self.add(f"{name}.bias", outputs)

    def norm(self, name, channels):
        self.add(f"{name}.weight", channels)
        self.add(f"{name}.bias", channels)

    def batch_norm(self, name, channels):
        self.norm(name, channels)
        self.add(f"{name}.running_mean", channels)
        self.add(f"{name}.running_var", channels)
        self[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long, device=self.device)

    def conv(self, name, inputs, outputs, kernel=1, names=("conv", "norm")):
        self.add(f"{name}.{names[0]}.weight", outputs, inputs, kernel, kernel)
        self.batch_norm(f"{name}.{names[1]}", outputs)

    def mlp(self, name, inputs, hidden, outputs, layers):
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            self.linear(f"{name}.layers.{i}", a, b)

    def encoder_layer(self, name, hidden, ffn):
        self.attention(f"{name}.self_attn", hidden)
        self.linear(f"{name}.linear1", hidden, ffn)
        self.linear(f"{name}.linear2", ffn, hidden)
        self.norm(f"{name}.norm1", hidden)
        self.norm(f"{name}.norm2", hidden)

    def attention(self, name, hidden):
        self.add(f"{name}.in_proj_weight", 3 * hidden, hidden)
        self.add(f"{name}.in_proj_bias", 3 * hidden)
        self.linear(f"{name}.out_proj", hidden, hidden)


def _backbone(state, blocks, bottleneck):
    for k, (a, b) in enumerate(((3, 32), (32, 32), (32, 64)), start=1):
        state.conv(f"backbone.conv1.conv1_{k}", a, b, 3)
    width_in, expansion = 64, 4 if bottleneck else 1
    for i, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
        for j in range(count):
            block = f"backbone.res_layers.{i}.blocks.{j}"
            out = width * expansion
            if j == 0:
                state.conv(f"{block}.short" if i == 0 else f"{block}.short.conv", width_in, out)
            if bottleneck:
                state.conv(f"{block}.branch2a", width_in, width)
                state.conv(f"{block}.branch2b", width, width, 3)
                state.conv(f"{block}.branch2c", width, out)
            else:
                state.conv(f"{block}.branch2a", width_in, width, 3)
                state.conv(f"{block}.branch2b", width, width, 3)
            width_in = out
    return [width * expansion for width in (128, 256, 512)]


def _encoder(state, channels, hidden, ffn, expansion, names):
    for i, c in enumerate(channels):
        state.conv(f"encoder.input_proj.{i}", c, hidden, names=names)
    state.encoder_layer("encoder.encoder.0.layers.0", hidden, ffn)
    inside = int(hidden * expansion)
    for side, (convs, kernel) in {"fpn": ("lateral_convs", 1), "pan": ("downsample_convs", 3)}.items():
        for i in range(2):
            state.conv(f"encoder.{convs}.{i}", hidden, hidden, kernel)
            block = f"encoder.{side}_blocks.{i}"
            for k in (1, 2):
                state.conv(f"{block}.conv{k}", 2 * hidden, inside)
            for j in range(3):
                state.conv(f"{block}.bottlenecks.{j}.conv1", inside, inside, 3)
                state.conv(f"{block}.bottlenecks.{j}.conv2", inside, inside)
            if inside != hidden:
                state.conv(f"{block}.conv3", inside, hidden)


def _decoder(state, prefix, channels, layers, names, enc_output, embedded):
    for i in range(3):
        state.conv(f"{prefix}input_proj.{i}", channels, 256, names=names)
    state.linear(f"{prefix}enc_output.{enc_output[0]}", 256, 256)
    state.norm(f"{prefix}enc_output.{enc_output[1]}", 256)
    state.linear(f"{prefix}enc_score_head", 256, CLASSES)
    state.mlp(f"{prefix}enc_bbox_head", 256, 256, 4, 3)
    state.mlp(f"{prefix}query_pos_head", 4, 512, 256, 2)
    for i in range(layers):
        layer = f"{prefix}decoder.layers.{i}"
        state.attention(f"{layer}.self_attn", 256)
        for k in (1, 2, 3):
            state.norm(f"{layer}.norm{k}", 256)
        for part, width in {
            "sampling_offsets": 192,
            "attention_weights": 96,
            "value_proj": 256,
            "output_proj": 256,
        }.items():
            state.linear(f"{layer}.cross_attn.{part}", 256, width)
        state.linear(f"{layer}.linear1", 256, 1024)
        state.linear(f"{layer}.linear2", 1024, 256)
        state.linear(f"{prefix}dec_score_head.{i}", 256, CLASSES)
        state.mlp(f"{prefix}dec_bbox_head.{i}", 256, 256, 4, 3)
    state.add(f"{prefix}denoising_class_embed.weight", embedded, 256)


def official(name, second=False, device="meta"):
    """A state dict of the official repository; ``second``: of its second release."""
    blocks, bottleneck, hidden, ffn, expansion, layers = OFFICIAL[name]
    state = _State(device)
    channels = _backbone(state, blocks, bottleneck)
    _encoder(state, channels, hidden, ffn, expansion, ("conv", "norm") if second else ("0", "1"))
    enc_output = ("proj", "norm") if second else ("0", "1")
    _decoder(state, "decoder.", hidden, layers, ("conv", "norm"), enc_output, CLASSES + 1)
    if second:
        state["decoder.anchors"] = torch.zeros(1, 8400, 4, device=device)
        state["decoder.valid_mask"] = torch.ones(1, 8400, 1, dtype=torch.bool, device=device)
        for i in range(layers):
            state[f"decoder.decoder.layers.{i}.cross_attn.num_points_scale"] = torch.full((12,), 0.25, device=device)
    return state


def _complete(mapped, model):
    """Nothing missing, nothing unexpected, every shape right."""
    own = model.state_dict()
    assert set(mapped) - set(own) == set()
    assert all(name.endswith("num_batches_tracked") for name in set(own) - set(mapped))
    assert {name: own[name].shape for name in mapped} == {name: tensor.shape for name, tensor in mapped.items()}


@needs_stock
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("name", OFFICIAL)
def test_official(name, second):
    state = official(name, second)
    kind = detector_kind(state)
    assert kind == ("rtdetrv2-official" if second else "rtdetr-official")
    assert detector_classes(kind, state) == CLASSES
    with torch.device("meta"):
        model = build_model(name, num_classes=CLASSES)
    _complete(detector_to_ours(kind, state, model), model)
    assert shipped_model_for(kind, state) == name


@needs_stock
def test_a_file_with_more_layers_than_the_model_is_for_another_one(monkeypatch):
    monkeypatch.setitem(OFFICIAL, "rtdetr-r18vd", (*OFFICIAL["rtdetr-r18vd"][:-1], 4))  # decoder layers
    assert shipped_model_for("rtdetrv2-official", official("rtdetr-r18vd", second=True)) is None
    monkeypatch.undo()
    state = official("rtdetr-r18vd")
    state.linear("encoder.encoder.0.layers.1.linear1", 256, 1024)
    assert shipped_model_for("rtdetr-official", state) is None


@needs_stock
def test_deims_rtdetr_is_said():
    with torch.device("meta"):
        model = build_model("rtdetr-r18vd", num_classes=CLASSES)
    state = official("rtdetr-r18vd", second=True)
    assert detector_notes("rtdetrv2-official", state, model) == []
    state.mlp("decoder.query_pos_head", 4, 256, 256, 3)
    (note,) = detector_notes("rtdetrv2-official", state, model)
    assert "DEIM's RT-DETR" in note
    assert shipped_model_for("rtdetrv2-official", state) is None


@needs_stock
def test_official_places():
    """Each tensor is where its name says: the parts by hand, and no tensor twice."""
    state = official("rtdetr-r18vd", second=True, device="cpu")
    model = build_model("rtdetr-r18vd", num_classes=CLASSES)
    mapped = detector_to_ours("rtdetrv2-official", state, model)
    numbers = [tensor.flatten()[0].item() for name, tensor in mapped.items() if "num_batches" not in name]
    assert len(set(numbers)) == len(numbers)
    for theirs, ours in {
        "encoder.input_proj.0.conv.weight": "rows.10.conv.weight",
        "encoder.input_proj.1.norm.running_mean": "rows.5.bn.running_mean",
        "encoder.input_proj.2.norm.bias": "rows.1.bn.bias",
        "encoder.encoder.0.layers.0.self_attn.out_proj.weight": "rows.2.ma.out_proj.weight",
        "encoder.encoder.0.layers.0.linear2.bias": "rows.2.fc2.bias",
        "encoder.lateral_convs.0.conv.weight": "rows.3.conv.weight",
        "encoder.lateral_convs.1.conv.weight": "rows.8.conv.weight",
        "encoder.fpn_blocks.0.conv1.conv.weight": "rows.7.cv1.conv.weight",
        "encoder.fpn_blocks.1.bottlenecks.2.conv2.norm.weight": "rows.12.m.2.conv2.bn.weight",
        "encoder.downsample_convs.0.conv.weight": "rows.13.conv.weight",
        "encoder.pan_blocks.0.conv3.conv.weight": "rows.15.cv3.conv.weight",
        "encoder.downsample_convs.1.norm.running_var": "rows.16.bn.running_var",
        "encoder.pan_blocks.1.conv2.conv.weight": "rows.18.cv2.conv.weight",
        "decoder.input_proj.1.norm.weight": "rows.19.input_proj.1.bn.weight",
        "decoder.enc_output.norm.weight": "rows.19.enc_output.1.weight",
        "decoder.decoder.layers.2.cross_attn.value_proj.weight": "rows.19.decoder.layers.2.cross_attn.value_proj.weight",
        "decoder.dec_bbox_head.1.layers.2.bias": "rows.19.dec_bbox_head.1.layers.2.bias",
    }.items():
        torch.testing.assert_close(mapped[ours], state[theirs], msg=theirs)


@needs_stock
def test_a_vd_backbone_alone(tmp_path):
    """The model file's backbone row names an official detector: its backbone is taken, the head is not."""
    state = official("rtdetr-r18vd", device="cpu")
    torch.save({"ema": {"module": dict(state)}}, tmp_path / "official.pth")
    text = load_model_file("rtdetr-r18vd").text
    (tmp_path / "m.yaml").write_text(text.replace("resnetvd_18, []", "resnetvd_18, [official.pth]"))
    started = start_model(tmp_path / "m.yaml", classes=["a", "b"])
    ours, name = started.model.backbone.state_dict(), "res_layers.2.blocks.0.branch2b"
    assert torch.equal(ours[f"{name}.bn.running_var"], state[f"backbone.{name}.norm.running_var"])
    assert torch.equal(
        ours["res_layers.3.blocks.0.short.conv.conv.weight"], state["backbone.res_layers.3.blocks.0.short.conv.conv.weight"]
    )
    assert not torch.equal(started.model.rows[2].fc1.bias, state["encoder.encoder.0.layers.0.linear1.bias"])


def _on_convnext(second=False, device="cpu"):
    """The official encoder and decoder on the widths of ConvNeXt V2 atto, whose backbone is in no official file."""
    state = _State(device)
    _encoder(state, [80, 160, 320], 256, 1024, 1.0, ("conv", "norm") if second else ("0", "1"))
    _decoder(state, "decoder.", 256, 6, ("conv", "norm"), ("proj", "norm") if second else ("0", "1"), CLASSES + 1)
    return state


@pytest.mark.parametrize("second", [False, True])
def test_official_head_on_another_backbone(second):
    state = _on_convnext(second)
    model = build_model("rtdetr-l-convnextv2-atto", num_classes=CLASSES)
    with pytest.warns(UserWarning, match="batch_norm_eps: 1"):
        mapped = detector_to_ours(detector_kind(state), {f"module.{k}": v for k, v in state.items()}, model)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("rows.0.") and "num_batches" not in k}
    placed = {k: v for k, v in mapped.items() if "num_batches" not in k}
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in placed.items()}
    numbers = [tensor.flatten()[0].item() for tensor in placed.values()]
    assert len(set(numbers)) == len(numbers)
    # The padding's row is the last one.
    embedding = state["decoder.denoising_class_embed.weight"] = torch.arange(4.0)[:, None].expand(4, 256)
    with pytest.warns(UserWarning, match="BatchNorms"):
        mapped = detector_to_ours(detector_kind(state), state, model)
    assert torch.equal(mapped["rows.19.denoising_class_embed.weight"], embedding[:3])
    assert torch.equal(
        mapped["rows.7.m.1.conv1.conv.weight"], state["encoder.fpn_blocks.0.bottlenecks.1.conv1.conv.weight"]
    )
    assert torch.equal(mapped["rows.15.cv2.bn.bias"], state["encoder.pan_blocks.0.conv2.norm.bias"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_loaded():
    state = _on_convnext(second=True)
    model = build_model("rtdetr-l-convnextv2-atto", num_classes=CLASSES)
    scale = "decoder.decoder.layers.0.cross_attn.num_points_scale"
    state[scale] = torch.tensor([1 / 3] * 3 + [1 / 6] * 6 + [1 / 3] * 3)
    with pytest.raises(WeightsError, match="reads 3 and 6 points"):
        detector_to_ours("rtdetrv2-official", state, model)
    del state[scale]
    state["decoder.something_else"] = torch.zeros(1)
    state["backbone.conv1.conv.weight"] = torch.zeros(1)
    mapped = detector_to_ours("rtdetrv2-official", state, model)
    assert "rows.19.something_else" in mapped  # a report shows both as unexpected
    assert "rows.0.conv1.conv.weight" in mapped
    with pytest.raises(WeightsError, match="no layout 'yolo'; there are rtdetr-ultralytics"):
        detector_to_ours("yolo", state, model)
    assert detector_kind(["model.0.conv.weight", "decoder.weight"]) is None
    assert shipped_model_for("rtdetrv2-official", state) is None


def _ultralytics(model, last):
    """Names and shapes of an ultralytics file of the same rows: our own, but for the decoder's projections."""
    state = {}
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        name = name.replace("rows.", "model.", 1)
        if name.startswith(f"model.{last}.input_proj."):
            name = name.replace(".conv.", ".0.").replace(".bn.", ".1.")
        state[name] = torch.full_like(tensor, number) if not tensor.is_meta else tensor
    return state


@needs_stock
@pytest.mark.parametrize("name", ["rtdetr-l", "rtdetr-x", "rtdetr-resnet50", "rtdetr-resnet101"])
def test_ultralytics_stock(name):
    """The stock models' files are told apart by their backbones, and every tensor has its place."""
    with torch.device("meta"):
        model = build_model(name, num_classes=CLASSES)
    state = _ultralytics(model, len(model.rows) - 1)
    assert shipped_model_for("rtdetr-ultralytics", state) == name
    _complete(detector_to_ours("rtdetr-ultralytics", state, model), model)


def test_ultralytics_recipe():
    """The recipe's ConvNeXt V2 file, whose backbone keeps a classifier that nobody uses."""
    model = build_model("rtdetr-l-convnextv2-atto", num_classes=CLASSES)
    state = _ultralytics(model, 19)
    assert "model.19.input_proj.2.1.running_var" in state
    state["model.0.head.weight"] = torch.zeros(1000, 320)
    assert detector_kind(state) == "rtdetr-ultralytics"
    assert shipped_model_for("rtdetr-ultralytics", state) == "rtdetr-l-convnextv2-atto"
    wrapped = {f"model.{name}": tensor for name, tensor in state.items()}
    for given in (state, wrapped):
        mapped = detector_to_ours("rtdetr-ultralytics", given, model)
        assert set(mapped) == {*model.state_dict(), "rows.0.head.weight"}
        for number, name in enumerate(model.state_dict()):
            assert torch.equal(mapped[name], torch.full_like(mapped[name], number)), name
    with pytest.raises(WeightsError, match="decoder is its layer 28 and the model's is row 19"):
        detector_to_ours("rtdetr-ultralytics", {"model.28.dec_score_head.0.weight": torch.zeros(1)}, model)
    with pytest.raises(WeightsError, match="no RT-DETR decoder"):
        detector_to_ours("rtdetr-ultralytics", {"model.3.conv.weight": torch.zeros(1)}, model)
