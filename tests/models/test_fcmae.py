from __future__ import annotations

import pytest
import torch

from nextdetr.errors import ConfigError
from nextdetr.models.convnextv2 import ConvNeXtV2, convnextv2
from nextdetr.models.fcmae import FCMAE, Masking, encode_visible
from tests.models.masked_dense import encode_dense, mask_of, plain_block, tuned_block


def _encoder(dims=(8, 12, 16, 24), depths=(1, 2, 2, 1), **options):
    """A small encoder whose GRN and biases do something, as they do not at initialisation."""
    encoder = ConvNeXtV2(depths, dims, **options)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def _draw(images, patch_size, ratio=0.6):
    grid = images.shape[2] // patch_size, images.shape[3] // patch_size
    return Masking.draw(torch.rand(images.shape[0], grid[0] * grid[1]), grid, ratio)


@pytest.mark.parametrize("block", [plain_block, tuned_block])
@pytest.mark.parametrize(
    ("height", "width", "patch_size", "ratio"), [(96, 128, 32, 0.6), (128, 64, 64, 0.5), (160, 160, 32, 0.85)]
)
def test_sparse_equals_dense_masked_forward_and_backward(height, width, patch_size, ratio, block):
    encoder = _encoder().train()
    images = torch.randn(3, 3, height, width)
    masking = _draw(images, patch_size, ratio)
    tokens = encode_visible(encoder, images, masking.visible)
    dense = encode_dense(encoder, images, mask_of(masking.visible.ids, masking.visible.grid), block)
    side = patch_size // 32
    expected = masking.visible.gather(dense, side)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5 * scale)
    hidden = masking.hidden.gather(dense, side)
    assert float(hidden.detach().abs().max()) == 0.0
    seed = torch.randn_like(tokens)
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    got = torch.autograd.grad(tokens, parameters, seed)
    for name, own, other in zip(names, got, torch.autograd.grad(expected, parameters, seed), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()), msg=name)


def test_the_shipped_size_equals_dense_masked():
    encoder = convnextv2("atto").train()
    for name, parameter in encoder.named_parameters():
        if ".grn." in name:
            torch.nn.init.normal_(parameter)
    images = torch.randn(2, 3, 224, 224)
    masking = _draw(images, 32)
    dense = encode_dense(encoder, images, mask_of(masking.visible.ids, masking.visible.grid))
    with torch.no_grad():
        tokens = encode_visible(encoder, images, masking.visible)
    expected = masking.visible.gather(dense, 1)
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


def test_v1_blocks_and_evaluation():
    encoder = _encoder(grn=False, layer_scale=0.5).eval()
    images = torch.randn(2, 3, 96, 96)
    masking = _draw(images, 32)
    dense = encode_dense(encoder, images, mask_of(masking.visible.ids, masking.visible.grid))
    expected = masking.visible.gather(dense, 1)
    torch.testing.assert_close(encode_visible(encoder, images, masking.visible), expected, rtol=1e-4, atol=1e-4)


def test_no_leak_from_hidden_pixels():
    encoder = _encoder().train()
    images = torch.randn(2, 3, 128, 96)
    masking = _draw(images, 32)
    mask = mask_of(masking.visible.ids, masking.visible.grid).repeat_interleave(32, 2).repeat_interleave(32, 3)
    changed = torch.where(mask.bool(), images, torch.randn_like(images) * 100)
    assert not torch.equal(images, changed)
    first, second = (encode_visible(encoder, pixels, masking.visible) for pixels in (images, changed))
    assert torch.equal(first, second)
    nan = torch.where(mask.bool(), images, torch.full_like(images, float("nan")))
    assert torch.equal(first, encode_visible(encoder, nan, masking.visible))


def test_an_image_is_computed_by_itself():
    """GRN's statistics are per image: the published sparse code takes them over the batch."""
    encoder = _encoder().train()
    images = torch.randn(3, 3, 96, 96)
    masking = _draw(images, 32)
    whole = encode_visible(encoder, images, masking.visible)
    one = Masking.draw(torch.zeros(1, 9), (3, 3), 0.6)
    alone = type(one.visible)(masking.visible.ids[:1], (3, 3))
    torch.testing.assert_close(whole[:1], encode_visible(encoder, images[:1], alone), rtol=1e-5, atol=1e-5)


def test_all_visible_equals_the_backbone():
    encoder = _encoder().eval()
    images = torch.randn(2, 3, 64, 96)
    visible = Masking.draw(torch.rand(2, 6), (2, 3), 0.5).visible
    every = type(visible)(torch.arange(6).expand(2, 6), (2, 3))
    expected = encoder(images)[-1].flatten(2).transpose(1, 2)[:, :, None]
    torch.testing.assert_close(encode_visible(encoder, images, every), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("ratio", "visible"), [(0.6, 19), (0.75, 12), (0.01, 48), (0.99, 1), (0.5, 24)])
