"""Diffusion for any data and any denoiser: noise schedules, the process out and back, samplers, the bound.

Nothing here knows microscopy or networks. `gaussian_mixture` has data whose best denoiser is known exactly.
"""

from .process import denoising_loss, q_posterior, q_sample, q_step, reverse_step, target, to_noise, to_x0
from .samplers import ancestral, ddim, dpm_solver
from .schedule import NoiseSchedule

__all__ = [
    "NoiseSchedule",
    "ancestral",
    "ddim",
    "denoising_loss",
    "dpm_solver",
    "q_posterior",
    "q_sample",
    "q_step",
    "reverse_step",
    "target",
    "to_noise",
    "to_x0",
]
