"""What every method of the bake-off is asked: 64 samples a frame of the reference, scored as `protocol.md` says.

    python benchmarks/bakeoff.py --folder runs/reference --part dev      # the shipped model, ceiling, floor and point

A method is a function of frames, their ŷ and a number of samples. A table has a row for each class of frames; ± is a
standard error by bootstrap over the frames.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks.reference_file import gathered
from benchmarks.reference_posteriors import KINDS, SHAPE, emitters_of
from smlmtut._random import step_generator
from smlmtut.evaluation import against_exact as against
from smlmtut.evaluation import spread_skill
from smlmtut.evaluation.calibration import CLASSES, pixel_class
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import Emitters
from smlmtut.networks import pretrained
from smlmtut.networks.cddpm import ConditionalDiffusion, frame_input, sample_kde
from smlmtut.networks.deepstorm import estimate_kde
from smlmtut.networks.precision import AUTOCAST, best_precision

SAMPLES, FACTOR, SIGMA = 64, 4, 1.0
AMBIGUOUS = (0.05, 0.95)  # exact p(K = 2) of the pairs whose log loss is reported
FRAMES_AT_ONCE = 8


@dataclass(frozen=True)
class Frames:
    """Frames of a class: `inputs` (n, 2, H, W) as the networks see them, ŷ (n, 1, 4H, 4W), exact draws (n, 64, 4H, 4W),
    exact mean and sd (n, 4H, 4W), truth (n, 4H, 4W)."""

    inputs: Tensor
    estimate: Tensor
    exact: Tensor
    mean: Tensor
    sd: Tensor
    truth: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, chosen: slice) -> "Frames":
        """Some of the frames."""
        return Frames(*(getattr(self, field.name)[chosen] for field in fields(self)))


Method = Callable[[Frames, int, torch.Generator], Tensor]  # -> samples (n, S, 4H, 4W)


def images(u: Tensor, v: Tensor, photons: Tensor) -> Tensor:
    """KDEs (..., 4H, 4W) of emitters (..., E), of which those without photons are none."""
    flat = Emitters(u.flatten(0, -2), v.flatten(0, -2), photons.flatten(0, -2), photons.flatten(0, -2) > 0)
    return kde_image(flat, SHAPE).float().reshape(*u.shape[:-1], FACTOR * SHAPE[0], FACTOR * SHAPE[1])


def read_class(folder: Path, part: str, kind: str, phi: torch.nn.Module) -> Frames | None:
    """The kept frames of one class; None where nothing was drawn yet."""
    rows, _ = gathered(sorted(folder.glob(f"{part}-{kind}-*.npz")))
    if not rows:
        return None
    arrays = {name: torch.from_numpy(values.astype("f4")) for name, values in rows.items()}
    camera = Camera(arrays["gain"], arrays["offset"], arrays["read_variance"])
    electrons = to_photoelectrons(arrays["adu"], camera)
    variance = torch.as_tensor(camera.read_variance_electrons)
    return Frames(
        frame_input(electrons[:, None], variance[:, None]),
        estimate_kde(phi, arrays["adu"], camera),  # type: ignore[arg-type]
        images(arrays["draw_u"], arrays["draw_v"], arrays["draw_photons"]),
        arrays["mean"],
        arrays["sd"],
        images(arrays["truth_u"], arrays["truth_v"], arrays["truth_photons"]),
    )


def diffusion(network: torch.nn.Module, given_frame: bool = True) -> Method:
    """A conditional diffusion model, given ŷ and, if it takes them, the frame."""
    kind = AUTOCAST[best_precision(torch.device("cpu"))]

    def draw(frames: Frames, samples: int, generator: torch.Generator) -> Tensor:
        with torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None):
            frame = frames.inputs if given_frame else None
            return sample_kde(network, frames.estimate, samples, generator, frame).float()  # type: ignore[arg-type]

    return draw


def prior_draws(kind: str) -> Method:
    """Images of the prior of a class, whatever the frame shows: calibrated against the truth, and no answer."""

    def draw(frames: Frames, samples: int, generator: torch.Generator) -> Tensor:
        drawn = emitters_of(kind, len(frames) * samples, generator)
        return kde_image(drawn, SHAPE).float().reshape(len(frames), samples, *frames.truth.shape[1:])

    return draw


def score(samples: Tensor, frames: Frames, kind: str) -> dict[str, float]:
    """The scores of `protocol.md` that a class has, each with its standard error as NAME ±."""
    y_hat = frames.estimate[:, 0]
    core, halo = (pixel_class(y_hat) == CLASSES.index(name) for name in ("core", "halo"))
    out: dict[str, float] = {"frames": len(frames)}
    regrets = {
        "energy regret": against.energy_regret(samples, frames.exact),
        "CRPS core": against.crps_regret(samples, frames.exact, core),
        "CRPS halo": against.crps_regret(samples, frames.exact, halo),
    }
    counts, exact_counts = (against.peak_counts(x, FACTOR, SIGMA) for x in (samples, frames.exact))
    most = int(exact_counts.max()) + 2
    if kind in ("pair", "sparse"):
        more = against.count_log_loss(counts, exact_counts, most).excess
        out["log loss of K, nat"], out["log loss of K, nat ±"] = (
            float(more.mean()),
            float(more.std()) / len(more) ** 0.5,
        )
    for name, regret in regrets.items():
        out[name], out[f"{name} ±"] = regret.relative(), regret.error()
    if kind == "lone":
        seen = core.flatten(1).any(1)
        bars = against.log_error_bar(samples[seen], frames.sd[seen], core[seen])
        own = against.log_error_bar(frames.exact[seen], frames.sd[seen], core[seen])  # what 64 samples add
        out["error bar bias"], out["error bar bias ±"] = float(bars.mean()), float(bars.std()) / len(bars) ** 0.5
        scatter = lambda i: float((bars[i].var() - own[i].var()).clamp(min=0).sqrt())  # noqa: E731
        out["error bar scatter"] = scatter(torch.arange(len(bars)))
        out["error bar scatter ±"] = against.bootstrap_error(scatter, len(bars))
    if kind == "pair":
        two = [(x == 2).double().mean(1) for x in (counts, exact_counts)]
        unsure = (two[1] > AMBIGUOUS[0]) & (two[1] < AMBIGUOUS[1])
        off = (two[0] - two[1]).abs()[unsure]
        out["ambiguous"] = int(unsure.sum())
        if len(off) > 1:
            out["p(K = 2) off"], out["p(K = 2) off ±"] = float(off.mean()), float(off.std()) / len(off) ** 0.5
    if kind == "crowded":
        mass, true = samples.sum((2, 3)), frames.truth.sum((1, 2))
        out["mass spread–skill"] = spread_skill(mass, true)
        out["mass spread–skill ±"] = against.bootstrap_error(lambda i: spread_skill(mass[i], true[i]), len(true))
    return out


def judged(method: Method, frames: Frames, kind: str, seed: int = 0) -> dict[str, float]:
    """Draw SAMPLES for each frame, some frames at a time, and score them; with the seconds a frame that it took."""
    began, drawn = time.perf_counter(), []
    for k, first in enumerate(range(0, len(frames), FRAMES_AT_ONCE)):
        some = frames.part(slice(first, first + FRAMES_AT_ONCE))
        drawn.append(method(some, SAMPLES, step_generator(seed, k)))
    spent = (time.perf_counter() - began) / len(frames)
    return score(torch.cat(drawn), frames, kind) | {"s a frame": spent}


def references(frames: Frames, kind: str) -> dict[str, dict[str, float]]:
    """Ceiling and floor: half of the exact draws against the other half, draws of the prior, ŷ as a point."""
    half = SAMPLES // 2
    kept = Frames(frames.inputs, frames.estimate, frames.exact[:, half:], frames.mean, frames.sd, frames.truth)
    point = frames.estimate.expand(-1, SAMPLES, -1, -1)
    drawn = prior_draws(kind)(frames, SAMPLES, step_generator(1, 0))
    found = {"exact, other draws": score(frames.exact[:, :half], kept, kind), "prior": score(drawn, frames, kind)}
    energy = against.energy_regret(point, frames.exact)
    return found | {"ŷ as a point": {"energy regret": energy.relative(), "energy regret ±": energy.error()}}


def table(methods: dict[str, Method], folder: Path, part: str) -> pd.DataFrame:
    """A row for each class and method."""
    phi, rows = pretrained.load(), {}
    for kind in KINDS:
        frames = read_class(folder, part, kind, phi)
        if frames is None:
            continue
        for name, found in references(frames, kind).items():
            rows[kind, name] = found
        for name, method in methods.items():
            rows[kind, name] = judged(method, frames, kind)
    return pd.DataFrame.from_dict(rows, orient="index")


def printed(scores: pd.DataFrame) -> str:
    """The table for each class, with what the class has."""
    out = []
    for kind in scores.index.unique(0):
        some = scores.loc[kind].dropna(axis=1, how="all")
        names = [name for name in some.columns if not name.endswith("±")]
        shown = pd.DataFrame(index=some.index)
        for name in names:
            error = some[f"{name} ±"] if f"{name} ±" in some else None
            shown[name] = [
                f"{x:.3f}" + (f" ± {error.iloc[i]:.3f}" if error is not None else "") for i, x in enumerate(some[name])
            ]
        out.append(f"## {kind}\n\n{shown.to_string()}\n")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/reference"))
    parser.add_argument("--part", choices=["dev", "test", "held"], default="dev")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    network = pretrained.load("cddpm-2d", kind=ConditionalDiffusion)
    methods = {"cddpm-2d, x and ŷ": diffusion(network), "cddpm-2d, ŷ": diffusion(network, False)}
    print(printed(table(methods, given.folder, given.part)))


if __name__ == "__main__":
    main()
