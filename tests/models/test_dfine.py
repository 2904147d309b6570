from __future__ import annotations

import pytest
import torch

from nextdetr.errors import ConfigError, ModelFileError
from nextdetr.models import decoder as dfine_denoising
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.models.edges import expected_offsets, offsets_of_bins, offsets_to_boxes
from nextdetr.models.graph import build_model, build_skeleton, parse_model_text
from tests.helpers import TINY_MODEL
from tests.models.test_decoder import CHANNELS, _everything, _features, _randomise, _targets, _Tuple


def _decoder(nc=3, **settings):
    sizes = {"hd": 32, "nq": 20, "ndp": [2, 3, 1], "nh": 4, "ndl": 3, "d_ffn": 48, "bins": 8}
    return DFINEDecoder(nc, CHANNELS, **{**sizes, **settings})


def _all(training):
    noisy = [] if training.denoising is None else [training.denoising.edges]
    edges = [part for e in (training.edges, *noisy) for part in (e.bins, e.first_logits, e.first_boxes)]
    return [*_everything(training), *edges]


@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (0, 0), (310, 1)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_parameter_gets_a_finite_gradient(counts, precision):
    decoder = _decoder().train()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        output = decoder(_features(), _targets(counts))
    training = output.training
    assert training.edges.bins.shape == (3, 2, 20, 4, 9)
    assert all(part.dtype == torch.float32 and part.isfinite().all() for part in _all(training))
    assert torch.equal(output.boxes, training.layer_boxes[-1])
    assert training.layer_boxes.min() >= 0
    assert training.layer_boxes.max() <= 1
    # The criterion's parts: classes and boxes of every layer, and of the first plain boxes.
    sum(part.square().sum() for part in _all(training)).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_boxes_are_the_integral_over_the_summed_distributions():
    decoder = _randomise(_decoder()).train()
    training = decoder(_features(), _targets((0, 0))).training
    edges = training.edges
    boxes = offsets_to_boxes(edges.anchors, expected_offsets(edges.bins, offsets_of_bins(8)), 4.0)
    torch.testing.assert_close(training.layer_boxes, boxes.clamp(0, 1))
    assert (edges.bins[1:] - edges.bins[:-1]).abs().amax() > 0.01
    torch.testing.assert_close(edges.first_boxes, edges.anchors)


def test_a_new_decoder_starts_at_its_proposals():
    training = _decoder().train()(_features(), _targets((0, 0))).training
    torch.testing.assert_close(training.layer_boxes[2], training.encoder_boxes, atol=1e-5, rtol=0)


