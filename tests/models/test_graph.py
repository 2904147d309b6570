from __future__ import annotations

import pytest
import torch

from nextdetr.errors import ModelFileError, WeightsError
from nextdetr.models.graph import available_models, build_model, load_model_file, parse_model_text
from nextdetr.models.summary import summarize
from nextdetr.weights.start import start_model
from tests.helpers import TINY_MODEL

# REFERENCE section 1, row 0 without the dead classifier: (from, repeats, parameters, module, arguments).
REFERENCE_TABLE = [
    (-1, 1, 3386760, "convnextv2_atto", []),
    (-1, 1, 82432, "Conv", [320, 256, 1, 1, None, 1, 1, False]),
    (-1, 1, 789760, "AIFI", [256, 1024, 8]),
    (-1, 1, 66048, "Conv", [256, 256, 1, 1]),
    (-1, 1, 0, "Upsample", [None, 2, "nearest"]),
    (3, 1, 41472, "Conv", [160, 256, 1, 1, None, 1, 1, False]),
    ([-2, -1], 1, 0, "Concat", [1]),
    (-1, 3, 2232320, "RepC3", [512, 256, 3]),
    (-1, 1, 66048, "Conv", [256, 256, 1, 1]),
    (-1, 1, 0, "Upsample", [None, 2, "nearest"]),
    (2, 1, 20992, "Conv", [80, 256, 1, 1, None, 1, 1, False]),
    ([-2, -1], 1, 0, "Concat", [1]),
    (-1, 3, 2232320, "RepC3", [512, 256, 3]),
    (-1, 1, 590336, "Conv", [256, 256, 3, 2]),
    ([-1, 12], 1, 0, "Concat", [1]),
    (-1, 3, 2232320, "RepC3", [512, 256, 3]),
    (-1, 1, 590336, "Conv", [256, 256, 3, 2]),
    ([-1, 7], 1, 0, "Concat", [1]),
    (-1, 3, 2232320, "RepC3", [512, 256, 3]),
    ([16, 19, 22], 1, 7303907, "RTDETRDecoder", [1, [256, 256, 256]]),
]
TOTALS = {  # 80 classes, REFERENCE section 1
    "atto": 22_029_716, "femto": 23_519_100, "pico": 27_281_228, "nano": 33_767_836, "tiny": 46_708_620,
    "base": 106_649_100, "large": 215_604_492,
    # Not in the reference: large, with the backbones of section 2 and the three input projections exchanged.
    "huge": 215_604_492 + 657_467_008 - 196_416_768 + 256 * (704 + 1408 + 2816 - 384 - 768 - 1536),
}  # fmt: skip


def table(model):
    summary = summarize(model, 64)
    return [(row.from_, row.repeats, row.parameters, row.module, row.arguments) for row in summary.rows], summary


@pytest.mark.shared_data
def test_the_reference_file_builds_as_it_is(shared_reference):
    rows, summary = table(build_model(shared_reference / "rtdetr-l-ConvNeXtV2.yaml"))
    assert rows == REFERENCE_TABLE
    assert summary.parameters == summary.trainable_parameters == 21_867_371


def test_our_atto_is_the_reference_row_for_row():
    rows, _ = table(build_model("rtdetr-l-convnextv2-atto", num_classes=1))
    assert rows == REFERENCE_TABLE


@pytest.mark.parametrize(("size", "total"), TOTALS.items())
def test_totals(size, total):
    with torch.device("meta"):
        model = build_model(f"rtdetr-l-convnextv2-{size}")
    assert sum(p.numel() for p in model.parameters()) == total


def test_every_shipped_file_builds():
    assert len(available_models()) == 42
    for name in available_models():
        with torch.device("meta"):
            assert build_model(name).num_classes == 80


def test_the_datas_classes_win():
    model = build_model("nextdetr-atto", num_classes=7)
    assert model.num_classes == model.rows[-1].num_classes == 7
    assert next(iter(model.state_dict())).startswith("rows.0.")


