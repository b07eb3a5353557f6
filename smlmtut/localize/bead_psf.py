"""The PSF that a movie of beads shows, and how far it is from a Gaussian."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._validate import whole
from ..estimation.beads import FEWEST, psf_of_beads
from ..estimation.fit import fit_spots
from ..estimation.spots import cut_spots, find_spots
from ..imaging.camera import Camera, to_photoelectrons
from ..imaging.measured_psf import MeasuredPSF
from ..imaging.psf import pixel_integral
from .frames import Frames, checked_stop, frame_blocks, movie_shape
from .isolated import MISFIT, at_least, common_width, explained, lower_spread

FRAMES, PIXELS = 64, 1 << 22  # that are searched at once
THRESHOLD = 10.0  # height of a bead over the noise of the band-passed frame
RING = 0.1  # height over that of a bead nearby, below which a maximum is taken for a part of that bead


@dataclass(frozen=True)
class BeadPSF:
    """A PSF from images of beads. beads: their number; touched, misfits: how many `bead_psf` left out for each reason.

    sigma: px, median of the round Gaussians that fit the beads. difference: Σ |PSF − that Gaussian| / 2, the share of
    the light that lies elsewhere. gap: the longest part of a pixel, along u or v, in which no bead has its centre.
    """

    psf: MeasuredPSF
    beads: int
    touched: int
    misfits: int
    sigma: float
    difference: float
    gap: float


def bead_psf(
    movie: Frames, camera: Camera, side: int = 21, oversampling: int = 4, sigma: float = 1.2, start: int = 0,
    stop: int | None = None,
) -> BeadPSF:  # fmt: skip
    """The PSF of the beads of a movie, (T, H, W) ADU, that lie apart and that one emitter explains.

    side: px, odd, of the images that are cut. oversampling: samples per pixel. sigma: px, about that of the PSF.
    start, stop: frames to look at. Left out are beads with another one within side / 2 + 3 sigma px along rows and
    columns; those whose χ² of a round Gaussian, for their N, is far above what the best quarter has, so that no PSF is
    refused; and those that are wider than the others, as two beads in one place are. At the border none is taken.
    Raises TooFewSpots (a ValueError) where fewer than 2 FEWEST beads are left, and what measure_movie raises for a
    movie or a camera.
    """
    length, height, width = movie_shape(movie, camera)
    if whole("side", side, 7) % 2 == 0 or side > min(height, width):
        raise ValueError(f"side must be odd and at most that of the frames, {min(height, width)} px, got {side}")
    cut: list[tuple[Tensor, Tensor]] = []
    touched = 0
    for _, adu in frame_blocks(movie, camera, start, checked_stop(start, stop, length, least=1), FRAMES, PIXELS):
        x = to_photoelectrons(adu.double(), camera)
        variance = torch.as_tensor(camera.read_variance_electrons, dtype=x.dtype).expand(x.shape)
        alone, others = _apart(x, find_spots(x, sigma, THRESHOLD), side // 2, side / 2 + 3 * sigma)
        cut.append((cut_spots(x, alone, side)[0], cut_spots(variance, alone, side)[0]))
        touched += others
    spots, noise = (torch.cat(parts) for parts in zip(*cut, strict=True))
    at_least(len(spots), 2 * FEWEST, "beads that lie apart")
    fit = fit_spots(spots, sigma, fit_sigma=True, read_variance=noise)
    good = explained(fit, spots, noise, 1.0)
    at_least(int(good.sum()), 2 * FEWEST, "beads that one emitter explains")  # of which half stay, at least
    found = common_width(fit, good)
    off = (fit.sigma - found) / fit.sigma_sd
    good &= off < MISFIT * lower_spread(off[good])
    psf = psf_of_beads(spots[good], oversampling, found, noise[good])
    count = len(psf.samples)
    gaussian = pixel_integral((torch.arange(count).double() - (count - 1) / 2) / oversampling, found, 1)
    difference = float((psf.samples - gaussian * gaussian.T).abs().sum()) / oversampling**2 / 2
    centres = (fit.estimate[good, :2] % 1).sort(0).values
    gap = float(torch.cat([centres, centres[:1] + 1]).diff(dim=0).max())
    return BeadPSF(psf, int(good.sum()), touched, int((~good).sum()), found, difference, gap)


def _apart(x: Tensor, found: Tensor, half: int, reach: float) -> tuple[Tensor, int]:
    """The maxima (K, 3) that are alone within reach px, and how many are not; their window lies within the frame."""
    from scipy.spatial import KDTree  # takes 0.3 s to load

    frame, row, column = found.T
    height = (x[frame, row, column] - x.flatten(1).median(1).values[frame]).numpy()
    places = found.numpy() * np.array([1e6, 1.0, 1.0])  # frames are far from each other
    near = KDTree(places).query_ball_point(places, reach, p=np.inf)
    own = np.array([height[k] > RING * height[around].max() for k, around in enumerate(near)], bool)
    alone = np.array([own[around].sum() == 1 for around in near], bool)
    at = found[:, 1:].numpy()
    inside = own & ((at >= half) & (at < np.array(x.shape[1:]) - half)).all(1)
    return found[torch.from_numpy(inside & alone)], int((inside & ~alone).sum())
