"""What the models are: rows and parameters as the reference recipe prints them, and the same maths as NextDETR's."""

from __future__ import annotations

import pytest
import torch
from ultralytics import RTDETR as StockRTDETR  # noqa: N811
from ultralytics.nn.tasks import RTDETRDetectionModel

from conftest import TINY, gap
from nextdetr.errors import WeightsError
from nextdetr.models.convnextv2 import SIZES
from nextdetr.models.graph import build_model as build_ours
from nextdetr.models.graph import parse_model_text
from nextdetr.weights.convert import save_backbone
from nextdetr.weights.layouts.rtdetr_ultralytics import from_ultralytics, model_text
from nextdetr.weights.load import open_weights
from nextdetr_ultralytics import RTDETR
from nextdetr_ultralytics.backbone import ConvNeXtV2
from nextdetr_ultralytics.model import RTDETRConvNeXtModel, backbone_size, build_model
from nextdetr_ultralytics.train import RTDETRTrainer

#: REFERENCE, section 1: index, from, repeats, parameters, module, arguments.
REFERENCE = [
    (0, -1, 1, 3708400, "convnextv2_atto", []),
    (1, -1, 1, 82432, "Conv", [320, 256, 1, 1, None, 1, 1, False]),
    (2, -1, 1, 789760, "AIFI", [256, 1024, 8]),
    (3, -1, 1, 66048, "Conv", [256, 256, 1, 1]),
    (4, -1, 1, 0, "Upsample", [None, 2, "nearest"]),
    (5, 3, 1, 41472, "Conv", [160, 256, 1, 1, None, 1, 1, False]),
    (6, [-2, -1], 1, 0, "Concat", [1]),
    (7, -1, 3, 2232320, "RepC3", [512, 256, 3]),
    (8, -1, 1, 66048, "Conv", [256, 256, 1, 1]),
    (9, -1, 1, 0, "Upsample", [None, 2, "nearest"]),
    (10, 2, 1, 20992, "Conv", [80, 256, 1, 1, None, 1, 1, False]),
    (11, [-2, -1], 1, 0, "Concat", [1]),
    (12, -1, 3, 2232320, "RepC3", [512, 256, 3]),
    (13, -1, 1, 590336, "Conv", [256, 256, 3, 2]),
    (14, [-1, 12], 1, 0, "Concat", [1]),
    (15, -1, 3, 2232320, "RepC3", [512, 256, 3]),
    (16, -1, 1, 590336, "Conv", [256, 256, 3, 2]),
    (17, [-1, 7], 1, 0, "Concat", [1]),
    (18, -1, 3, 2232320, "RepC3", [512, 256, 3]),
    (19, [16, 19, 22], 1, 7303907, "RTDETRDecoder", [1, [256, 256, 256]]),
]
#: REFERENCE, section 1, 80 classes: with the classifier that nothing runs, and without.
TOTALS = {
    "atto": (22_351_356, 22_029_716), "femto": (23_904_868, 23_519_100), "pico": (27_795_252, 27_281_228),
    "nano": (34_410_116, 33_767_836), "tiny": (47_479_156, 46_708_620), "base": (107_676_148, 106_649_100),
    "large": (217_144_564, 215_604_492),
}  # fmt: skip
#: Section 2: the classifier and the final norm of huge are 1000 * 2816 + 1000 + 2 * 2816.
HUGE_CLASSIFIER = 2_822_632


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def excited(model):
    """Give every parameter a part in the result: GRN, biases and the last layers of boxes start at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.02
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + (0.5 if name.endswith("var") else 0))
    return model.eval()


def ours_of(theirs, recipe):
    """Return NextDETR's model of the same file with the same weights."""
    ours = build_ours(parse_model_text(model_text(recipe), "m.yaml")).eval()
    state = {name: t for name, t in theirs.state_dict().items() if not name.startswith(("model.0.norm.", "model.0.head."))}
    ours.load_state_dict(from_ultralytics(state, ours))
    return ours


