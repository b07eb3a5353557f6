"""A rival that describes emitters and not pixels: the output of DECODE (Speiser 2021, Nat. Methods 18:1082).

Each camera pixel k says with which probability p_k it holds an emitter, and a Gaussian for its u, v and photons. A
sample decides on each pixel by itself, draws the places, and renders the emitters.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._validate import whole
from ..imaging.kde import kde_image
from ..imaging.psf import Emitters
from ..imaging.scenes import Scene, draw_batch
from .cddpm import DiffusionBatch
from .condition import Fit
from .deepstorm import DeepSTORM
from .recipes import draw_estimates
from .rivals import Rival, frame_weight
from .settings import Draw

THOUSAND = 1000.0  # photons, the unit of N here, so that all three coordinates are about 1
OUTSIDE = 1.0  # px beyond the border, from where exp(−4.5²/2) = 4e-5 of a kernel's peak reaches the image
REACH = 2.0  # px from the centre of a pixel to the farthest place that it can name, along each axis
NARROWEST = 0.01  # smallest sd: px, and THOUSAND photons
# Smallest variance of the count. The Gaussian is a density, which would grow without bound where p is 0 everywhere.
COUNT_VARIANCE = 1e-3
LOSS_SCALE = 0.1  # brings the norm of the gradient, tens at the start, down to the clip of the shared settings


class EmitterBatch(NamedTuple):
    """What `recipes.draw_estimates` gives of y, ŷ and the frame, with the truth.

    places: (B, E, 3) u, v in px and N in THOUSAND photons. present: (B, E) bool, which of them count.
    """

    kde: Tensor
    estimate: Tensor
    frame: Tensor
    places: Tensor
    present: Tensor


def draw_emitters(scene: Scene, shape: tuple[int, int], phi: DeepSTORM) -> Draw:
    """Batches for `EmitterSet`: those of `recipes.draw_estimates` for the same generator, with their emitters.

    Emitters more than OUTSIDE beyond the border do not count: they are not in the image.
    """
    base = draw_estimates(scene, shape, phi)

    def draw(batch: int, generator: torch.Generator) -> EmitterBatch:
        again = torch.Generator(generator.device)
        again.set_state(generator.get_state())  # so it draws the same frames, with the emitters that base leaves out
        images = base(batch, generator)
        assert isinstance(images, DiffusionBatch)
        place = replace(scene, camera=scene.camera.to(generator.device))
        emitters = draw_batch(place, batch, shape, again).emitters
        places = torch.stack([emitters.u, emitters.v, emitters.photons / THOUSAND], -1)
        corner = places[..., :2] + 0.5  # 0 at the left and the upper border
        size = corner.new_tensor([shape[1], shape[0]])
        near = ((corner > -OUTSIDE) & (corner < size + OUTSIDE)).all(-1)
        return EmitterBatch(images.kde, images.estimate, images.frame, places, emitters.mask & near)

    return draw


class EmitterSet(Rival):
    """The network: the trunk, then one convolution from the 16 super-resolved pixels of a camera pixel to 7 numbers."""

    def __init__(self, channels: tuple[int, int] = (32, 64), blocks: int = 1, fit: Fit = None) -> None:
        super().__init__(4, channels, blocks, fit)
        self.head = nn.Conv2d(4 * self.factor**2, 7, 1)
        # at the start: p = 0.03, 8 emitters a frame; the middle of the pixel; 700 photons; sd of 0.7
        self.head.bias = nn.Parameter(torch.tensor([-3.5, 0, 0, 0, 0, 0, 0]))

    def read_emitters(self, estimate: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """logit of p (B, K), and means and sds of u, v (px) and N (THOUSAND photons), (B, K, 3) each, K = H · W."""
        _, read = self.read(estimate, frame)
        with torch.autocast(estimate.device.type, enabled=False):  # bf16 would round places to a hundredth of a pixel
            images = self.head(F.pixel_unshuffle(read, self.factor))  # (B, 7, H, W)
        logit, place, photons, sd = images.split([1, 2, 1, 3], 1)
        grid = [torch.arange(n, dtype=images.dtype, device=images.device) for n in images.shape[2:]]
        v, u = torch.meshgrid(*grid, indexing="ij")
        mean = torch.cat([torch.stack([u, v]) + REACH * place.tanh(), F.softplus(photons)], 1)
        rows = [x.flatten(2).mT for x in (mean, NARROWEST + F.softplus(sd))]
        return logit.flatten(1), rows[0], rows[1]

    def forward(self, batch: EmitterBatch) -> Tensor:
        """LOSS_SCALE · mean of −`set_log_density`, weighted by `frame_weight` as for the other rivals: ()."""
        emitters = self.read_emitters(batch.estimate, batch.frame)
        weight = frame_weight(batch.estimate)[:, 0, 0, 0]
        return -LOSS_SCALE * (weight * set_log_density(*emitters, batch.places, batch.present)).mean()

    @torch.no_grad()
    def sample(self, estimate: Tensor, frame: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """Images of independent emitters: (B, S, fH, fW). Raises ValueError as `read` does, or for samples below 1."""
        logit, mean, sd = self.read_emitters(estimate, frame)
        shape = (len(logit), whole("samples", samples), logit.shape[1])
        present = torch.rand(shape, generator=generator, device=logit.device) < logit.sigmoid()[:, None]
        noise = torch.randn((*shape, 2), generator=generator, device=logit.device)
        u, v = (mean[:, None, :, :2] + sd[:, None, :, :2] * noise).flatten(0, 1).unbind(-1)
        emitters = Emitters(u, v, torch.ones_like(u), present.flatten(0, 1))
        size = (estimate.shape[2] // self.factor, estimate.shape[3] // self.factor)
        with torch.autocast(u.device.type, enabled=False):
            return kde_image(emitters, size, self.factor).reshape(*shape[:2], *estimate.shape[2:])


def set_log_density(logit: Tensor, mean: Tensor, sd: Tensor, places: Tensor, present: Tensor) -> Tensor:
    """ln of the density of a set of E emitters: that of their number, plus that of each place: (B,).

    logit (B, K), mean and sd (B, K, 3): of `EmitterSet.read_emitters`. places (B, E, 3), present (B, E): the truth.
    The number is a sum of K yes-or-no decisions, approximated by a Gaussian of its mean Σ p and variance Σ p (1 − p).
    Each place is drawn from the mixture Σ_k p_k / Σ p · N(mean_k, sd_k²). The paper divides the second part by E, a
    rare frame of one emitter then counts as much as one of thirty; the sum is the density itself.
    """
    p = logit.sigmoid()
    variance = (p * (1 - p)).sum(1) + COUNT_VARIANCE
    count = -((present.sum(1) - p.sum(1)).square() / variance + (2 * math.pi * variance).log()) / 2
    share = F.logsigmoid(logit) - F.logsigmoid(logit).logsumexp(1, keepdim=True)  # (B, K)
    off = (places[:, :, None] - mean[:, None]) / sd[:, None]  # (B, E, K, 3)
    each = -(off.square() / 2 + sd[:, None].log() + math.log(2 * math.pi) / 2).sum(-1)
    return count + torch.where(present, (share[:, None] + each).logsumexp(2), 0.0).sum(1)
