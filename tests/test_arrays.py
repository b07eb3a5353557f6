"""Where a tensor is wanted, an array will do: one table for every public function and class that takes tensors.

A row of `table` is a call with good arguments. The names of those that are tensors stand in its keywords; the tests
replace them by arrays of numpy, and by what is no array of numbers. A public function without a row fails the last
test.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from table import CAMERA, ROUND, Row, same, small_deepstorm, spot_frames, table

import smlmtut
from smlmtut import evaluation
from smlmtut.estimation import fit, spots
from smlmtut.imaging import kde, structures
from smlmtut.imaging.camera import Camera, expose, saturated, to_photoelectrons
from smlmtut.imaging.psf import Emitters, expected_photons, pixel_integral
from smlmtut.networks.deepstorm import estimate_kde

LONGEST = 300  # characters of a message
anything: Any = lambda x: x  # noqa: E731  for a type checker: annotations name the tensors, not all that is taken


ROWS = table()
FRAMES, DEEPSTORM = spot_frames(), small_deepstorm()
ADU = (2 * FRAMES + 100).expand(2, 9, 9).contiguous()


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    "estimation.mixture", "estimation.spot_model", "posterior.search", "posterior.grid", "posterior.integral",
    "posterior.chains", "posterior.moves", "posterior.proposals", "posterior.sweeps", "posterior.mode_search",
    "posterior.normal_modes",
}  # fmt: skip
# Functions that loops call, and which say that they check nothing, or that are checks themselves.
UNCHECKED = {
    "psf.present_mask", "fast_psf.pixel_integral_fast", "fast_psf.pixel_factors", "psf.background_image", "kde.kernel",
    "camera.check_frame_size", "camera.Camera.as_tensors", "proper_scores.parts", "proper_scores.joined",
    "proper_scores.ensemble", "proper_scores.on_host", "against_exact.bootstrap_error",
    "rendering.gaussians", "localization.checked_arrays",
}  # fmt: skip
RESULTS = {  # dataclasses that functions return, or that hold what their user checks
    "blinking.Flashes", "scenes.FrameBatch", "kde.Peaks", "fit.Fit", "joint.JointFit", "one.Posterior",
    "many.Diagnostics", "many.Draws", "modes.ModeDraws",
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
