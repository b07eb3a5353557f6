"""From what a network sees back to the frame: for fits and posteriors of the same frames."""

from torch import Tensor

from .._validate import tensor
from .deepstorm import ANSCOMBE, NOISE_SCALE, SIGNAL_SCALE


def input_electrons(frame: Tensor) -> tuple[Tensor, Tensor]:
    """Photo-electrons, −v − 3/8 at least, and read variance (B, H, W) of a network's input (B, 2, H, W)."""
    variance = (tensor("frame", frame, 4)[:, 1] * NOISE_SCALE).square()
    dark = variance + ANSCOMBE
    return (tensor("frame", frame)[:, 0] * SIGNAL_SCALE / 2 + dark.sqrt()).square() - dark, variance
