"""What every method of the bake-off is asked: 64 samples a frame of the reference, scored as `protocol.md` says.

    python benchmarks/bakeoff.py --folder runs/reference --part dev      # what ships, ceiling, floor and point
    python benchmarks/bakeoff.py --only cddpm-2d-published --most 8      # the published form, as its paper samples it

A method is a function of frames, their ŷ and a number of samples. A table has a row for each class of frames; ± is a
standard error by bootstrap over the frames.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import kstest
from torch import Tensor

from benchmarks.reference_file import gathered
from benchmarks.reference_posteriors import KINDS, SHAPE, emitters_of
from smlmtut import data
from smlmtut._random import step_generator
from smlmtut.diffusion.samplers import Sampler, ancestral, dpm_solver
from smlmtut.diffusion.schedule import NoiseSchedule
from smlmtut.estimation import fit_emitters
from smlmtut.evaluation import against_exact as against
from smlmtut.evaluation import energy_score, spread_skill
from smlmtut.evaluation.calibration import CLASSES, LEVELS, covered, pixel_class, tarp
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.first_guess import peak_emitters
from smlmtut.imaging.kde import kde_image, redrawn
from smlmtut.imaging.psf import Emitters
from smlmtut.imaging.scenes import draw_batch
from smlmtut.localize.exact import MARGIN, training_prior
from smlmtut.networks import pretrained, recipes
from smlmtut.networks.cddpm import STEPS, ConditionalDiffusion, frame_input, sample_kde
from smlmtut.networks.condition import FrameFit
from smlmtut.networks.deepstorm import DeepSTORM, estimate_kde
from smlmtut.networks.emitter_set import EmitterSet
from smlmtut.networks.engression import Engression
from smlmtut.networks.inputs import input_electrons
from smlmtut.networks.precision import AUTOCAST, best_precision
from smlmtut.networks.rivals import Gaussian
from smlmtut.posterior import count_prior, mode_posterior

SAMPLES, FACTOR, SIGMA = 64, 4, 1.0
PRIOR_FRAMES, PRIOR_SEED = 200, 20261129  # of the part on which coverage of the truth is measured
AMBIGUOUS = (0.05, 0.95)  # exact p(K = 2) of the pairs whose log loss is reported
FRAMES_AT_ONCE = 8
SLOW = ("cddpm-2d-published",)  # scored only where they are named: 100 calls a sample
RIVALS = {"gaussian-2d": Gaussian, "emitters-2d": EmitterSet, "engression-2d": Engression}
DRAW_EMITTERS = ("fit", "moved", "modes", "emitters-2d")  # whose draws are KDEs
AS_KDES = ", as KDEs"  # of a row of draws that were read as emitters and drawn again
CLASSES_ASKED = (*KINDS, "prior")


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


def read_rows(folder: Path | None, part: str, kind: str) -> dict[str, np.ndarray]:
    """The arrays of one class's kept frames, of a folder or, if None, of the file that ships; empty for none."""
    if folder is None:
        return data.reference_posteriors(part, kind)
    return gathered(sorted(folder.glob(f"{part}-{kind}-*.npz")))[0]


def read_class(folder: Path | None, part: str, kind: str, phi: torch.nn.Module) -> Frames | None:
    """The frames of `read_rows`; None where there are none."""
    rows = read_rows(folder, part, kind)
    return frames_from(rows, phi) if rows else None


def frames_from(rows: dict[str, np.ndarray], phi: torch.nn.Module) -> Frames:
    """Frames with their exact draws, from the arrays that `reference_posteriors.py` writes."""
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


def autocast() -> torch.autocast:
    """The precision that this processor computes fastest in."""
    kind = AUTOCAST[best_precision(torch.device("cpu"))]
    return torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None)


def diffusion(
    network: ConditionalDiffusion, schedule: NoiseSchedule | None = None, sampler: Sampler = dpm_solver
) -> Method:
    """A conditional diffusion model, given the frame and ŷ, or ŷ alone in the published form."""

    def draw(frames: Frames, samples: int, generator: torch.Generator) -> Tensor:
        frame = frames.inputs if network.frame else None
        with autocast():
            return sample_kde(network, frames.estimate, samples, generator, frame, schedule, sampler).float()

    return draw