def test_gradients_reach_the_layers_before():
    """Distributions add up, so a late layer's trains the early heads; contents are cut off only where they are added."""
    decoder = _randomise(_decoder()).train()
    training = decoder(_features(), _targets((0, 0))).training
    heads = [head.layers[-1].bias for head in decoder.dec_bbox_head]
    grads = torch.autograd.grad(training.edges.bins[2].sum(), heads)
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_evaluation_computes_what_it_needs():
    decoder = _randomise(_decoder()).eval()
    calls = []
    for kind in ("dec_score_head", "lqe"):
        for i, head in enumerate(getattr(decoder, kind)):
            head.register_forward_hook(lambda *_, i=i, kind=kind: calls.append((kind, i)))
    features = _features()
    output = decoder(features)
    assert sorted(calls) == [("dec_score_head", 2), ("lqe", 2)]
    assert output.training is None
    decoder.train()
    with torch.no_grad():
        for norm in decoder.input_proj:
            norm.eval()
        training = decoder(features, _targets((0, 0))).training
    torch.testing.assert_close(output.logits, training.layer_logits[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.boxes, training.layer_boxes[-1], atol=1e-5, rtol=1e-5)


def test_export():
    decoder = _randomise(_decoder(ndl=2)).eval()
    features = _features()
    program = torch.export.export(_Tuple(decoder), (features,))
    logits, boxes = program.module()(features)
    plain = decoder(features)
    torch.testing.assert_close(logits, plain.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes, plain.boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bins": 7}, "even number of bins, 4 or more; got 7"), ({"scale": 0.0}, "above 0"), ({"ndp": [1]}, "list of 3")],
)
def test_settings_that_contradict(settings, message):
    with pytest.raises(ConfigError, match=message):
        _decoder(**settings)


def _model(row):
    text = TINY_MODEL.replace("RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]", row)
    return build_model(parse_model_text(text, "dfine.yaml"))


def test_row_of_a_model_file():
    model = _model("DFINEDecoder, [nc, 32, 20, [2, 3], 4, 2, 64, {bins: 16, scale: 8}]")
    decoder = model.rows[-1]
    assert isinstance(decoder, DFINEDecoder)
    assert (decoder.bins, decoder.scale, len(decoder.decoder.layers)) == (16, 8.0, 2)
    assert not any("edge_offsets" in name for name in model.state_dict())
    with torch.no_grad():
        assert model.eval()(torch.rand(1, 3, 64, 64)).boxes.shape == (1, 20, 4)
    assert _model("DFINEDecoder, [nc]").rows[-1].bins == 32
    assert _model("DFINEDecoder, [nc]").rows[-1].dense_head is None
    for kind in ("RTDETRDecoder", "DFINEDecoder"):
        assert _model(f"{kind}, [nc, 32, {{dense: True}}]").rows[-1].dense_head is not None
        assert _model(f"{kind}, [nc, 32, {{dense: False}}]").rows[-1].dense_head is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("DFINEDecoder, [nc, {bin: 16}]", "row 3 .*no option 'bin'; there are bins, scale"),
        ("DFINEDecoder, [nc, {bins: 15}]", "row 3 .*even number of bins"),
        ("DFINEDecoder, [nc, {bins: x}]", "row 3 .*bins must be int, not 'x'"),
        ("RTDETRDecoder, [nc, {dense: 1}]", "row 3 .*dense must be bool, not 1"),
        ("DFINEDecoder, [{bins: 16}]", "row 3 .*0 arguments"),
        ("DFINEDecoder, [nc, {bins: 16}, 32]", "row 3 .*hidden width must be int"),
        ("RTDETRDecoder, [nc, {bins: 16}]", "row 3 .*no option 'bins'; there are dense"),
    ],
)
def test_mistakes_in_the_row(row, message):
    with pytest.raises(ModelFileError, match=message):
        _model(row)


def test_a_skeleton_needs_no_memory():
    text = TINY_MODEL.replace("RTDETRDecoder", "DFINEDecoder")
    skeleton = build_skeleton(parse_model_text(text, "tiny.yaml"))
    model = build_model(parse_model_text(text, "tiny.yaml"))
    # BatchNorm's counters of batches are a number each, and right as they are: no file needs to bring them.
    assert all(tensor.is_meta or name.endswith("num_batches_tracked") for name, tensor in skeleton.state_dict().items())
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("xavier", [False, True])
def test_start_of_the_feed_forward_networks(xavier):
    decoder = DFINEDecoder(3, [8], 128, 5, 1, 4, 2, 512, bins=8, xavier=xavier)
    for layer in decoder.decoder.layers:
        for linear, fan_in in ((layer.linear1, 128), (layer.linear2, 512)):
            bound = (6 / 640) ** 0.5 if xavier else fan_in**-0.5
            assert 0.98 * bound < linear.weight.abs().max() <= bound
    if xavier:  # the rest is drawn as without
        torch.manual_seed(0)
        with_it = DFINEDecoder(3, [8], 32, 5, 1, 4, 1, 64, bins=8, xavier=True).state_dict()
        torch.manual_seed(0)
        without = DFINEDecoder(3, [8], 32, 5, 1, 4, 1, 64, bins=8).state_dict()
        changed = {name for name in without if not torch.equal(with_it[name], without[name])}
        assert changed == {"decoder.layers.0.linear1.weight", "decoder.layers.0.linear2.weight"}


@pytest.mark.parametrize("mirror", [False, True])
def test_negatives_of_the_decoder(mirror, monkeypatch):
    seen = []
    made = dfine_denoising.contrastive_denoising
    monkeypatch.setattr(
        dfine_denoising, "contrastive_denoising", lambda *args, **kw: seen.append(kw["mirror"]) or made(*args, **kw)
    )
    _decoder(mirror=mirror).train()(_features(), _targets((2, 1)))
    assert seen == [mirror]
