"""Random numbers that depend on a seed and a place alone, not on what was drawn before."""

import torch

from ._validate import whole


def step_generator(seed: int, step: int, rank: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one training step of one process: the same seed, step and rank give the same batch."""
    mixed = (whole("seed", seed, 0) * 1_000_003 + whole("rank", rank, 0)) * 1_000_000_007 + whole("step", step, 0)
    return torch.Generator(device).manual_seed(mixed % (1 << 63))
