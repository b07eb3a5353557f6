"""The denoiser's shapes, its attention against the formula, and the embedding of the noise level (ERRATA, table E)."""

import math

import pytest
import torch
import torch.nn.functional as F

from smlmtut.networks import unet
from smlmtut.networks.unet import ChannelNorm, SelfAttention, UNet, embed_log_snr


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(network, scale: float = 0.1):
    """Random weights everywhere, the layers that start at 0 among them."""
    drawn = generator()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=drawn))
    return network


def published_gammas() -> torch.Tensor:
    return (1 - torch.linspace(1e-4, 1e-2, 100, dtype=torch.float64)).cumprod(0)


def ten_steps_apart(embedded: torch.Tensor) -> torch.Tensor:
    return (embedded[10:] - embedded[:-10]).norm(dim=1)


def test_attention_sees_16_by_16_pixels_of_a_64_by_64_image():
    network = UNet(2, attention=True)
    seen = []
    network.attention.register_forward_hook(lambda module, given, made: seen.append(tuple(given[0].shape[2:])))
    assert network(torch.zeros(1, 2, 64, 64), torch.zeros(1)).shape == (1, 1, 64, 64)
    assert seen == [(16, 16)]


@pytest.mark.parametrize("shape", [(4, 4), (64, 64), (36, 100)])
def test_any_size_that_divides_by_four(shape):
    images = torch.randn(2, 3, *shape, generator=generator())
    assert UNet(3, outputs=2)(images, torch.zeros(2)).shape == (2, 2, *shape)


def test_starts_at_zero_and_learns_from_there():
    network = UNet(1)
    output = network(torch.randn(2, 1, 16, 16, generator=generator()), torch.zeros(2))
    assert torch.equal(output, torch.zeros_like(output))
    (output - 1).square().mean().backward()
    assert network.head.weight.grad is not None and float(network.head.weight.grad.abs().max()) > 0


def test_every_parameter_counts_and_so_does_the_noise_level():
    network = filled(UNet(1, channels=(8, 16), attention=True))
    images = torch.randn(2, 1, 16, 16, generator=generator())
    low, high = network(images, torch.full((2,), -3.0)), network(images, torch.full((2,), 3.0))
    assert float((low - high).detach().abs().max()) > 1e-3
    low.square().mean().backward()
    # a softmax does not see what all keys have in common
    assert not [name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]


