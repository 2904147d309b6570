from __future__ import annotations

import time

import pytest
import torch

from nextdetr.errors import ConfigError
from nextdetr.models.convnextv2 import SIZES, Block, ConvNeXtV2, convnextv2

# Published, apart from zepto: with the head of 1000 classes, and the features alone.
PARAMETERS = {
    "zepto": (1_165_000, 907_488),  # ours
    "atto": (3_708_400, 3_386_760),
    "femto": (5_233_240, 4_847_472),
    "pico": (9_066_280, 8_552_256),
    "nano": (15_623_800, 14_981_520),
    "tiny": (28_635_496, 27_864_960),
    "base": (88_717_800, 87_690_752),
    "large": (197_956_840, 196_416_768),
    "huge": (660_289_640, 657_467_008),
}


def _small(**options):
    return ConvNeXtV2((1, 1, 2, 1), (4, 6, 8, 10), **options)


def _count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size):
    with torch.device("meta"):
        assert _count(convnextv2(size, num_classes=1000)) == PARAMETERS[size][0]
        assert _count(convnextv2(size)) == PARAMETERS[size][1]


def test_huge_runs_on_the_meta_device():
    with torch.device("meta"):
        model = convnextv2("huge", drop_path=0.3)
        shapes = [tuple(f.shape) for f in model(torch.empty(2, 3, 64, 96))]
    assert shapes == [(2, 352, 16, 24), (2, 704, 8, 12), (2, 1408, 4, 6), (2, 2816, 2, 3)]


@pytest.mark.slow
def test_large_builds_in_little_more_than_it_takes_to_draw_its_numbers():
    """As the machine may be slow or busy, beside as many numbers of torch's own, which draws them all once itself."""
    begin = time.process_time()
    count = _count(convnextv2("large"))
    built = time.process_time() - begin
    begin = time.process_time()
    for _ in range(2):  # torch draws first
        torch.empty(count).normal_()
    assert built < 1.5 * (time.process_time() - begin)


def test_initial_values():
    model = convnextv2("atto", num_classes=10)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "beta", "bias")):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            bound = 4 * 0.02 / (2 * parameter.numel()) ** 0.5  # four standard errors of the deviation
            assert abs(parameter.std().item() - 0.02) < bound, name
            assert abs(parameter.mean().item()) < 4 * 0.02 / parameter.numel() ** 0.5, name


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2, 3), (0, 2), (1,), (3,)])
def test_any_subset_of_maps(out_indices):
    full = _small().eval()
    model = _small(out_indices=out_indices).eval()
    missing, unexpected = model.load_state_dict(full.state_dict(), strict=False)
    assert not missing
    assert all(int(name.split(".")[1]) > out_indices[-1] for name in unexpected)  # stages behind the last are not built
    assert bool(unexpected) == (out_indices[-1] < 3)
    x = torch.rand(2, 3, 64, 96)
    maps, expected = model(x), full(x)
    assert len(maps) == len(out_indices)
    for found, index in zip(maps, out_indices, strict=True):
        assert torch.equal(found, expected[index])
    assert model.channels == [(4, 6, 8, 10)[i] for i in out_indices]
    assert model.strides == [(4, 8, 16, 32)[i] for i in out_indices]


@pytest.mark.parametrize("options", [{}, {"out_indices": (0, 1)}, {"num_classes": 3}, {"grn": False, "layer_scale": 1e-6}])
def test_every_parameter_gets_a_gradient(options):
    model = _small(drop_path=0.1, **options)
    out = model(torch.rand(4, 3, 64, 64))
    # The index keeps the loss from being a sum of normalised channels, whose gradient is zero.
    loss = out[:, 0].sum() if isinstance(out, torch.Tensor) else sum(f.square().sum() for f in out)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("height", "width"), [(37, 61), (32, 32), (100, 131)])
