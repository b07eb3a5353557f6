"""Fixed numbers and distributions that the quantities of a scene are drawn from."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._validate import number, positive


def _ordered(low: float, high: float) -> None:
    if not number("low", low) <= number("high", high):
        raise ValueError(f"low must be at most high, got low={low}, high={high}")


@dataclass(frozen=True)
class Uniform:
    """Uniform between low and high. Raises ValueError where they are swapped or not finite."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _ordered(self.low, self.high)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Float32 of that shape, on the generator's device."""
        return self.low + (self.high - self.low) * torch.rand(
            shape, generator=generator, dtype=torch.float32, device=generator.device
        )


@dataclass(frozen=True)
class LogUniform:
    """Uniform in the logarithm between low > 0 and high. Raises ValueError where low is not positive or above high."""

    low: float
    high: float

    def __post_init__(self) -> None:
        positive("low", self.low)
        _ordered(self.low, self.high)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Float32 of that shape, on the generator's device."""
        return Uniform(math.log(self.low), math.log(self.high)).draw(shape, generator).exp()


Distribution = float | Uniform | LogUniform


def draw(distribution: Distribution, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers of a distribution, or a fixed number, as float32 on the generator's device."""
    if isinstance(distribution, Uniform | LogUniform):
        return distribution.draw(shape, generator)
    return torch.full(shape, float(distribution), dtype=torch.float32, device=generator.device)


def number_or_distribution(name: str, value: Distribution) -> Distribution:
    """Return value if it is a distribution or one finite number; ValueError otherwise."""
    return value if isinstance(value, Uniform | LogUniform) else number(name, value)


def scaled(distribution: Distribution, factor: float) -> Distribution:
    """The distribution of a quantity multiplied by a positive number."""
    if isinstance(distribution, Uniform | LogUniform):
        return type(distribution)(factor * distribution.low, factor * distribution.high)
    return factor * distribution


def lowest(distribution: Distribution) -> float:
    """The lower end of a distribution, or the number itself."""
    return distribution.low if isinstance(distribution, Uniform | LogUniform) else float(distribution)


def highest(distribution: Distribution) -> float:
    """The upper end of a distribution, or the number itself."""
    return distribution.high if isinstance(distribution, Uniform | LogUniform) else float(distribution)