def test_scales():
    text = TINY_MODEL.replace("nc: 2", "nc: 2\nscales: {s: [0.34, 0.5, 48], l: [1, 1, 1024]}").replace(
        "head:\n  - [-1, 1, Conv, [32, 1, 1]]", "head:\n  - [-1, 3, RepC3, [60]]"
    )
    small = build_model(parse_model_text(text, "x.yaml"))
    assert small.row_infos[1].arguments == [320, 24, 1]  # ceil(min(60, 48) · 0.5 / 8) · 8, round(3 · 0.34)
    large = build_model(parse_model_text(text.replace("nc: 2", "nc: 2\nscale: l"), "x.yaml"))
    assert large.row_infos[1].arguments == [320, 64, 3]  # rounded up to a multiple of 8 also at width 1, as documented


def edit(old: str, new: str) -> str:
    assert old in TINY_MODEL
    return TINY_MODEL.replace(old, new)


def first(row: str) -> str:
    """The small model with another first row of the head."""
    return edit("Conv, [32, 1, 1]]\n  - [3", row + "]\n  - [3")


BAD = {
    "unknown layer": (edit("1, Conv, [32, 1, 1]]\n  - [3", "1, Cnov, [32]]\n  - [3"),
        r"row 1 \(Cnov, line 7\).*did you mean Conv\?"),
    "forward": (edit("[3, 1, Conv", "[9, 1, Conv"), r"row 2 .*from 9 points forward.*maps so far are 1 to 5"),
    "empty index": (edit("[3, 1, Conv", "[0, 1, Conv"), r"row 2 .*from 0 points to nothing"),
    "far back": (edit("[3, 1, Conv", "[-9, 1, Conv"), r"row 2 .*from -9 points to nothing"),
    "strides": (edit("[[6, 5], 1, RT", "[[5, 6], 1, Concat, [1]]\n  - [[6, 5], 1, RT"), "strides 32 and 16"),
    "channels": (edit("[32, 1, 1]]\n  - [3", "[32, 1, 1, None, 3]]\n  - [3"), "3 groups .*320 channels come in, 32 go out"),
    "too few": (edit("[32, 1, 1]]\n  - [3", "[]]\n  - [3"), "row 1 .*0 arguments.*channels, .kernel."),
    "too many": (edit("convnextv2_atto, []", "convnextv2_atto, ['a.pt', 2]"), "row 0 .*2 arguments"),
    "type": (edit("[32, 1, 1]]\n  - [3", "[wide]]\n  - [3"), "argument channels must be int, not 'wide'"),
    "least": (edit("[32, 1, 1]]\n  - [3", "[0]]\n  - [3"), "at least 1, not 0"),
    "heads": (edit("2, 4, 2, 64", "2, 5, 2, 64"), "row 3 .*multiple of its heads; got 32 and 5"),
    "repeats": (edit("[3, 1, Conv", "[3, 0, Conv"), "repeats must be"),
    "row": (edit("[3, 1, Conv, [32, 1, 1]]", "[3, 1, Conv]"), "four parts"),
    "from": (edit("[3, 1, Conv", "[x, 1, Conv"), "from must be"),
    "tag": (edit("[32, 1, 1]]\n  - [3", "!!python/object/apply:os.system ['echo']]\n  - [3"), "line 7: tags"),
    "alias": (TINY_MODEL + "\nscales: &a {l: [1, 1, 1]}\n", "anchors"),
    "syntax": (TINY_MODEL + "\n  - [", r"bad\.yaml, line \d+: not valid YAML"),
    "list": ("- 1\n- 2\n", "a model file is a mapping .*not a list"),
    "empty": ("", "not empty"),
    "key": (edit("image_size", "imagesize"), "line 3: there is no key 'imagesize'; did you mean image_size"),
    "double": (TINY_MODEL + "\nnc: 3\n", "is repeated"),
    "no head": (TINY_MODEL.split("head:")[0], "section head is missing"),
    "no decoder": (TINY_MODEL.split("  - [[6, 5]")[0], "last row must be the decoder"),
    "conv last": (TINY_MODEL + "  - [5, 1, Conv, [8]]\n", "last row must be the decoder"),
    "two decoders": (TINY_MODEL + "  - [[6, 5], 1, RTDETRDecoder, [nc]]\n", "decoder must be the last row"),
    "nc": (edit("nc: 2", "nc: many"), "nc must be a whole number"),
    "normalize": (edit("nc: 2", "nc: 2\nnormalize: coco"), "normalize must be"),
    "two backbones": (edit("head:", "  - [-1, 1, convnextv2_atto, []]\nhead:"), "backbone must be the first row"),
    "weights": (edit("convnextv2_atto, []", "convnextv2_atto, [no.safetensors]"), "no.safetensors do not exist"),
    "not finite": (edit("image_size: 64", "image_size: .inf"), "image_size must be a whole number"),
    "image size": (edit("image_size: 64", "image_size: 100"), "image_size must be a multiple of 32, .* not 100"),
    "half a class": (edit("nc: 2", "nc: 2.5"), r"nc must be a whole number .* not 2\.5"),
    "many classes": (edit("nc: 2", "nc: 1000000000000"), "nc must be a whole number from 1 to 65536"),
    "not a number": ("batch_norm_eps: .nan" + TINY_MODEL, "batch_norm_eps must be a number between 0 and 1"),
    "no number": (edit("nc: 2", "nc: 0b_"), r"bad\.yaml, line 2: .0b_. cannot be read as a number"),
    "digits": (edit("nc: 2", "nc: " + "9" * 5000), r"line 2: .9+. cannot be read as a number"),
    "endless width": ("scales: {l: [1, .inf, 64]}" + TINY_MODEL, "scale l must be three numbers above 0"),
    "scale of none": ("scale: l" + TINY_MODEL, r"line 1: scale chooses one of scales, which the file does not have"),
    "scale of null": ("scales:\nscale: l" + TINY_MODEL, r"line 2: scale chooses one of scales"),
    "no channels": ("scales: {l: [1, 1, 0.5]}" + TINY_MODEL, r"and the last at least 1, not \[1, 1, 0\.5\]"),
    "scale of a list": ("scales: {l: [1, 1, 64]}\nscale: [l]" + TINY_MODEL, r"there is no scale \[.l.\]"),
    "enlarged 0-fold": (first("nn.Upsample, [None, 0, nearest]"), "row 1 .*factor must be at least 1, not 0"),
    "enlarged endlessly": (first("nn.Upsample, [None, .inf, nearest]"), "row 1 .*factor must be at most 65536"),
    "enlarged too far": (first("nn.Upsample, [None, 3, nearest]"), "row 1 .*stride 32 cannot be enlarged 3-fold"),
    "dropout": (first("AIFI, [64, 8, 2]"), "row 1 .*dropout must be at most 1, not 2"),
    "dropout of the decoder": (edit("2, 4, 2, 64", "2, 4, 2, 64, 1.5"), "row 3 .*dropout must be at most 1"),
    "points of each map": (edit("20, 2, 4", "20, [2, 3, 2], 4"), "row 3 .*list of 2 of them"),
    "no points": (edit("20, 2, 4", "20, [2, 0], 4"), "row 3 .*points must be at least 1, not 0"),
    "points in points": (edit("20, 2, 4", "20, [2, [3]], 4"), "row 3 .*points must be a list of plain values"),
    "words as points": (edit("20, 2, 4", "20, [2, few], 4"), "row 3 .*points must be int or list, not 'few'"),
    "attention heads": (first("AIFI, [64, 7]"), "row 1 .*320 channels .*7 heads"),
    "nothing inside": (first("RepC3, [8, 0.01]"), "row 1 .*leaves none"),
    "large kernel": (first("Conv, [32, 100000000000000000000]"), "row 1 .*kernel must be at most 65536"),
    "too many maps": (edit("[3, 1, Conv", "[[3, 5], 1, Conv"), "row 2 .*reads 2 maps, but the layer takes 1"),
    "many repeats": (edit("[3, 1, Conv", "[3, 1000000000, Conv"), "row 2 .*1000000000 repeats are more than"),
    "repeated backbone": (edit("[-1, 1, convnextv2", "[-1, 2, convnextv2"), "row 0 .*cannot be repeated"),
    "no weights": (edit("convnextv2_atto, []", "convnextv2_atto, ['']"), "row 0 .*weights .* do not exist"),
    "coarse first": (edit("[[6, 5]", "[[5, 6]"), r"row 3 .*strides \[32, 16\]; the finest must come first"),
    "other classes": (edit("[nc, 32", "[5, 32"), "row 3 .*5 classes, but the model has 2; write nc"),
    "merge": ("<<: {nc: 3}\n" + TINY_MODEL, "line 1: .<<. is neither text nor a number"),
    "date": (edit("nc: 2", "nc: 2026-01-01"), "neither text nor a number"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_name_file_row_and_cause(kind):
    text, message = BAD[kind]
    with pytest.raises(ModelFileError, match=message) as error:
        build_model(parse_model_text(text, "bad.yaml", trained=False))
    assert str(error.value).startswith("bad.yaml")
    assert "\n" not in str(error.value)


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ModelFileError, match=r"did you mean nextdetr-atto\?.*rtdetr-l-convnextv2-tiny"):
        load_model_file("nextdetr-ato")


def test_a_backbone_row_loads_its_weights_from_beside_the_file(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "m.yaml").write_text(TINY_MODEL)
    source = build_model(tmp_path / "m.yaml")
    save_file(source.backbone.state_dict(), tmp_path / "atto.safetensors")
    (tmp_path / "m.yaml").write_text(edit("convnextv2_atto, []", "convnextv2_atto, [atto.safetensors]"))
    model = start_model(tmp_path / "m.yaml").model
    torch.testing.assert_close(model.backbone.state_dict(), source.backbone.state_dict())
    (tmp_path / "atto.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(WeightsError, match=r"atto\.safetensors"):
        start_model(tmp_path / "m.yaml")


@pytest.mark.parametrize("classes", [0, 2.5, True, "3"])
def test_a_wrong_number_of_classes(classes):
    with pytest.raises(ModelFileError, match="a whole number of at least 1 class"):
        build_model("nextdetr-atto", num_classes=classes)


def test_a_path_that_is_not_there_is_not_answered_with_the_shipped_names():
    with pytest.raises(ModelFileError, match=r"^runs/quickstat: there is no such file or folder; give the folder of a run"):
        load_model_file("runs/quickstat")


@pytest.mark.parametrize("name", ["no-such.yaml", "x" * 5000, "\0"])
def test_no_such_file(name):
    with pytest.raises(ModelFileError, match="neither a file nor a shipped model"):
        load_model_file(name)


def test_a_file_of_ordinary_rows_counts_from_zero():
    """The stock files' way: every row has one map, and row k has index k."""
    text = TINY_MODEL.split("backbone:")[0] + (
        "backbone:\n  - [-1, 1, Conv, [8, 3, 2]]\n  - [-1, 1, Conv, [16, 3, 2]]\n  - [-1, 1, Conv, [24, 3, 2]]\n"
        "head:\n  - [1, 1, Conv, [12, 1, 1]]\n  - [[3, 2], 1, RTDETRDecoder, [nc, 32, 20, 2, 4, 1, 64]]\n"
    )
    model = build_model(parse_model_text(text, "stock.yaml")).eval()
    assert [info.writes for info in model.row_infos] == [(0,), (1,), (2,), (3,), ()]
    assert model.row_infos[3].arguments == [16, 16, 1, 1]  # 12 rounded up to a multiple of 8, as documented
    assert model.rows[-1].channels == [16, 24]
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 64, 64)).boxes.shape == (1, 20, 4)


def test_points_per_level():
    model = build_model(parse_model_text(TINY_MODEL.replace("20, 2, 4", "20, [2, 5], 4"), "points.yaml"))
    assert model.rows[-1].decoder.layers[1].cross_attn.attention_weights.out_features == 4 * 7
    assert model.row_infos[-1].arguments[4] == [2, 5]
