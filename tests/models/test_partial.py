"""Maps that are kept and renewed where the picture changed, against the whole computation.

In float64, where both are equal on every processor: in float32 single values differ by 1e-5 on some.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nextdetr.errors import ConfigError
from nextdetr.layers.norm import GRN
from nextdetr.layers.sparse import VisiblePatches
from nextdetr.models.convnextv2 import ConvNeXtV2
from nextdetr.models.fuse import fuse
from nextdetr.models.partial import StoredBackbone

GRID = (6, 5)


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def backbone(depths=(2, 1, 1, 1), dims=(8, 12, 16, 24), gamma=1.0, **options):
    torch.manual_seed(0)
    made = ConvNeXtV2(depths, dims, **{"out_indices": range(len(dims))} | options).double().eval()
    for module in made.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
        if isinstance(module, GRN):
            nn.init.normal_(module.gamma, std=gamma)
            nn.init.normal_(module.beta, std=0.3)
    return made


def picture(seed=1):
    shape = (1, 3, 32 * GRID[0], 32 * GRID[1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def patches(*ids):
    return VisiblePatches(torch.tensor([sorted(ids)]), GRID)


def assert_equal(maps, expected):
    for got, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=1e-10)


OPTIONS = {"v2": {}, "v1": {"grn": False, "layer_scale": 0.5}, "two stages": {"out_indices": (0, 1)}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("folded", [False, True])
def test_full_and_an_update_of_all_patches_equal_the_backbone(options, folded):
    plain = backbone(**options)
    stored = StoredBackbone(fuse(plain) if folded else plain)
    grid = tuple(32 * side // stored.patch for side in GRID)
    assert_equal(stored.full(picture(1)), plain(picture(1)))
    everything = VisiblePatches(torch.arange(grid[0] * grid[1])[None], grid)
    assert_equal(stored.update(picture(2), everything), plain(picture(2)))


def test_an_update_equals_the_whole_where_grn_is_the_identity():
    """One stage, gamma 0: what changes lies within the margins of two kernels."""
    plain = backbone((2,), (8,), gamma=0.0)
    stored = StoredBackbone(plain)
    grid = (48, 40)  # patches of one position
    before, after = picture(1), picture(1)
    after[..., 64:72, 64:80] = picture(2)[..., 64:72, 64:80]  # positions 16 and 17 down, 16 to 19 across
    stored.full(before)
    ids = [row * 40 + column for row in range(10, 24) for column in range(10, 26)]
    maps = stored.update(after, VisiblePatches(torch.tensor([ids]), grid))
    assert (plain(after)[0] - plain(before)[0]).abs().amax() > 0.1
    assert_equal(maps, plain(after))


def test_an_update_reads_its_margin_from_the_stored_maps():
    plain = backbone(gamma=0.0)
    stored = StoredBackbone(plain)
    before, after = picture(1), picture(1)
    after[..., 64:96, 64:96] = picture(2)[..., 64:96, 64:96]  # patch 12
    stored.full(before)
    maps = stored.update(after, patches(12))
    place = (..., slice(16, 24), slice(16, 24))
    first = plain.stages[0][0](plain.downsample_layers[0](after))  # the first block reads what is the picture's own
    torch.testing.assert_close(stored._blocks[0][1].x.map[place], first[place], atol=1e-10, rtol=1e-10)
    outside = torch.ones_like(maps[0], dtype=torch.bool)
    outside[place] = False
    torch.testing.assert_close(maps[0][outside], plain(before)[0][outside], atol=1e-10, rtol=1e-10)


def test_statistics_of_one_block_equal_the_recomputed_ones():
    """The margins' effect left out: patches of one position and a kernel that sees only its own."""
    plain = backbone((1,), (8,))
    plain.stages[0][0].dwconv.weight.mul_(nn.functional.pad(torch.ones(1, 1, 1, 1), (3, 3, 3, 3)))
    stored = StoredBackbone(plain)
    before, after = picture(1), picture(2)
    stored.full(before)
    ids = torch.arange(100, 700)[None]
    maps = stored.update(after, VisiblePatches(ids, (48, 40)))
    mixed = before.clone()
    where = torch.zeros(48 * 40, dtype=torch.bool)
    where[100:700] = True
    where = where.view(48, 40).repeat_interleave(4, 0).repeat_interleave(4, 1).expand(1, 3, -1, -1)
    mixed[where] = after[where]
    fresh = StoredBackbone(plain)
    expected = fresh.full(mixed)
    torch.testing.assert_close(stored.squares(), fresh.squares(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        maps[0].flatten(2)[..., 100:700], expected[0].flatten(2)[..., 100:700], atol=1e-10, rtol=1e-10
    )
    assert not torch.allclose(maps[0], expected[0], atol=1e-5)  # the others have the scale of before


def test_another_backbone_is_refused():
    with pytest.raises(ConfigError, match="ConvNeXt V2"):
        StoredBackbone(nn.Conv2d(3, 4, 4, 4))
