"""A network that turns noise into draws of y in one call, trained by the energy score itself.

Shen & Meinshausen 2025 (J. R. Stat. Soc. B, engression), Pacchiardi 2024 (J. Mach. Learn. Res. 25:45). No steps and no
levels: two draws for each frame, and the score that judges draws, E‖X − y‖ − ½ E‖X − X′‖, least for the posterior.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._validate import whole
from .cddpm import CHUNK, DiffusionBatch
from .condition import SCALE_UNIT, Condition, Fit, FrameFit, condition_on
from .rivals import Rival, frame_weight
from .unet import ChannelNorm, ResidualBlock

FEATURES = 8  # images of a frame that its draws have in common
WINDOWS = (4, 16, 64)  # sides, super-resolved pixels: about a kernel, a spot, and a whole frame of the training
WIDTHS = (1.0, 4.0, 16.0)  # sd of the blurs of the noise, super-resolved pixels: of a kernel, of a spot, of many
SOFT = 1e-3  # a distance is √(rms² + SOFT²), whose slope is finite at 0; a score with it is proper as well


class Engression(Rival):
    """moved + scale · mixer(features, noise): the fit of the frame, moved by a draw of its errors, corrected.

    The errors are right for a lone molecule. Whether one is there, and all else that the fit does not know, is for the
    network to decide: the U-Net reads the frame once, and the `Mixer` makes each draw of its features, of how far the
    fit was moved, and of one image of noise, seen blurred as well.
    """

    def __init__(self, channels: tuple[int, int] = (32, 64), blocks: int = 1, fit: Fit = None) -> None:
        super().__init__(FEATURES, channels, blocks, fit)
        self.unet.head.reset_parameters()  # the mixer's last layer starts at 0: not both
        self.mixer = Mixer(FEATURES, 2 + len(WIDTHS), channels)

    def known(self, fit: FrameFit, estimate: Tensor, frame: Tensor) -> Condition:
        """Centre, scale, and the features of the frame as the inputs, (B, FEATURES, fH, fW)."""
        known = condition_on(estimate, frame, fit)
        return known._replace(inputs=self.trunk(known.inputs))

    def draw(self, known: Condition, moved: Tensor, noise: Tensor) -> Tensor:
        """A draw for each moved fit and image of noise, (B, 1, fH, fW) all."""
        off = (moved - known.centre) / known.scale
        return moved + known.scale * self.mixer(known.inputs, torch.cat([off, noise, smooth(noise)], 1))

    def forward(self, batch: DiffusionBatch) -> Tensor:
        """The energy score of two draws, `windowed_energy`, weighted by `frame_weight`: ().

        Their noise is from the global random state, as dropout's is.
        """
        fit = FrameFit(batch.estimate, batch.frame, self.fit)
        known = self.known(fit, batch.estimate, batch.frame)
        device = batch.estimate.device
        seed = int(torch.randint(1 << 31, (1,), device=device))
        moved = fit.moved(2, torch.Generator(device).manual_seed(seed)).split(1, 1)
        draws = [self.draw(known, start, torch.randn_like(batch.kde)) for start in moved]
        score = windowed_energy(draws[0], draws[1], batch.kde)
        return (frame_weight(batch.estimate)[:, 0, 0, 0] * score).mean() / SCALE_UNIT

    @torch.no_grad()
    def sample(
        self, estimate: Tensor, frame: Tensor, samples: int, generator: torch.Generator, chunk: int = CHUNK
    ) -> Tensor:
        """(B, S, fH, fW), one call of the U-Net for each, `chunk` at once. Raises ValueError as Gaussian's does."""
        fit = FrameFit(estimate, frame, self.fit)
        known = self.known(fit, estimate, frame)
        moved = fit.moved(whole("samples", samples), generator)  # (B, S, fH, fW)
        out = torch.randn(moved.shape, generator=generator, device=moved.device).flatten(0, 1)[:, None]
        start = moved.flatten(0, 1)[:, None]
        for rows in torch.arange(len(out), device=out.device).split(whole("chunk", chunk)):
            out[rows] = self.draw(Condition(*(x[rows // samples] for x in known)), start[rows], out[rows])
        return out.reshape(moved.shape)


class Mixer(nn.Module):
    """A small U-Net from features of a frame and some images of one draw to an image, (B, 1, H, W); 0 at first."""

    def __init__(self, features: int, images: int, channels: tuple[int, int]) -> None:
        super().__init__()
        fine, coarse = channels
        self.stem = nn.Conv2d(features + images, fine, 6, stride=2, padding=2)
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.middle = ResidualBlock(coarse, coarse)
        self.up = nn.Conv2d(coarse, 4 * fine, 1)
        self.decoder = ResidualBlock(fine, fine)
        self.norm = ChannelNorm(fine)
        self.head = nn.Conv2d(fine, 4, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, images: Tensor) -> Tensor:
        """(B, features, H, W) and (B, images, H, W) to (B, 1, H, W) float32."""
        skip = self.stem(torch.cat([features, images], 1).contiguous(memory_format=torch.channels_last))
        h = self.middle(self.down(skip))  # (B, C', H/4, W/4)
        h = self.decoder(F.pixel_shuffle(self.up(h), 2) + skip)  # (B, C, H/2, W/2)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), 2).float()


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