def best(output):
    """Return NextDETR's detections as ultralytics' rows: cxcywh, score, class, the best first."""
    classes = output.logits.shape[-1]
    scores, index = output.logits.sigmoid().flatten(1).topk(output.logits.shape[1])
    boxes = output.boxes.gather(1, (index // classes)[..., None].expand(-1, -1, 4))
    return torch.cat((boxes, scores[..., None], (index % classes)[..., None].float()), dim=-1)


def test_the_reference_table():
    model = build_model(RTDETR("rtdetr-l-ConvNeXtV2.yaml").model.yaml, nc=1)
    rows = [
        (row.index, row.origin, row.repeats, row.parameters, row.module.rpartition(".")[2], row.arguments)
        for row in model.table()
    ]
    assert rows == REFERENCE
    assert parameters(model) == 22_189_011
    _, total, gradients, gflops = model.info()
    assert (total, gradients) == (22_189_011, 22_189_011)
    assert gflops == pytest.approx(71.4, abs=0.1)
    dropped = build_model(model.yaml, classifier=False, verbose=False)
    assert parameters(dropped) == 21_867_371
    assert build_model(dropped.yaml, verbose=False).model[0].head is None  # the trainer builds it again of this


@pytest.mark.parametrize("size", [*TOTALS, "huge"])
def test_every_backbone_builds(size):
    """Counted without memory for the weights: huge has 660 million."""
    with torch.device("meta"):
        model = RTDETR(f"rtdetr-l-convnextv2-{size}").model
        bare = build_model(model.yaml, classifier=False, verbose=False)
    assert [module.i for module in model.model] == [0, *range(5, 24)]
    whole, without = TOTALS.get(size, (None, None))
    assert parameters(model) - parameters(bare) == (whole - without if whole else HUGE_CLASSIFIER)
    if whole:
        assert (parameters(model), parameters(bare)) == (whole, without)
    assert model.yaml["nc"] == 80
    assert set(SIZES) == {*TOTALS, "huge", "zepto"}


@pytest.mark.parametrize("extra", [{}, {"normalize": "imagenet", "batch_norm_eps": 0.1}], ids=["recipe", "options"])
def test_the_forward_is_that_of_nextdetr(extra):
    recipe = TINY | extra
    theirs = excited(build_model(recipe, verbose=False))
    ours = ours_of(theirs, recipe)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found, wanted = theirs(images)[0], best(ours(images))
        vectors = [torch.stack(theirs.predict(images, embed=[index])) for index in (4, 10)]
        means = [ours.row_maps(images, 0)[3].mean((2, 3)), ours.row_maps(images, 6)[0].mean((2, 3))]
    assert all(gap(a, b) < 1e-4 for a, b in zip(found, wanted, strict=True))
    for vector, mean in zip(vectors, means, strict=True):  # the backbone, and all rows before the decoder
        assert mean.abs().max() > 0.1
        assert (vector - mean).abs().max() < 1e-4


def test_the_whole_recipe_computes_what_nextdetr_does():
    recipe = RTDETR("rtdetr-l-ConvNeXtV2").model.yaml | {"nc": 1}
    theirs = excited(build_model(recipe, verbose=False))
    ours = ours_of(theirs, recipe)
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        raw, output = theirs(images)[1], ours(images)
    assert gap(torch.cat((raw[0][-1], raw[1][-1]), -1)[0], torch.cat((output.boxes, output.logits), -1)[0]) < 1e-4


def test_stock_files_are_ultralytics_own():
    stock = RTDETR(StockRTDETR("rtdetr-resnet50.yaml"))
    assert stock.task_map["detect"]["trainer"] is RTDETRTrainer
    model = build_model("rtdetr-resnet50.yaml", nc=3, verbose=False)
    assert type(model) is RTDETRDetectionModel
    with pytest.raises(ValueError, match="this one has none"):
        build_model("rtdetr-resnet50.yaml", classifier=False)


def test_what_cannot_be_built_is_said():
    with pytest.raises(ValueError, match="no backbone 'convnextv2_small'"):
        backbone_size({"backbone": [[-1, 1, "convnextv2_small", []]]})
    with pytest.raises(ValueError, match="1 more rows follow it"):
        backbone_size({"backbone": [*TINY["backbone"], [-1, 1, "Conv", [8]]]})
    with pytest.raises(ValueError, match="DFINEDecoder is NextDETR's own"):
        build_model(TINY | {"head": [[-1, 1, "DFINEDecoder", ["nc"]]]})
    with pytest.raises(ValueError, match="3 channels, and the data set has 4"):
        RTDETRConvNeXtModel(TINY, ch=4)
    with pytest.raises(ValueError, match="no ConvNeXt V2"):
        RTDETRConvNeXtModel("rtdetr-l.yaml")
    model = build_model(TINY, verbose=False)
    with pytest.raises(ValueError, match="from 1 to 10"):
        model.predict(torch.zeros(1, 3, 64, 64), embed=[11])


def test_backbone_weights_by_file_and_by_name(tmp_path, monkeypatch, tiny):
    source = excited(ConvNeXtV2("atto"))
    state = source.state_dict()
    save_backbone(tmp_path / "atto.safetensors", state, weights_licence="CC0-1.0", source_weights="none")
    given = tiny.with_name("given.yaml")
    given.write_text(tiny.read_text().replace("- []", "- [atto.safetensors]", 1))
    assert given.read_text() != tiny.read_text()

    def published(name):
        assert name == "convnextv2-atto-in1k"
        return open_weights(tmp_path / "atto.safetensors")

    by_row = RTDETR(given).model  # relative to the YAML
    by_file = RTDETR(tiny, backbone_weights=tmp_path / "atto.safetensors").model
    monkeypatch.setattr("nextdetr_ultralytics.weights.open_weights", published)
    by_name = RTDETR(tiny, backbone_weights="convnextv2-atto-in1k").model
    for model in (by_row, by_file, by_name):
        assert all(torch.equal(model.model[0].state_dict()[name], tensor) for name, tensor in state.items())
    monkeypatch.undo()
    with pytest.raises(WeightsError, match="have another shape"):
        build_model(TINY | {"backbone": [[-1, 1, "convnextv2_pico", [str(tmp_path / "atto.safetensors")]]]})
    with pytest.raises(ValueError, match="only for a model YAML"):
        RTDETR(tmp_path / "atto.safetensors", classifier=False)
