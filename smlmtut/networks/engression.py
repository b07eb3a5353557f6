"""A network that turns noise into draws of y in one call, trained by the energy score itself.

Shen & Meinshausen 2025 (J. R. Stat. Soc. B, engression), Pacchiardi 2024 (J. Mach. Learn. Res. 25:45). No steps and no
levels: two draws for each frame, and the score that judges draws, E‖X − y‖ − ½ E‖X − X′‖, least for the posterior.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._validate import whole
from .cddpm import CHUNK, DiffusionBatch
from .condition import SCALE_UNIT, Condition, condition_on
from .rivals import Rival, frame_weight

WINDOWS = (4, 16, 64)  # sides, super-resolved pixels: about a kernel, a spot, and a whole frame of the training
WIDTHS = (1.0, 4.0, 16.0)  # sd of the blurs of the noise, super-resolved pixels: of a kernel, of a spot, of many
SOFT = 1e-3  # a distance is √(rms² + SOFT²), whose slope is finite at 0; a score with it is proper as well


class Engression(Rival):
    """centre + scale · U-Net(noise, condition), with one image of noise for each draw, seen blurred as well."""

    def __init__(self, channels: tuple[int, int] = (32, 64), blocks: int = 1) -> None:
        super().__init__(1, channels, blocks, more=1 + len(WIDTHS))

    def draw(self, known: Condition, noise: Tensor) -> Tensor:
        """A draw for each image of noise, (B, 1, fH, fW) both."""
        return known.centre + known.scale * self.trunk(torch.cat([known.inputs, noise, smooth(noise)], 1))

    def forward(self, batch: DiffusionBatch) -> Tensor:
        """The energy score of two draws, `windowed_energy`, weighted by `frame_weight`: ().

        Their noise is from the global random state, as dropout's is.
        """
        known = condition_on(batch.estimate, batch.frame)
        draws = [self.draw(known, torch.randn_like(batch.kde)) for _ in range(2)]
        score = windowed_energy(draws[0], draws[1], batch.kde)
        return (frame_weight(batch.estimate)[:, 0, 0, 0] * score).mean() / SCALE_UNIT

    @torch.no_grad()
    def sample(
        self, estimate: Tensor, frame: Tensor, samples: int, generator: torch.Generator, chunk: int = CHUNK
    ) -> Tensor:
        """(B, S, fH, fW), one call of the U-Net for each, `chunk` at once. Raises ValueError as Gaussian's does."""
        known, (height, width) = condition_on(estimate, frame), estimate.shape[2:]
        shape = (len(estimate), whole("samples", samples), height, width)
        out = torch.randn(shape, generator=generator, device=estimate.device).reshape(-1, 1, height, width)
        for rows in torch.arange(len(out), device=out.device).split(whole("chunk", chunk)):
            out[rows] = self.draw(Condition(*(x[rows // samples] for x in known)), out[rows])
        return out.reshape(shape)


def smooth(noise: Tensor) -> Tensor:
    """Noise blurred by Gaussians of the WIDTHS, standard normal in each pixel: (B, 1, H, W) to (B, len(WIDTHS), H, W).

    What a draw decides for a molecule or for the whole frame, such as whether there is one, needs a number that all
    pixels concerned have in common. Such noise looks alike everywhere, in a frame of any size: it has no seams.
    """
    found = []
    for width in WIDTHS:
        rows, columns = (_blur(n, width, noise) for n in noise.shape[2:])
        found.append(rows @ noise @ columns.mT)
    return torch.cat(found, 1)


def _blur(size: int, width: float, like: Tensor) -> Tensor:
    """Gaussian weights along one axis, whose squares sum to 1 for each pixel, at the border too: (size, size)."""
    place = torch.arange(size, dtype=torch.float32, device=like.device)
    return F.normalize((-((place - place[:, None]) / width).square() / 2).exp(), dim=1).to(like.dtype)


def windowed_energy(first: Tensor, second: Tensor, truth: Tensor) -> Tensor:
    """½ (‖X − y‖ + ‖X′ − y‖ − ‖X − X′‖) with the rms over windows as the norm, averaged over windows and WINDOWS: (B,).

    All (B, 1, H, W). A sum of energy scores of parts is proper, and only the posterior is best in the largest one; the
    small ones tell where in the image a draw is wrong. Windows overlap by half, and are as large as the image at most.
    """
    pairs = torch.cat([first - truth, second - truth, first - second], 1).square()  # (B, 3, H, W)
    sign = pairs.new_tensor([0.5, 0.5, -0.5])
    total = pairs.new_zeros(len(pairs))
    for side in WINDOWS:
        size = (min(side, pairs.shape[2]), min(side, pairs.shape[3]))
        distance = (F.avg_pool2d(pairs, size, (max(1, size[0] // 2), max(1, size[1] // 2))) + SOFT**2).sqrt()
        total = total + (distance.mean((2, 3)) * sign).sum(1)
    return total / len(WINDOWS)