def test_odd_sizes(height, width):
    model = _small()
    maps = model(torch.rand(1, 3, height, width))
    for found, channels, stride in zip(maps, model.channels, model.strides, strict=True):
        assert found.shape == (1, channels, height // stride, width // stride)
        assert found.is_contiguous(memory_format=torch.channels_last)
    sum(f.sum() for f in maps).backward()


def test_memory_layout_of_the_input_does_not_matter():
    model = _small().eval()
    x = torch.rand(2, 3, 64, 64)
    for first, second in zip(model(x), model(x.contiguous(memory_format=torch.channels_last)), strict=True):
        torch.testing.assert_close(first, second)


def test_a_block_copies_nothing_between_its_layouts():
    block = Block(8)
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.profiler.profile() as profile:
        block(x).backward(torch.ones_like(x))
    names = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in names or "aten::convolution" in names
    # The gradient of the depthwise weight reorders its input on purpose, so only the forward's clone is looked for.
    with torch.profiler.profile() as profile, torch.no_grad():
        block(x)
    assert "aten::clone" not in {event.key for event in profile.key_averages()}


def test_training_and_evaluation_agree_without_stochastic_depth():
    model = _small()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.rand(2, 3, 64, 64)
    for first, second in zip(model.train()(x), model.eval()(x), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_stochastic_depth_rises_linearly_over_the_blocks():
    model = convnextv2("atto", drop_path=0.22)
    rates = [block.drop_path for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    cut = convnextv2("atto", drop_path=0.22, out_indices=(0, 1))
    assert [block.drop_path for stage in cut.stages for block in stage] == pytest.approx(rates[:4])


def test_stochastic_depth_drops_whole_images_and_keeps_the_expectation():
    block = Block(4, drop_path=0.25)
    torch.nn.init.normal_(block.pwconv2.bias)
    x = torch.randn(1, 4, 5, 5).expand(4000, 4, 5, 5)
    with torch.no_grad():
        full = block.eval()(x[:1]) - x[:1]
        change = block.train()(x) - x
    dropped = (change == 0).flatten(1).all(dim=1)
    assert abs(dropped.float().mean().item() - 0.25) < 0.03  # more than four standard errors
    torch.testing.assert_close(change[~dropped], (full / 0.75).expand_as(change[~dropped]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.eval()(x[:2]) - x[:2], full.expand(2, -1, -1, -1), rtol=1e-4, atol=1e-5)


def test_a_dropped_image_sends_no_gradient_into_the_block():
    block = Block(4, drop_path=0.5)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    seen = set()
    for _ in range(40):
        block.zero_grad()
        changed = not torch.equal(out := block(x), x)
        out.sum().backward()
        assert bool(block.pwconv2.bias.grad.any()) == changed
        seen.add(changed)
    assert seen == {True, False}


def test_classifier():
    model = _small(num_classes=7)
    out = model(torch.rand(2, 3, 64, 64))
    assert out.shape == (2, 7)
    assert set(dict(model.named_children())) == {"downsample_layers", "stages", "norm", "head"}


def test_published_parameter_names():
    names = set(_small(num_classes=2).state_dict())
    expected = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    for i, depth in enumerate((1, 1, 2, 1)):
        expected |= {f"downsample_layers.{i}.{k}.{p}" for k in (0, 1) for p in ("weight", "bias")}
        for j in range(depth):
            block = f"stages.{i}.{j}"
            expected |= {f"{block}.{m}.{p}" for m in ("dwconv", "norm", "pwconv1", "pwconv2") for p in ("weight", "bias")}
            expected |= {f"{block}.grn.gamma", f"{block}.grn.beta"}
    assert names == expected
    v1 = set(_small(grn=False, layer_scale=1e-6).state_dict())
    assert v1 >= {"stages.2.1.gamma"}
    assert not any("grn" in name for name in v1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_indices": ()}, "out_indices"),
        ({"out_indices": (0, 4)}, r"0 to 3.*\[0, 4\]"),
        ({"out_indices": (-1,)}, "out_indices"),
        ({"out_indices": (2, 1)}, "rising"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        _small(**options)


def test_unknown_size_and_uneven_table():
    with pytest.raises(ConfigError, match=r"'giant'.*atto, femto"):
        convnextv2("giant")
    with pytest.raises(ConfigError, match="3 and 4"):
        ConvNeXtV2((1, 1, 1), (4, 4, 4, 4))


def test_export_has_one_forward():
    """Tracing in training mode's graph must not bake the hand-written gradients into an exported program."""
    model = _small().eval()
    x = torch.rand(1, 3, 64, 64)
    program = torch.export.export(model, (x,))
    for found, expected in zip(program.module()(x), model(x), strict=True):
        torch.testing.assert_close(found, expected)
