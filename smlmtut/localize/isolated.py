"""Isolated emitters in windows of a movie, fitted with a free width; and the pixels that no emitter's light reaches.

Nothing is known beforehand but the camera. Candidates are local maxima of a band-passed image. Its first width is a
guess, the later ones are those of the fitted spots.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..estimation.fit import Fit, fit_spots
from ..estimation.spots import cut_spots
from ..imaging.psf import PSF, Emitters, expected_photons, rate_gradient

FIRST_SIGMA, PASSES = 1.2, 2  # px: in a band-pass of this width, spots of 0.7 to 2.5 px stand out; first looks
FEW = 100  # windows that suffice for them
SIGMAS = (0.5, 4.0)  # px: of the later band-passes
THRESHOLD = 5.0  # height of a candidate over the noise of the band-passed image; 4 adds a false one to six frames
FREE = 4.5  # sd of the PSF, and a pixel more, from any candidate: N = 5000 leaves 0.01 photons in a pixel there
TILE, TILE_PIXELS = 16, 20  # px: side of the parts in which the background is seen; least number of free pixels
BORDER = 3  # px along the windows' edges in which candidates are not counted
MISFIT = 2.5  # sd by which χ² of a spot, and its width, may exceed what is usual
ENOUGH = 40  # isolated spots
# times the N of which nine of ten are found, below which a median N is that of what is found, and σ that of spots which
# are narrow by chance: of N = 130 and σ = 0.85 px 0.80 come out
NEAR = 1.5
STEPS = 8  # of the fit with two widths, from the fit with one


class TooFewSpots(ValueError):
    """A movie that shows too few isolated spots, or too little background."""


@dataclass(frozen=True)
class Background:
    """What B windows show where no emitter's light falls.

    tiles, noise, window: (m,) mean of the free pixels of a tile, e⁻, the variance of that mean, and the tile's window.
    level: (B,) mean of each window; the median of the tiles where it has too few free pixels. ratio: variance of the
    free pixels over what the camera foresees.
    """

    tiles: np.ndarray
    noise: np.ndarray
    window: np.ndarray
    level: np.ndarray
    ratio: float


@dataclass(frozen=True)
class Spots:
    """What isolated spots show that one emitter explains.

    sigmas, sds: (m,) fitted widths and their claimed sd, px; width_window: (m,) their windows. The n spots below are
    those that are not too wide. window: (n,). ratios: (n,) σ_u/σ_v, NaN where that fit failed; ratio_weights: (n,)
    their information. photons: (n,) N at the common width sigma, px. sums: (n, 5), see `growth`. rejected: share of the
    isolated spots that one emitter does not explain. counts: (B,) candidates of each window within `area` px².
    seen_above: N from which on nine of ten emitters are found.
    """

    width_window: np.ndarray
    sigmas: np.ndarray
    sds: np.ndarray
    window: np.ndarray
    ratios: np.ndarray
    ratio_weights: np.ndarray
    photons: np.ndarray
    sigma: float
    sums: np.ndarray
    rejected: float
    counts: np.ndarray
    area: float
    seen_above: float


def first_look(x: np.ndarray, v: np.ndarray, few: int = FEW) -> tuple[float, np.ndarray]:
    """Width of the PSF, px, and background (B,), e⁻, of windows of which nothing is known; for `look`.

    x, v: as there. few: windows for the width, about; all where these hold few spots. Raises as `look` does.
    """
    from scipy import ndimage  # takes 0.3 s to load

    level = np.quantile(ndimage.gaussian_filter(x, (0, 2, 2)), 0.3, axis=(1, 2))
    some, sigma = slice(None, None, max(1, len(x) // few)), FIRST_SIGMA
    for _ in range(PASSES):
        found, background, _ = survey(x[some], v[some], sigma, level[some])
        if len(found) < 5 * ENOUGH and few < len(x):
            return first_look(x, v, len(x))
        fit, good, *_ = fitted(x[some], v[some], found, sigma, background.ratio)
        sigma = common_width(fit, good)
    return sigma, level


def look(
    x: np.ndarray, v: np.ndarray, sigma: float, level: np.ndarray, enough: int = ENOUGH
) -> tuple[Background, Spots]:
    """Look at windows (B, h, w) of photo-electrons, with their read variance, e⁻².

    sigma, level: width of the PSF, px, and background (B,), e⁻, about as they are.
    Raises TooFewSpots (a ValueError) where fewer than `enough` isolated spots are found, or half as many that one
    emitter explains.
    """
    found, background, seen_above = survey(x, v, sigma, level)
    fit, good, window, spots, noise = fitted(x, v, found, sigma, background.ratio, enough)
    sigma = common_width(fit, good)
    # two that overlap are wide: of such spots the widths are kept, whose median hardly sees them, and nothing else
    off = (fit.sigma - sigma) / fit.sigma_sd
    good, wide = good & (off < MISFIT * lower_spread(off[good])), good
    spots, noise = spots[good], noise[good]
    same = fit_spots(spots, sigma, read_variance=noise, start=fit.estimate[good, :4])
    inside = (found[:, 1:] >= BORDER) & (found[:, 1:] < np.array(x.shape[1:]) - BORDER)
    return background, Spots(
        width_window=window[wide.numpy()],
        sigmas=fit.sigma[wide].numpy(),
        sds=fit.sigma_sd[wide].numpy(),
        window=window[good.numpy()],
        ratios=two_widths(spots, noise, fit.estimate[good]),
        ratio_weights=fit.sigma_sd[good].numpy() ** -2,
        photons=same.photons.numpy(),
        sigma=sigma,
        sums=variance_sums(spots, noise, same, sigma),
        rejected=1 - float(good.double().mean()),
        counts=np.bincount(found[inside.all(1), 0], minlength=len(x)),
        area=float(np.prod(np.array(x.shape[1:]) - 2 * BORDER)),
        seen_above=seen_above,
    )


def survey(x: np.ndarray, v: np.ndarray, sigma: float, level: np.ndarray) -> tuple[np.ndarray, Background, float]:
    """The candidates: local maxima of the image blurred by sigma minus the one blurred by 2 sigma.

    A candidate is THRESHOLD times the noise high: the noise that camera and background foresee, since that of the image
    itself is larger in a crowded window. Returns (K, 3) window, row, column; the background where no candidate is near;
    and N whose maximum is 1.3 sd above the threshold, so that nine of ten are found.
    """
    from scipy import ndimage

    def band(image: np.ndarray) -> np.ndarray:
        narrow, wide = (ndimage.gaussian_filter(image, (0, s * sigma, s * sigma)) for s in (1.0, 2.0))
        return narrow - wide

    middle = 8 * (1 + round(sigma))
    size = (2 * middle + 1, 2 * middle + 1)
    point = np.zeros((1, *size))
    point[0, middle, middle] = 1
    spot = expected_photons(Emitters.single(middle, middle, 1.0), PSF(sigma), size).numpy()
    image, ratio = band(x), 1.0
    peaks = image == ndimage.maximum_filter(image, (1, 3, 3))
    for _ in range(2):
        sd = np.sqrt((band(point) ** 2).sum() * ratio * (level.clip(0) + v.mean((1, 2))))  # (B,)
        found = np.argwhere(peaks & (image > THRESHOLD * sd[:, None, None]))
        background = free_background(x, v, found, sigma)
        level, ratio = background.level, background.ratio
    return found, background, float((THRESHOLD + 1.3) * np.median(sd) / band(spot)[0, middle, middle])


def fitted(
    x: np.ndarray, v: np.ndarray, found: np.ndarray, sigma: float, ratio: float, enough: int = ENOUGH
) -> tuple[Fit, Tensor, np.ndarray, Tensor, Tensor]:
    """Fits of the isolated candidates with a free width, which of them one emitter explains, and their windows.

    Returns the fit of n spots, (n,) bool, (n,) window, and the spots with their read variance (n, s, s).
    """
    half = round(3 * sigma + 1)
    alone = torch.from_numpy(isolated(found, x.shape, half, half + 1.5 * sigma))
    at_least(len(alone), enough, "isolated spots")
    spots, noise = (cut_spots(torch.from_numpy(image), alone, 2 * half + 1)[0] for image in (x, v))
    fit = fit_spots(spots, sigma, fit_sigma=True, read_variance=noise)
    good = explained(fit, spots, noise, ratio)
    at_least(int(good.sum()), enough // 2, "isolated spots that one emitter explains")
    return fit, good, alone[:, 0].numpy(), spots, noise


def common_width(fit: Fit, good: Tensor) -> float:
    """The median width of the good spots, px, weighted by their information."""
    return float(np.clip(weighted_median(fit.sigma[good].numpy(), fit.sigma_sd[good].numpy() ** -2), *SIGMAS))


def isolated(found: np.ndarray, shape: tuple[int, ...], half: int, radius: float) -> np.ndarray:
    """The candidates with no other within `radius` px, whose window of 2 half + 1 px lies inside, and a pixel more."""
    from scipy.spatial import KDTree

    places = found * np.array([1e6, 1.0, 1.0])  # windows are far from each other
    distance = KDTree(places).query(places, k=2)[0][:, 1] if len(found) > 1 else np.full(len(found), np.inf)
    inside = (found[:, 1:] > half) & (found[:, 1:] < np.array(shape[1:]) - half - 1)
    return found[inside.all(1) & (distance > radius)]


def explained(fit: Fit, spots: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """Bool (n,): converged, and χ² not MISFIT sd above what is usual for such an N.

    The PSF of a microscope is never the model: its misfit grows as N. So the allowance does too, by the misfit of the
    best quarter of all spots; a fixed limit would leave out the bright ones.
    """
    pixels = spots[0].numel()
    expected = (pixels - 5) * ratio
    sd = ratio * (2 * pixels + (1 / (fit.background.clamp(min=0)[:, None, None] + noise)).sum((1, 2))).sqrt()
    excess = fit.chi_square - expected
    usual = (
        float((excess / fit.photons)[fit.converged].quantile(0.25).clamp(min=0)) if bool(fit.converged.any()) else 0.0
    )
    return fit.converged & (excess <= MISFIT * sd + 3 * usual * fit.photons)


def free_background(x: np.ndarray, v: np.ndarray, found: np.ndarray, sigma: float) -> Background:
    """The background in the pixels far from all candidates, in tiles of TILE px."""
    reach = FREE * sigma + 1
    side = np.arange(-int(reach), int(reach) + 1)
    disc = np.argwhere(side[:, None] ** 2 + side**2 <= reach**2) - int(reach)  # (D, 2)
    lit = found[:, None, 1:] + disc  # (K, D, 2)
    within = ((lit >= 0) & (lit < x.shape[1:])).all(2)
    free = np.ones(x.shape, bool)
    free[np.broadcast_to(found[:, :1], within.shape)[within], *lit[within].T] = False
    windows, rows, columns = x.shape
    down, along = -(-rows // TILE), -(-columns // TILE)
    tile = (np.arange(rows) // TILE)[:, None] * along + np.arange(columns) // TILE
    label = (np.arange(windows)[:, None, None] * down * along + tile)[free]
    sums = lambda values: np.bincount(label, values, windows * down * along)  # noqa: E731
    count, total, square, foreseen = (sums(a) for a in (np.ones(len(label)), x[free], x[free] ** 2, v[free]))
    kept = count >= TILE_PIXELS
    at_least(int(kept.sum()), 1, f"parts of {TILE} px with {TILE_PIXELS} pixels without light")
    n, mean, read = count[kept], total[kept] / count[kept], foreseen[kept] / count[kept]
    spread = square[kept] - n * mean**2
    # the rate is clamped, since a wrong offset may make the mean negative
    ratio = max(1e-3, float(spread.sum() / ((n - 1) * (mean.clip(0) + read)).sum()))
    window = np.nonzero(kept)[0] // (down * along)
    pixels, light = (np.bincount(window, a, windows) for a in (n, n * mean))
    level = np.where(pixels > 0, light / np.maximum(pixels, 1), np.median(mean))
    return Background(mean, ratio * (mean.clip(0) + read) / n, window, level, ratio)


def two_widths(spots: Tensor, noise: Tensor, start: Tensor) -> np.ndarray:
    """σ_u/σ_v of each spot by Fisher scoring from the fit with one width: (n,), NaN where that goes astray."""
    u, v, photons, background, sigma = start.T
    theta = torch.stack([u, v, photons, sigma, sigma, background], 1)  # (n, 6)
    shape = (spots.shape[1], spots.shape[2])
    names = ("u", "v", "photons", "sigma_u", "sigma_v", "background")
    for _ in range(STEPS):
        emitters = Emitters(*(theta[:, k : k + 1] for k in range(3)))
        psf = PSF(theta[:, 3:4], theta[:, 4:5])
        light = expected_photons(emitters, psf, shape) + theta[:, 5, None, None]
        rate = (light + noise).clamp(min=1e-3)
        gradient = rate_gradient(emitters, psf, shape, names)  # (n, 6, h, w)
        score = (gradient * ((spots - light) / rate)[:, None]).sum((2, 3))
        information = torch.einsum("nphw,nqhw->npq", gradient / rate[:, None], gradient)
        step = torch.linalg.solve(information + 1e-9 * torch.eye(6, dtype=theta.dtype), score)
        new = theta + step
        limits = theta[:, 2:5]  # N and widths stay within a factor of two in a step
        new[:, 2:5] = torch.minimum(torch.maximum(new[:, 2:5], limits / 2), limits * 2)
        new[:, :2] = torch.minimum(torch.maximum(new[:, :2], theta[:, :2] - 1), theta[:, :2] + 1)
        theta = new
    ratios = theta[:, 3] / theta[:, 4]
    steady = ((step / theta)[:, 3:5].abs() < 0.01).all(1) & (ratios > 0.2) & (ratios < 5)
    return torch.where(steady, ratios, torch.nan).numpy()


def variance_sums(spots: Tensor, noise: Tensor, fit: Fit, sigma: float) -> np.ndarray:
    """Sums over the pixels of each spot for `growth`, (n, 5).

    Of weights, also times rate, rate², squared residual, and that times rate. The weight of a pixel is one over the
    square of its variance as the fit has it.
    """
    u, v, photons, background = (a[:, None] for a in fit.estimate.T)
    light = expected_photons(Emitters(u, v, photons), PSF(sigma), (spots.shape[1], spots.shape[2]))
    rate = light + background[..., None]
    weight = 1 / (rate + noise).clamp(min=0.1).square()
    square = (spots - rate).square() * spots[0].numel() / (spots[0].numel() - 4)  # four parameters are fitted
    terms = (torch.ones_like(rate), rate, rate**2, square, square * rate)
    return torch.stack([(weight * term).sum((1, 2)) for term in terms], 1).numpy()


def growth(sums: np.ndarray) -> float:
    """Slope of the squared residuals against the fitted rate by weighted least squares; 1 for Poisson noise.

    sums: (5,) of `variance_sums`, over spots.
    """
    n, rate, rate2, square, both = sums
    return float((n * both - rate * square) / (n * rate2 - rate**2))


def lower_spread(residuals: Tensor) -> float:
    """Root mean square of what lies below the median, about the median: molecules that were missed lie above it."""
    left = (residuals - residuals.median()).clamp(max=0)
    return max(1e-9, float((left.square().sum() / (left < 0).sum().clamp(min=1)).sqrt()))


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value below which half of the weight lies, interpolated between values."""
    order = np.argsort(values)
    below = np.cumsum(weights[order]) - weights[order] / 2
    return float(np.interp(below[-1] / 2 + weights[order][-1] / 4, below, values[order]))


def at_least(n: int, least: int, what: str) -> None:
    """TooFewSpots where a movie shows fewer than the least number of something."""
    if n < least:
        raise TooFewSpots(f"movie must show at least {least} {what}, got {n}: choose more frames, or check the camera")