def published() -> Method:
    """The published form as its paper samples it: given ŷ alone, by all steps of the training, with the variance β."""
    network = pretrained.load("cddpm-2d-published", kind=ConditionalDiffusion)
    return diffusion(network, NoiseSchedule.cosine(STEPS).trained(), ancestral)


def rival(network: torch.nn.Module) -> Method:
    """A network that draws whole images by itself."""

    def draw(frames: Frames, samples: int, generator: torch.Generator) -> Tensor:
        with autocast():
            return network.sample(frames.estimate, frames.inputs, samples, generator)  # type: ignore[operator]

    return draw


def fitted(threshold: float = 0.25) -> Method:
    """No network but φ: the emitters that ŷ shows, fitted together, and draws by the curvature of their posterior.

    What microscopes report today, with the number of molecules taken as known. threshold: of ŷ.
    """

    def draw(frames: Frames, samples: int, generator: torch.Generator) -> Tensor:
        start = peak_emitters(frames.estimate.double(), threshold=threshold, photons=1000.0)
        electrons, variance = input_electrons(frames.inputs)
        fit = fit_emitters(electrons.double(), start, variance)
        u, v = (x.float() for x in fit.draw(samples, generator))
        return images(u, v, start.mask[:, None].expand(u.shape).float())

    return draw


def moved(frames: Frames, samples: int, generator: torch.Generator) -> Tensor:
    """The fit from which the networks start, moved by draws of its errors: where engression starts."""
    return FrameFit(frames.estimate, frames.inputs).moved(samples, generator)


def modes(most: int = 28) -> Method:
    """Importance sampling from the modes of the posterior, which starts at the peaks of ŷ. most: emitters at most."""
    prior, counts = training_prior(SHAPE), count_prior(most, SHAPE, margin=MARGIN)

    def draw(frames: Frames, samples: int, generator: torch.Generator) -> Tensor:
        start = peak_emitters(frames.estimate.double(), photons=1000.0)
        electrons, variance = input_electrons(frames.inputs)
        drawn = mode_posterior(electrons, counts, start, generator, variance, prior, samples)
        return images(drawn.u.float(), drawn.v.float(), drawn.photons.float())

    return draw


def prior_draws(kind: str) -> Method:
    """Images of the prior of a class, whatever the frame shows: calibrated against the truth, and no answer."""

    def draw(frames: Frames, samples: int, generator: torch.Generator) -> Tensor:
        many = len(frames) * samples
        if kind == "prior":
            drawn = draw_batch(recipes.reference_scene(), many, SHAPE, generator).target(FACTOR, SIGMA)
        else:
            drawn = kde_image(emitters_of(kind, many, generator), SHAPE)
        return drawn.float().reshape(len(frames), samples, *frames.truth.shape[1:])

    return draw


def spread(samples: Tensor) -> Tensor:
    """Half of the mean distance of two samples, of each frame: how sharp a method claims to be, (B,)."""
    return torch.stack([torch.pdist(x.double().flatten(1)).mean() / 2 for x in samples])


