"""From noise to samples: ancestral sampling, DDIM and DPM-Solver++, each a generator over its trajectory.

A sampler takes any `denoise(y_t, gamma, cond)` that returns an estimate of y_0.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._random import step_generator
from .._validate import between, whole
from .process import DataVariance, Denoise, ReverseVariance, per_row, reverse_step, to_noise
from .schedule import NoiseSchedule, log_snr, widest

__all__ = ["Point", "ancestral", "ddim", "dpm_solver", "sample"]

STREAM = 16  # rows that share a stream of random numbers in `sample`; another value draws other samples

# a generator, or a function that returns standard normal noise like its argument
Noise = torch.Generator | Callable[[Tensor], Tensor]
Sampler = Callable[[Denoise, NoiseSchedule, Tensor, Any, Noise], Iterator["Point"]]


class Point(NamedTuple):
    """A point of a trajectory: step t (T, T − 1, …, 0), y_t (B, ...), the latest estimate of y_0 (B, ...)."""

    t: int
    y: Tensor
    estimate: Tensor


@torch.no_grad()
def ancestral(
    denoise: Denoise,
    schedule: NoiseSchedule,
    y_T: Tensor,
    cond: Any = None,
    generator: Noise | None = None,
    *,
    variance: str | ReverseVariance = "beta",
    data_variance: DataVariance | None = None,
    noise_at_last_step: bool = False,
) -> Iterator[Point]:
    """Draw y_{t−1} from p(y_{t−1} | y_t) for t = T … 1 (Eq. 6): yields T + 1 points, t = T … 0.

    y_T: (B, ...), standard normal for a sample. cond: the condition, handed to denoise. generator: of the noise.
    variance, data_variance: see `process.reverse_step`. noise_at_last_step: True draws y_0 from p(y_0 | y_1); False
        takes its mean instead, which leaves out the last step's variance (the variance "posterior" is 0 there).
    Raises ValueError where reverse_step does, or without a generator.
    """
    y, estimate = y_T, y_T
    for t, gamma, before in _levels(schedule, y_T):
        estimate = denoise(y, gamma, cond)
        yield Point(t, y, estimate)
        y, spread = reverse_step(y, estimate, gamma, before, cond, variance, data_variance)
        if t > 1 or noise_at_last_step:
            y = y + spread.sqrt() * _normal(y, generator)
    yield Point(0, y, estimate)


@torch.no_grad()
def ddim(
    denoise: Denoise,
    schedule: NoiseSchedule,
    y_T: Tensor,
    cond: Any = None,
    generator: Noise | None = None,
    *,
    eta: float = 0.0,
) -> Iterator[Point]:
    """DDIM (Song 2021): each step keeps the noise that it estimates and draws a part of it anew: T + 1 points.

    y_T, cond: as for `ancestral`. eta: in [0, 1], the sd of the new noise over √β̃_t. With 0 the result is a
    deterministic function of y_T and no generator is needed; 1 is `ancestral` with the variance "posterior".
    Raises ValueError for another eta, or one above 0 without a generator.
    """
    between("eta", eta, 0, 1)
    y, estimate = y_T, y_T
    for t, gamma, before in _levels(schedule, y_T):
        estimate = denoise(y, gamma, cond)
        yield Point(t, y, estimate)
        new = eta**2 * (1 - gamma / before) * (1 - before) / (1 - gamma)  # variance drawn anew, (B,)
        noise = to_noise("x0", estimate, y, gamma)
        y = per_row(before.sqrt(), y) * estimate + per_row((1 - before - new).clamp(min=0).sqrt(), y) * noise
        if eta > 0 and t > 1:  # at t = 1 the variance of the new noise is 0
            y = y + per_row(new.sqrt(), y) * _normal(y, generator)
    yield Point(0, y, estimate)


@torch.no_grad()
def dpm_solver(
    denoise: Denoise, schedule: NoiseSchedule, y_T: Tensor, cond: Any = None, generator: Noise | None = None
) -> Iterator[Point]:
    """DPM-Solver++(2M) (Lu 2022): the deterministic path of DDIM to second order, in few steps: T + 1 points.

    From one level to the next, y_t/√(1 − γ_t) grows by the estimate of y_0 times the growth of √(γ/(1 − γ)). The
    estimate is extrapolated linearly in half the log-SNR from the last two estimates. The first step has only one
    estimate and is a step of DDIM. So is the last step, to γ = 1, where the log-SNR is infinite: it returns the
    estimate itself, which leaves out Var(y_0 | y_1). Use levels evenly spaced in the log-SNR,
    `NoiseSchedule.resample(…, "log-snr")`.
    y_T, cond: as for `ancestral`; generator: not used, since nothing is random.
    """
    y, estimate, half, step = y_T, y_T, torch.zeros(0), torch.zeros(0)
    for t, gamma, before in _levels(schedule, y_T):
        last_estimate, last_step = estimate, step
        estimate = denoise(y, gamma, cond)
        yield Point(t, y, estimate)
        if t == 1:
            y = estimate
            break
        half = log_snr(gamma) / 2  # ln √(γ/(1 − γ)), (B,)
        step = log_snr(before) / 2 - half
        ahead = estimate
        if t < schedule.steps:
            ahead = estimate + per_row(step / (2 * last_step), y) * (estimate - last_estimate)
        kept = ((1 - before) / (1 - gamma)).sqrt()
        y = per_row(kept, y) * y - per_row(before.sqrt() * torch.expm1(-step), y) * ahead
    yield Point(0, y, estimate)


@torch.no_grad()
def sample(
    sampler: Sampler,
    denoise: Denoise,
    schedule: NoiseSchedule,
    shape: tuple[int, ...],
    cond: Tensor | tuple | None,
    samples: int,
    generator: torch.Generator,
    chunk: int = 32,
    progress: bool = False,
) -> Tensor:
    """S samples for each of B conditions, a chunk of them at a time: (B, S, ...), float32, on the generator's device.

    sampler: one of the functions here, options by functools.partial. shape: (B, ...) of y.
    cond: a tensor (B, ...), a tuple of such, or None. chunk: samples that go through denoise together; memory is
        proportional to it. progress: whether to show a bar that counts the calls of denoise.
    The generator gives one number, the seed of a stream of noise for every STREAM consecutive samples in the order of
    the result, so the chunk does not change what is drawn.
    Raises ValueError for a shape that is not of whole numbers, a cond of another B, or counts below 1.
    """
    if not shape:
        raise ValueError("shape must be (B, ...), got ()")
    shape = tuple(whole("shape", n) for n in shape)
    rows = shape[0] * whole("samples", samples)
    _check_rows(cond, shape[0])
    device = generator.device
    seed = int(torch.randint(1 << 31, (1,), generator=generator, device=device))
    out = torch.empty((rows, *shape[1:]), device=device)
    with tqdm(total=rows * schedule.steps, unit="call", desc="sampling", disable=not progress) as bar:
        for first in range(0, rows, whole("chunk", chunk)):
            chosen = range(first, min(first + chunk, rows))
            noise = _streams(seed, chosen, device)
            of = torch.arange(chosen.start, chosen.stop, device=device) // samples
            point = None
            for point in sampler(denoise, schedule, noise(out[first : chosen.stop]), _take(cond, of), noise):
                bar.update(len(chosen) if point.t else 0)
            assert point is not None  # a schedule has at least one step
            out[first : chosen.stop] = point.y
    return out.reshape(shape[0], samples, *shape[1:])


def _levels(schedule: NoiseSchedule, y: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """t, γ_t and γ_{t−1} for each row, (B,), at t = T … 1."""
    gammas = schedule.gammas.to(y.device, widest(y.device))
    for t in range(schedule.steps, 0, -1):
        yield t, gammas[t].expand(len(y)), gammas[t - 1].expand(len(y))


def _normal(like: Tensor, generator: Noise | None) -> Tensor:
    """Standard normal noise of the shape, type and device of `like`."""
    if generator is None:
        raise ValueError("generator must be given: this sampler draws noise")
    if isinstance(generator, torch.Generator):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return generator(like)


def _streams(seed: int, rows: range, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Noise for consecutive rows: every call takes the next numbers of each stream that these rows belong to."""
    first = rows.start // STREAM
    generators = [step_generator(seed, k, device=device) for k in range(first, (rows.stop - 1) // STREAM + 1)]

    def noise(like: Tensor) -> Tensor:
        whole_streams = [
            torch.randn((STREAM, *like.shape[1:]), generator=g, dtype=like.dtype, device=device) for g in generators
        ]
        return torch.cat(whole_streams)[rows.start - first * STREAM :][: len(rows)]

    return noise


def _take(cond: Any, of: Tensor) -> Any:
    """The rows `of` of a tensor, or of each tensor in a tuple."""
    if cond is None:
        return None
    return tuple(_take(part, of) for part in cond) if isinstance(cond, tuple) else cond[of]


def _check_rows(cond: Any, batch: int) -> None:
    for part in cond if isinstance(cond, tuple) else (cond,):
        if isinstance(part, tuple):
            _check_rows(part, batch)
        elif part is not None and len(part) != batch:
            raise ValueError(f"cond must have the {batch} rows of shape, got {len(part)}")
