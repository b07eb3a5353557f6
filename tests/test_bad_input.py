"""Every bad input gets a ValueError that names the argument and the value: one table for the whole package.

A row is: what is wrong; the call; what the message must contain, first the argument's name (or the file's),
then the value or the words for it. Calls get an empty folder for their files.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from smlmtut import data, figures, io, notebook
from smlmtut._validate import between, finite, positive
from smlmtut.estimation import closed_forms, fisher, fit, likelihood, spots
from smlmtut.evaluation.calibration import ranks
from smlmtut.imaging import blinking, kde, scenes, simulate
from smlmtut.imaging.camera import Camera, expose, saturated, to_photoelectrons
from smlmtut.imaging.psf import PSF, Emitters, expected_photons, pixel_integral, rate_gradient
from smlmtut.networks import pretrained
from smlmtut.networks.deepstorm import estimate_kde
from smlmtut.posterior import many

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Case:
    name: str
    call: Callable[[Path], object]
    says: tuple[str, ...]


CASES: list[Case] = []


def case(name: str, call: Callable[[Path], object], *says: str) -> None:
    CASES.append(Case(name, call, says))


def filled(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, value, dtype=torch.float64)


def spoiled(value: float, *shape: int) -> torch.Tensor:
    """Ones with one entry replaced."""
    x = filled(1.0, *shape)
    x.view(-1)[-1] = value
    return x


ONE = Emitters.single(3.0, 3.0, 300.0)
TWO_ALIKE = Emitters(filled(3.0, 1, 2), filled(3.0, 1, 2), filled(300.0, 1, 2))
ROUND = PSF(1.0)
MAPS = Camera(filled(2.0, 8, 8), 100.0, 5.0)
NOISY = Camera(2.0, 100.0, 5.0)


def dice() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# -- psf ---------------------------------------------------------------------------------------------------
case("zero sigma", lambda _: PSF(0.0), "sigma", "positive", "got 0")
case("negative sigma_v", lambda _: PSF(1.0, -2.0), "sigma_v", "positive", "got -2")
case("NaN sigma", lambda _: PSF(NAN), "sigma", "finite", "got nan")
case("one bad sigma of many", lambda _: PSF(spoiled(-1, 2, 3)), "sigma", "got -1", "(1, 2)", "1 of 6")
case("NaN position", lambda _: Emitters.single(NAN, 1, 1), "u", "finite", "got nan")
case("infinite position", lambda _: Emitters.single(1, INF, 1), "v", "finite", "got inf")
case("negative photons", lambda _: Emitters.single(1, 1, -5), "photons", "not negative", "got -5")
case("positions of rank 1", lambda _: Emitters(*[filled(1, 3)] * 3), "u", "2 dimensions", "(3,)")
case("unequal shapes", lambda _: Emitters(filled(1, 1, 2), filled(1, 1, 3), filled(1, 1, 2)), "v", "(1, 2)", "(1, 3)")
case("a list of positions", lambda _: Emitters([1.0], filled(1, 1, 1), filled(1, 1, 1)), "u", "dimensions", "(1,)")  # type: ignore[arg-type]
case("words as sigma", lambda _: PSF("1"), "sigma", "numbers", "'1'")  # type: ignore[arg-type]
case("sigma True", lambda _: PSF(True), "sigma", "numbers", "bool")
case("sigmas for other emitters", lambda _: expected_photons(ONE, PSF(filled(1, 3)), (5, 5)), "sigma", "(1, 1)", "(3,)")
case("a side for a shape", lambda _: expected_photons(ONE, ROUND, 11), "shape", "(height, width)", "got 11")  # type: ignore[arg-type]
case("a word for a shape", lambda _: expected_photons(ONE, ROUND, "ab"), "shape", "whole", "'a'")  # type: ignore[arg-type]
case("no shape", lambda _: expected_photons(ONE, ROUND, None), "shape", "(height, width)", "None")  # type: ignore[arg-type]
case("arguments exchanged", lambda _: expected_photons(ROUND, ONE, (5, 5)), "psf", "PSF", "Emitters(")  # type: ignore[arg-type]
HUGE = (10**7, 10**7)  # 8e14 bytes
case("huge frames", lambda _: expected_photons(ONE, ROUND, HUGE), "shape", "memory", "(10000000, 10000000)")
case("huge gradients", lambda _: rate_gradient(ONE, ROUND, HUGE), "shape", "memory", "(10000000, 10000000)")
case("huge KDEs", lambda _: kde.kde_image(ONE, HUGE), "shape", "memory", "(10000000, 10000000)")
case("huge renderings", lambda _: kde.render([1.0], [1.0], HUGE, sd=1.0), "shape", "memory", "(10000000, 10000000)")
case("huge histograms", lambda _: kde.render([1.0], [1.0], HUGE), "shape", "memory", "(10000000, 10000000)")
case("endless frames", lambda _: expected_photons(ONE, ROUND, (10**30, 5)), "shape", "memory", "10000")
case("emitters to nowhere", lambda _: ONE.to("gpu0"), "device", "cpu", "'gpu0'")
case("emitters to no numbers", lambda _: ONE.to("meta"), "device", "cpu", "'meta'")
case(
    "present of integers",
    lambda _: replace(ONE, present=torch.ones(1, 1)),
    "present",
    "bool",
    "float32",
)
case("an empty frame", lambda _: expected_photons(ONE, ROUND, (0, 5)), "shape[0]", "at least 1", "got 0")
case("a frame of rank 3", lambda _: expected_photons(ONE, ROUND, (1, 2, 3)), "shape", "(1, 2, 3)")  # type: ignore[arg-type]
case("half a pixel", lambda _: expected_photons(ONE, ROUND, (5, 2.5)), "shape[1]", "whole", "2.5")  # type: ignore[arg-type]
case("negative background", lambda _: expected_photons(ONE, ROUND, (5, 5), -1.0), "background", "got -1")
case("NaN background", lambda _: expected_photons(ONE, ROUND, (5, 5), NAN), "background", "got nan")
case("wrong background", lambda _: expected_photons(ONE, ROUND, (5, 5), filled(1, 4, 5)), "background", "(4, 5)")
case("no pixels", lambda _: pixel_integral(filled(1, 1), 1.0, 0), "size", "at least 1", "got 0")
case("unknown parameter", lambda _: rate_gradient(ONE, ROUND, (5, 5), ("u", "z")), "parameters", "'z'")
case("background not last", lambda _: rate_gradient(ONE, ROUND, (5, 5), ("background", "u")), "parameters", "last")
case("sigma and sigma_u", lambda _: rate_gradient(ONE, ROUND, (5, 5), ("sigma", "sigma_u")), "parameters", "sigma_u")

# -- camera ------------------------------------------------------------------------------------------------
case("zero gain", lambda _: Camera(gain=0.0), "gain", "positive", "got 0")
case("one dead pixel in the gain", lambda _: Camera(spoiled(0, 4, 4)), "gain", "got 0", "(3, 3)", "1 of 16")
case("negative variance", lambda _: Camera(read_variance=-1.0), "read_variance", "got -1")
case("NaN offset", lambda _: Camera(offset=NAN), "offset", "finite", "got nan")
case("maps of two sizes", lambda _: Camera(filled(1, 4, 4), filled(1, 5, 4)), "gain", "offset", "(4, 4)", "(5, 4)")
case("a map of rank 4", lambda _: Camera(filled(1, 1, 2, 3, 4)), "gain", "dimensions", "(1, 2, 3, 4)")
case("efficiency above 1", lambda _: Camera(quantum_efficiency=1.2), "quantum_efficiency", "got 1.2")
case("efficiency 0", lambda _: Camera(quantum_efficiency=0.0), "quantum_efficiency", "got 0")
case("saturation below offset", lambda _: Camera(offset=100.0, saturation=90.0), "saturation", "offset", "90")
case("a gain in a list", lambda _: Camera(gain=[1, 2]), "gain", "dimensions", "(2,)")  # type: ignore[arg-type]
case("unequal rows of gains", lambda _: Camera(gain=[[1, 2], [3]]), "gain", "array", "[[1, 2], [3]]")  # type: ignore[arg-type]
case("gain True", lambda _: Camera(gain=True), "gain", "numbers", "bool")
case("a map of truth values", lambda _: Camera(offset=torch.ones(4, 4) > 0), "offset", "numbers", "bool")
case("a word as gain", lambda _: Camera(gain="2"), "gain", "numbers", "got '2'")  # type: ignore[arg-type]
case("no gain", lambda _: Camera(gain=None), "gain", "numbers", "None")  # type: ignore[arg-type]
case("two efficiencies", lambda _: Camera(quantum_efficiency=filled(1, 2)), "quantum_efficiency", "single", "(2,)")  # type: ignore[arg-type]
case("two saturations", lambda _: Camera(saturation=filled(9, 2)), "saturation", "single", "(2,)")  # type: ignore[arg-type]
case("a camera to nowhere", lambda _: MAPS.to("gpu0"), "device", "cpu", "'gpu0'")
case("half a row", lambda _: MAPS.crops(np.array([0.5]), np.array([1]), (2, 2)), "rows", "whole", "0.5")  # type: ignore[arg-type]
case("light beyond counting", lambda _: expose(filled(1e30, 8, 8), MAPS, dice()), "rate", "4e+09", "got 1e+30")
case("light just beyond counting", lambda _: expose(filled(4.1e9, 2, 2), NOISY, dice()), "rate", "4e+09", "4.1e+09")
case("no camera", lambda _: expose(filled(1, 8, 8), None, dice()), "camera", "Camera", "None")  # type: ignore[arg-type]
case("crop beyond the sensor", lambda _: MAPS.crop(4, 0, (5, 8)), "row 4", "(5, 8)", "(8, 8)")
case("crop before the sensor", lambda _: MAPS.crop(-1, 0, (2, 2)), "row", "at least 0", "-1")
case("frame of another size", lambda _: expose(filled(1, 1, 7, 8), MAPS, dice()), "rate", "(8, 8)", "(1, 7, 8)")
case("negative rate", lambda _: expose(spoiled(-1, 1, 8, 8), MAPS, dice()), "rate", "not negative", "got -1")
case("whole-number rate", lambda _: expose(torch.ones(1, 8, 8).long(), MAPS, dice()), "rate", "float", "int64")
case("NaN in a frame", lambda _: to_photoelectrons(spoiled(NAN, 8, 8), MAPS), "adu", "finite", "got nan")
case("ADU of another size", lambda _: to_photoelectrons(filled(1, 8, 9), MAPS), "adu", "(8, 8)", "(8, 9)")

# -- likelihood --------------------------------------------------------------------------------------------
for function in (
    likelihood.exact_log_likelihood,
    likelihood.exact_score,
    likelihood.surrogate_log_likelihood,
    likelihood.surrogate_score,
    likelihood.deviance,
):
    label = function.__name__
    case(f"{label}: NaN x", lambda _, f=function: f(spoiled(NAN, 3), 1.0, NOISY), "x", "finite", "got nan")
    case(f"{label}: negative rate", lambda _, f=function: f(100.0, -2.0, NOISY), "rate", "not negative", "got -2")
    case(f"{label}: sizes", lambda _, f=function: f(filled(1, 3), filled(1, 4), NOISY), "x (3,)", "rate (4,)")
case("counts of NaN", lambda _: likelihood.surrogate_counts(NAN, NOISY), "x", "finite", "got nan")
case(
    "no read noise",
    lambda _: likelihood.exact_log_likelihood(3.0, 1.0, Camera()),
    "read_variance",
    "positive",
    "got 0",
)
case(
    "no tolerance",
    lambda _: likelihood.exact_log_likelihood(3.0, 1.0, NOISY, 0.0),
    "tolerance",
    "got 0",
)

# -- fisher ------------------------------------------------------------------------------------------------
case("information of a negative rate", lambda _: fisher.surrogate_pixel_information(-1.0, NOISY), "rate", "got -1")
case("information of a NaN rate", lambda _: fisher.exact_pixel_information(NAN, NOISY), "rate", "got nan")
case(
    "gradient of rank 3",
    lambda _: fisher.fisher_information(filled(1, 2, 3, 3), filled(1, 3, 3)),
    "gradient",
    "(2, 3, 3)",
)
case(
    "information of another size",
    lambda _: fisher.fisher_information(filled(1, 1, 2, 3, 3), filled(1, 3, 4)),
    "pixel_information",
    "(3, 4)",
)
case(
    "negative information",
    lambda _: fisher.fisher_information(filled(1, 1, 2, 3, 3), spoiled(-1, 3, 3)),
    "pixel_information",
    "negative",
)
case("singular", lambda _: fisher.bound(filled(1, 2, 2)), "information", "singular")
case("no information", lambda _: fisher.bound(torch.zeros(2, 2)), "information", "singular", "parameter 0")
case("not square", lambda _: fisher.bound(filled(1, 2, 3)), "information", "square", "(2, 3)")
case("not symmetric", lambda _: fisher.bound(torch.tensor([[2.0, 1], [0, 2]])), "information", "symmetric")
case(
    "two emitters in one place",
    lambda _: fisher.localization_bound(TWO_ALIKE, ROUND, NOISY, (7, 7), 5.0),
    "information",
    "singular",
    "two emitters",
)
for form in (
    closed_forms.thompson,
    closed_forms.mortensen_least_squares,
    closed_forms.mortensen_mle,
    closed_forms.rieger_stallinga,
):
    label = form.__name__
    case(f"{label}: no photons", lambda _, f=form: f(0.0, 1.0), "photons", "positive", "got 0")
    case(f"{label}: negative background", lambda _, f=form: f(100.0, 1.0, -1.0), "background", "got -1")

# -- fit ---------------------------------------------------------------------------------------------------
case("spots of rank 2", lambda _: fit.fit_spots(filled(1, 7, 7)), "spots", "3 dimensions", "(7, 7)")
case("spots of integers", lambda _: fit.fit_spots(torch.ones(1, 7, 7).int()), "spots", "float", "int32")
case("spots too small", lambda _: fit.fit_spots(filled(1, 1, 2, 7)), "spots", "at least 3", "2 × 7")
case("NaN in a spot", lambda _: fit.fit_spots(spoiled(NAN, 2, 7, 7)), "spots", "finite", "got nan")
case("negative counts", lambda _: fit.fit_spots(spoiled(-3, 1, 7, 7)), "spots", "negative", "got -3")
case("zero start sigma", lambda _: fit.fit_spots(filled(1, 1, 7, 7), sigma=0.0), "sigma", "got 0")
case(
    "negative read variance",
    lambda _: fit.fit_spots(filled(1, 1, 7, 7), read_variance=-1.0),
    "read_variance",
    "got -1",
)
case(
    "read variance of another size",
    lambda _: fit.fit_spots(filled(1, 1, 7, 7), read_variance=filled(1, 5, 5)),
    "read_variance",
    "(5, 5)",
)
case("two sigmas", lambda _: fit.fit_spots(filled(1, 1, 7, 7), sigma=filled(1, 2)), "sigma", "single", "(2,)")  # type: ignore[arg-type]
case("a fit nowhere", lambda _: fit.fit_spots(filled(1, 1, 7, 7), device="gpu0"), "device", "cpu", "'gpu0'")
case("two widths to find", lambda _: spots.find_spots(filled(1, 1, 9, 9), filled(1, 2)), "sigma", "single", "(2,)")  # type: ignore[arg-type]
case("half a spot", lambda _: spots.cut_spots(filled(1, 1, 9, 9), filled(0.5, 1, 3), 5), "found", "whole", "0.5")
case("a start too short", lambda _: fit.fit_spots(filled(1, 1, 7, 7), start=filled(1, 1, 3)), "start", "(1, 3)")
case("a start of NaN", lambda _: fit.fit_spots(filled(1, 1, 7, 7), start=spoiled(NAN, 1, 4)), "start", "got nan")
case("no chunk", lambda _: fit.fit_spots(filled(1, 1, 7, 7), chunk=0), "chunk", "at least 1", "got 0")
case("no tolerance in a fit", lambda _: fit.fit_spots(filled(1, 1, 7, 7), tolerance=0.0), "tolerance", "got 0")
case("no iterations", lambda _: fit.fit_spots(filled(1, 1, 7, 7), max_iterations=0), "max_iterations", "got 0")
case("find in NaN", lambda _: spots.find_spots(spoiled(NAN, 1, 9, 9)), "frames", "finite", "got nan")
case("find in one frame", lambda _: spots.find_spots(filled(1, 9, 9)), "frames", "3 dimensions", "(9, 9)")
case("find in no frame", lambda _: spots.find_spots(filled(1, 0, 9, 9)), "frames", "(0, 9, 9)")
case("no threshold", lambda _: spots.find_spots(filled(1, 1, 9, 9), threshold=0.0), "threshold", "got 0")
case("all border", lambda _: spots.find_spots(filled(1, 1, 9, 9), border=5), "border", "5", "(1, 9, 9)")
case(
    "an even window",
    lambda _: spots.cut_spots(filled(1, 1, 9, 9), torch.zeros(1, 3).long(), 4),
    "size",
    "odd",
    "got 4",
)
case(
    "a spot outside the frame",
    lambda _: spots.cut_spots(filled(1, 1, 9, 9), torch.tensor([[0, 3, 9]]), 5),
    "column",
    "[0, 8]",
    "9",
)

# -- kde and simulate --------------------------------------------------------------------------------------
case("kernel of no width", lambda _: kde.kde_image(ONE, (8, 8), sigma=0.0), "sigma", "positive", "got 0")
case("two kernels", lambda _: kde.kde_image(ONE, (8, 8), sigma=filled(1, 2)), "sigma", "single", "(2,)")  # type: ignore[arg-type]
case("KDE of no emitters", lambda _: kde.kde_image(filled(1, 2, 2), (8, 8)), "emitters", "Emitters", "(2, 2)")  # type: ignore[arg-type]
case("factor 0", lambda _: kde.kde_image(ONE, (8, 8), factor=0), "factor", "at least 1", "got 0")
case("factor 2.5", lambda _: kde.kde_image(ONE, (8, 8), factor=2.5), "factor", "whole", "2.5")  # type: ignore[arg-type]
case("factor NaN", lambda _: kde.to_camera(1.0, NAN), "factor", "whole", "nan")  # type: ignore[arg-type]
case("unknown amplitude", lambda _: kde.kde_image(ONE, (8, 8), amplitude="sum"), "amplitude", "'peak'", "'sum'")
case("empty KDE", lambda _: kde.kde_image(ONE, (8, 0)), "shape[1]", "at least 1", "got 0")
case("weights of another shape", lambda _: kde.kde_image(ONE, (8, 8), weights=filled(1, 1, 2)), "weights", "(1, 2)")
case("NaN weight", lambda _: kde.kde_image(ONE, (8, 8), weights=filled(NAN, 1, 1)), "weights", "finite", "got nan")
case("render NaN", lambda _: kde.render(np.array([1, NAN]), np.ones(2), (8, 8)), "u", "finite", "got nan")
case("render unequal", lambda _: kde.render(np.ones(3), np.ones(2), (8, 8)), "v", "got 2", "3")
case("render a table's matrix", lambda _: kde.render(np.ones((2, 2)), np.ones(2), (8, 8)), "u", "(2, 2)")
case("render with sd 0", lambda _: kde.render(np.ones(2), np.ones(2), (8, 8), sd=0.0), "sd", "got 0")
case("render with one sd short", lambda _: kde.render(np.ones(3), np.ones(3), (8, 8), sd=np.ones(2)), "sd", "got 2")

disc = simulate.uniform_on_disc
frame = simulate.uniform_in_frame
case("no batch", lambda _: disc(0, 1, 5.0, (7.0, 7.0), 1.0, dice()), "batch", "at least 1", "got 0")
case("negative count", lambda _: disc(1, -1, 5.0, (7.0, 7.0), 1.0, dice()), "count", "at least 0", "-1")
case("swapped counts", lambda _: disc(1, (4, 2), 5.0, (7.0, 7.0), 1.0, dice()), "count", "(4, 2)")
case("no radius", lambda _: disc(1, 1, 0.0, (7.0, 7.0), 1.0, dice()), "radius", "positive", "got 0")
case("NaN centre", lambda _: disc(1, 1, 5.0, (7.0, NAN), 1.0, dice()), "center", "finite", "got nan")
case("centre of three", lambda _: disc(1, 1, 5.0, (1.0, 2.0, 3.0), 1.0, dice()), "center", "(1.0, 2.0, 3.0)")  # type: ignore[arg-type]
case("negative light", lambda _: disc(1, 1, 5.0, (7.0, 7.0), -1.0, dice()), "photons", "got -1")
case("swapped light", lambda _: disc(1, 1, 5.0, (7.0, 7.0), (9.0, 3.0), dice()), "photons", "(9.0, 3.0)")
case("neither count nor density", lambda _: frame(1, (8, 8), 1.0, dice()), "count", "density", "None")
case("count and density", lambda _: frame(1, (8, 8), 1.0, dice(), 2, 0.1), "count", "density", "0.1")
case("negative density", lambda _: frame(1, (8, 8), 1.0, dice(), density=-0.1), "density", "got -0.1")
case("negative separation", lambda _: simulate.emitter_pair(-1.0, (4.0, 4.0), 1.0), "separation", "got -1")
case(
    "angles of another length",
    lambda _: simulate.emitter_pair(filled(1, 3), (4.0, 4.0), 1.0, filled(1, 2)),
    "angle",
    "got 2",
)
case("negative level", lambda _: simulate.flat_fields([-1.0], 2, NOISY, (4, 4), dice()), "levels", "got -1")
case(
    "levels of rank 2",
    lambda _: simulate.flat_fields(filled(1, 2, 2), 2, NOISY, (4, 4), dice()),
    "levels",
    "(2, 2)",
)
case("flats of another size", lambda _: simulate.flat_fields([1.0], 2, MAPS, (4, 4), dice()), "(8, 8)", "4, 4)")
case(
    "simulate on maps of another size",
    lambda _: simulate.frames(ONE, ROUND, MAPS, (7, 7), 1.0, dice()),
    "(8, 8)",
    "(1, 7, 7)",
)

for label, call in {
    "frames": lambda dice: simulate.frames(ONE, ROUND, NOISY, (7, 7), 1.0, dice),
    "disc": lambda dice: disc(1, 1, 5.0, (7.0, 7.0), 1.0, dice),
    "frame": lambda dice: frame(1, (8, 8), 1.0, dice, 2),
    "density": lambda dice: frame(1, (8, 8), 1.0, dice, density=0.1),
    "flats": lambda dice: simulate.flat_fields([1.0], 2, NOISY, (4, 4), dice),
    "blinking": lambda dice: blinking.blink(filled(1, 3), filled(1, 3), blinking.Kinetics(), 9, dice),
    "batch": lambda dice: scenes.draw_batch(scenes.Scene(), 2, (8, 8), dice),
    "positions": lambda dice: scenes.draw_positions(scenes.Scene(), filled(1, 2), (8, 8), dice),
    "ranks": lambda dice: ranks(filled(1, 2, 3), filled(1, 2), dice),
    "chains": lambda dice: many.chain_posterior(filled(1, 1, 7, 7), [0.5, 0.5], dice),
}.items():
    case(f"{label} without a generator", lambda _, f=call: f(None), "generator", "Generator", "None")
    case(f"{label} with a seed", lambda _, f=call: f(0), "generator", "Generator", "got 0")
case("a side for a simulation", lambda _: simulate.frames(ONE, ROUND, NOISY, 11, 1.0, dice()), "shape", "got 11")  # type: ignore[arg-type]
case("a number as centre", lambda _: disc(1, 1, 5.0, 7.0, 1.0, dice()), "center", "two numbers", "7.0")  # type: ignore[arg-type]
case("two radii", lambda _: disc(1, 1, filled(1, 2), (7.0, 7.0), 1.0, dice()), "radius", "single", "(2,)")  # type: ignore[arg-type]

# -- networks ----------------------------------------------------------------------------------------------
case("load to nowhere", lambda _: pretrained.load("deepstorm-2d", "gpu0"), "device", "cpu", "'gpu0'")
case("load to a number", lambda _: pretrained.load("deepstorm-2d", 3.5), "device", "cpu", "3.5")  # type: ignore[arg-type]
case("load nothing", lambda _: pretrained.load(None), "name_or_path", "'deepstorm-2d'", "None")  # type: ignore[arg-type]
case("describe nothing", lambda _: pretrained.describe(None), "name_or_path", "'deepstorm-2d'", "None")  # type: ignore[arg-type]
case(
    "estimate with no network",
    lambda _: estimate_kde(None, filled(1, 1, 8, 8), NOISY),  # type: ignore[arg-type]
    "network",
    "Module",
    "None",
)
for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
    if not there:
        case(f"load to {name}", lambda _, x=name: pretrained.load("deepstorm-2d", x), "device", "cpu", f"'{name}'")
        case(
            f"fit on {name}",
            lambda _, x=name: fit.fit_spots(filled(1, 1, 7, 7), device=x),
            "device",
            "cpu",
            f"'{name}'",
        )

# -- data --------------------------------------------------------------------------------------------------
case("unknown file", lambda _: data.fetch("gains.hdf5"), "name", "'gain.hdf5'", "'gains.hdf5'")


# -- io: movies and maps -----------------------------------------------------------------------------------
def tiff(folder: Path, array: np.ndarray, photometric="minisblack", **options) -> Path:
    options["photometric"] = photometric
    tifffile.imwrite(folder / "movie.tif", array, **options)
    return folder / "movie.tif"


def text(folder: Path, name: str, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(raw)
    return folder / name


def hdf5(folder: Path, name: str, **datasets) -> Path:
    with h5py.File(folder / name, "w") as file:
        for key, value in datasets.items():
            file[key] = value
    return folder / name


def calibration(folder: Path, gain=1.0, offset=1.0, variance=1.0, shape=(3, 3)):
    values = {"gain": gain, "offset": offset, "variance": variance}
    maps = {name: spoiled(value, 3, 3).numpy() for name, value in values.items()}
    maps["offset"] = np.ones(shape) * maps["offset"][-1, -1]
    return io.read_calibration(*(hdf5(folder, f"{name}.h5", data=m) for name, m in maps.items()))


GRAY = np.ones((3, 6, 5), np.uint16)


WEBP = {"compression": "zlib"}


def with_compression(folder: Path, code: int) -> Path:
    """A movie whose Compression tag names a codec that is not there."""
    path = tiff(folder, GRAY, **WEBP)
    with tifffile.TiffFile(path) as file:
        tags = [page.tags["Compression"] for page in file.pages if isinstance(page, tifffile.TiffPage)]
    with open(path, "r+b") as raw:
        for tag in tags:
            raw.seek(tag.valueoffset)
            raw.write(code.to_bytes(2, "little"))
    return path


def lone_ome(folder: Path) -> Path:
    """One of the two files of an OME movie, without the other."""
    names = [folder / "a.ome.tif", folder / "b.ome.tif"]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="5" SizeY="6" '
        'SizeZ="1" SizeC="1" SizeT="2"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstT="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData IFD="0" FirstT="1" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(names[0], GRAY[0], description=xml, metadata=None)
    return names[0]


case(
    "a text as movie",
    lambda d: io.read_movie(text(d, "notes.tif", "not a picture")),
    "notes.tif",
    "TIFF",
    "b'not '",
)
case("an empty file as movie", lambda d: io.read_movie(text(d, "empty.tif", "")), "empty.tif", "TIFF", "0 bytes")
case("a TIFF header only", lambda d: io.read_movie(text(d, "h.tif", b"II*\0\0\0\0\0")), "h.tif", "image", "none")
case(
    "a truncated movie",
    lambda d: io.read_movie(text(d, "cut.tif", tiff(d, GRAY).read_bytes()[:300])),
    "cut.tif",
    "truncated",
)
case(
    "colours",
    lambda d: io.read_movie(tiff(d, np.ones((6, 5, 3), np.uint8), photometric="rgb")),
    "movie.tif",
    "grey",
    "YXS",
)
case(
    "palette",
    lambda d: io.read_movie(
        tiff(d, np.ones((6, 5), np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    ),
    "movie.tif",
    "grey",
    "PALETTE",
)
case(
    "time and depth",
    lambda d: io.read_movie(tiff(d, np.ones((2, 3, 6, 5), np.uint8), photometric="minisblack")),
    "movie.tif",
    "(2, 3, 6, 5)",
)
case("complex numbers", lambda d: io.read_movie(tiff(d, GRAY.astype(complex))), "movie.tif", "complex128")
case("codec not installed", lambda d: io.read_movie(with_compression(d, 50001)), "movie.tif", "codec", "WEBP")
case("half of an OME pair", lambda d: io.read_movie(lone_ome(d)), "a.ome.tif", "frame 1", "not found")
case("write a JPEG", lambda d: io.write_movie(d / "movie.jpg", GRAY), "path", ".tif", "movie.jpg")
case("write rank 2", lambda d: io.write_movie(d / "m.tif", GRAY[0]), "frames", "3 dimensions", "(6, 5)")
case("write nothing", lambda d: io.write_movie(d / "m.tif", GRAY[:0]), "frames", "at least one", "(0, 6, 5)")
case("write booleans", lambda d: io.write_movie(d / "m.tif", GRAY > 0), "frames", "bool")
case("a text as map", lambda d: io.read_map(text(d, "gain.h5", "no")), "gain.h5", "HDF5")
case("a list as map", lambda d: io.read_map(hdf5(d, "g.h5", a=np.ones(3))), "g.h5", "2-D", "none")
case(
    "two maps in a file", lambda d: io.read_map(hdf5(d, "g.h5", a=GRAY[0], b=GRAY[0])), "g.h5", "one 2-D", "['a', 'b']"
)
case("a map by a wrong name", lambda d: io.read_map(hdf5(d, "g.h5", a=GRAY[0]), "b"), "g.h5", "'b'", "['a']")
case("a zero in the gain map", lambda d: calibration(d, gain=0.0), "gain", "positive", "got 0", "(2, 2)")
case("a NaN in the offset map", lambda d: calibration(d, offset=NAN), "offset", "finite", "got nan")
case("a negative variance in a map", lambda d: calibration(d, variance=-2.0), "variance", "got -2", "(2, 2)")
case("maps of unequal sizes", lambda d: calibration(d, shape=(3, 4)), "offset", "(3, 3)", "(3, 4)")

# -- io: tables --------------------------------------------------------------------------------------------
TABLE = pd.DataFrame({"frame": [0, 1], "u": [1.0, 2.0], "v": [3.0, 4.0]})


def csv(folder: Path, content: str, **options):
    options.setdefault("pixel_size_nm", 100)
    return io.read_localizations(text(folder, "t.csv", content), **options)


def picasso(folder: Path, locs=None, yaml: str | None = None, **datasets):
    if locs is not None:
        datasets["locs"] = locs
    if yaml is not None:
        text(folder, "t.yaml", yaml)
    return io.read_localizations(hdf5(folder, "t.hdf5", **datasets))


def write(folder: Path, name: str, table: pd.DataFrame = TABLE, pixel=100.0, **options):
    return io.write_localizations(folder / name, table, pixel, **options)


HEAD = "frame,x [nm],y [nm]\n"
LOCS = TABLE.rename(columns={"u": "x", "v": "y"}).to_records(index=False)
case("no pixel size", lambda d: csv(d, HEAD, pixel_size_nm=None), "pixel_size_nm", "got None")
case("negative pixel size", lambda d: csv(d, HEAD, pixel_size_nm=-1), "pixel_size_nm", "positive", "got -1")
case("a table without y", lambda d: csv(d, "frame,x [nm]\n1,2\n"), "t.csv", "['y [nm]']", "'x [nm]'")
case("an empty table file", lambda d: csv(d, ""), "t.csv", "ThunderSTORM")
case(
    "a binary as table",
    lambda d: io.read_localizations(text(d, "t.csv", b"\xff\xfe\x00"), 100),
    "t.csv",
    "ThunderSTORM",
)
case("NaN x", lambda d: csv(d, HEAD + "1,2,3\n2,nan,3\n"), "u", "finite", "t.csv", "got nan", "row 1")
case("infinite y", lambda d: csv(d, HEAD + "1,2,inf\n"), "v", "finite", "got inf", "row 0")
case("frame 0", lambda d: csv(d, HEAD + "0,2,3\n"), "frame", "at least 1", "got 0")
case("half a frame", lambda d: csv(d, HEAD + "1.5,2,3\n"), "frame", "whole", "got 1.5")
case("words in x", lambda d: csv(d, HEAD + "1,far,3\n"), "x [nm]", "numbers", "'far'")
case("a column named u", lambda d: csv(d, "frame,x [nm],y [nm],u\n1,2,3,4\n"), "t.csv", "'u'", "'x [nm]'")
case("first frame -1", lambda d: csv(d, HEAD + "1,2,3\n", first_frame=-1), "first_frame", "-1")
case("a text file to read", lambda d: io.read_localizations(d / "t.txt", 100), "path", ".csv", "t.txt")
case("no locs", lambda d: picasso(d, other=np.ones(3)), "t.hdf5", "'locs'", "['other']")
case("locs without fields", lambda d: picasso(d, np.ones(3)), "t.hdf5", "'locs'")
case("locs without x", lambda d: picasso(d, LOCS[["frame", "y"]]), "t.hdf5", "['x']", "'y'")
case("not HDF5", lambda d: io.read_localizations(text(d, "t.hdf5", "no")), "t.hdf5", "HDF5")
case("YAML that builds objects", lambda d: picasso(d, LOCS, yaml="a: !!python/object:os.x {}"), "t.hdf5", "YAML")
case("JSON cut short", lambda d: picasso(d, LOCS, metadata=json.dumps([{"Height": 3}])[:-4]), "t.hdf5", "JSON")
case("write without v", lambda d: write(d, "t.csv", TABLE.drop(columns="v")), "table", "['v']", "'u'")
case("write a negative frame", lambda d: write(d, "t.csv", TABLE.assign(frame=[0, -1])), "frame", "got -1", "row 1")
case("write NaN", lambda d: write(d, "t.hdf5", TABLE.assign(u=[NAN, 1.0])), "u", "finite", "got nan", "row 0")
case("write words to HDF5", lambda d: write(d, "t.hdf5", TABLE.assign(kind=["a", "b"])), "kind", "numbers", "'a'")
case("write pixel size 0", lambda d: write(d, "t.csv", pixel=0.0), "pixel_size_nm", "got 0")
case("write a text file", lambda d: write(d, "t.txt"), "path", ".hdf5", "t.txt")
case("a movie too narrow", lambda d: write(d, "t.hdf5", shape=(5, 2)), "shape", "(5, 3)", "(5, 2)")
case("a movie too short", lambda d: write(d, "t.hdf5", frames=1), "frames", "at least", "2", "got", "1")

# -- notebook and figures ----------------------------------------------------------------------------------
RUN = notebook.Run("smoke", torch.device("cpu"), 0)


def axes():
    return plt.figure().subplots()


def picture(value):
    figure = plt.figure(figsize=(1, 1), facecolor="white")
    figure.text(0, 0, str(value))
    return figure


def slider(**changes):
    arguments = {"draw": picture, "values": [1, 2], "label": "photons N", "alt": "a spot"} | changes
    return figures.Slider(**arguments)


case("unknown profile", lambda _: notebook.start("fast"), "profile", "'smoke'", "'fast'")
case("unknown device", lambda _: notebook.start("smoke", "tpu"), "device", "'cuda'", "'tpu'")
case("claim without name", lambda _: RUN.check(" ", 1.0, 0, 2), "name", "empty")
case("claim upside down", lambda _: RUN.check("x", 1.0, 2, 0), "low", "high", "low=2")
case("claim in no profile", lambda _: RUN.check("x", 1.0, 0, 2, ("fast",)), "profiles", "'fast'")
case("claim with NaN bound", lambda _: RUN.check("x", 1.0, NAN, 2), "low", "nan")
case("claim of two numbers", lambda _: RUN.check("x", filled(1, 2), 0, 2), "value", "single", "[1., 1.]")  # type: ignore[arg-type]
case("image of rank 3", lambda _: figures.show_image(axes(), np.ones((2, 3, 4)), unit="e-"), "image", "(2, 3, 4)")
case("empty image", lambda _: figures.show_image(axes(), np.ones((0, 4)), unit="e-"), "image", "(0, 4)")
case("colour bar without unit", lambda _: figures.show_image(axes(), np.ones((3, 4))), "unit", "None")
case(
    "scale bar too long",
    lambda _: figures.show_image(axes(), np.ones((3, 4)), unit="e-", scale_bar=9),
    "scale bar",
    "9 px",
)
case("pixel size 0", lambda _: figures.add_scale_bar(axes(), 1.0, 0.0), "pixel_size_nm", "0.0")
case("marks of unequal length", lambda _: figures.mark_positions(axes(), [1, 2], [1]), "u", "v", "(2,)", "(1,)")
case("titles missing", lambda _: figures.show_images([axes()], [np.ones((2, 2))], [], unit="e-"), "titles", "0")
case("slider of one value", lambda _: slider(values=[1]), "values", "1", "at least 2")
case("slider without alt text", lambda _: slider(alt=""), "alt", "''")
case("slider that starts outside", lambda _: slider(initial=2), "initial", "2", "0 to 1")
case("slider that draws nothing", lambda _: slider(draw=lambda value: None), "draw(1)", "NoneType", "Figure")


@pytest.mark.parametrize("row", CASES, ids=lambda row: row.name)
def test_bad_input(row: Case, tmp_path: Path):
    try:
        with pytest.raises(ValueError) as error:
            row.call(tmp_path)
    finally:
        plt.close("all")
    message = str(error.value)
    missing = [part for part in row.says if part not in message]
    assert not missing, f"{missing} not in: {message}"
    message = message.replace(str(tmp_path), "")
    assert len(message) <= 300, message
    assert "\n" not in message or "YAML" in message  # whose parser draws the place


def test_the_table_is_long_and_has_no_row_twice():
    assert len(CASES) >= 60
    assert len({row.name for row in CASES}) == len(CASES)
    assert all(len(row.says) >= 2 for row in CASES)


@pytest.mark.parametrize("kind", [float, np.array, lambda x: torch.tensor(x, dtype=torch.float64)])
@pytest.mark.parametrize("value", [1e-300, 1e300])
def test_small_and_large_numbers_are_not_rounded_away(value, kind):
    # torch.as_tensor(1e-300) is a float32 0, and of 1e300 an infinity
    given = kind(value)
    assert positive("x", given) is given and between("x", given, 1e-301, 1e301) is given


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, ">f4", ">u2"])
def test_every_type_of_frame_can_be_checked(dtype):
    frame = np.ones((3, 4), dtype)[::-1]
    frame.flags.writeable = False
    assert finite("x", frame) is frame


def test_saturated_without_a_limit_is_no_error():
    assert not saturated(filled(1e9, 2, 2), NOISY).any()


@pytest.mark.parametrize(
    "read",
    [io.read_movie, io.read_map, lambda path: io.read_localizations(path.with_suffix(".hdf5"))],
    ids=["movie", "map", "table"],
)
def test_a_file_that_is_not_there_is_a_file_error(read, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read(tmp_path / "nothing.tif")