def test_mask_ratio_is_real(ratio, visible):
    masking = Masking.draw(torch.rand(4, 49), (7, 7), ratio)
    assert masking.visible.ids.shape == (4, visible)
    both = torch.cat((masking.visible.ids, masking.hidden.ids), 1).sort(dim=1).values
    assert torch.equal(both, torch.arange(49).expand(4, 49))
    assert not torch.equal(masking.visible.ids[0], masking.visible.ids[1]) or visible in (1, 48)


def test_every_parameter_learns_and_only_hidden_patches_count():
    model = FCMAE(_encoder()).train()
    images = torch.rand(2, 3, 96, 96)
    noise = torch.rand(2, 9)
    loss = model(images, noise)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    masking = Masking.draw(noise, (3, 3), 0.6)
    normalised = (images - model.mean) / model.std
    predicted = model.predict(normalised, masking)
    total = []
    for image in range(2):
        for n, patch in enumerate(masking.hidden.ids[image].tolist()):
            row, column = divmod(patch, 3)
            pixels = normalised[image, :, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
            wanted = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            total.append((predicted[image, n, 0].view(3, 32, 32) - wanted).square().mean())
    torch.testing.assert_close(loss, torch.stack(total).mean(), rtol=1e-4, atol=1e-5)


def test_decoder_sees_visible_features_at_their_places():
    """The decoder against one written with dense maps; its last block's GRN is over the hidden positions."""
    model = FCMAE(_encoder(), decoder_depth=2, decoder_width=16, patch_size=64).eval()
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    masking = Masking.draw(torch.rand(2, 6), (2, 3), 0.5)
    seen = torch.randn(2, 3, 4, 16)
    full = masking.visible.scatter(seen, 2)
    mask = mask_of(masking.visible.ids, (2, 3)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = torch.where(mask.bool(), full, model.mask_token.view(1, -1, 1, 1))
    x = model.decoder[0](x)
    x = _last(model.decoder[1], x, 1 - mask)
    expected = model.pred(masking.hidden.gather(x, 2))
    torch.testing.assert_close(model.decode(seen, masking), expected, rtol=1e-4, atol=1e-4)


def _last(block, x, mask):
    y = block.dwconv(x).permute(0, 2, 3, 1)
    y = block.act(block.pwconv1(block.norm(y))) * mask.permute(0, 2, 3, 1)
    return x + block.pwconv2(block.grn(y)).permute(0, 3, 1, 2)


def test_targets_of_large_patches_are_normalised_over_the_patch():
    model = FCMAE(_encoder(), patch_size=64)
    images = torch.randn(1, 3, 128, 64)
    hidden = Masking.draw(torch.tensor([[0.0, 1.0]]), (2, 1), 0.5).hidden
    target = model.target(images, hidden)
    assert target.shape == (1, 1, 4, 3 * 32 * 32)
    lower = images[0, :, 64:]
    wanted = (lower - lower.mean()) / (lower.var() + 1e-6).sqrt()
    torch.testing.assert_close(target[0, 0, 1].view(3, 32, 32), wanted[:, :32, 32:], rtol=1e-4, atol=1e-5)
    plain = FCMAE(_encoder(), patch_size=64, normalise_target=False).target(images, hidden)
    torch.testing.assert_close(plain[0, 0, 2].view(3, 32, 32), lower[:, 32:, :32], rtol=0, atol=0)


def test_reconstruction_keeps_what_is_visible():
    model = FCMAE(_encoder())
    images, noise = torch.rand(2, 3, 96, 64), torch.rand(2, 6)
    masked, painted = model.reconstruct(images, noise)
    mask = mask_of(model.draw_mask(images, noise).visible.ids, (3, 2)).repeat_interleave(32, 2).repeat_interleave(32, 3)
    for picture in (masked, painted):
        torch.testing.assert_close(picture * mask, images * mask, rtol=0, atol=0)
    assert float(((masked - 0.5).abs() * (1 - mask)).max()) == 0.0
    assert float(painted.min()) >= 0
    assert float(painted.max()) <= 1


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, (90, 96), "a multiple of 32, the patch size, not 90; the nearest are 64 and 96"),
        ({}, (32, 32), "single patch"),
        ({"patch_size": 16}, (96, 96), "--patch-size must be a multiple of 32"),
        ({"patch_size": 48}, (96, 96), "--patch-size must be a multiple of 32"),
        ({"patch_size": 64}, (96, 96), "a multiple of 64, the patch size, not 96"),
        ({"mask_ratio": 1.0}, (96, 96), "--mask-ratio"),
        ({"decoder_depth": 0}, (96, 96), "--decoder-depth"),
    ],
)
def test_what_does_not_fit_is_refused(options, size, message):
    with pytest.raises(ConfigError, match=message):
        FCMAE(_encoder(), **options)(torch.rand(1, 3, *size))
