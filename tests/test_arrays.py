"""Where a tensor is wanted, an array will do: one table for every public function and class that takes tensors.

A row is a call with good arguments. The names of those that are tensors stand in its keywords; the tests replace
them by arrays of numpy, and by what is no array of numbers. A public function without a row fails the last test.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import smlmtut
from smlmtut import evaluation
from smlmtut.estimation import closed_forms, fisher, fit, likelihood, spots
from smlmtut.evaluation import against_exact, calibration, localization, proper_scores
from smlmtut.imaging import blinking, kde, scenes, simulate, structures
from smlmtut.imaging.camera import Camera, expose, saturated, to_photoelectrons
from smlmtut.imaging.psf import PSF, Emitters, expected_photons, pixel_integral, pixel_integral_gradient, rate_gradient
from smlmtut.networks.deepstorm import DeepSTORM, estimate_kde, network_input
from smlmtut.posterior import convergence, many, one

LONGEST = 300  # characters of a message
anything: Any = lambda x: x  # noqa: E731  for a type checker: annotations name the tensors, not all that is taken


@dataclass(frozen=True)
class Row:
    """name: module.function. call: with the arrays of `arrays` by keyword.

    anything: arrays of any rank do. truth: arrays of truth values do. optional: None is a default.
    array: the result for an array is an array, as that for a tensor is a tensor.
    """

    name: str
    call: Callable[..., Any]
    arrays: dict[str, Tensor]
    anything: tuple[str, ...] = ()
    truth: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    array: bool = False


ROWS: list[Row] = []


def row(name: str, call: Callable[..., Any], arrays: dict[str, Tensor], **more: Any) -> None:
    ROWS.append(Row(name, call, arrays, **more))


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(*shape: int, low: float = 0.5, high: float = 2.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=dice(len(shape)), dtype=torch.float64)


CAMERA = Camera(2.0, 100.0, 5.0, saturation=180.0)
MAPS = Camera(some(9, 9), 100.0, some(9, 9))
ROUND = PSF(1.0)
TWO = Emitters(some(2, 3, low=2, high=6), some(2, 3, low=2, high=6), some(2, 3, low=200, high=900))
CHAINS: dict[str, Any] = {"chains": 2, "draws": 4, "thin": 1, "burn_in": 2}
DEEPSTORM = DeepSTORM(4, (1,), (4, 4), 1)
FRAMES = simulate.frames(Emitters.single(4, 4, 500.0), ROUND, Camera(), (9, 9), 5.0, dice()).round()
ADU = (2 * FRAMES + 100).expand(2, 9, 9).contiguous()
GRID = one.grid_posterior(FRAMES[0])
DRAWS = many.chain_posterior(FRAMES, [0.5, 0.5], dice(), **CHAINS)
THETA = GRID.sample(3, dice())
X, RATE, NOISE = some(4, low=100, high=120), some(4, low=1, high=9), some(9, 9)

# -- imaging -----------------------------------------------------------------------------------------------
row(
    "psf.Emitters",
    Emitters,
    {"u": TWO.u, "v": TWO.v, "photons": TWO.photons, "present": TWO.mask},
    truth=("present",),
    optional=("present",),
)
row(
    "psf.PSF",
    lambda sigma, sigma_v: pixel_integral(TWO.u, PSF(sigma, sigma_v).sigma, 5),
    {"sigma": some(2, 3), "sigma_v": some(2, 3)},
    anything=("sigma", "sigma_v"),
    optional=("sigma_v",),
)
for function in (pixel_integral, pixel_integral_gradient):
    row(
        f"psf.{function.__name__}",
        partial(function, size=5),
        {"position": TWO.u, "sigma": some(2, 3)},
        anything=("position",),
    )
row("psf.expected_photons", partial(expected_photons, TWO, ROUND, (9, 9)), {"background": NOISE})
row("psf.rate_gradient", lambda sigma: rate_gradient(TWO, PSF(sigma), (9, 9)), {"sigma": some(2, 3)})
maps = {name: some(9, 9) for name in ("gain", "offset", "read_variance")}
row("camera.Camera", Camera, maps)
row(
    "camera.Camera.crops",
    lambda rows, columns: MAPS.crops(rows, columns, (3, 3)),
    {"rows": torch.tensor([0, 2]), "columns": torch.tensor([1, 6])},
)
row("camera.expose", lambda rate: expose(rate, CAMERA, dice()), {"rate": some(2, 9, 9)}, anything=("rate",))
row("camera.to_photoelectrons", partial(to_photoelectrons, camera=CAMERA), {"adu": ADU}, anything=("adu",))
row("camera.saturated", partial(saturated, camera=CAMERA), {"adu": ADU}, anything=("adu",))
row("kde.to_super_resolved", kde.to_super_resolved, {"position": TWO.u}, anything=("position",), array=True)
row("kde.to_camera", kde.to_camera, {"index": TWO.u}, anything=("index",), array=True)
row(
    "kde.kde_image",
    partial(kde.kde_image, TWO, (9, 9)),
    {"weights": TWO.photons},
    truth=("weights",),
    optional=("weights",),
)
row("kde.to_coordinates", kde.to_coordinates, {"y": kde.kde_image(TWO, (9, 9))})
row(
    "kde.render",
    partial(kde.render, shape=(9, 9)),
    {"u": TWO.u[0], "v": TWO.v[0], "sd": some(3)},
    optional=("sd",),
)
row(
    "simulate.frames",
    lambda background: simulate.frames(TWO, ROUND, CAMERA, (9, 9), background, dice()),
    {"background": some(2, 9, 9)},
)
row(
    "simulate.emitter_pair",
    lambda separation, angle: simulate.emitter_pair(separation, (4.0, 4.0), 100.0, angle),
    {"separation": some(2), "angle": some(2)},
)
row("simulate.flat_fields", lambda levels: simulate.flat_fields(levels, 2, CAMERA, (4, 4), dice()), {"levels": some(3)})
row(
    "blinking.blink",
    lambda u, v: blinking.blink(u, v, blinking.Kinetics(), 100, dice()),
    {"u": TWO.u[0], "v": TWO.v[0]},
)
for layout in structures.NAMES:
    row(
        "structures.draw",
        lambda per_pixel, layout=layout: structures.draw(layout, per_pixel, (9, 9), dice()),
        {"per_pixel": some(2, high=0.6)},
    )
row(
    "scenes.draw_positions",
    lambda per_pixel: scenes.draw_positions(scenes.Scene(), per_pixel, (9, 9), dice()),
    {"per_pixel": some(2, high=0.6)},
)

# -- estimation --------------------------------------------------------------------------------------------
for function in (
    likelihood.exact_log_likelihood,
    likelihood.exact_score,
    likelihood.surrogate_log_likelihood,
    likelihood.surrogate_score,
    likelihood.deviance,
):
    name = f"likelihood.{function.__name__}"
    row(name, partial(function, camera=CAMERA), {"x": X, "rate": RATE}, anything=("x", "rate"))
row("likelihood.surrogate_counts", partial(likelihood.surrogate_counts, camera=CAMERA), {"x": X}, anything=("x",))
for function in (fisher.surrogate_pixel_information, fisher.exact_pixel_information):
    row(f"fisher.{function.__name__}", partial(function, camera=CAMERA), {"rate": RATE}, anything=("rate",))
GRADIENT = rate_gradient(Emitters.single(4, 4, 500.0), ROUND, (9, 9))
row("fisher.fisher_information", fisher.fisher_information, {"gradient": GRADIENT, "pixel_information": NOISE})
row("fisher.bound", fisher.bound, {"information": fisher.fisher_information(GRADIENT, NOISE)})
row("fisher.localization_bound", partial(fisher.localization_bound, TWO, ROUND, CAMERA, (9, 9)), {"background": NOISE})
for form in (
    closed_forms.thompson,
    closed_forms.mortensen_least_squares,
    closed_forms.mortensen_mle,
    closed_forms.rieger_stallinga,
):
    names = ("photons", "sigma", "background", "pixel")
    row(f"closed_forms.{form.__name__}", form, {name: some(3) for name in names}, anything=names)
START = fit.first_guess(FRAMES, 1.0, False)
row("fit.first_guess", partial(fit.first_guess, sigma=1.0, fit_sigma=True), {"spots": FRAMES})
row("fit.fit_spots", fit.fit_spots, {"spots": FRAMES, "read_variance": NOISE, "start": START}, optional=("start",))
row("spots.find_spots", spots.find_spots, {"frames": FRAMES})
row("spots.cut_spots", partial(spots.cut_spots, size=5), {"frames": FRAMES, "found": torch.tensor([[0, 4, 4]])})

# -- posterior ---------------------------------------------------------------------------------------------
row("one.grid_posterior", one.grid_posterior, {"frame": FRAMES[0], "read_variance": NOISE})
row("one.Posterior.cdf", partial(GRID.cdf, "photons"), {"value": some(2, low=300, high=700)}, anything=("value",))
row("one.Posterior.log_density", GRID.log_density, {"theta": THETA})
row(
    "many.chain_posterior",
    lambda frames, counts, read_variance: many.chain_posterior(frames, counts, dice(), read_variance, **CHAINS),
    {"frames": FRAMES, "counts": torch.tensor([0.5, 0.5], dtype=torch.float64), "read_variance": NOISE},
)
row(
    "many.Draws.credible_level",
    partial(DRAWS.credible_level, Emitters.single(4, 4, 500.0)),
    {"background": torch.tensor([5.0]), "sigma": torch.tensor([1.0])},
)
row("convergence.split_r_hat", convergence.split_r_hat, {"draws": some(2, 3, 20)}, anything=("draws",))
row("convergence.effective_size", convergence.effective_size, {"draws": some(2, 3, 20)}, anything=("draws",))

# -- evaluation --------------------------------------------------------------------------------------------
SAMPLES, TRUTH, MEAN = some(2, 5, 4), some(2, 4), some(2, 4, low=0, high=0.1)
scored = {"samples": SAMPLES, "truth": TRUTH}
row("calibration.pixel_class", calibration.pixel_class, {"mean": MEAN}, anything=("mean",))
row("calibration.strata", calibration.strata, scored | {"mean": MEAN})
row("calibration.ranks", lambda samples, truth: calibration.ranks(samples, truth, dice()), scored)
row("calibration.covered", partial(calibration.covered, level=0.5), scored)
row("calibration.coverage", calibration.coverage, scored)
row("calibration.spread_skill", calibration.spread_skill, scored)
row(
    "calibration.predicted_sd",
    calibration.predicted_sd,
    {"exact_sd": TRUTH, "estimate_error": MEAN, "where": TRUTH > 1},
    truth=("where",),
    optional=("where",),
)
row("calibration.sparsification", calibration.sparsification, {"sd": TRUTH, "error": MEAN})
row("calibration.summary", calibration.summary, scored | {"mean": MEAN})
row("proper_scores.crps", proper_scores.crps, scored)
row("proper_scores.energy_score", proper_scores.energy_score, scored)
row(
    "proper_scores.crps_normal",
    proper_scores.crps_normal,
    {"mean": MEAN, "sd": TRUTH, "truth": TRUTH},
    anything=("truth",),
)
row("proper_scores.crps_point", proper_scores.crps_point, {"estimate": MEAN, "truth": TRUTH}, anything=("truth",))
KDES, NUMBERS = some(2, 5, 8, 8), torch.tensor([[0, 1, 1], [2, 1, 0]])
two_kinds = {"samples": SAMPLES, "exact": some(2, 5, 4, low=0)}
row("against_exact.energy_regret", against_exact.energy_regret, two_kinds)
row(
    "against_exact.crps_regret",
    against_exact.crps_regret,
    two_kinds | {"where": TRUTH > 1},
    truth=("where",),
    optional=("where",),
)
row(
    "against_exact.log_error_bar",
    against_exact.log_error_bar,
    {"samples": SAMPLES, "exact_sd": TRUTH, "where": TRUTH > 0},
    truth=("where",),
)
row("against_exact.peak_counts", partial(against_exact.peak_counts, factor=4, sigma=1.0), {"samples": KDES})
row("against_exact.summary_vector", partial(against_exact.summary_vector, factor=4, sigma=1.0), {"samples": KDES})
row(
    "against_exact.count_log_loss", partial(against_exact.count_log_loss, most=3), {"counts": NUMBERS, "exact": NUMBERS}
)
row(
    "against_exact.two_sample_accuracy",
    partial(against_exact.two_sample_accuracy, classifier=LogisticRegression()),
    {"samples": some(4, 5, 2), "exact": some(4, 6, 2, low=0)},
)
FOUND = {"frame": torch.tensor([0, 0, 1]), "u": some(3), "v": some(3)}
POINTS = localization.Points(**FOUND)
row(
    "localization.match",
    lambda frame, u, v: localization.match(localization.Points(frame, u, v), POINTS, 100.0),
    FOUND,
)
row(
    "localization.score",
    lambda frame, u, v: localization.score(POINTS, localization.Points(frame, u, v), 100.0, (9, 9)),
    FOUND,
)
row(
    "localization.inside",
    lambda frame, u, v: localization.match(
        localization.inside(localization.Points(frame, u, v), (9, 9), 100.0, 50.0), POINTS, 100.0
    ),
    FOUND,
)

# -- networks ----------------------------------------------------------------------------------------------
row("deepstorm.estimate_kde", partial(estimate_kde, DEEPSTORM, camera=CAMERA), {"adu": ADU})
row("deepstorm.network_input", network_input, {"electrons": FRAMES[:, None], "read_variance": NOISE})


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, type by type; NaN equals NaN."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9))
    if is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "to_dict"):
        return same(a.to_dict(), b.to_dict())
    return type(a) is type(b) and (a == b or a != a)


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


FORMS = {
    "as it is": lambda x: x,
    "read-only": read_only,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "backwards": lambda x: np.flip(np.flip(x).copy()),  # a view with negative strides
    "strided": lambda x: np.repeat(x, 2, -1)[..., ::2],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_an_array_gives_what_a_tensor_gives(case: Row, form: str):
    wanted = case.call(**case.arrays)
    got = case.call(**{name: FORMS[form](x.numpy()) for name, x in case.arrays.items()})
    assert same(wanted, torch.from_numpy(np.ascontiguousarray(got)) if case.array else got)


BAD = {
    "a text": lambda x: "far",
    "a text of a number": lambda x: "2",
    "None": lambda x: None,
    "objects": lambda x: np.full(x.shape, None),
    "complex": lambda x: x.numpy().astype(complex),
    "a complex tensor": lambda x: x.to(torch.complex64),
    "truth values": lambda x: np.ones(x.shape, bool),
    "a truth tensor": lambda x: torch.ones(x.shape, dtype=torch.bool),
    "texts": lambda x: np.full(x.shape, "2"),
    "a wrong rank": lambda x: x.numpy().reshape(1, 1, 1, 1, *x.shape),
    "unequal rows": lambda x: [[1.0, 2.0], [3.0]],
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in ROWS for name in case.arrays], ids=lambda x: getattr(x, "name", x)
)
def test_what_is_no_array_of_numbers_is_refused_by_name(case: Row, name: str, bad: str):
    allowed = {
        "a wrong rank": case.anything,
        "None": case.optional,
        "truth values": case.truth,
        "a truth tensor": case.truth,
    }
    given = BAD[bad](case.arrays[name])
    if name in allowed.get(bad, ()):
        pytest.skip("allowed here")
    with pytest.raises(ValueError, match=rf"\b{name}\b") as error:
        case.call(**case.arrays | {name: given})
    message = str(error.value)
    assert "\n" not in message and len(message) <= LONGEST


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int32, ">u2", "<i8"])
def test_frames_of_whole_numbers_are_taken(dtype):
    frames = ADU.numpy().astype(dtype)
    as_tensor = torch.from_numpy(frames.astype(np.int64))
    wanted = to_photoelectrons(ADU.float(), CAMERA)
    assert wanted.dtype == torch.float32
    for x in map(anything, (frames, frames.tolist(), torch.from_numpy(frames.astype(frames.dtype.newbyteorder("="))))):
        assert torch.equal(to_photoelectrons(x, CAMERA), wanted)
        assert torch.equal(saturated(x, CAMERA), saturated(as_tensor, CAMERA))
        assert torch.equal(spots.find_spots(x), spots.find_spots(as_tensor))
        assert torch.equal(spots.cut_spots(x, anything(np.array([[0, 4, 4]])), 5)[0].double(), ADU[:1, 2:7, 2:7])
        assert torch.equal(estimate_kde(DEEPSTORM, x, CAMERA), estimate_kde(DEEPSTORM, ADU, CAMERA))


def test_the_least_and_largest_unsigned_numbers_keep_their_value():
    for dtype in (np.uint16, np.uint32):
        ends = anything(np.array([[0, np.iinfo(dtype).max]], dtype))
        assert saturated(ends, Camera(saturation=float(ends.max()))).tolist() == [[False, True]]
    assert float(to_photoelectrons(anything(np.array([65535], np.uint16)), Camera())) == 65535


def test_a_table_gives_its_columns():
    import pandas as pd

    table = anything(pd.DataFrame({"frame": [0, 0, 1], "u": [3.0, 4.0, 5.0], "v": [3.0, 3.0, 3.0]}))
    assert len(evaluation.match(table, table, 100.0)) == 3
    assert float(kde.render(table.u, table.v, (9, 9)).sum()) == 3
    assert Emitters(table[["u"]], table[["v"]], table[["frame"]]).u.shape == (3, 1)


def test_whole_numbers_make_emitters_in_float64_and_photons_take_the_type_of_u():
    whole = Emitters(anything([[3]]), anything(np.array([[4]])), anything(np.array([[500]])))
    assert same(expected_photons(whole, ROUND, (7, 7)), expected_photons(Emitters.single(3, 4, 500), ROUND, (7, 7)))
    mixed = Emitters(*map(anything, (np.array([[3]], np.float32), np.array([[4]]), np.array([[500.0]]))))
    assert {x.dtype for x in (mixed.u, mixed.v, mixed.photons)} == {torch.float32}
    assert expected_photons(mixed, ROUND, (7, 7)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "call"),
    {
        "spots": lambda x: fit.fit_spots(x),
        "rate": lambda x: expose(x, Camera(), dice()),
        "gain": lambda x: Camera(x[0]),
        "u": lambda x: Emitters(x[0], x[0], x[0]),
        "photons": lambda x: Emitters(x[0].double(), x[0].double(), x[0]),
        "position": lambda x: pixel_integral(x[0], 1.0, 5),
        "y": lambda x: kde.to_coordinates(x[:, None]),
        "per_pixel": lambda x: structures.draw("rings", x[0, 0], (9, 9), dice()),
    }.items(),
)
def test_half_precision_is_refused_where_the_arithmetic_would_be_in_it(name, call, dtype):
    with pytest.raises(ValueError, match=f"{name} must be float32 or float64, got {dtype}"):
        call((FRAMES.clamp(min=1) / 8).to(dtype).reshape(1, 9, 9)[:, :8, :8])


# -- the table is complete -----------------------------------------------------------------------------------
# Modules that the rooms use inside; their callers have checked the arguments.
INNER = {
    "estimation.mixture", "posterior.search", "posterior.grid", "posterior.integral", "posterior.chains",
    "posterior.moves", "posterior.proposals", "posterior.sweeps",
}  # fmt: skip
# Functions that loops call, and which say that they check nothing, or that are checks themselves.
UNCHECKED = {
    "psf.present_mask", "psf.pixel_integral_fast", "psf.pixel_factors", "psf.background_image", "kde.kernel",
    "camera.check_frame_size", "camera.Camera.as_tensors", "proper_scores.parts", "proper_scores.joined",
    "proper_scores.ensemble", "proper_scores.on_host", "against_exact.bootstrap_error",
}  # fmt: skip
RESULTS = {  # dataclasses that functions return, or that hold what their user checks
    "blinking.Flashes", "scenes.FrameBatch", "kde.Peaks", "fit.Fit", "one.Posterior", "many.Diagnostics", "many.Draws",
    "localization.Pairs", "calibration.Sparsification", "against_exact.Regret",
}  # fmt: skip
WORDS = ("Tensor", "Array", "Value", "Coordinate", "Positions")


def takes_tensors(function: Callable[..., Any]) -> bool:
    given = [p.annotation for name, p in inspect.signature(function).parameters.items() if name != "self"]
    return any(word in str(annotation) for annotation in given for word in WORDS)


def public() -> set[str]:
    """module.function, module.Class and module.Class.method of all that takes tensors, in four rooms."""
    found = set()
    for room in ("imaging", "estimation", "posterior", "evaluation"):
        face = import_module(f"smlmtut.{room}")
        for module in sorted(path.stem for path in Path(face.__path__[0]).glob("[a-z]*.py")):
            if f"{room}.{module}" in INNER:
                continue
            for name, thing in vars(import_module(f"smlmtut.{room}.{module}")).items():
                if name.startswith("_") or getattr(thing, "__module__", "") != f"smlmtut.{room}.{module}":
                    continue
                if not callable(thing) or not hasattr(thing, "__name__"):
                    continue
                if takes_tensors(thing):
                    found.add(f"{module}.{name}")
                if isinstance(thing, type):
                    methods = [(key, f) for key, f in vars(thing).items() if inspect.isfunction(f) and key[0] != "_"]
                    found |= {f"{module}.{name}.{key}" for key, f in methods if takes_tensors(f)}
    return found


def test_every_public_function_that_takes_tensors_has_a_row():
    rows = {case.name for case in ROWS}
    assert public() - UNCHECKED - RESULTS <= rows, sorted(public() - UNCHECKED - RESULTS - rows)
    assert public() >= UNCHECKED | RESULTS, sorted((UNCHECKED | RESULTS) - public())


def test_every_tensor_of_a_function_is_in_its_row():
    """A new argument needs a place in the table too."""
    missing = []
    for case in ROWS:
        module, _, name = case.name.partition(".")
        rooms = [import_module(f"smlmtut.{room}") for room in smlmtut.ROOMS]
        home = next(room for room in rooms if (Path(room.__path__[0]) / f"{module}.py").exists())
        thing: Any = import_module(f"{home.__name__}.{module}")
        for part in name.split("."):
            thing = getattr(thing, part)
        for key, parameter in inspect.signature(thing).parameters.items():
            words = [word for word in ("Tensor", "Array") if word in str(parameter.annotation)]
            if words and key not in case.arrays:
                missing.append(f"{case.name}: {key}")
    assert not missing
