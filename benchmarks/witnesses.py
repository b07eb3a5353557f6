"""Two independent witnesses by the library sbi: TARP, and the local classifier two-sample test (L-C2ST).

    pip install sbi
    python benchmarks/witnesses.py       # draws of the prior, and the shipped models

Both ask about calibration against the truth, on frames of the whole prior. *Draws of the prior* are calibrated by
definition: TARP lets them pass. L-C2ST sees the frame, through a summary of ŷ, and does not.

The two expected coverages differ by more than 1/64 where images are empty: of two empty ones none is nearer to the
reference, which sbi counts as further, and ours breaks at random.
"""

import argparse

import torch
from sbi.diagnostics.lc2st import LC2ST  # type: ignore[import-not-found]
from sbi.diagnostics.tarp import _run_tarp, check_tarp  # type: ignore[import-not-found]
from scipy.stats import kstest
from torch import Tensor

from benchmarks.bakeoff import FACTOR, SIGMA, Frames, Method, as_kdes, chosen, prior_draws, prior_part, shipped
from smlmtut._random import step_generator
from smlmtut.evaluation.against_exact import summary_vector
from smlmtut.evaluation.calibration import tarp
from smlmtut.networks import pretrained

SEED, JOINT = 20261130, 2000  # of the frames of L-C2ST, which are none of the bake-off, and how many they are
ASKED, DRAWS, NULLS, REJECT = 20, 64, 50, 0.05  # frames it is asked about, samples of each, fits under the null


def vectors(images: Tensor) -> Tensor:
    """Summaries (B, S, n) of images (B, S, fH, fW), float32."""
    return summary_vector(images, FACTOR, SIGMA).float()


def tarp_of(method: Method, frames: Frames) -> tuple[float, float, float]:
    """p of our levels against uniform; p by sbi; largest difference of the two expected coverages."""
    samples = torch.cat(
        [method(frames.part(slice(k, k + 8)), 64, step_generator(0, k)) for k in range(0, len(frames), 8)]
    )
    references = frames.truth.roll(1, 0)
    levels = tarp(samples, frames.truth, references, torch.Generator().manual_seed(0))
    flat = (samples.flatten(2).transpose(0, 1), frames.truth.flatten(1), references.flatten(1))
    expected, alpha = _run_tarp(*flat, num_bins=20)
    ours = torch.stack([(levels <= a).double().mean() for a in alpha])
    return (
        float(kstest(levels.numpy(), "uniform").pvalue),
        float(check_tarp(expected, alpha)[1]),
        float((ours - expected).abs().max()),
    )


def lc2st_of(method: Method, frames: Frames) -> float:
    """Share of ASKED frames at which L-C2ST finds the samples to be none of p(y | x), at the 5 % level."""
    few = len(frames) - ASKED
    one = torch.cat([method(frames.part(slice(k, k + 64)), 1, step_generator(0, k)) for k in range(0, few, 64)])[:few]
    seen = vectors(frames.estimate)[:, 0]
    scale = seen[:few].std(0).clamp(min=1e-6)
    test = LC2ST(
        thetas=vectors(frames.truth[:few, None])[:, 0] / scale,
        xs=seen[:few] / scale,
        posterior_samples=vectors(one)[:, 0] / scale,
        classifier="mlp",
        num_trials_null=NULLS,
        z_score=True,
    )
    test.train_on_observed_data(verbosity=0)
    test.train_under_null_hypothesis(verbosity=0)
    asked = frames.part(slice(few, None))
    drawn = vectors(method(asked, DRAWS, step_generator(1, 0))) / scale
    return sum(test.p_value(drawn[i], seen[few + i] / scale) < REJECT for i in range(ASKED)) / ASKED


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of them")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    phi, models = pretrained.load(), shipped()
    methods = {"prior": prior_draws("prior")} | {name: models[name] for name in ("engression-2d", "cddpm-2d")}
    methods |= {"engression-2d as KDEs": lambda *given: as_kdes(models["engression-2d"](*given))}
    frames, joint = prior_part(phi), prior_part(phi, JOINT + ASKED, SEED)
    for name, method in chosen(methods, given.only).items():
        ours, theirs, off = tarp_of(method, frames)
        print(f"{name}: TARP p {ours:.3g}, by sbi {theirs:.3g}, coverages differ by {off:.3f} at most", flush=True)
        print(f"{name}: L-C2ST rejects {lc2st_of(method, joint):.0%} of {ASKED} frames", flush=True)


if __name__ == "__main__":
    main()
