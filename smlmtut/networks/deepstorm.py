"""DeepSTORM: a convolutional network from a camera frame to the kernel density estimate of its molecules."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._memory import fitting
from .._validate import choice, finite, instance, positive, tensor, whole
from ..imaging.camera import Camera, to_photoelectrons
from .convolution import convolution, resized
from .precision import AUTOCAST


class DeepSTORM(nn.Module):
    """The network φ in three modules: multi-scale context, upsampling by 4, prediction.

    channels: features of the context module. dilations: one 3 × 3 convolution each, at the camera's resolution.
    upsampled: features after each of the two nearest-neighbour resize-convolutions.
    predicting: blocks of the prediction module. sigma: sd of the kernel of the KDEs in training, in super-resolved
        pixels. ceiling: the KDE that the HardTanh's 1 stands for.
    Raises ValueError where a number is not a whole one of at least 1, or there are not two `upsampled`.
    """

    factor = 4  # super-resolved pixels per camera pixel, along each axis

    def __init__(
        self,
        channels: int = 64,
        dilations: Sequence[int] = (1, 1, 2, 4, 2, 1),
        upsampled: Sequence[int] = (32, 8),
        predicting: int = 3,
        sigma: float = 1.0,
        ceiling: float = 4.0,
    ) -> None:
        super().__init__()
        channels = whole("channels", channels)
        dilations = [whole("dilations", d) for d in dilations]
        if not dilations or len(upsampled) != 2:
            raise ValueError(f"dilations needs one entry or more and upsampled two, got {dilations}, {upsampled}")
        first, second = (whole("upsampled", n) for n in upsampled)
        self.sigma, self.ceiling = positive("sigma", float(sigma)), positive("ceiling", float(ceiling))
        self.architecture: dict[str, Any] = {
            "channels": channels,
            "dilations": dilations,
            "upsampled": [first, second],
            "predicting": whole("predicting", predicting),
            "sigma": self.sigma,
            "ceiling": self.ceiling,
        }
        self.stem = convolution(2, channels)  # signal and read noise
        self.context = nn.ModuleList(convolution(channels, channels, d) for d in dilations)
        self.resize = nn.ModuleList([convolution(channels, first), convolution(first, second)])
        self.predict = nn.ModuleList(convolution(second, second) for _ in range(predicting))
        self.head = nn.Conv2d(second, 1, 1)
        # ŷ starts at 0: outside of ±1 the HardTanh has no gradient, and a network that starts there never learns
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, electrons: Tensor, read_variance: Tensor | float) -> Tensor:
        """ŷ of frames in photo-electrons.

        electrons: (B, 1, H, W), any H and W; read_variance: photo-electrons², a number or broadcastable to it.
        Returns (B, 1, 4H, 4W), an estimate of the KDE whose kernels have peak 1.
        """
        return self.ceiling * F.hardtanh(self.raw(electrons, read_variance))

    def raw(self, electrons: Tensor, read_variance: Tensor | float) -> Tensor:
        """The input of the HardTanh, (B, 1, 4H, 4W)."""
        h = F.relu(self.stem(network_input(electrons, read_variance)), inplace=True)  # (B, C, H, W)
        for layer in self.context:
            h = h + F.relu(layer(h), inplace=True)
        for layer in self.resize:
            h = F.relu(resized(h, layer), inplace=True)  # type: ignore[arg-type]  # ×2, ×4
        for layer in self.predict:
            h = h + F.relu(layer(h), inplace=True)
        # In bf16, with 8 bits, neighbouring pixels of a peak would be equal.
        with torch.autocast(h.device.type, enabled=False):
            return self.head(h.to(self.head.weight.dtype))  # (B, 1, 4H, 4W)

    @property
    def reach(self) -> int:
        """Camera pixels from a pixel to the farthest one that its ŷ can depend on, along an axis."""
        fine = self.architecture["predicting"] / 4 + 1 / 4 + 1 / 2  # prediction at ×4, resize at ×4 and at ×2
        return 1 + sum(self.architecture["dilations"]) + -int(-fine // 1)


ANSCOMBE = 3 / 8  # the constant of Anscombe's transform (Anscombe 1948)
SIGNAL_SCALE, NOISE_SCALE = 8.0, 4.0  # set by hand to bring a typical spot and a noisy pixel to about 1


def network_input(electrons: Tensor, read_variance: Tensor | float) -> Tensor:
    """The two channels of the network's input: signal with unit noise everywhere, and each pixel's read noise.

    s = 2 √(x + v + 3/8) − 2 √(v + 3/8): Anscombe's transform for Poisson and read noise, shifted so that a dark
    pixel is 0. The sd of s is about 1 at any brightness, so a pixel with much read noise has a small signal.

    electrons: (B, 1, H, W); read_variance: a number or broadcastable to it. Returns (B, 2, H, W).
    """
    electrons = tensor("electrons", electrons, 4)
    v = tensor("read_variance", read_variance, *range(5)).to(electrons)
    dark = v + ANSCOMBE
    # Values below −v − 3/8 are set to it. At a read noise of 2 e⁻ that is 2.2 sd below 0: lower values are noise alone.
    signal = 2 * (electrons + dark).clamp(min=0).sqrt() - 2 * dark.sqrt()
    return torch.cat([signal / SIGNAL_SCALE, v.sqrt().expand_as(signal) / NOISE_SCALE], dim=1)


PIXELS_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 20}  # camera pixels: a CPU is faster when features stay in its cache


@torch.no_grad()
def estimate_kde(network: DeepSTORM, adu: Tensor, camera: Camera, precision: str = "no") -> Tensor:
    """ŷ = φ(x) of raw frames.

    adu: (B, H, W) of any size; camera: numbers, or maps of the frames' size. Computed where the network lies.
    precision: "no", everything in float32; "bf16" or "fp16", all convolutions but the last in that type (autocast).
    Returns (B, 1, 4H, 4W) float32 on the network's device.
    Raises ValueError for a wrong rank, no frames, a value that is not finite, maps of another size, or an unknown
    precision.
    """
    lower = AUTOCAST[choice("precision", precision, tuple(AUTOCAST))]
    adu = tensor("adu", finite("adu", adu), 3)
    if adu.numel() == 0:
        raise ValueError(f"adu must hold at least one frame with pixels, got shape {tuple(adu.shape)}")
    weight: Tensor = instance("network", network, nn.Module).head.weight
    electrons = to_photoelectrons(adu, camera).to(weight.device, torch.float32)
    variance = torch.as_tensor(camera.read_variance_electrons, dtype=torch.float32, device=weight.device)
    variance = variance.expand(electrons.shape)
    at_once = PIXELS_AT_ONCE.get(weight.device.type, 1 << 16)
    if weight.device.type == "cuda":
        at_once = fitting(at_once, _bytes_a_pixel(network), weight.device)
    many = max(1, at_once // max(1, electrons[0].numel()))
    split = zip(electrons.split(many), variance.split(many), strict=True)
    with torch.autocast(weight.device.type, lower, enabled=lower is not None):
        return torch.cat([network(x[:, None], v[:, None]) for x, v in split])


def _bytes_a_pixel(network: DeepSTORM) -> int:
    """Memory that a camera pixel takes in float32 without gradients, at most: a bound on the layers' live features."""
    first, second = network.architecture["upsampled"]
    return 4 * (3 * network.architecture["channels"] + 4 * first + 16 * 3 * second)
