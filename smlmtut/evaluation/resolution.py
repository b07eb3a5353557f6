"""What a super-resolved image resolves: Fourier ring correlation of two halves of its localizations.

Nieuwenhuizen 2013 (Nat. Methods 10:557), Banterle 2013 (J. Struct. Biol. 183:363).
"""

import math

import torch
from torch import Tensor

from .._validate import between, finite, floating, positive, tensor


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
