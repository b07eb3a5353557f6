"""A scene as a movie shows it at first sight, a movie simulated from it, and its correction by what that one shows."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..imaging.camera import Camera, expose, to_photoelectrons
from ..imaging.psf import PSF, Emitters, expected_photons, present_mask
from .isolated import Background, Spots, weighted_median

LEVELS = (np.arange(41) + 0.5) / 41  # of the quantiles of N


@dataclass(frozen=True)
class Answer:
    """A scene: sigma, px; ellipticity; logarithms of quantiles LEVELS of N; background (B,), e⁻, and density (B,), per
    px², of each window; bias of the background."""

    sigma: float
    ellipticity: float
    log_photons: np.ndarray
    background: np.ndarray
    density: np.ndarray
    bias: float

    @classmethod
    def of(cls, background: Background, spots: Spots) -> "Answer":
        """What the movie shows at first sight."""
        counts = spots.counts.astype(float)
        density = shrunk(counts, np.full(len(counts), counts.mean())) / spots.area
        return cls(spots.sigma, middle_ratio(spots), log_quantiles(spots), background.level, density.clip(0), 0.0)

    def corrected(self, background: Background, spots: Spots, twin: Background, twin_spots: Spots) -> "Answer":
        """Changed by the difference of what the movie shows and what its twin does."""
        level = self.background.clip(0)
        # a parabola through the differences of the inner quantiles has less noise than they have
        change, inner = log_quantiles(spots) - log_quantiles(twin_spots), (LEVELS > 0.1) & (LEVELS < 0.9)
        log_photons = self.log_photons + np.polyval(np.polyfit(LEVELS[inner], change[inner], 2), LEVELS.clip(0.1, 0.9))
        return Answer(
            self.sigma * spots.sigma / twin_spots.sigma,
            self.ellipticity,  # right at first sight: what is wrong with a spot has no direction
            np.sort(log_photons),
            background.level - (bias := float(np.mean(twin.tiles - level[twin.window]))),
            self.density * spots.counts.sum() / twin_spots.counts.sum(),
            bias,
        )

    def simulate(self, camera: Camera, shape: tuple[int, ...], generator: torch.Generator) -> np.ndarray:
        """Windows of this scene, (B, h, w) e⁻, with emitters up to 3 sd beyond the edges."""
        _, height, width = shape
        margin = 3 * self.sigma
        spans = [n + 2 * margin for n in (width, height)]
        counts = torch.poisson(torch.from_numpy(self.density) * spans[0] * spans[1], generator=generator)
        present = present_mask(counts)
        u, v, level = torch.rand((3, *present.shape), generator=generator, dtype=torch.float64)
        photons = torch.from_numpy(np.exp(np.interp(level.numpy(), LEVELS, self.log_photons)))
        emitters = Emitters(u * spans[0] - margin - 0.5, v * spans[1] - margin - 0.5, photons, present)
        stretch = math.sqrt(self.ellipticity)
        psf, background = PSF(self.sigma * stretch, self.sigma / stretch), torch.from_numpy(self.background.clip(0))
        rate = expected_photons(emitters, psf, (height, width), background)
        return to_photoelectrons(expose(rate, camera, generator), camera).numpy()


def shrunk(values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The values drawn towards their mean, until their variance has lost that of their noise."""
    own = max(0.0, 1 - float(noise.mean()) / max(float(values.var()), 1e-12))
    return values.mean() + (values - values.mean()) * math.sqrt(own)


def log_quantiles(spots: Spots) -> np.ndarray:
    """Logarithms of the quantiles LEVELS of N."""
    return np.log(np.quantile(spots.photons, LEVELS))


def middle_ratio(spots: Spots) -> float:
    """The median σ_u/σ_v, weighted by the spots' information on σ."""
    sure = np.isfinite(spots.ratios)
    return weighted_median(spots.ratios[sure], spots.ratio_weights[sure])
