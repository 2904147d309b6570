from __future__ import annotations

import pytest
import torch

from nextdetr.errors import ModelFileError, WeightsError
from nextdetr.models.graph import available_models, build_model, load_model_file, parse_model_text
from nextdetr.models.summary import count_gflop, summarize
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


@pytest.mark.parametrize(("size", "gflop"), [(640, 71.1), (320, 21.35)])
def test_gflop_of_the_reference(size, gflop):
    assert count_gflop(build_model("rtdetr-l-convnextv2-atto", num_classes=1), size) == pytest.approx(gflop, rel=0.005)


@pytest.mark.parametrize(("size", "total"), TOTALS.items())
def test_totals(size, total):
    with torch.device("meta"):
        model = build_model(f"rtdetr-l-convnextv2-{size}")
    assert sum(p.numel() for p in model.parameters()) == total


def test_every_shipped_file_builds():
    assert len(available_models()) == 9
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
    assert large.row_infos[1].arguments == [320, 60, 3]


def edit(old: str, new: str) -> str:
    assert old in TINY_MODEL
    return TINY_MODEL.replace(old, new)


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
    "heads": (edit("2, 4, 2, 64", "2, 5, 2, 64"), "multiple of its heads; got 20 and 5|RTDETRDecoder"),
    "repeats": (edit("[3, 1, Conv", "[3, 0, Conv"), "repeats must be"),
    "row": (edit("[3, 1, Conv, [32, 1, 1]]", "[3, 1, Conv]"), "four parts"),
    "from": (edit("[3, 1, Conv", "[x, 1, Conv"), "from must be"),
    "tag": (edit("[32, 1, 1]]\n  - [3", "!!python/object/apply:os.system ['echo']]\n  - [3"), "line 7: tags"),
    "alias": (TINY_MODEL + "\nscales: &a {l: [1, 1, 1]}\n", "anchors"),
    "syntax": (TINY_MODEL + "\n  - [", r"bad\.yaml, line \d+: not valid YAML"),
    "list": ("- 1\n- 2\n", "a model file is a mapping .*not a list"),
    "empty": ("", "not empty"),
    "key": (edit("image_size", "imagesize"), "'imagesize'; did you mean image_size"),
    "double": (TINY_MODEL + "\nnc: 3\n", "stands twice"),
    "no head": (TINY_MODEL.split("head:")[0], "section head is missing"),
    "no decoder": (TINY_MODEL.split("  - [[6, 5]")[0], "last row must be the decoder"),
    "conv last": (TINY_MODEL + "  - [5, 1, Conv, [8]]\n", "last row must be the decoder"),
    "two decoders": (TINY_MODEL + "  - [[6, 5], 1, RTDETRDecoder, [nc]]\n", "decoder must be the last row"),
    "nc": (edit("nc: 2", "nc: many"), "nc must be a number"),
    "normalize": (edit("nc: 2", "nc: 2\nnormalize: coco"), "normalize must be"),
    "two backbones": (edit("head:", "  - [-1, 1, convnextv2_atto, []]\nhead:"), "backbone must be the first row"),
    "weights": (edit("convnextv2_atto, []", "convnextv2_atto, [no.safetensors]"), "no.safetensors do not exist"),
    "date": (edit("nc: 2", "nc: 2026-01-01"), "neither text nor a number"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_mistakes_name_file_row_and_cause(kind):
    text, message = BAD[kind]
    with pytest.raises(ModelFileError, match=message) as error:
        build_model(parse_model_text(text, "bad.yaml"))
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
    model = build_model(tmp_path / "m.yaml")
    torch.testing.assert_close(model.backbone.state_dict(), source.backbone.state_dict())
    (tmp_path / "atto.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        build_model(tmp_path / "m.yaml")
