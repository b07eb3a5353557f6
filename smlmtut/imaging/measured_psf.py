"""A PSF from the image of a bead: what falls into a pixel is a cubic spline of the pixel's place."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .. import _validate as valid
from .psf import Emitters

PAD = 10  # samples of zero around the image, after which the spline's coefficients have fallen by 0.268^10, to 2e-6


@dataclass(frozen=True)
class MeasuredPSF:
    """A PSF known at points of a grid, for emitters in one plane: no z, and no sigma that could be fitted.

    samples: (n, m) the share of an emitter's light that falls into a camera pixel, whose centre lies at
        ((j − (m − 1)/2)/f, (i − (n − 1)/2)/f) px from the emitter, (u, v). oversampling: f, samples per camera pixel.
    Between the samples the share is a tensor product of cubic B-splines, outside of them it is 0. Its error falls as
    f⁻⁴, that of its derivatives by u and v as f⁻³. Where the samples are noisy it may be negative.
    Raises ValueError where a sample is not finite, oversampling is not a whole number ≥ 1, or the sum over the pixels
    of a large sensor is not 1 on average, to 1e-3.
    """

    samples: Tensor
    oversampling: int = 1
    coefficients: Tensor = field(init=False, repr=False)  # (n + 2 PAD + 2, …) float64, on the CPU

    def __post_init__(self) -> None:
        from scipy import ndimage  # takes 0.3 s to load

        samples = valid.finite("samples", valid.tensor("samples", self.samples, 2)).detach().cpu().double()
        f = valid.whole("oversampling", self.oversampling)
        if abs(total := float(samples.sum()) / f**2 - 1) > 1e-3:
            raise ValueError(f"samples must have the sum oversampling² = {f**2}, got {(total + 1) * f**2:.6g}")
        padded = np.pad(samples.numpy(), PAD)  # so the ends, which meet, do not see each other
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "oversampling", f)
        spline = np.pad(ndimage.spline_filter(padded, mode="grid-wrap"), 1)  # places outside read the border's zeros
        object.__setattr__(self, "coefficients", torch.from_numpy(spline))

    @classmethod
    def from_image(cls, image: Tensor, oversampling: int = 1) -> "MeasuredPSF":
        """The PSF from one image of a bead, which lies in the centre of its middle pixel.

        image: (n, m), odd, the light in pixels of 1/oversampling camera pixels; in any unit, as it is divided by its
            sum, and without background. Light beyond its edges is left out.
        Raises ValueError where a side is even, a number is not finite, or the sum is not positive.
        """
        image = valid.finite("image", valid.tensor("image", image, 2)).detach().cpu().double()
        f = valid.whole("oversampling", oversampling)
        if not all(side % 2 for side in image.shape):
            raise ValueError(f"image must have odd sides, got {tuple(image.shape)}")
        if not (total := float(image.sum())) > 0:
            raise ValueError(f"image must have a positive sum, got {total:g}")
        camera_pixel = torch.ones(1, 1, f, f, dtype=image.dtype)
        return cls(torch.nn.functional.conv2d(image[None, None] / total, camera_pixel, padding=f - 1)[0, 0], f)

    def image(self, emitters: Emitters, shape: tuple[int, int], origin: tuple[int, int]) -> Tensor:
        """As psf.AnyPSF.image."""
        photons = (emitters.photons * emitters.mask)[..., None, None]
        return (photons * self.shares(emitters, shape, origin)["photons"]()).sum(1)

    def shares(
        self, emitters: Emitters, shape: tuple[int, int], origin: tuple[int, int]
    ) -> dict[str, Callable[[], Tensor]]:
        """As psf.AnyPSF.shares: without a sigma."""
        v, u = (emitters.v, 0, shape[0], origin[1]), (emitters.u, 1, shape[1], origin[0])
        return {
            "u": lambda: self._share(self._along(*v), self._along(*u, slope=True)),
            "v": lambda: self._share(self._along(*v, slope=True), self._along(*u)),
            "photons": lambda: self._share(self._along(*v), self._along(*u)),
        }

    def _along(
        self, position: Tensor, axis: int, size: int, start: int, slope: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Along an axis, the places of the four coefficients at `size` pixels, (B, E, size) each, and the value there
        of each one's B-spline, or its derivative by position: (B, E), as pixels are a whole number of knots apart."""
        count, f = self.coefficients.shape[axis], self.oversampling
        first = f * (start - position) + (count - 1) / 2  # (B, E), of the first pixel among the knots
        pixels = f * torch.arange(size, dtype=position.dtype, device=position.device)
        places, values = [], []
        for tap in range(-1, 3):
            places.append((first.floor()[..., None] + pixels + tap).clamp(0, count - 1).long())
            x = first - first.floor() - tap
            wide, narrow = (2 - x.abs()).clamp(min=0), (1 - x.abs()).clamp(min=0)
            values.append(f / 2 * x.sign() * (wide**2 - 4 * narrow**2) if slope else (wide**3 - 4 * narrow**3) / 6)
        return places, values

    def _share(self, rows: tuple[list[Tensor], list[Tensor]], columns: tuple[list[Tensor], list[Tensor]]) -> Tensor:
        """The spline, or a derivative, at all pixels: (B, E, H, W)."""
        table = self.coefficients.to(rows[1][0])
        parts = [value[..., None, None] * table[place] for place, value in zip(*rows, strict=True)]
        lines = parts[0] + parts[1] + parts[2] + parts[3]  # (B, E, H, m)
        return sum(  # type: ignore[return-value]
            value[..., None, None] * lines.gather(-1, place[:, :, None].expand(*lines.shape[:3], -1))
            for place, value in zip(*columns, strict=True)
        )
