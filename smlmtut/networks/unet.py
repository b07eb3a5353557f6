"""The denoiser: a U-Net that knows the noise level, small enough to train on a CPU.

A 2 × 2 block of super-resolved pixels becomes one pixel with four times the channels, so that most of the work is
done at half the resolution. One halving further, where a 64 × 64 image has 16 × 16 pixels, every pixel attends to
every other.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._validate import rank, whole

EMBEDDED = 64  # numbers that tell the noise level
SLOWEST, FASTEST = 1 / 8, 10.0  # radians per unit of the log-SNR
UNSHUFFLE = 2  # super-resolved pixels to a pixel of the first level, along each axis


def embed_log_snr(log_snr: Tensor, size: int = EMBEDDED) -> Tensor:
    """Sines and cosines of the log signal-to-noise ratio ln γ/(1 − γ), from slow to fast: (B,) to (B, size).

    The log-SNR spans about −15 to 15 in steps of some tenths, which the fastest wave turns into radians. √γ itself
    hardly moves from step to step: its sines are the same within a few hundredths.
    Raises ValueError where size is not even.
    """
    if whole("size", size) % 2:
        raise ValueError(f"size must be even, got {size}")
    span = torch.linspace(math.log(SLOWEST), math.log(FASTEST), size // 2, device=log_snr.device)
    angle = log_snr.float()[:, None] * span.exp()  # (B, size/2)
    return torch.cat([angle.sin(), angle.cos()], 1)


class UNet(nn.Module):
    """A network from B images and noise levels to B images.

    inputs, outputs: channels of the images. channels: features at half and at a quarter of the resolution.
    blocks: residual blocks at a quarter of the resolution, on each side of the attention. heads: of the attention.
    The last layer starts at 0: so does what the network adds to whatever it is wrapped in.
    Raises ValueError where a number is not a whole one of at least 1, or heads do not divide the features.
    """

    def __init__(
        self, inputs: int, outputs: int = 1, channels: tuple[int, int] = (32, 64), blocks: int = 1, heads: int = 1
    ) -> None:
        super().__init__()
        fine, coarse = (whole("channels", n) for n in channels)
        inputs, outputs, blocks = whole("inputs", inputs), whole("outputs", outputs), whole("blocks", blocks)
        if coarse % whole("heads", heads):
            raise ValueError(f"heads must divide the features {coarse}, got {heads}")
        self.architecture: dict[str, Any] = {
            "inputs": inputs, "outputs": outputs, "channels": [fine, coarse], "blocks": blocks, "heads": heads,
        }  # fmt: skip
        told = 4 * fine
        self.level = nn.Sequential(nn.Linear(EMBEDDED, told), nn.SiLU(), nn.Linear(told, told), nn.SiLU())
        self.stem = nn.Conv2d(UNSHUFFLE**2 * inputs, fine, 3, padding=1)
        self.before = ResidualBlock(fine, fine, told)
        self.down = nn.Conv2d(4 * fine, coarse, 1)
        self.inner = nn.ModuleList(ResidualBlock(coarse, coarse, told) for _ in range(2 * blocks))
        self.attention = SelfAttention(coarse, heads)
        self.up = nn.Conv2d(coarse, 4 * fine, 1)
        self.after = nn.ModuleList([ResidualBlock(2 * fine, fine, told), ResidualBlock(fine, fine, told)])
        self.normalize = ChannelNorm(fine)
        self.head = nn.Conv2d(fine, UNSHUFFLE**2 * outputs, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, log_snr: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B,) to (B, outputs, H, W).

        Raises ValueError where H or W is not a multiple of 4, or the number of channels is another.
        """
        least = 2 * UNSHUFFLE
        wanted = self.architecture["inputs"]
        if rank("images", images, 4).shape[1] != wanted or images.shape[2] % least or images.shape[3] % least:
            raise ValueError(
                f"images must have {wanted} channels and sides that {least} divides, got shape {tuple(images.shape)}"
            )
        told = self.level(embed_log_snr(log_snr))  # (B, 4C)
        skip = self.before(self.stem(F.pixel_unshuffle(images, UNSHUFFLE)), told)  # (B, C, H/2, W/2)
        h = self.down(F.pixel_unshuffle(skip, 2))  # (B, C', H/4, W/4)
        middle = len(self.inner) // 2
        for i, block in enumerate(self.inner):
            h = self.attention(h) if i == middle else h
            h = block(h, told)
        h = torch.cat([F.pixel_shuffle(self.up(h), 2), skip], 1)  # (B, 2C, H/2, W/2)
        for block in self.after:
            h = block(h, told)
        return F.pixel_shuffle(self.head(F.silu(self.normalize(h))), UNSHUFFLE)  # (B, outputs, H, W)


class ResidualBlock(nn.Module):
    """Two convolutions around which the input passes; the noise level scales and shifts the features between them."""

    def __init__(self, inputs: int, outputs: int, told: int) -> None:
        super().__init__()
        self.first = nn.Sequential(ChannelNorm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.told = nn.Linear(told, 2 * outputs)
        self.normalize = ChannelNorm(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.told(told)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1) each
        inner = self.normalize(self.first(h)) * (1 + scale) + shift
        return self.skip(h) + self.second(F.silu(inner))


class SelfAttention(nn.Module):
    """Every pixel looks at every other: softmax(q kᵀ / √d) v in each head, added to what came in."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.normalize = ChannelNorm(features)
        self.ask = nn.Conv2d(features, 3 * features, 1)  # query, key and value
        self.answer = nn.Conv2d(features, features, 1)

    def forward(self, h: Tensor) -> Tensor:
        batch, features, height, width = h.shape
        asked = self.ask(self.normalize(h)).permute(0, 2, 3, 1)  # (B, H, W, 3C)
        asked = asked.reshape(batch, height * width, 3, self.heads, features // self.heads)
        query, key, value = asked.permute(2, 0, 3, 1, 4)  # (B, heads, HW, d) each
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # (B, HW, heads, d)
        return h + self.answer(seen.reshape(batch, height, width, features).permute(0, 3, 1, 2))


class ChannelNorm(nn.Module):
    """Features of each pixel with mean 0 and sd 1, then scaled and shifted: unlike GroupNorm's, of no other pixel."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, h: Tensor) -> Tensor:
        last = h.permute(0, 2, 3, 1)  # no copy in channels_last
        weight, bias = self.weight.to(h.dtype), self.bias.to(h.dtype)
        return F.layer_norm(last, weight.shape, weight, bias).permute(0, 3, 1, 2)
