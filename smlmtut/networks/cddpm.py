"""Conditional diffusion: samples of the kernel density estimate y given DeepSTORM's ŷ, and the frame x if it is given.

What is diffused is z = (y − centre) / scale. With centre 1/2 and scale 1/2 that is the image itself in [−1, 1], the
published form. In ours both are images that a small network reads off the condition c: centre ≈ E[y | c] and
scale ≈ sd[y | c]. Given c the map is a change of variables, so p(y | c) is untouched. But z has mean 0 and variance 1
in every pixel, where y has a variance of 0 nearly everywhere, and elsewhere one that depends on the brightness.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._validate import choice, positive, rank, whole
from ..diffusion.process import KINDS, q_sample, target, to_x0
from ..diffusion.samplers import Sampler, dpm_solver, sample
from ..diffusion.schedule import NoiseSchedule, log_snr
from .deepstorm import network_input
from .unet import UNet
from .whitening import SCALE_AT_START, Reader

FORMS = ("whitened", "published")
MOLECULES = 3.0  # makes the mean weight of the training's frames about 1
STEPS = 100  # of the noise schedule that is trained on, as published
CALLS = 20  # of the network for a sample, unless another schedule is asked for
CHUNK = 32  # images at once: more fall out of a CPU's cache


class ConditionalDiffusion(nn.Module):
    """The denoiser of p(y | c) with its change of variables.

    form: "whitened" or "published", see above. kind: what the U-Net predicts, "noise", "x0" or "v".
    frame: whether it can take the frame too; it then works with ŷ alone as well. floor: least scale.
    channels, blocks: of the U-Net; reading: features of the network that reads centre and scale.
    Raises ValueError for an unknown form or kind, or the published form with a frame.
    """

    factor = 4  # super-resolved pixels per camera pixel, along each axis

    def __init__(
        self,
        form: str = "whitened",
        kind: str = "v",
        frame: bool = True,
        floor: float = 0.02,
        channels: tuple[int, int] = (32, 64),
        blocks: int = 1,
        reading: int = 64,
    ) -> None:
        super().__init__()
        choice("form", form, FORMS)
        self.kind = choice("kind", kind, KINDS)
        self.whitened, self.frame, self.floor = form == "whitened", bool(frame), positive("floor", float(floor))
        if self.frame and not self.whitened:
            raise ValueError(f"frame must be False in the published form, got {frame}")
        self.architecture: dict[str, Any] = {
            "form": form, "kind": kind, "frame": self.frame, "floor": self.floor,
            "channels": [whole("channels", n) for n in channels], "blocks": blocks,
            "reading": whole("reading", reading),
        }  # fmt: skip
        known = 1 + (3 if self.frame else 0)  # ŷ; signal, read noise, whether they are given
        self.read = Reader(known, reading, self.floor) if self.whitened else None
        self.unet = UNet(1 + known + (3 if self.whitened else 0), 1, (channels[0], channels[1]), blocks)

    def condition(self, estimate: Tensor, frame: Tensor | None = None, given: Tensor | None = None) -> Tensor:
        """What is known, as images: c.

        estimate: ŷ (B, 1, fH, fW). frame: (B, 2, H, W) of `frame_input`, or None. given: (B,) whether each row's
            frame may be used (None: all).
        Returns (B, C, fH, fW): ŷ and, where the network takes frames, signal, read noise and 1, or zeros.
        Raises ValueError for a frame that the network cannot take, or of another size.
        """
        rank("estimate", estimate, 4)
        if not self.frame:
            if frame is not None:
                raise ValueError("frame must be None: this network was built to see ŷ alone")
            return estimate
        if frame is None:
            return torch.cat([estimate, estimate.new_zeros(3, 1, 1).expand(len(estimate), 3, *estimate.shape[2:])], 1)
        if tuple(self.factor * n for n in frame.shape[2:]) != tuple(estimate.shape[2:]):
            raise ValueError(
                f"frame must have a quarter of the estimate's sides {tuple(estimate.shape[2:])}, "
                f"got {tuple(frame.shape)}"
            )
        fine = F.interpolate(frame, scale_factor=float(self.factor), mode="bicubic")  # (B, 2, fH, fW)
        fine = torch.cat([fine, torch.ones_like(estimate)], 1)
        if given is not None:
            fine = fine * given.to(fine.dtype)[:, None, None, None]
        return torch.cat([estimate, fine], 1)

    def standardize(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """centre and scale of y = centre + scale · z, (B, 1, fH, fW) each."""
        estimate = condition[:, :1]
        if self.read is None:
            half = torch.full_like(estimate, 0.5)
            return half, half
        return self.read(condition)

    def inputs(self, condition: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
        """What the U-Net sees beside z_t: (B, C, fH, fW)."""
        if self.read is None:
            return condition
        return torch.cat([condition, condition[:, :1].clamp(min=0).sqrt(), centre, scale / SCALE_AT_START], 1)

    def denoise(self, z_t: Tensor, gamma: Tensor, inputs: Tensor) -> Tensor:
        """The estimate of z_0, the form that the samplers take: (B, 1, fH, fW), float32."""
        output = self.unet(torch.cat([z_t, inputs], 1), log_snr(gamma)).float()
        return to_x0(self.kind, output, z_t, gamma)

    def forward(
        self, y: Tensor, known: tuple[Tensor, ...], gamma: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What training compares: the U-Net's output, its target, −ln N(y; centre, scale²), and each pixel's weight.

        y, noise: (B, 1, fH, fW); known: the arguments of `condition`; gamma: (B,). Returns four of (B, 1, fH, fW), the
        third less a constant; in the published form it is 0 and the weights are 1. No gradient flows from output and
        target into centre and scale. The weight, scale over SCALE_AT_START times MOLECULES over 1 + the number of
        molecules in ŷ, is a function of the condition alone and moves no minimum. The first factor keeps the rare
        emitter in the dark, a z of 1 / floor, from drowning all other gradients; the second keeps the many emitters of
        a dense frame from drowning the one of a sparse frame.
        """
        condition = self.condition(*known)
        centre, scale = self.standardize(condition)
        z = (y - centre) / scale
        surprise = scale.log() + z.square() / 2 if self.whitened else torch.zeros_like(y)
        weight = torch.ones_like(y)
        if self.whitened:
            molecules = known[0].clamp(min=0).sum((1, 2, 3), keepdim=True) / (2 * torch.pi)
            weight = scale.detach() / SCALE_AT_START * MOLECULES / (1 + molecules)
        z, inputs = z.detach(), self.inputs(condition, centre.detach(), scale.detach())
        z_t = q_sample(z, gamma, noise)
        output = self.unet(torch.cat([z_t, inputs], 1), log_snr(gamma)).float()
        return output, target(self.kind, z, noise, gamma), surprise, weight


