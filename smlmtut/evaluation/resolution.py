"""What a super-resolved image resolves: Fourier ring correlation of two halves of its localizations, and NeNA.

Nieuwenhuizen 2013 (Nat. Methods 10:557), Banterle 2013 (J. Struct. Biol. 183:363), van Heel & Schatz 2005 (J. Struct.
Biol. 151:250), Endesfelder 2014 (Histochem. Cell Biol. 141:629).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._validate import between, finite, floating, positive, tensor
from .localization import Positions, checked_arrays


def fourier_ring_correlation(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correlation of the Fourier transforms of two images, ring by ring.

    first, second: (n, n), two images of the same structure from localizations that have no noise in common, so that
        what they share is the structure. The images should fade towards their borders: see `tapered`.
    Returns frequency (R,) in cycles per pixel, correlation (R,) in [−1, 1] and the number of Fourier pixels of each
    ring (R,). Ring k holds the frequencies of k − ½ to k + ½ cycles per image side, k = 1 … n/2. NaN where one of the
    images has no light at these frequencies.
    Raises ValueError for images that are not square, differ in size, or are not finite.
    """
    images = [finite(name, tensor(name, x, 2)).cpu().double() for name, x in (("first", first), ("second", second))]
    side = images[0].shape[0]
    for name, image in zip(("first", "second"), images, strict=True):
        if image.shape != (side, side) or side < 2:
            raise ValueError(
                f"{name} must be square and have the shape of first, {(side, side)}, got {tuple(image.shape)}"
            )
    one, two = (torch.fft.fft2(image) for image in images)
    along = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    ring = torch.hypot(along, along[:, None]).round().long().flatten()
    most = side // 2

    def sums(values: Tensor) -> Tensor:
        return torch.bincount(ring, values.flatten(), minlength=most + 1)[1 : most + 1]

    shared, power = sums((one * two.conj()).real), sums(one.abs().square()) * sums(two.abs().square())
    correlation = torch.where(power > 0, shared / power.sqrt(), math.nan)
    frequency = torch.arange(1, most + 1, dtype=torch.float64) / side
    return frequency, correlation, sums(torch.ones_like(ring).double())


def tapered(image: Tensor, share: float = 0.25) -> Tensor:
    """An image (n, n) that falls to 0 towards its borders, over this share of its side: a Tukey window.

    share: in (0, 0.5]. Raises ValueError for another share, or an image that is not square or of floating point.
    """
    image, share = floating("image", image, 2), between("share", positive("share", float(share)), 0, 0.5)
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"image must be square, got {tuple(image.shape)}")
    side = torch.linspace(0, 1, len(image), dtype=image.dtype, device=image.device)
    edge = torch.minimum(side, 1 - side).clamp(max=share) / share
    window = (1 - (math.pi * edge).cos()) / 2
    return image * window * window[:, None]


def independent_share(share: float = 0.25) -> float:
    """Of how many pixels in a ring of `tapered` images the noise is independent, at least, as a share of all.

    The transform of a window w mixes neighbouring pixels. Along a line their noise is independent in a share of
    (Σw²)² / (n Σw⁴), .74 for a taper over a quarter of the side; in a ring fewer pixels are neighbours than on a line.
    """
    share = float(between("share", positive("share", float(share)), 0, 0.5))
    return (1 - 5 * share / 4) ** 2 / (1 - 93 * share / 64)


