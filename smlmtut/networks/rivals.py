"""What else could say how uncertain ŷ is: ways from the literature, on the U-Net of the diffusion model.

All see what the diffusion model sees, [x, ŷ] and the fit of the frame, and describe z = (y − centre) / scale as it
does; the noise level of the U-Net is held at one value. A rival has two faces: `forward(batch)` is its loss,
`sample(estimate, frame, samples, generator)` draws images (B, S, fH, fW), float32. The rivals here describe each pixel
by itself and draw the pixels independently of each other; only what members, masks or weights change is common to a
whole image. `emitter_set` draws emitters and not pixels, `engression` whole images in one call; `conformal` corrects
the intervals of a rival.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .._validate import between, positive, whole
from .cddpm import DiffusionBatch, pixel_weight
from .condition import CHANNELS, FACTOR, SCALE_UNIT, Condition, Fit, FitRange, FrameFit, condition_on
from .unet import ResidualBlock, UNet

NARROWEST = 0.1  # smallest sd of z, .002 of y in the dark: over 64 × 64 pixels that adds up to .13 of a kernel's peak
LEVELS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)  # of the quantiles


class Rival(nn.Module):
    """The trunk that all share.

    outputs: its images. channels, blocks, fit: as in ConditionalDiffusion. more: images that it takes beside the
    condition.
    """

    factor = FACTOR

    def __init__(
        self, outputs: int, channels: tuple[int, int] = (32, 64), blocks: int = 1, fit: Fit = None, more: int = 0
    ) -> None:
        super().__init__()
        self.fit = FitRange.read(fit)
        self.architecture = {"channels": list(channels), "blocks": blocks, "fit": self.fit.plain()}
        self.unet = UNet(CHANNELS + more, outputs, channels, blocks)

    def read(self, estimate: Tensor, frame: Tensor) -> tuple[Condition, Tensor]:
        """What is known, and the trunk's images (B, outputs, fH, fW) float32. Arguments and errors: of `condition`."""
        condition = self.condition(estimate, frame)
        return condition, self.trunk(condition.inputs)

    def condition(self, estimate: Tensor, frame: Tensor) -> Condition:
        """What is known. estimate: ŷ (B, 1, fH, fW). frame: (B, 2, H, W) of `frame_input`.

        Raises ValueError as `condition_on` does.
        """
        return condition_on(estimate, frame, FrameFit(estimate, frame, self.fit))

    def trunk(self, images: Tensor) -> Tensor:
        """The U-Net at one noise level: (B, CHANNELS + more, fH, fW) to (B, outputs, fH, fW) float32."""
        return self.unet(images, images.new_zeros(len(images))).float()


def frame_weight(estimate: Tensor) -> Tensor:
    """The factor of `pixel_weight` that gives a sparse frame as much weight as a crowded one: (B, 1, 1, 1)."""
    return pixel_weight(estimate, estimate.new_tensor(SCALE_UNIT))


def gaussian_loss(y: Tensor, mean: Tensor, sd: Tensor, weight: Tensor) -> Tensor:
    """Mean of weight · −ln N(y; mean, sd²) without the constant ln √(2π): ()."""
    return (weight * (sd.log() + ((y - mean) / sd).square() / 2)).mean()


def independent(mean: Tensor, sd: Tensor, generator: torch.Generator) -> Tensor:
    """Each pixel drawn by itself from N(mean, sd²), (B, S, fH, fW) all."""
    return mean + sd * torch.randn(mean.shape, generator=generator, device=mean.device)


