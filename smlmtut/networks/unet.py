"""The denoiser: a U-Net with an embedding of the noise level, small enough to train on a CPU.

A 2 × 2 block of super-resolved pixels becomes one pixel with four times the channels, so that most of the work is
done at half the resolution. At a quarter of the resolution, where a 64 × 64 image has 16 × 16 pixels, every pixel
may attend to every other.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._validate import rank, whole
from ..imaging.windows import windows

EMBEDDING = 64  # numbers in the embedding of the noise level, as in erratum 13
# Frequencies of the embedding in radians per unit of the log-SNR. The log-SNR goes from about −15 to 15: the period of
# the slowest wave, 50, is longer. Steps of the schedule are a few tenths apart: the fastest turns them into radians.
SLOWEST, FASTEST = 1 / 8, 10.0
TILE = 512  # super-resolved pixels: images with a larger side are computed in tiles, whose features fit into memory
UNSHUFFLE = 2  # super-resolved pixels per pixel of the first level, along each axis


def embed_log_snr(log_snr: Tensor, size: int = EMBEDDING) -> Tensor:
    """Sines and cosines of the log signal-to-noise ratio ln γ/(1 − γ), from slow to fast: (B,) to (B, size).

    √γ itself hardly changes from step to step: its sines differ by a few hundredths at most (erratum 13).
    Raises ValueError where size is not even.
    """
    if whole("size", size) % 2:
        raise ValueError(f"size must be even, got {size}")
    span = torch.linspace(math.log(SLOWEST), math.log(FASTEST), size // 2, device=log_snr.device)
    angle = log_snr.float()[:, None] * span.exp()  # (B, size/2)
    return torch.cat([angle.sin(), angle.cos()], 1)


class UNet(nn.Module):
    """A network from B images and noise levels to B images (Ronneberger 2015).

    inputs, outputs: channels of the images. channels: features at half and at a quarter of the resolution.
    blocks: residual blocks at a quarter of the resolution, twice: before and after the attention, if there is one.
    Without, a pixel sees no farther than `reach`.
    The weights of the last layer start at 0, and so does the output.
    Raises ValueError where a number is not a whole one of at least 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int = 1,
        channels: tuple[int, int] = (32, 64),
        blocks: int = 1,
        attention: bool = False,
    ) -> None:
        super().__init__()
        fine, coarse = (whole("channels", n) for n in channels)
        inputs, outputs, blocks = whole("inputs", inputs), whole("outputs", outputs), whole("blocks", blocks)
        self.architecture: dict[str, Any] = {
            "inputs": inputs, "outputs": outputs, "channels": [fine, coarse], "blocks": blocks,
            "attention": attention,
        }  # fmt: skip
        size = 4 * fine  # of the embedding in every residual block
        self.time_embedding = nn.Sequential(nn.Linear(EMBEDDING, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU())
        self.stem = nn.Conv2d(UNSHUFFLE**2 * inputs, fine, 3, padding=1)
        self.encoder = ResidualBlock(fine, fine, size)
        self.down = nn.Conv2d(4 * fine, coarse, 1)
        self.middle = nn.ModuleList(ResidualBlock(coarse, coarse, size) for _ in range(2 * blocks))
        self.attention = SelfAttention(coarse) if attention else nn.Identity()
        self.up = nn.Conv2d(coarse, 4 * fine, 1)
        self.decoder = nn.ModuleList([ResidualBlock(2 * fine, fine, size), ResidualBlock(fine, fine, size)])
        self.norm = ChannelNorm(fine)
        self.head = nn.Conv2d(fine, UNSHUFFLE**2 * outputs, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, log_snr: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B,) to (B, outputs, H, W).

        Raises ValueError where H or W is not a multiple of 4, or the images have another number of channels.
        """
        least = 2 * UNSHUFFLE
        wanted = self.architecture["inputs"]
        if rank("images", images, 4).shape[1] != wanted or images.shape[2] % least or images.shape[3] % least:
            raise ValueError(
                f"images must have {wanted} channels and sides that {least} divides, got shape {tuple(images.shape)}"
            )
        if not self.training and self.reach is not None and max(images.shape[2:]) > TILE:
            return self._in_tiles(images, log_snr)
        embedding = self.time_embedding(embed_log_snr(log_snr))  # (B, 4C)
        skip = self.encoder(_blocks(self.stem, images), embedding)  # (B, C, H/2, W/2)
        h = self.down(F.pixel_unshuffle(skip, 2))  # (B, C', H/4, W/4)
        half = len(self.middle) // 2
        for i, block in enumerate(self.middle):
            h = self.attention(h) if i == half else h
            h = block(h, embedding)
        h = torch.cat([F.pixel_shuffle(self.up(h), 2), skip], 1)  # (B, 2C, H/2, W/2)
        for block in self.decoder:
            h = block(h, embedding)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), UNSHUFFLE)  # (B, outputs, H, W)

    @property
    def reach(self) -> int | None:
        """Super-resolved pixels, a multiple of 4, from a pixel to the farthest that it depends on; None: to all."""
        fine, coarse = 2 + 2 * (1 + len(self.decoder)), 2 * len(self.middle)  # convolutions at ½ and at ¼
        return None if isinstance(self.attention, SelfAttention) else 2 * fine + 4 * coarse + 4

    def _in_tiles(self, images: Tensor, log_snr: Tensor) -> Tensor:
        """`forward`, from parts of the images that overlap by twice the reach: the same numbers up to rounding."""
        step, (height, width) = 2 * UNSHUFFLE, images.shape[2:]
        assert self.reach is not None
        size = min(TILE, height) // step, min(TILE, width) // step
        out = images.new_empty(len(images), self.architecture["outputs"], height, width)
        for place in windows((height // step, width // step), size, self.reach // step):
            out[:, :, *place.own(step)] = self(images[:, :, *place.seen(step)], log_snr)[:, :, *place.within(step)]
        return out


def _blocks(layer: nn.Conv2d, images: Tensor) -> Tensor:
    """A convolution of 2 × 2 blocks of pixels, layer(pixel_unshuffle(images, 2)), without the copy that sorts them."""
    weight, size = layer.weight.unflatten(1, (-1, 2, 2)), 2 * layer.kernel_size[0]  # (C, n, 2, 2, k, k)
    # the same kernel in the pixels themselves, twice as large
    weight = weight.permute(0, 1, 4, 2, 5, 3).reshape(len(weight), -1, size, size)
    images = images.contiguous(memory_format=torch.channels_last)
    return F.conv2d(images, weight, layer.bias, stride=2, padding=2 * layer.padding[0])


class ResidualBlock(nn.Module):
    """Two convolutions with a skip connection; the noise level scales and shifts the features between them.

    embedding: numbers in that of the noise level; 0: there is none.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(ChannelNorm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.time_proj = nn.Linear(embedding, 2 * outputs) if embedding else None
        self.norm = ChannelNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor | None = None) -> Tensor:
        between = self.norm(self.conv1(h))
        if self.time_proj is not None and embedding is not None:
            scale, shift = self.time_proj(embedding)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1) each
            between = between * (1 + scale) + shift
        return self.skip(h) + self.conv2(F.silu(between))


class SelfAttention(nn.Module):
    """Attention between all pixels: softmax(q kᵀ / √d) v, added to the input (Vaswani 2017)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(features)
        self.qkv = nn.Conv2d(features, 3 * features, 1)
        self.proj = nn.Conv2d(features, features, 1)

    def forward(self, h: Tensor) -> Tensor:
        # one head, as a dimension of its own: without, the CPU computes all weights at once, (B, HW, HW)
        q, k, v = self.qkv(self.norm(h)).flatten(2).mT[:, None].chunk(3, 3)  # (B, 1, HW, C) each
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return h + self.proj(attended.mT.unflatten(2, h.shape[2:]))


class ChannelNorm(nn.Module):
    """Layer normalization over the features of each pixel; unlike GroupNorm's, it does not mix pixels."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, h: Tensor) -> Tensor:
        last = h.permute(0, 2, 3, 1)  # no copy in channels_last
        weight, bias = self.weight.to(h.dtype), self.bias.to(h.dtype)
        return F.layer_norm(last, weight.shape, weight, bias).permute(0, 3, 1, 2)