def score(samples: Tensor, frames: Frames, kind: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The scores of `protocol.md` that a class has, each with its standard error as NAME ±; and what they are made of,
    frame by frame."""
    y_hat = frames.estimate[:, 0]
    core, halo = (pixel_class(y_hat) == CLASSES.index(name) for name in ("core", "halo"))
    out: dict[str, float] = {"frames": len(frames)}
    regrets = {
        "energy regret": against.energy_regret(samples, frames.exact),
        "CRPS core": against.crps_regret(samples, frames.exact, core),
        "CRPS halo": against.crps_regret(samples, frames.exact, halo),
    }
    each = {"energy excess": regrets["energy regret"].excess, "energy scale": regrets["energy regret"].scale}
    for name, regret in regrets.items():
        out[name], out[f"{name} ±"] = regret.relative(), regret.error()
    each["spread"] = spread(samples)
    out["spread / exact"] = float(each["spread"].sum() / each["energy scale"].sum())
    if kind in ("pair", "sparse"):
        counts, exact_counts = (against.peak_counts(x, FACTOR, SIGMA) for x in (samples, frames.exact))
        more = against.count_log_loss(counts, exact_counts, int(exact_counts.max()) + 2).excess
        put(out, "log loss of K, nat", more)
        each |= {f"p(K = {k})": (counts == k).double().mean(1) for k in (1, 2)}
        each |= {f"exact p(K = {k})": (exact_counts == k).double().mean(1) for k in (1, 2)}
    if kind == "lone":
        seen = core.flatten(1).any(1)
        bars, first, second = (
            against.log_error_bar(x[seen], frames.sd[seen], core[seen])
            for x in (samples, samples[:, ::2], samples[:, 1::2])
        )
        out["frames without an error bar"] = int(bars.isinf().sum())  # all of whose samples agree: ln 0
        some = bars.isfinite() & first.isfinite() & second.isfinite()
        bars, first, second = bars[some], first[some], second[some]
        own = (first - second) / 2  # has the variance that the method's own samples, so few, add to `bars`
        put(out, "error bar bias", bars)
        scatter = lambda i: float((bars[i].var() - own[i].square().mean()).clamp(min=0).sqrt())  # noqa: E731
        out["error bar scatter"] = scatter(torch.arange(len(bars)))
        out["error bar scatter ±"] = against.bootstrap_error(scatter, len(bars))
        each |= {"ln error bar": bars, "half of the difference of its halves": own}
    if kind == "pair":
        exact_two = each["exact p(K = 2)"]
        unsure = (exact_two > AMBIGUOUS[0]) & (exact_two < AMBIGUOUS[1])
        out["ambiguous"] = int(unsure.sum())
        if unsure.sum() > 1:
            found = each["p(K = 2)"][unsure], exact_two[unsure]
            put(out, "p(K = 2) off", (found[0] - found[1]).abs())
            off = lambda i: against.share_error(found[0][i], samples.shape[1], found[1][i], frames.exact.shape[1])  # noqa: E731
            out["p(K = 2) off, rms without noise"] = off(torch.arange(len(found[0])))
            out["p(K = 2) off, rms without noise ±"] = against.bootstrap_error(off, len(found[0]))
            put(out, "log loss of K, ambiguous", more[unsure])
    if kind == "crowded":
        mass, true = samples.sum((2, 3)), frames.truth.sum((1, 2))
        out["mass spread–skill"] = spread_skill(mass, true)
        out["mass spread–skill ±"] = against.bootstrap_error(lambda i: spread_skill(mass[i], true[i]), len(true))
    if len(frames) >= 4:
        vectors = [against.summary_vector(x, FACTOR, SIGMA) for x in (samples, frames.exact)]
        told = [against.two_sample_accuracy(vectors[0], vectors[1], classifier) for classifier in classifiers()]
        out["two-sample accuracy"], out["two-sample accuracy ±"] = max(told)
    return out, each


def put(out: dict[str, float], name: str, values: Tensor) -> None:
    """The mean of some frames' values, and its standard error."""
    out[name], out[f"{name} ±"] = float(values.mean()), float(values.std()) / len(values) ** 0.5


def classifiers() -> list:
    """The two of score 7, of which the better one counts."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # here: only this score needs it
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        HistGradientBoostingClassifier(max_iter=50, random_state=0),
    ]


def prior_part(phi: DeepSTORM, count: int = PRIOR_FRAMES, seed: int = PRIOR_SEED) -> Frames:
    """Frames of the whole prior, of any class, for coverage of the truth; without exact draws."""
    scene, found = recipes.reference_scene(), []
    for first in range(0, count, 50):
        batch = recipes.draw_estimates(scene, recipes.SMALL_FRAME, phi)(
            min(50, count - first), step_generator(seed, first)
        )
        found.append((batch.frame, batch.estimate, batch.kde[:, 0]))  # type: ignore[attr-defined]
    inputs, estimate, truth = (torch.cat(x) for x in zip(*found, strict=True))
    none = truth.new_zeros(len(truth), 0, *truth.shape[1:])
    return Frames(inputs, estimate, none, truth * torch.nan, truth * torch.nan, truth)


def score_prior(samples: Tensor, frames: Frames) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Coverage of the truth by class of pixel, chosen by ŷ; its mass; TARP, as p of Kolmogorov and Smirnov."""
    out: dict[str, float] = {"frames": len(frames)}
    classes = pixel_class(frames.estimate[:, 0])
    for level in LEVELS:
        held = covered(samples, frames.truth, level)
        for name in ("core", "halo"):
            where = classes == CLASSES.index(name)
            inside, many = (held * where).sum((1, 2)), where.sum((1, 2)).double()
            share = lambda i, a=inside, n=many: float(a[i].sum() / n[i].sum())  # noqa: E731
            label = f"{name} {level:.0%}"
            out[label] = share(torch.arange(len(frames)))
            out[f"{label} ±"] = against.bootstrap_error(share, len(frames))
    mass, true = samples.sum((2, 3)), frames.truth.sum((1, 2))
    out["mass spread–skill"] = spread_skill(mass, true)
    out["mass spread–skill ±"] = against.bootstrap_error(lambda i: spread_skill(mass[i], true[i]), len(true))
    energy, sharpness = energy_score(samples, frames.truth), spread(samples)
    put(out, "energy score", energy)
    put(out, "spread", sharpness)
    each = {"energy score": energy}
    points = {"": frames.truth.roll(1, 0), " from ŷ": frames.estimate[:, 0]}  # of another frame; of this one
    for name, point in points.items():
        levels = tarp(samples, frames.truth, point, torch.Generator().manual_seed(0))
        out[f"TARP p{name}"] = float(kstest(levels.numpy(), "uniform").pvalue)
        each[f"TARP level{name}"] = levels
    return out, each


Scored = tuple[dict[str, float], dict[str, Tensor]]


def judged(method: Method, frames: Frames, kind: str, seed: int = 0) -> Scored:
    """Draw SAMPLES for each frame, some frames at a time, and score them; with the seconds a frame that it took."""
    samples, spent = drawn_of(method, frames, seed)
    row, each = score_prior(samples, frames) if kind == "prior" else score(samples, frames, kind)
    return row | {"s a frame": spent}, each


def as_kdes(samples: Tensor) -> Tensor:
    """Draws (n, S, 4H, 4W) read as emitters and drawn again."""
    return redrawn(samples.flatten(0, 1)[:, None], FACTOR, SIGMA).reshape(samples.shape)


def judged_as_kdes(name: str, method: Method, frames: Frames, kind: str, seed: int = 0) -> dict[str, Scored]:
    """The scores of a method that draws pixels, and of its draws read as emitters and drawn again, NAME + AS_KDES."""
    samples, spent = drawn_of(method, frames, seed)
    began = time.perf_counter()
    again = as_kdes(samples)
    more = (time.perf_counter() - began) / len(frames)
    found = {}
    for label, images_, seconds in ((name, samples, spent), (f"{name}{AS_KDES}", again, spent + more)):
        row, each = score_prior(images_, frames) if kind == "prior" else score(images_, frames, kind)
        found[label] = (row | {"s a frame": seconds}, each)
    return found


def drawn_of(method: Method, frames: Frames, seed: int) -> tuple[Tensor, float]:
    """SAMPLES draws for each frame, and the seconds a frame that they took."""
    began, drawn = time.perf_counter(), []
    for k, first in enumerate(range(0, len(frames), FRAMES_AT_ONCE)):
        some = frames.part(slice(first, first + FRAMES_AT_ONCE))
        drawn.append(method(some, SAMPLES, step_generator(seed, k)))
    return torch.cat(drawn), (time.perf_counter() - began) / len(frames)


def scored(name: str, method: Method, frames: Frames, kind: str) -> dict[str, Scored]:
    """The rows of a method: two where it draws pixels."""
    if name in DRAW_EMITTERS:
        return {name: judged(method, frames, kind)}
    return judged_as_kdes(name, method, frames, kind)


def references(frames: Frames, kind: str) -> dict[str, Scored]:
    """Ceiling and floor: half of the exact draws against the other half, draws of the prior, ŷ as a point."""
    drawn, whole = (prior_draws(which)(frames, SAMPLES, step_generator(1, 0)) for which in (kind, "prior"))
    if kind == "prior":
        return {"prior": score_prior(drawn, frames)}
    half = SAMPLES // 2
    kept = replace(frames, exact=frames.exact[:, half:])
    point = frames.estimate.expand(-1, SAMPLES, -1, -1)
    found = {"exact, other draws": score(frames.exact[:, :half], kept, kind), "prior": score(drawn, frames, kind)}
    found["prior, class unknown"] = score(whole, frames, kind)
    energy = against.energy_regret(point, frames.exact)
    return found | {"ŷ as a point": ({"energy regret": energy.relative(), "energy regret ±": energy.error()}, {})}


def frames_of(
    folder: Path | None, part: str, most: int | None = None, kinds: tuple[str, ...] = CLASSES_ASKED
) -> dict[str, Frames]:
    """Class → frames, of the classes that there are. most: None takes all of a class, a number the first of them."""
    phi = pretrained.load()
    found = {kind: prior_part(phi) if kind == "prior" else read_class(folder, part, kind, phi) for kind in kinds}
    return {kind: frames.part(slice(most)) for kind, frames in found.items() if frames is not None}


def table(methods: dict[str, Method], asked: dict[str, Frames]) -> dict[str, dict[str, Scored]]:
    """Class → method → scores."""
    return {
        kind: references(frames, kind)
        | {
            row: values
            for name, method in methods.items()
            for row, values in scored(name, method, frames, kind).items()
        }
        for kind, frames in asked.items()
    }


def printed(scores: dict[str, dict[str, Scored]]) -> str:
    """The table for each class, with what the class has."""
    out = []
    for kind, methods in scores.items():
        some = pd.DataFrame.from_dict({name: row for name, (row, _) in methods.items()}, orient="index")
        shown = pd.DataFrame(index=some.index)
        for name in (name for name in some.columns if not name.endswith("±")):
            error = some[f"{name} ±"] if f"{name} ±" in some else None
            shown[name] = [
                f"{x:.3f}" + (f" ± {error.iloc[i]:.3f}" if error is not None else "") for i, x in enumerate(some[name])
            ]
        out.append(f"## {kind}\n\n{shown.T.to_string()}\n")
    return "\n".join(out)


def kept(scores: dict[str, dict[str, Scored]], path: Path, names: Sequence[str] | None = None) -> None:
    """Write the scores and the frames' values as JSON, with four significant digits; what is in the file already and
    not in the scores stays. names: of the frames' values; None: all."""

    def short(values: object) -> object:
        if isinstance(values, Tensor):
            return [short(float(x)) for x in values]
        return float(f"{values:.4g}") if isinstance(values, float) and math.isfinite(values) else values

    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for kind, methods in scores.items():
        for name, (row, each) in methods.items():
            clean = {key: value for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
            old.setdefault(kind, {})[name] = {
                "scores": {key: short(value) for key, value in clean.items()},
                "frames": {key: short(value) for key, value in each.items() if names is None or key in names},
            }
    path.write_text(json.dumps(old, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every script that scores methods takes."""
    parser.add_argument("--most", type=int, help="frames of each class that are scored; none: all")
    parser.add_argument("--kinds", nargs="*", choices=CLASSES_ASKED, default=CLASSES_ASKED)
    parser.add_argument("--json", type=Path, help="file that keeps the scores")
    parser.add_argument("--threads", type=int, default=1)


def tell(methods: dict[str, Method], folder: Path | None, part: str, given: argparse.Namespace) -> None:
    """Score the methods, print the table, and keep it where `--json` says so."""
    scores = table(methods, frames_of(folder, part, given.most, tuple(given.kinds)))
    print(printed(scores))
    if given.json:
        kept(scores, given.json)


def shipped() -> dict[str, Method]:
    """What a fresh checkout can score: what trains nothing, and the networks whose weights ship."""
    found = {"fit": fitted(), "moved": moved, "modes": modes()}
    found["cddpm-2d"] = diffusion(pretrained.load("cddpm-2d", kind=ConditionalDiffusion))
    found["cddpm-2d-published"] = published()
    return found | {name: rival(pretrained.load(name, kind=kind)) for name, kind in RIVALS.items()}


def chosen(methods: dict[str, Method], only: Sequence[str] | None) -> dict[str, Method]:
    """The methods of these names; None: all but SLOW."""
    return {name: method for name, method in methods.items() if (name in only if only else name not in SLOW)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of the reference; none: the file that ships")
    parser.add_argument("--part", choices=["dev", "test", "held"], default="dev")
    parser.add_argument("--only", nargs="*", help=f"names of methods; none: all but {', '.join(SLOW)}")
    add_arguments(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tell(chosen(shipped(), given.only), given.folder, given.part, given)


if __name__ == "__main__":
    main()