class Gaussian(Rival):
    """A mean and a standard deviation for each pixel (Nix & Weigend 1994)."""

    def __init__(
        self, channels: tuple[int, int] = (32, 64), blocks: int = 1, outputs: int = 2, fit: Fit = None
    ) -> None:
        super().__init__(outputs, channels, blocks, fit)

    def moments(self, estimate: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sd of y, (B, 1, fH, fW) each; the sd is NARROWEST scales or more."""
        (centre, scale, _), images = self.read(estimate, frame)
        shift, spread = images.chunk(2, 1)
        return centre + scale * shift, scale * (NARROWEST + F.softplus(spread))

    def forward(self, batch: DiffusionBatch) -> Tensor:
        """−ln N(y; mean, sd²), weighted as the diffusion model's loss is: by the sd, and by 1/(1 + molecules).

        The sd as a weight is β = ½ in Seitzer 2022. Without it, the gradient is 1/sd² times the error: the dark pixels,
        whose sd is the floor, would leave nothing for the others to learn from. It counts as a constant, so that the
        minimum stays where it is.
        """
        mean, sd = self.moments(batch.estimate, batch.frame)
        return gaussian_loss(batch.kde, mean, sd, pixel_weight(batch.estimate, sd.detach()))

    @torch.no_grad()
    def sample(self, estimate: Tensor, frame: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """Independent pixels: (B, S, fH, fW). Raises ValueError as `read` does, or for samples below 1."""
        mean, sd = (x.expand(-1, whole("samples", samples), -1, -1) for x in self.moments(estimate, frame))
        return independent(mean, sd, generator)


class Quantiles(Rival):
    """Quantiles of each pixel (Koenker & Bassett 1978) that cannot cross: the gaps between them are softplus.

    levels: (K,) of the quantiles, rising. Raises ValueError where they do not rise between 0 and 1, or are one alone.
    """

    levels: Tensor

    def __init__(
        self,
        levels: Sequence[float] = LEVELS,
        channels: tuple[int, int] = (32, 64),
        blocks: int = 1,
        fit: Fit = None,
    ) -> None:
        super().__init__(whole("the number of levels", len(levels), 2), channels, blocks, fit)
        if not all(low < high for low, high in zip((0, *levels), (*levels, 1), strict=True)):
            raise ValueError(f"levels must rise between 0 and 1, got {tuple(levels)}")
        self.register_buffer("levels", torch.tensor(levels))

    def quantiles(self, estimate: Tensor, frame: Tensor) -> Tensor:
        """(B, K, fH, fW), rising along K. From the middle one the gaps add up to both sides."""
        (centre, scale, _), images = self.read(estimate, frame)
        shift, gaps = images.split([1, len(self.levels) - 1], 1)
        up = F.pad(F.softplus(gaps - 2), (0, 0, 0, 0, 1, 0)).cumsum(1)  # 0 at the lowest level
        return centre + scale * (shift + up - up[:, len(self.levels) // 2, None])

    def forward(self, batch: DiffusionBatch) -> Tensor:
        """The pinball loss. It needs no weight by the sd: its gradient is the same for every size of an error."""
        loss = pinball(batch.kde, self.quantiles(batch.estimate, batch.frame), self.levels)
        return (frame_weight(batch.estimate) * loss).mean() / SCALE_UNIT

    @torch.no_grad()
    def sample(self, estimate: Tensor, frame: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """Independent pixels by the inverse of the distribution function: (B, S, fH, fW). Raises as Gaussian's does."""
        quantiles = self.quantiles(estimate, frame)
        shape = (len(estimate), whole("samples", samples), *estimate.shape[2:])
        return inverse_cdf(quantiles, self.levels, torch.rand(shape, generator=generator, device=estimate.device))


def pinball(y: Tensor, quantiles: Tensor, levels: Tensor) -> Tensor:
    """max(τ e, (τ − 1) e) with e = y − quantile: (B, K, H, W), of y (B, 1, H, W) and levels τ (K,)."""
    error, level = y - quantiles, levels[:, None, None]
    return torch.maximum(level * error, (level - 1) * error)


def inverse_cdf(quantiles: Tensor, levels: Tensor, at: Tensor) -> Tensor:
    """The quantile at each level `at` (B, S, H, W), straight lines between the known ones (B, K, H, W) at levels (K,).

    Below the lowest known level it is the lowest quantile, above the highest the highest.
    """
    at = torch.maximum(torch.minimum(at, levels[-1]), levels[0])
    k = (torch.searchsorted(levels, at) - 1).clamp(0, len(levels) - 2)
    share = (at - levels[k]) / (levels[k + 1] - levels[k])
    return torch.lerp(quantiles.gather(1, k), quantiles.gather(1, k + 1), share)


class Ensemble(nn.Module):
    """Gaussian heads that were trained apart, from other weights on other frames (Lakshminarayanan 2017).

    A sample first chooses a member, then draws its pixels. Raises ValueError for no members.
    """

    def __init__(self, members: Sequence[Gaussian]) -> None:
        super().__init__()
        whole("the number of members", len(members))
        self.members = nn.ModuleList(members)

    def moments(self, estimate: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sd of the mixture, (B, 1, fH, fW) each: variance = mean of the variances + variance of the means."""
        mean, sd = self.each(estimate, frame)
        return mean.mean(1, True), (sd.square().mean(1, True) + mean.var(1, correction=0, keepdim=True)).sqrt()

    def each(self, estimate: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sd of every member, (B, M, fH, fW) each."""
        found = [member.moments(estimate, frame) for member in self.members]  # type: ignore[operator]
        return torch.cat([mean for mean, _ in found], 1), torch.cat([sd for _, sd in found], 1)

    def forward(self, batch: DiffusionBatch) -> Tensor:
        """Mean of the members' losses."""
        return torch.stack([member(batch) for member in self.members]).mean()

    @torch.no_grad()
    def sample(self, estimate: Tensor, frame: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """(B, S, fH, fW). Raises as Gaussian's does."""
        mean, sd = self.each(estimate, frame)
        shape = (len(estimate), whole("samples", samples), 1, 1)
        chosen = torch.randint(len(self.members), shape, generator=generator, device=estimate.device)
        chosen = chosen.expand(-1, -1, *estimate.shape[2:])
        return independent(mean.gather(1, chosen), sd.gather(1, chosen), generator)


class Dropout(Gaussian):
    """A Gaussian head whose U-Net loses channels at random, when it samples too (Gal & Ghahramani 2016).

    rate: share of the channels that are lost before the last convolution of each residual block, in [0, 0.9].
    """

    def __init__(
        self, rate: float = 0.1, channels: tuple[int, int] = (32, 64), blocks: int = 1, fit: Fit = None
    ) -> None:
        super().__init__(channels, blocks, fit=fit)
        self.rate = between("rate", float(rate), 0, 0.9)
        self.dice: torch.Generator | None = None  # of the masks, while it samples
        for block in residual_blocks(self.unet):
            block.conv2.register_forward_pre_hook(self.drop)

    def drop(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """The features with some channels at 0 and the others raised, so that the mean is kept."""
        if not self.training and self.dice is None:
            return None
        (h,) = inputs
        kept = torch.rand((*h.shape[:2], 1, 1), generator=self.dice, device=h.device) >= self.rate
        return (h * kept / (1 - self.rate),)

    @torch.no_grad()
    def sample(self, estimate: Tensor, frame: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """(B, S, fH, fW); the U-Net runs once for each sample. Raises as Gaussian's does."""
        self.dice = generator
        try:
            found = [self.moments(estimate, frame) for _ in range(whole("samples", samples))]
        finally:
            self.dice = None
        return independent(torch.cat([m for m, _ in found], 1), torch.cat([s for _, s in found], 1), generator)


def residual_blocks(unet: UNet) -> list[ResidualBlock]:
    """All of them, from input to output."""
    return [module for module in unet.modules() if isinstance(module, ResidualBlock)]


class SNGP(Gaussian):
    """A network that knows how far an input is from what it was trained on (Liu 2020), with noise of its own.

    The convolutions of the residual blocks have spectral norm 1. The last features h of a pixel go through fixed random
    waves, φ = √(2/D) cos(W h + b), whose products approximate the kernel of a Gaussian process; the mean of z is
    φ·β. `accumulate` finds the posterior of the weights β ~ N(0, I) beforehand, given the sd of each pixel:
    covariance (I + Σ φ φᵀ / sd²)⁻¹. A sample draws β once for the image, then the noise of each pixel.
    hidden: numbers in h. waves: D. Raises ValueError where one of them is below 1.
    """

    waves: Tensor
    phase: Tensor
    precision: Tensor

    def __init__(
        self, hidden: int = 16, waves: int = 128, channels: tuple[int, int] = (32, 64), blocks: int = 1, fit: Fit = None
    ) -> None:
        super().__init__(channels, blocks, whole("hidden", hidden) + 1, fit)
        self.unet.head.reset_parameters()  # the same features in every pixel, as with its zeros, would stay the same
        for block in residual_blocks(self.unet):
            spectral_norm(block.conv1[2])
            spectral_norm(block.conv2)
        self.beta = nn.Parameter(torch.zeros(whole("waves", waves)))
        self.register_buffer("waves", torch.randn(waves, hidden) / math.sqrt(hidden))
        self.register_buffer("phase", 2 * math.pi * torch.rand(waves))
        self.register_buffer("precision", torch.eye(waves, dtype=torch.float64))

    def features(self, estimate: Tensor, frame: Tensor) -> tuple[Condition, Tensor, Tensor]:
        """What is known, φ (B, D, fH, fW), and the sd of the noise of z (B, 1, fH, fW)."""
        condition, images = self.read(estimate, frame)
        h, spread = images.split([self.waves.shape[1], 1], 1)
        with torch.autocast(h.device.type, enabled=False):  # bf16 would lose the phase of the waves
            angle = torch.einsum("dc,bchw->bdhw", self.waves, h) + self.phase[:, None, None]
        return condition, math.sqrt(2 / len(self.phase)) * angle.cos(), NARROWEST + F.softplus(spread)

    def shift(self, phi: Tensor, beta: Tensor) -> Tensor:
        """φ·β for S weights of each row, (B, S, D): (B, S, fH, fW), float32."""
        with torch.autocast(phi.device.type, enabled=False):
            return torch.einsum("bdhw,bsd->bshw", phi, beta)

    def moments(self, estimate: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        (centre, scale, _), phi, sd = self.features(estimate, frame)
        return centre + scale * self.shift(phi, self.beta.expand(len(phi), 1, -1)), scale * sd

    @torch.no_grad()
    def accumulate(self, batch: DiffusionBatch, times: float = 1.0) -> None:
        """Add the pixels of a batch to the precision of β, as if the batch had come `times` times."""
        _, phi, sd = self.features(batch.estimate, batch.frame)
        rows = (phi / sd).double().movedim(1, -1).flatten(0, -2)  # (pixels, D)
        self.precision += positive("times", times) * rows.T @ rows

    @torch.no_grad()
    def sample(self, estimate: Tensor, frame: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """(B, S, fH, fW). Raises as Gaussian's does."""
        (centre, scale, _), phi, sd = self.features(estimate, frame)
        size = (len(phi), whole("samples", samples), len(self.beta))
        noise = torch.randn(size, generator=generator, device=phi.device).double()
        root = torch.linalg.cholesky(self.precision)  # L Lᵀ: L⁻ᵀ noise has the covariance (L Lᵀ)⁻¹
        beta = self.beta + torch.linalg.solve_triangular(root.mT, noise.mT, upper=True).mT.float()
        z = self.shift(phi, beta)
        return centre + scale * independent(z, sd.expand_as(z), generator)
