"""Conditional diffusion: samples of the kernel density estimate y given DeepSTORM's ŷ, or given ŷ and the frame x.

The model diffuses z = (y − centre) / scale. With centre 1/2 and scale 1/2, z is the image itself in [−1, 1], the
published form. In our form a small network computes centre and scale of every pixel from the condition c:
centre ≈ E[y | c] and scale ≈ sd[y | c]. For a given c this is a change of variables, so it does not change p(y | c).
But z has mean 0 and variance 1 in every pixel, whereas the variance of y is almost 0 in most pixels and depends on the
brightness in the others.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._validate import choice, positive, rank, whole
from ..diffusion.process import KINDS, denoising_error, q_sample, to_x0
from ..diffusion.samplers import Sampler, dpm_solver, sample
from ..diffusion.schedule import NoiseSchedule, log_snr
from .deepstorm import network_input
from .unet import UNet
from .whitening import SCALE_AT_START, Reader

FORMS = ("whitened", "published")
MOLECULES = 3.0  # makes the mean weight of the training frames about 1
STEPS = 100  # of the noise schedule of training, as published
CALLS = 20  # of the network per sample: CRPS within 1 % of 100 calls (benchmarks/cddpm_tried.md)
CHUNK = 32  # images at once, which still fit in the cache of a CPU


class DiffusionBatch(NamedTuple):
    """The data of a training step, everything random included.

    kde: y (B, 1, fH, fW). estimate: ŷ, like y. frame: (B, 2, H, W) of `frame_input`; frame_given: (B,), whether the
    network may use the frame of a row. gamma: (B,). noise: standard normal, like y.
    """

    kde: Tensor
    estimate: Tensor
    frame: Tensor
    frame_given: Tensor
    gamma: Tensor
    noise: Tensor


class LossTerms(NamedTuple):
    """The loss of the diffusion model in three images, (B, 1, fH, fW) each.

    squared_error: of the U-Net's output, with z in the place of y_0 (Eq. 9). nll: −ln N(y; centre, scale²) without the
    constant ln √(2π); 0 in the published form. weight: see `pixel_weight`; 1 in the published form.
    """

    squared_error: Tensor
    nll: Tensor
    weight: Tensor


class ConditionalDiffusion(nn.Module):
    """The denoiser of p(y | c) with its change of variables.

    form: "whitened" or "published", see above. kind: what the U-Net predicts, "noise", "x0" or "v".
    frame: whether it can take the frame too; it then works with ŷ alone as well. floor: smallest scale.
    channels, blocks: of the U-Net; reading: features of the `Reader`, which computes centre and scale.
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
        condition = 4 if self.frame else 1  # channels: ŷ; signal, read noise and whether they are given
        extra = 3 if self.whitened else 0  # √ŷ, centre and scale
        self.reader = Reader(condition, reading, self.floor) if self.whitened else None
        self.unet = UNet(1 + condition + extra, 1, (channels[0], channels[1]), blocks)

    def condition(self, estimate: Tensor, frame: Tensor | None = None, frame_given: Tensor | None = None) -> Tensor:
        """The condition c as images: (B, C, fH, fW).

        estimate: ŷ (B, 1, fH, fW). frame: (B, 2, H, W) of `frame_input`, or None. frame_given: (B,), whether the
            frame of each row may be used (None: all).
        The channels are ŷ and, in a network that takes frames, signal, read noise and 1, which are 0 without a frame.
        Raises ValueError for a frame where the network takes none, or of another size.
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
        if frame_given is not None:
            fine = fine * frame_given.to(fine.dtype)[:, None, None, None]
        return torch.cat([estimate, fine], 1)

    def standardize(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and scale of y = centre + scale · z: (B, 1, fH, fW) each."""
        if self.reader is None:
            half = torch.full_like(condition[:, :1], 0.5)
            return half, half
        return self.reader(condition)

    def inputs(self, condition: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
        """The inputs of the U-Net beside z_t: (B, C, fH, fW)."""
        if self.reader is None:
            return condition
        return torch.cat([condition, condition[:, :1].clamp(min=0).sqrt(), centre, scale / SCALE_AT_START], 1)

    def denoise(self, z_t: Tensor, gamma: Tensor, inputs: Tensor) -> Tensor:
        """The estimate of z_0, in the form that samplers take: (B, 1, fH, fW), float32."""
        return to_x0(self.kind, self._predict(z_t, gamma, inputs), z_t, gamma)

    def _predict(self, z_t: Tensor, gamma: Tensor, inputs: Tensor) -> Tensor:
        """The output of the U-Net, float32."""
        return self.unet(torch.cat([z_t, inputs], 1), log_snr(gamma)).float()

    def loss_terms(self, batch: DiffusionBatch) -> LossTerms:
        """The parts of the loss. Only nll has a gradient with respect to centre and scale."""
        taken = (batch.estimate, batch.frame, batch.frame_given) if self.frame else (batch.estimate,)
        condition = self.condition(*taken)
        centre, scale = self.standardize(condition)
        z = (batch.kde - centre) / scale
        nll, weight = torch.zeros_like(z), torch.ones_like(z)
        if self.whitened:
            nll, weight = scale.log() + z.square() / 2, pixel_weight(batch.estimate, scale.detach())
        centre, scale, z = centre.detach(), scale.detach(), z.detach()
        z_t = q_sample(z, batch.gamma, batch.noise)
        output = self._predict(z_t, batch.gamma, self.inputs(condition, centre, scale))
        return LossTerms(denoising_error(self.kind, output, z, batch.noise, batch.gamma), nll, weight)

    def loss(self, batch: DiffusionBatch) -> Tensor:
        """Mean over the pixels of weight · (squared_error + nll) of `loss_terms`: ()."""
        terms = self.loss_terms(batch)
        return (terms.weight * (terms.squared_error + terms.nll)).mean()

    def forward(self, batch: DiffusionBatch) -> Tensor:
        """The loss."""
        # With several processes the network is wrapped, and only a call of the wrapper, which calls forward, averages
        # the gradients over the processes: so training has to reach the loss through forward.
        return self.loss(batch)


def pixel_weight(estimate: Tensor, scale: Tensor) -> Tensor:
    """Weight of each pixel in the loss: (B, 1, fH, fW).

    scale / SCALE_AT_START · MOLECULES / (1 + number of molecules in ŷ). It depends on the condition alone, so it does
    not move the minimum. The first factor matters where an emitter that ŷ does not show appears in the dark: its z
    of up to 1 / floor would dominate the gradient. The second factor gives a sparse frame as much weight as a crowded
    one.
    """
    molecules = estimate.clamp(min=0).sum((1, 2, 3), keepdim=True) / (2 * torch.pi)  # a kernel sums to 2π
    return scale / SCALE_AT_START * MOLECULES / (1 + molecules)


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
    """Draw S kernel density estimates for each ŷ from p(y | ŷ), or from p(y | x, ŷ) where the frame is given.

    estimate: ŷ (B, 1, fH, fW), sides that are multiples of 4; frame: (B, 2, H, W) of `frame_input`.
    schedule: None, `sampling_schedule()`. sampler: DPM-Solver++; the published way is samplers.ancestral with
        `NoiseSchedule.cosine(STEPS).trained()`. chunk, progress, generator: as in samplers.sample.
    Returns (B, S, fH, fW) float32. Under autocast the network runs in the lower precision.
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
    """The schedule of training, from a level that occurs in training, in steps evenly spaced in the log-SNR."""
    return NoiseSchedule.cosine(STEPS).trained().resample(calls, "log-snr")


def frame_input(electrons: Tensor, read_variance: Tensor | float) -> Tensor:
    """The frame as DeepSTORM sees it, the form in which `condition` takes it: (B, 1, H, W) e⁻ to (B, 2, H, W)."""
    return network_input(electrons, read_variance)
