"""The convolutions of DeepSTORM: with dilation, and of an image whose pixels are repeated twice along both axes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(nn.Conv2d):
    """A convolution that stays in float32 where the bf16 kernel of the CPU is wrong.

    With dilation, and more than 16 features whose number is not a multiple of 16, the gradient of the weights that
    oneDNN computes in bf16 and channels_last is NaN (seen with torch 2.13 on a CPU with AVX512-bf16).
    """

    def forward(self, input: Tensor) -> Tensor:
        wrong = self.dilation[0] > 1 and self.in_channels > 16 and self.in_channels % 16
        if not wrong or input.device.type != "cpu":
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def resized(h: Tensor, layer: nn.Conv2d) -> Tensor:
    """layer(h with each pixel repeated twice along both axes), (B, C', 2H, 2W), in a quarter of the time in bf16.

    Repeating pixels and convolving is one transposed convolution; its kernel is the 3 × 3 one summed over 2 × 2 pixels.
    """
    kernel = 4 * F.avg_pool2d(F.pad(layer.weight.flip(2, 3), (1, 1, 1, 1)), 2, 1)  # (C', C, 4, 4)
    return F.conv_transpose2d(h, kernel.transpose(0, 1), layer.bias, stride=2, padding=1)


def convolution(inputs: int, outputs: int, dilation: int = 1) -> nn.Conv2d:
    """A 3 × 3 convolution that keeps the frame's size, its weights scaled for a ReLU after it."""
    layer = Convolution(inputs, outputs, 3, padding=dilation, dilation=dilation)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
