"""Diffusion for any data and any denoiser: noise schedules, forward and reverse process, samplers, variational bound.

Nothing here depends on microscopy or on a network. `gaussian_mixture` is data whose denoiser is exact.
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
