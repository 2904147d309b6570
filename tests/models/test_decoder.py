from __future__ import annotations

import copy

import pytest
import torch

from nextdetr.errors import ConfigError
from nextdetr.models.decoder import RTDETRDecoder, make_anchors
from nextdetr.structures import Target

CHANNELS = [8, 12, 16]


def _decoder(nc=3, **settings):
    return RTDETRDecoder(nc, CHANNELS, **{"hd": 32, "nq": 20, "ndp": 2, "nh": 4, "ndl": 3, "d_ffn": 48, **settings})


def _features(batch=2, sizes=((8, 8), (4, 4), (2, 2))):
    return [torch.randn(batch, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


def _targets(counts, classes=3):
    return [Target(torch.rand(n, 4) * 0.4 + 0.2, torch.randint(classes, (n,))) for n in counts]


def _everything(training):
    parts = [training.layer_logits, training.layer_boxes, training.encoder_logits, training.encoder_boxes]
    if training.denoising is not None:
        parts += [training.denoising.logits, training.denoising.boxes]
    return parts


def _randomise(module):
    """Zero-initialised layers hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def test_parameters_of_the_reference_head():
    decoder = RTDETRDecoder(1, [256, 256, 256])
    assert sum(p.numel() for p in decoder.parameters()) == 7_303_907
    names = {name.split(".")[0] for name in decoder.state_dict()}
    assert names == {
        "input_proj", "enc_output", "enc_score_head", "enc_bbox_head", "query_pos_head", "decoder", "dec_score_head",
        "dec_bbox_head", "denoising_class_embed",
    }  # fmt: skip
    assert decoder.input_proj[0].bn.eps == 1e-3
    assert decoder.enc_score_head.bias.item() == pytest.approx(-4.59512, abs=1e-5)


@pytest.mark.parametrize(
    ("counts", "nc", "queries", "denoising"),
    [
        ((3, 5), 3, None, 20 * 2 * 5),
        ((0, 4), 3, None, 25 * 2 * 4),
        ((0, 0), 3, None, None),
        ((150, 1), 3, None, 300),
        ((400, 2), 3, None, 800),
        ((2, 1), 1, None, 200),
        ((2, 1), 1000, None, 200),
        ((2, 1), 3, 50, 200),
        ((2, 1), 3, 500, 200),
    ],
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_parameter_gets_a_finite_gradient(counts, nc, queries, denoising, precision):
    decoder = _decoder(nc).train()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        output = decoder(_features(), _targets(counts, nc), queries=queries)
    training = output.training
    expected = min(queries or 20, 84)
    assert training.layer_logits.shape == (3, 2, expected, nc)
    assert training.layer_boxes.shape == (3, 2, expected, 4)
    assert training.encoder_logits.shape == (2, expected, nc)
    assert (training.denoising.logits.shape[2] if training.denoising else None) == denoising
    assert torch.equal(output.boxes, training.layer_boxes[-1])
    assert all(part.dtype == torch.float32 and part.isfinite().all() for part in _everything(training))
    assert all(boxes.min() >= 0 and boxes.max() <= 1 for boxes in (training.layer_boxes, training.encoder_boxes))
    sum(part.square().sum() for part in _everything(training)).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_gradients_reach_what_they_should_under_autocast():
    """Autocast keeps half-precision copies of weights; ranking without a gradient must not poison them."""
    decoder = _randomise(_decoder()).train()
    with torch.autocast("cpu", torch.bfloat16):
        training = decoder(_features(), _targets((2, 2))).training
    (training.encoder_logits.square().sum() + training.encoder_boxes.square().sum()).backward()
    for module in (decoder.enc_output, decoder.enc_score_head, decoder.enc_bbox_head, decoder.input_proj):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_invalid_anchors_never_make_nan():
    """At 80 × 80 the outer cells lie outside 0.01 to 0.99; with as many queries as tokens all of them are selected."""
    decoder = _randomise(_decoder()).train()
    training = decoder(_features(1, ((56, 3), (4, 4), (2, 2))), _targets((2,)), queries=10_000).training
    sum(part.square().sum() for part in _everything(training)).backward()
    assert (training.encoder_boxes == 1).all(-1).sum() == 6  # the top and bottom rows of three
    assert all(part.isfinite().all() for part in _everything(training))
    assert all(p.grad.isfinite().all() for p in decoder.parameters())


def test_anchors():
    logits, valid = make_anchors(((2, 4), (1, 2)))
    assert valid is None
    boxes = logits.sigmoid()
    assert logits.shape == (10, 4)
    torch.testing.assert_close(boxes[5], torch.tensor([0.375, 0.75, 0.05, 0.05]))
    torch.testing.assert_close(boxes[9], torch.tensor([0.75, 0.5, 0.1, 0.1]))
    logits, valid = make_anchors(((80, 80), (40, 40)))
    assert valid[: 80 * 80].view(80, 80)[1:-1, 1:-1].all()
    assert (~valid).sum() == 4 * 79
    assert (logits[~valid.squeeze(1)] == 1e4).all()
    for size in range(45, 55):  # the shortcut agrees with the definition
        centres = (torch.arange(size) + 0.5) / size
        some_invalid = not ((centres > 0.01) & (centres < 0.99)).all()
        valid = make_anchors(((size, size),))[1]
        assert (valid is not None and not valid.all()) == some_invalid


def test_anchor_cache_is_no_state_and_survives_inference_mode():
    decoder = _decoder()
    names = set(decoder.state_dict())
    features = _features(1, ((56, 3), (4, 4), (2, 2)))
    with torch.inference_mode():
        decoder.eval()(features)
    assert set(decoder.state_dict()) == names
    assert len(decoder._anchors) == 1
    assert not any(t.is_inference() for kept in decoder._anchors.values() for t in kept)
    decoder.train()(features, _targets((1,))).training.layer_logits.sum().backward()
    assert len(copy.deepcopy(decoder)._anchors) == 1
    for width in range(2, 80):
        decoder._anchors_for(((4, width), (4, 4), (2, 2)), torch.device("cpu"))
    assert len(decoder._anchors) <= 64


def test_denoising_leaves_the_matching_queries_alone():
    decoder = _randomise(_decoder()).train()
    features, targets = _features(), _targets((3, 2))
    with_noise = decoder(features, targets).training
    without = decoder(features, _targets((0, 0))).training
    torch.testing.assert_close(with_noise.layer_logits, without.layer_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(with_noise.layer_boxes, without.layer_boxes, atol=1e-5, rtol=1e-5)


def test_images_of_a_batch_do_not_mix():
    decoder = _randomise(_decoder()).eval()
    features = _features(3)
    together = decoder(features)
    for i in range(3):
        alone = decoder([f[i : i + 1] for f in features])
        torch.testing.assert_close(together.logits[i], alone.logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.boxes[i], alone.boxes[0], atol=1e-4, rtol=1e-4)


def test_evaluation_runs_one_class_head():
    decoder = _decoder().eval()
    calls = []
    for i, head in enumerate(decoder.dec_score_head):
        head.register_forward_hook(lambda *_, i=i: calls.append(i))
    output = decoder(_features())
    assert calls == [2]
    assert output.training is None
    assert decoder.train()(_features()).training is None  # training mode, no targets


@pytest.mark.parametrize(("queries", "expected"), [(5, 5), (None, 20), (60, 60), (500, 84)])
def test_queries_at_inference(queries, expected):
    decoder = _randomise(_decoder()).eval()
    output = decoder(_features(), queries=queries)
    assert output.logits.shape == (2, expected, 3)
    assert output.boxes.shape == (2, expected, 4)


def test_the_highest_scoring_tokens_are_selected():
    decoder = _randomise(_decoder(ndl=1)).train()
    features = _features()
    few = decoder(features, _targets((1, 1)), queries=7).training.encoder_logits
    everything = decoder(features, _targets((1, 1)), queries=84).training.encoder_logits
    torch.testing.assert_close(few.amax(-1), everything.amax(-1).sort(dim=1, descending=True).values[:, :7])


def test_evaluated_layer():
    decoder = _randomise(_decoder()).eval()
    early = _decoder(eval_idx=1).eval()
    early.load_state_dict(decoder.state_dict())
    features = _features()
    ran = []
    early.decoder.layers[2].register_forward_hook(lambda *_: ran.append(2))
    output = early(features)
    assert not ran
    decoder.eval_layer = 1
    torch.testing.assert_close(output.logits, decoder(features).logits)
    assert early.train()(features, _targets((1, 1))).training.layer_logits.shape[0] == 3


def test_learnt_queries():
    decoder = _decoder(learnt_init_query=True).train()
    training = decoder(_features(), _targets((1, 2)), queries=50).training
    assert training.layer_logits.shape[2] == 20  # there are no more
    sum(part.square().sum() for part in _everything(training)).backward()
    assert decoder.query_embed.weight.grad.abs().sum() > 0


def test_without_denoising_there_is_no_embedding():
    decoder = _decoder(nd=0).train()
    assert not any("denoising" in name for name, _ in decoder.named_parameters())
    assert decoder(_features(), _targets((1, 2))).training.denoising is None


def test_look_forward_twice():
    """A layer's boxes train the box head of the layer before, and of no other (DINO, section 3.5)."""
    decoder = _randomise(_decoder()).train()
    training = decoder(_features(), _targets((0, 0))).training
    heads = [head.layers[-1].bias for head in decoder.dec_bbox_head]
    grads = torch.autograd.grad(training.layer_boxes[2].sum(), heads)
    assert grads[0].abs().sum() == 0
    assert grads[1].abs().sum() > 0
    assert grads[2].abs().sum() > 0


class _Tuple(torch.nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, features):
        output = self.decoder(features)
        return output.logits, output.boxes


def test_export():
    decoder = _randomise(_decoder(ndl=1)).eval()
    features = _features()
    program = torch.export.export(_Tuple(decoder), (features,))
    assert not decoder._anchors
    logits, boxes = program.module()(features)
    plain = decoder(features)
    torch.testing.assert_close(logits, plain.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes, plain.boxes, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nc": 0}, "1 or more classes; got 0"),
        ({"nh": 5}, "got 32 and 5"),
        ({"eval_idx": 3}, "layers 0 to 2; it cannot evaluate layer 3"),
        ({"nq": 0}, "1 or more queries"),
    ],
)
def test_settings_that_contradict(settings, message):
    with pytest.raises(ConfigError, match=message):
        _decoder(**settings)


def test_too_few_queries_asked_for():
    with pytest.raises(ConfigError, match="at least 1 query; got 0"):
        _decoder().eval()(_features(), queries=0)