def test_a_row_does_not_depend_on_the_others():
    network = filled(UNet(1, channels=(8, 16), attention=True))
    images, levels = torch.randn(3, 1, 16, 16, generator=generator()), torch.tensor([-2.0, 0.0, 2.0])
    alone = torch.cat([network(images[i : i + 1], levels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(images, levels), alone, rtol=1e-4, atol=1e-5)  # sums in another order


def test_attention_is_the_softmax_of_the_scaled_products():
    layer = filled(SelfAttention(8), 0.5)
    h = torch.randn(1, 8, 3, 5, generator=generator())
    qkv = layer.qkv(layer.norm(h)).flatten(2)[0]  # (24, 15)
    q, k, v = qkv.split(8)  # (d, pixels)
    weight = (q.T @ k / math.sqrt(8)).softmax(-1)  # (pixels, pixels)
    attended = (v @ weight.T).reshape(1, 8, 3, 5)
    torch.testing.assert_close(layer(h), h + layer.proj(attended), rtol=1e-4, atol=1e-5)  # float32


@pytest.mark.parametrize(
    ("attention", "blocks", "rows"), [(False, 1, range(30, 102)), (False, 2, range(14, 118)), (True, 1, range(128))]
)
def test_without_attention_a_pixel_sees_no_farther_than_the_convolutions_reach(attention, blocks, rows):
    """From rows 64–67: three convolutions at half the resolution, four at a quarter for each block, five at half."""
    network = filled(UNet(2, channels=(4, 8), blocks=blocks, attention=attention))
    images = torch.randn(1, 2, 128, 8, generator=generator()).requires_grad_()
    network(images, torch.zeros(1))[:, :, 64:68].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().amax((0, 1, 3)).nonzero()[:, 0].tolist() == list(rows)


@pytest.mark.parametrize(("size", "padding"), [(1, 0), (3, 1)])
def test_a_convolution_of_blocks_is_one_of_their_pixels(size, padding):
    layer, images = torch.nn.Conv2d(12, 5, size, padding=padding), torch.randn(2, 3, 16, 24)
    wanted = layer(F.pixel_unshuffle(images, 2))
    torch.testing.assert_close(unet._blocks(layer, images), wanted)


def test_channel_norm_is_of_one_pixel_alone():
    h = torch.randn(2, 6, 4, 4, generator=generator())
    wanted = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(ChannelNorm(6)(h), wanted, rtol=1e-4, atol=1e-5)


def test_the_embedding_tells_noise_levels_apart_where_that_of_the_root_of_gamma_does_not():
    """Table E: levels ten steps of the published schedule apart, in 64 numbers."""
    gammas = published_gammas()
    log_snr = (gammas / (1 - gammas)).log()
    ours = ten_steps_apart(embed_log_snr(log_snr))
    frequency = torch.logspace(0, -4, 33, dtype=torch.float64)[:32]  # the Transformer's
    angle = gammas.sqrt()[:, None] * frequency
    bare = ten_steps_apart(torch.cat([angle.sin(), angle.cos()], 1))
    assert float(bare.max()) < 0.06  # the table says .006 to .058
    # vectors of length √32 with nothing in common lie 8 apart; half of that cannot be missed
    assert float(ours.min()) > 4 and float(ours.max()) < 2 * math.sqrt(32)


def test_tiles_change_nothing(monkeypatch):
    """An image larger than a tile gives the same numbers, and no pixel sees farther than the reach."""
    torch.manual_seed(0)
    for blocks in (1, 2):
        network = UNet(2, 1, (4, 4), blocks=blocks).eval().requires_grad_(False)
        torch.nn.init.normal_(network.head.weight)
        images, level = torch.randn(1, 2, 180, 236), torch.zeros(1)
        whole = network(images, level)
        monkeypatch.setattr(unet, "TILE", 132)
        torch.testing.assert_close(network(images, level), whole, atol=1e-4 * float(whole.max()), rtol=0)
        monkeypatch.undo()
        images[..., 100, 120] += 100
        moved = (network(images, level) != whole)[0, 0].nonzero() - torch.tensor([100, 120])
        reach = network.reach
        assert reach is not None and reach - 4 < int(moved.abs().max()) <= reach
    assert UNet(1, attention=True).reach is None


def test_neighbouring_levels_are_neighbours():
    """A network that interpolates needs levels a hundredth of a nat apart to look alike."""
    level = torch.linspace(-15, 15, 3001)
    assert float((embed_log_snr(level)[1:] - embed_log_snr(level)[:-1]).norm(dim=1).max()) < 0.25  # √Σ(0.01 ω)² = .16


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: UNet(0), "inputs"),
        (lambda: UNet(1, channels=(8, 0)), "channels"),
        (lambda: UNet(1, blocks=0), "blocks"),
        (lambda: UNet(2)(torch.zeros(1, 1, 8, 8), torch.zeros(1)), "2 channels"),
        (lambda: UNet(1)(torch.zeros(1, 1, 8, 6), torch.zeros(1)), "sides that 4 divides"),
        (lambda: UNet(1)(torch.zeros(1, 8, 8), torch.zeros(1)), "images"),
        (lambda: embed_log_snr(torch.zeros(1), 7), "size must be even"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_architecture_builds_it_again():
    network = UNet(3, 2, (8, 16), blocks=2, attention=True)
    again = UNet(**network.architecture)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}
    assert F.mse_loss(again(torch.zeros(1, 3, 8, 8), torch.zeros(1)), torch.zeros(1, 2, 8, 8)) == 0
