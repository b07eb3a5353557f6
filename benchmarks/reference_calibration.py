"""Are the reference's chains right? Simulation-based calibration: the truth among draws from its own posterior.

    python benchmarks/reference_calibration.py --folder runs/calibration     # resumable; half an hour on one core

Frames are drawn from the prior with K of at most MOST (`count_prior` cut there), and their posterior under the same
prior: so the truth is one more draw, and its rank among DRAWS thinned ones is uniform, whatever the frame shows (Talts
et al. 2018, arXiv:1804.06788). Ranks of what the certificate looks at, and of b and σ, are compared with the uniform by
Kolmogorov and Smirnov. Frames as the camera reports them: whole ADU, Poisson and Gaussian noise, so that
the approximation of Eq. 2 is tested with the chains. The lines below tell the power: how often draws that are wrong in
a known way would be found out.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.reference_posteriors import (
    AREA,
    CHAINS,
    SHAPE,
    Kind,
    certificate,
    looked_at,
    make_part,
    moments,
    run_chains,
    traces,
)
from smlmtut._files import replacing
from smlmtut._random import step_generator
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import Emitters
from smlmtut.posterior import Draws

SEED, PART, FRAMES = 20261130, 20, 240
MOST, DRAWS = 4, 63  # so that ranks are 0 … 63
KIND = Kind(0, 0, MOST, 300, 63, 5)
NAMES = ("number inside", "mass", "brightest pixel", "least sure pixel", "halo pixel", "background", "sigma")
LEVEL = 0.01 / len(NAMES)  # of each test, so that one false alarm in all of them has a chance of 1 %


def truths(frames: dict[str, np.ndarray], i: int, pixels: list[int]) -> list[float]:
    """What the draws are ranked against: NAMES of the true emitters."""
    u, v, photons = (torch.from_numpy(frames[f"truth_{name}"][i]).double() for name in ("u", "v", "photons"))
    there = photons > 0
    y = kde_image(Emitters(u[None], v[None], photons[None], there[None]), SHAPE)[0, 0]
    inside = there & (u > -0.5) & (u < SHAPE[1] - 0.5) & (v > -0.5) & (v < SHAPE[0] - 0.5)
    at = [float(y.flatten()[p]) for p in pixels]
    return [float(inside.sum()), float(y.sum()), *at, float(frames["background"][i]), float(frames["sigma"][i])]


def ranks(frames: dict[str, np.ndarray], draws: Draws, i: int, generator: torch.Generator) -> np.ndarray:
    """Rank of the truth among DRAWS draws, (len(NAMES),), ties broken at random; NaN where the chains disagree."""
    mean, sd = moments(draws, i)
    if certificate(draws, i, mean, sd)["r_hat"] > 1.05:
        return np.full(len(NAMES), np.nan)
    seen = torch.cat([traces(draws, i, mean, sd), draws.background[i][None], draws.sigma[i][None]])  # (n, C, S)
    length = seen.shape[2]
    chosen = torch.arange(DRAWS)
    some = seen[:, chosen % CHAINS, length - 1 - (chosen // CHAINS) * (length // (-(-DRAWS // CHAINS)))]
    true = torch.tensor(truths(frames, i, looked_at(mean, sd)), dtype=torch.float64)[:, None]
    # the mass and the pixels of a frame without emitters are equal up to rounding
    below, equal = (some < true - 1e-9).sum(1), ((some - true).abs() <= 1e-9).sum(1)
    return (below + (torch.rand(len(NAMES), generator=generator) * (equal + 1)).long()).numpy().astype(float)


def uniform_p(found: np.ndarray) -> float:
    """p-value of ranks 0 … DRAWS being uniform: by Kolmogorov and Smirnov, after spreading each over its step."""
    spread = (found + np.random.default_rng(0).random(len(found))) / (DRAWS + 1)
    return float(stats.kstest(spread, "uniform").pvalue)


def power(count: int, spread: float, shift: float, repeats: int = 400) -> float:
    """How often `count` frames find out draws whose sd is `spread` times the right one, `shift` sd from their place."""
    dice = np.random.default_rng(1)
    found = 0
    for _ in range(repeats):
        draws = shift + spread * dice.standard_normal((count, DRAWS))
        found += uniform_p((draws < dice.standard_normal((count, 1))).sum(1).astype(float)) < LEVEL
    return found / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/calibration"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    parts = []
    for k in range(FRAMES // PART):
        path = given.folder / f"{k:02d}.npy"
        if not path.exists():
            frames = make_part("sparse", PART, step_generator(SEED, k))
            draws = run_chains(frames, KIND, 1, step_generator(SEED, k, 1))
            dice = step_generator(SEED, k, 2)
            with replacing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, np.stack([ranks(frames, draws, i, dice) for i in range(PART)]))
            print(f"{path.name} of {FRAMES // PART}", flush=True)
        parts.append(np.load(path))
    found = np.concatenate(parts)
    kept = found[~np.isnan(found).any(1)]
    print(f"{len(kept)} of {len(found)} frames of {AREA:.2f} µm² (the others: R̂ > 1.05)")
    for name, one in zip(NAMES, kept.T, strict=True):
        verdict = "uniform" if uniform_p(one) > LEVEL else "NOT uniform"
        print(f"{name}: p = {uniform_p(one):.3f}, {verdict}; mean rank {one.mean() / DRAWS:.3f} (.500)")
    for spread, shift in ((1.0, 0.0), (0.8, 0.0), (0.7, 0.0), (1.25, 0.0), (1.4, 0.0), (1.0, 0.2), (1.0, 0.3)):
        share = power(len(kept), spread, shift)
        print(f"sd times {spread:g}, moved by {shift:g} sd: found out {share:.0%} of the time at the level {LEVEL:.4f}")
    worst = min(uniform_p(one) for one in kept.T)
    print(f"least p of {len(NAMES)} tests {worst:.4f}; below {LEVEL:.4f} the reference is wrong")


if __name__ == "__main__":
    main()