def correlation_band(correlation: Tensor, pixels: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """The interval that holds the correlation of endlessly many such images, ring by ring: Fisher's z.

    correlation, pixels: (R,), of `fourier_ring_correlation`; times `independent_share`, where images are tapered.
    level: share of rings in which the band holds it. A ring of n pixels is n/2 independent complex values, since the
        transform of a real image comes twice: n pairs of real numbers of mean 0, so atanh of their correlation is
        normal with variance 1 / (n − 2). That needs many molecules, in about equal density all over the image.
    Returns its lower and upper end, (R,); −1 and 1 where n is at most 2, NaN where the correlation is.
    Raises ValueError for another rank or length, pixels that are not positive, or a level outside of [0, 1].
    """
    correlation, pixels = floating("correlation", correlation, 1), positive("pixels", tensor("pixels", pixels, 1))
    if len(pixels) != len(correlation):
        raise ValueError(f"pixels must have the length of correlation, {len(correlation)}, got {len(pixels)}")
    level = float(between("level", level, 0, 1))
    z = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
    half = torch.where(pixels > 2, z / (pixels - 2).clamp(min=1e-9).sqrt(), math.inf)
    middle = torch.atanh(correlation.clamp(-1 + 1e-12, 1 - 1e-12))
    return torch.tanh(middle - half), torch.tanh(middle + half)


def bit_curve(pixels: Tensor, bits: float = 1.0) -> Tensor:
    """The ring correlation of two halves whose sum has so many bits of information in each Fourier pixel.

    pixels: (R,), as in `correlation_band`. log₂(1 + SNR) bits of the sum are an SNR half as large in each half, and in
    a ring of n pixels the noise adds to it as 1/√n: van Heel & Schatz 2005. 1/3 for 1 bit and many pixels.
    Raises ValueError where bits or pixels are not positive.
    """
    root = positive("pixels", tensor("pixels", pixels, 1)).sqrt()
    snr = (2 ** float(positive("bits", float(bits))) - 1) / 2
    mixed = 2 * math.sqrt(snr) / root
    return (snr + mixed + 1 / root) / (1 + snr + mixed)


def crossing(frequency: Tensor, correlation: Tensor, threshold: Tensor | float) -> float:
    """The length in pixels, 1/frequency, at which a ring correlation first falls below a threshold.

    threshold: a number, or (R,). Linear between rings. NaN where it starts below or never falls below.
    Raises ValueError for another rank or length, or a frequency that is not positive.
    """
    frequency, correlation = (
        positive("frequency", tensor("frequency", frequency, 1)),
        tensor("correlation", correlation, 1),
    )
    threshold = finite("threshold", tensor("threshold", threshold, 0, 1))
    for name, values in (("correlation", correlation), ("threshold", threshold)):
        if values.ndim and len(values) != len(frequency):
            raise ValueError(f"{name} must have the length of frequency, {len(frequency)}, got {len(values)}")
    above = correlation - threshold
    below = (above < 0).nonzero()
    if not len(below) or not (k := int(below[0])):
        return math.nan
    t = float(above[k - 1] / (above[k - 1] - above[k]))
    return 1 / float(torch.lerp(frequency[k - 1], frequency[k], t))


@dataclass(frozen=True)
class NeNA:
    """What the distances between nearest neighbours in consecutive frames say.

    sd: standard deviation of a localization along each axis, px. share: of the localizations, of molecules that are
    seen again in the next frame. density: of other localizations near one, per px².
    """

    sd: float
    share: float
    density: float


def nena(found: Positions, reach: float = 2.0) -> NeNA:
    """The localization error of a movie without its truth, by maximum likelihood of nearest neighbours.

    found: localizations, before they are linked. reach: px, the largest distance that is looked at, ten sds or so.
    A molecule that is seen again lies at a distance d with P(> d) = e^{−d²/4σ²}, since both positions are in error; the
    nearest of all others, of density ρ, with e^{−πρd²}. The nearest of both, where a share a is seen again:
        P(> d) = [1 − a + a e^{−d²/4σ²}] e^{−πρd²}.
    ρ is counted, between reach / 2 and reach; σ and a are fitted. Where errors differ from molecule to molecule σ lies
    between them, nearer to the small ones.
    Raises ValueError for positions that are not finite, or where fewer than 10 have a neighbour within reach.
    """
    from scipy.optimize import minimize
    from scipy.spatial import KDTree  # here, since it takes a third of a second to load

    frame, u, v = checked_arrays("found", found)
    reach = float(positive("reach", float(reach)))
    tree = KDTree(np.column_stack([u, v, 2 * reach * frame]))  # frames too far apart for neighbours in two of them
    asked = np.column_stack([u, v, 2 * reach * (frame + 1)])[frame < frame.max(initial=0)]
    distance, _ = tree.query(asked, distance_upper_bound=reach)
    d, beyond = distance[np.isfinite(distance)], int(np.isinf(distance).sum())
    if len(d) < 10:
        raise ValueError(f"found must have 10 localizations with a neighbour in the next frame, got {len(d)}")
    inner, outer = KDTree(asked).count_neighbors(tree, [reach / 2, reach])
    rho = (outer - inner) / (len(asked) * math.pi * 0.75 * reach**2)

    def loss(parameters: np.ndarray) -> float:
        sd, share = math.exp(parameters[0]), 1 / (1 + math.exp(-parameters[1]))
        own, none = (share * np.exp(-(np.array(x) ** 2) / (4 * sd**2)) for x in (d, reach))
        density = d * (own / (2 * sd**2) + 2 * math.pi * rho * (1 - share + own))
        return -float(np.log(density + 1e-300).sum() + beyond * math.log(1 - share + none)) + math.pi * rho * (d @ d)

    best = minimize(loss, [math.log(np.median(d) / 2), 0.0], method="Nelder-Mead", options={"xatol": 1e-5}).x
    return NeNA(math.exp(best[0]), 1 / (1 + math.exp(-best[1])), float(rho))
