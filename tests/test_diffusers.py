"""The same numbers through diffusers' schedulers and through ours: DDPM, DDIM, DPM-Solver++, noise and velocity.

Their levels are float32, in which 1 − γ_1 has an error of 1e-4; they are given our float64 levels instead.
"""

import warnings
from functools import partial

import numpy as np
import pytest
import torch

with warnings.catch_warnings():  # of its own, about what else is installed
    warnings.simplefilter("ignore")
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler, betas_for_alpha_bar
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from smlmtut.diffusion.gaussian_mixture import GaussianMixture
from smlmtut.diffusion.process import q_sample, target, to_noise
from smlmtut.diffusion.samplers import ancestral, ddim, dpm_solver
from smlmtut.diffusion.schedule import NoiseSchedule

COSINE = NoiseSchedule.cosine(100)
LINEAR = NoiseSchedule.linear(100, 1e-4, 0.1)
MODES = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
DATA = GaussianMixture(MODES, variance=0.1)  # a denoiser that is not linear
START = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
agree = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)  # float32 is inside some of theirs

schedules = pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])
kinds = pytest.mark.parametrize("kind", ["noise", "x0", "v"])
PREDICTION = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}


def peer(scheduler, schedule, **options):
    made = scheduler(num_train_timesteps=100, trained_betas=schedule.betas.numpy(), **options)
    made.alphas_cumprod = schedule.gammas[1:].clone()  # float64
    if hasattr(made, "one"):
        made.one = made.one.double()
    return made


def theirs(scheduler, schedule, kind, **options):
    """A trajectory's end by diffusers: t = 0 … 99 is our 1 … 100."""
    y = START.clone()
    for t in scheduler.timesteps:
        gamma = schedule.gammas[int(t) + 1].expand(len(y))
        estimate = DATA.denoise(y, gamma)
        output = target(kind, estimate, to_noise("x0", estimate, y, gamma), gamma)
        y = scheduler.step(output, t, y, **options).prev_sample
    return y


def ours(sampler, schedule, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return list(sampler(DATA.denoise, schedule, START, None, generator))[-1].y


def chosen(schedule, timesteps):
    """Our schedule through their timesteps."""
    levels = schedule.gammas[torch.as_tensor(timesteps).flip(0) + 1]
    return NoiseSchedule(torch.cat([torch.ones(1).double(), levels]))


@schedules
@kinds
@pytest.mark.parametrize(("variance", "name"), [("posterior", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("steps", [100, 10])
def test_ancestral_sampling_is_ddpm(schedule, kind, variance, name, steps):
    scheduler = peer(DDPMScheduler, schedule, variance_type=name, clip_sample=False, prediction_type=PREDICTION[kind])
    # every T/n-th step, where their own choices of t and t − 1 agree
    timesteps = list(range(100 - 100 // steps, -1, -(100 // steps)))
    scheduler.set_timesteps(timesteps=timesteps)
    found = ours(partial(ancestral, variance=variance), chosen(schedule, timesteps), seed=3)
    wanted = theirs(scheduler, schedule, kind, generator=torch.Generator().manual_seed(3))
    agree(found, wanted)


@schedules
@kinds
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("steps", [100, 20])
def test_ddim_is_ddim(schedule, kind, eta, steps):
    scheduler = peer(DDIMScheduler, schedule, clip_sample=False, prediction_type=PREDICTION[kind])
    scheduler.set_timesteps(steps)  # "leading"
    found = ours(partial(ddim, eta=eta), chosen(schedule, scheduler.timesteps), seed=3)
    wanted = theirs(scheduler, schedule, kind, eta=eta, generator=torch.Generator().manual_seed(3))
    agree(found, wanted)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")  # theirs, on numpy 2
@schedules
@kinds
@pytest.mark.parametrize("steps", [10, 25, 50])
def test_dpm_solver_is_dpm_solver(schedule, kind, steps):
    scheduler = peer(
        DPMSolverMultistepScheduler, schedule, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero",
        prediction_type=PREDICTION[kind], lower_order_final=False,
    )  # fmt: skip
    timesteps = (COSINE.steps - np.arange(0, 100, 100 // steps) - 1).tolist()
    scheduler.set_timesteps(timesteps=timesteps)
    found = ours(dpm_solver, chosen(schedule, timesteps))
    # it works in float32 whatever it is given, and noise of 1 − γ_1 = 6e-4 is divided by its root
    agree(found.float(), theirs(scheduler, schedule, kind).float())


@schedules
def test_fewer_steps_in_time_are_their_linspace(schedule):
    scheduler = DDPMScheduler(num_train_timesteps=100, timestep_spacing="linspace")
    for steps in (2, 10, 33, 100):
        scheduler.set_timesteps(steps)
        assert schedule.resample(steps).gammas.equal(chosen(schedule, scheduler.timesteps).gammas)


@schedules
def test_noise_and_velocity_are_theirs(schedule):
    scheduler = peer(DDPMScheduler, schedule)
    t = torch.tensor([0, 20, 50, 80, 99])
    noise = torch.randn(START.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gamma = schedule.gammas[t + 1]
    noisy = scheduler.add_noise(START, noise, t)  # type: ignore[arg-type]
    velocity = scheduler.get_velocity(START, noise, t)  # type: ignore[arg-type]
    agree(q_sample(START, gamma, noise), noisy)
    agree(target("v", START, noise, gamma), velocity)


def test_cosine_schedule_is_theirs():
    betas = betas_for_alpha_bar(100, max_beta=0.999)
    # β_1 = 6e-4 is a difference of numbers near 1 in float32: 6e-8
    torch.testing.assert_close(COSINE.betas.float(), betas, rtol=1e-6, atol=2e-7)


@schedules
def test_posterior_variance_is_theirs(schedule):
    scheduler = peer(DDPMScheduler, schedule, variance_type="fixed_small")
    wanted = torch.stack([scheduler._get_variance(t) for t in range(1, 100)])
    torch.testing.assert_close(schedule.posterior_variance[1:], wanted, rtol=1e-10, atol=0)
