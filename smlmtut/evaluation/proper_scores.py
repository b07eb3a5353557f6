"""Proper scores of ensembles, Gaussians and points, and the checks that all functions of an ensemble share."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._validate import finite, non_negative, tensor

VALUES_AT_ONCE = 1 << 22  # samples turned into float64 at once: 32 MB


def crps(samples: Tensor, truth: Tensor, fair: bool = True) -> Tensor:
    """Continuous ranked probability score E|X − y| − ½ E|X − X′| of each value, in its unit; lower is better.

    samples: (B, S, ...), truth: (B, ...). fair: estimate the score of the distribution that the samples come from,
        without bias at any S ≥ 2 (Ferro 2014, Q. J. R. Meteorol. Soc. 140:1917); it can be negative for one value.
        False: the score of the S samples themselves as a distribution, higher by E|X − X′| / 2S.
    Returns (B, ...) float64. Gneiting & Raftery (2007, JASA 102:359), Eq. 21.
    Raises ValueError for shapes that do not fit, values that are not finite, or too few samples.
    """
    import scoringrules

    samples, truth = ensemble(samples, truth, 2 if fair else 1)
    estimator = "pwm" if fair else "qd"  # both need one sort and no S × S pairs
    pieces = [scoringrules.crps_ensemble(y, x, estimator=estimator, backend="numpy") for x, y in parts(samples, truth)]
    return joined(pieces, truth)


def crps_normal(mean: Tensor, sd: Tensor, truth: Tensor) -> Tensor:
    """CRPS of a Gaussian, all (B, ...); where sd is 0, that of the point `mean`. Float64.

    Raises ValueError for shapes that do not broadcast to the truth's, values that are not finite, a negative sd.
    """
    import scoringrules

    mean, sd = tensor("mean", finite("mean", mean)), tensor("sd", non_negative("sd", sd))
    y = on_host("truth", truth)
    try:
        m, s = (x.detach().cpu().double().expand(y.shape) for x in (mean, sd))
    except RuntimeError as error:
        shapes = tuple(mean.shape), tuple(sd.shape)
        raise ValueError(f"mean (estimate) and sd must fit the truth's shape {tuple(y.shape)}, got {shapes}") from error
    point = s == 0
    score = scoringrules.crps_normal(y.numpy(), m.numpy(), torch.where(point, 1.0, s).numpy(), backend="numpy")
    return torch.where(point, (m - y).abs(), torch.from_numpy(np.asarray(score)))


def crps_point(estimate: Tensor, truth: Tensor) -> Tensor:
    """CRPS of one value that claims to be certain: its absolute error, (B, ...) float64."""
    return crps_normal(on_host("estimate", estimate), torch.zeros(()), truth)


def energy_score(samples: Tensor, truth: Tensor, fair: bool = True) -> Tensor:
    """Energy score E‖X − y‖ − ½ E‖X − X′‖ of whole images: the CRPS in many dimensions, sensitive to correlations.

    samples: (B, S, ...), truth: (B, ...); fair: as in `crps`. Returns (B,) float64.
    Raises ValueError as `crps` does.
    """
    import scoringrules

    samples, truth = ensemble(samples, truth, 2 if fair else 1)
    scores = []
    for x, y in zip(samples, truth, strict=True):
        points = (x.detach().cpu().double() - y.detach().cpu().double()).flatten(1)  # (S, D), the truth at 0
        if points.shape[1] > points.shape[0]:
            # S points and the origin span S dimensions at most; a rotation into that space keeps all distances
            points = torch.linalg.qr(points.T, mode="r").R.T  # (S, S)
        zero = np.zeros(points.shape[1])
        estimator = "fair" if fair else "nrg"
        scores.append(scoringrules.es_ensemble(zero, points.numpy(), estimator=estimator, backend="numpy"))
    return torch.tensor(np.array(scores, dtype=np.float64))


def parts(samples: Tensor, truth: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Samples (b, ..., S) and truth (b, ...) as float64 arrays in main memory, some frames at a time."""
    many = max(1, VALUES_AT_ONCE // max(1, samples[:1].numel()))
    for x, y in zip(samples.split(many), truth.split(many), strict=True):
        if len(y):
            yield x.detach().movedim(1, -1).cpu().double().numpy(), y.detach().cpu().double().numpy()


def joined(pieces: Sequence[Any], truth: Tensor) -> Tensor:
    """Parts of float64 or int64 as one float64 tensor of the truth's shape."""
    flat = [torch.from_numpy(np.atleast_1d(np.asarray(part))).double().flatten() for part in pieces]
    return torch.cat(flat or [torch.zeros(0, dtype=torch.float64)]).reshape(truth.shape)


def ensemble(samples: Tensor, truth: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Both as tensors, after checking shapes, finite values and that there are at least `least` samples."""
    samples, truth = tensor("samples", samples), tensor("truth", truth)
    if samples.ndim < 2 or (samples.shape[0], *samples.shape[2:]) != tuple(truth.shape):
        raise ValueError(
            f"samples and truth must have shapes (B, S, ...) and (B, ...), got {tuple(samples.shape)} "
            f"and {tuple(truth.shape)}"
        )
    if samples.shape[1] < least:
        raise ValueError(f"samples must hold at least {least} for each truth, got {samples.shape[1]}")
    return finite("samples", samples), finite("truth", truth)


def on_host(name: str, values: Tensor) -> Tensor:
    """Finite values as a float64 tensor in main memory."""
    return tensor(name, finite(name, values)).detach().cpu().double()
