"""Conditional diffusion: samples of the kernel density estimate y given the frame x and DeepSTORM's ŷ, or given ŷ.

The model diffuses z = (y − centre) / scale. With centre 1/2 and scale 1/2, z is the image itself in [−1, 1], the
published form, which sees ŷ alone. In our form centre and scale come from a fit of the frame, see `condition`. For a
given condition c this is a change of variables, so it does not change p(y | c). But z is about 1 wherever something is
to be drawn, whereas the variance of y is almost 0 in most pixels and depends on the brightness in the others.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._validate import choice, rank, whole
from ..diffusion.process import KINDS, denoising_error, q_sample, to_x0
from ..diffusion.samplers import Sampler, dpm_solver, sample
from ..diffusion.schedule import NoiseSchedule, log_snr
from .condition import CHANNELS, FACTOR, SCALE_UNIT, Condition, Fit, FitRange, FrameFit, condition_on
from .deepstorm import network_input
from .unet import UNet

FORMS = ("fitted", "published")
MOLECULES = 3.0  # makes the mean weight of the training frames about 1
STEPS = 100  # of the noise schedule of training, as published
CALLS = 20  # of the network per sample: CRPS within 1 % of 100 calls (benchmarks/cddpm_tried.md)
CHUNK = 32  # images at once, which still fit in the cache of a CPU


class DiffusionBatch(NamedTuple):
    """The data of a training step, everything random included.

    kde: y (B, 1, fH, fW). estimate: ŷ, like y. frame: (B, 2, H, W) of `frame_input`. gamma: (B,). noise: standard
    normal, like y.
    """

    kde: Tensor
    estimate: Tensor
    frame: Tensor
    gamma: Tensor
    noise: Tensor


class LossTerms(NamedTuple):
    """The loss of the diffusion model in two images, (B, 1, fH, fW) each.

    squared_error: of the U-Net's output, with z in the place of y_0 (Eq. 9). weight: see `pixel_weight`; 1 in the
    published form.
    """

    squared_error: Tensor
    weight: Tensor


class ConditionalDiffusion(nn.Module):
    """The denoiser of p(y | c) with its change of variables.

    form: "fitted" or "published", see above. kind: what the U-Net predicts, "noise", "x0" or "v".
    channels, blocks, attention: of the U-Net. fit: range of the fit that it sees, or its fields; None: REFERENCE.
    Raises ValueError for an unknown form or kind.
    """

    factor = FACTOR  # super-resolved pixels per camera pixel, along each axis

    def __init__(
        self,
        form: str = "fitted",
        kind: str = "v",
        channels: tuple[int, int] = (32, 64),
        blocks: int = 1,
        attention: bool = False,
        fit: Fit = None,
    ) -> None:
        super().__init__()
        self.kind, self.fit = choice("kind", kind, KINDS), FitRange.read(fit)
        self.frame = choice("form", form, FORMS) == "fitted"  # whether it sees the frame
        self.architecture: dict[str, Any] = {
            "form": form, "kind": kind, "channels": [whole("channels", n) for n in channels], "blocks": blocks,
            "attention": bool(attention), "fit": self.fit.plain(),
        }  # fmt: skip
        self.unet = UNet(1 + (CHANNELS if self.frame else 1), 1, (channels[0], channels[1]), blocks, bool(attention))

    def condition(self, estimate: Tensor, frame: Tensor | None = None) -> Condition:
        """What is computed once for each frame: centre and scale, and the inputs of the U-Net beside z_t.

        estimate: ŷ (B, 1, fH, fW). frame: (B, 2, H, W) of `frame_input`; None for the published form alone.
        Raises ValueError for a frame that is missing, where the network takes none, or of another size.
        """
        rank("estimate", estimate, 4)
        if self.frame != (frame is not None):
            wanted = "given: this network sees the frame and ŷ" if self.frame else "None: this network sees ŷ alone"
            raise ValueError(f"frame must be {wanted}, got {'None' if frame is None else tuple(frame.shape)}")
        if frame is not None:
            return condition_on(estimate, frame, FrameFit(estimate, frame, self.fit))
        half = torch.full_like(estimate, 0.5)
        return Condition(half, half, estimate)

    def denoise(self, z_t: Tensor, gamma: Tensor, inputs: Tensor) -> Tensor:
        """The estimate of z_0, in the form that samplers take: (B, 1, fH, fW), float32."""
        return to_x0(self.kind, self._predict(z_t, gamma, inputs), z_t, gamma)

    def _predict(self, z_t: Tensor, gamma: Tensor, inputs: Tensor) -> Tensor:
        """The output of the U-Net, float32."""
        return self.unet(torch.cat([z_t, inputs], 1), log_snr(gamma)).float()

    def loss_terms(self, batch: DiffusionBatch) -> LossTerms:
        """The parts of the loss."""
        condition = self.condition(batch.estimate, batch.frame if self.frame else None)
        z = (batch.kde - condition.centre) / condition.scale
        output = self._predict(q_sample(z, batch.gamma, batch.noise), batch.gamma, condition.inputs)
        weight = pixel_weight(batch.estimate, condition.scale) if self.frame else torch.ones_like(z)
        return LossTerms(denoising_error(self.kind, output, z, batch.noise, batch.gamma), weight)

    def forward(self, batch: DiffusionBatch) -> Tensor:
        """The loss, the mean over the pixels of weight · squared_error of `loss_terms`: ()."""
        # With several processes the network is wrapped, and only a call of the wrapper, which calls forward, averages
        # the gradients over the processes: so training has to reach the loss through forward.
        terms = self.loss_terms(batch)
        return (terms.weight * terms.squared_error).mean()


def pixel_weight(estimate: Tensor, scale: Tensor) -> Tensor:
    """Weight of each pixel in the loss: (B, 1, fH, fW).

    scale / SCALE_UNIT · MOLECULES / (1 + number of molecules in ŷ). It depends on the condition alone, so it does
    not move the minimum. The first factor matters where an emitter that ŷ does not show appears in the dark: its z
    of up to 1 / floor would dominate the gradient. The second factor gives a sparse frame as much weight as a crowded
    one.
    """
    molecules = estimate.clamp(min=0).sum((1, 2, 3), keepdim=True) / (2 * torch.pi)  # a kernel sums to 2π
    return scale / SCALE_UNIT * MOLECULES / (1 + molecules)


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
    """Draw S kernel density estimates for each frame from p(y | x, ŷ), or from p(y | ŷ) in the published form.

    estimate: ŷ (B, 1, fH, fW), sides that are multiples of 4; frame: (B, 2, H, W) of `frame_input`, or None, as
        `ConditionalDiffusion.condition` takes them.
    schedule: None, `sampling_schedule()`. sampler: DPM-Solver++; the published way is samplers.ancestral with
        `NoiseSchedule.cosine(STEPS).trained()`. chunk, progress, generator: as in samplers.sample.
    Returns (B, S, fH, fW) float32. Under autocast the network runs in the lower precision.
    Raises ValueError as `condition` and samplers.sample do.
    """
    condition = network.condition(estimate, frame)
    z = sample(
        sampler, network.denoise, schedule or sampling_schedule(), tuple(estimate.shape),
        condition.inputs, samples, generator, chunk, progress,
    )  # (B, S, 1, fH, fW)  # fmt: skip
    return condition.centre + condition.scale * z[:, :, 0]


def sampling_schedule(calls: int = CALLS) -> NoiseSchedule:
    """The schedule of training, from a level that occurs in training, in steps evenly spaced in the log-SNR."""
    return NoiseSchedule.cosine(STEPS).trained().resample(calls, "log-snr")


def frame_input(electrons: Tensor, read_variance: Tensor | float) -> Tensor:
    """The frame as DeepSTORM sees it, the form in which `condition` takes it: (B, 1, H, W) e⁻ to (B, 2, H, W)."""
    return network_input(electrons, read_variance)