@torch.no_grad()
def sample_kde(
    network: ConditionalDiffusion,
    estimate: Tensor,
    samples: int,
    generator: torch.Generator,
    frame: Tensor | None = None,
    schedule: NoiseSchedule | None = None,
    sampler: Sampler = dpm_solver,
    chunk: int = CHUNK,
    progress: bool = False,
) -> Tensor:
    """Draw S kernel density estimates for each ŷ from p(y | ŷ), or p(y | x, ŷ) where the frame is given.

    estimate: ŷ (B, 1, fH, fW), any sides that 4 divides; frame: (B, 2, H, W) of `frame_input`.
    schedule, sampler: None, `sampling_schedule()`, with DPM-Solver++; `NoiseSchedule.cosine(STEPS).trained()` with
        samplers.ancestral is the published way. chunk, progress, generator: as in samplers.sample.
    Returns (B, S, fH, fW) float32. Under autocast the network runs in its type.
    Raises ValueError as `condition` and samplers.sample do.
    """
    condition = network.condition(estimate, frame)
    centre, scale = network.standardize(condition)
    z = sample(
        sampler, network.denoise, schedule or sampling_schedule(), tuple(estimate.shape),
        network.inputs(condition, centre, scale), samples, generator, chunk, progress,
    )  # (B, S, 1, fH, fW)  # fmt: skip
    return centre + scale * z[:, :, 0]


def sampling_schedule(calls: int = CALLS) -> NoiseSchedule:
    """The schedule that was trained on, from a level that was seen in training, resampled evenly in the log-SNR."""
    return NoiseSchedule.cosine(STEPS).trained().resample(calls, "log-snr")


def frame_input(electrons: Tensor, read_variance: Tensor | float) -> Tensor:
    """The frame as DeepSTORM sees it, the form in which `condition` takes it: (B, 1, H, W) e⁻ to (B, 2, H, W)."""
    return network_input(electrons, read_variance)
