"""Every public function that takes tensors, on a device that is not the CPU: the same numbers, in the right place."""

import contextlib
import copy
import functools
import inspect
import io
import itertools
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
import torch
from fake_device import NAME, apart, unavailable
from packaging.version import Version
from table import calls, same, small_deepstorm, small_diffusion, spot_frames, table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from smlmtut import localize
from smlmtut.imaging import PSF, Camera, Scene, simulate
from smlmtut.networks import precision, pretrained, recipes, training
from smlmtut.networks.settings import TrainingSettings
from tools.run_chapters import ROOT

# -- the device is as strict as CUDA -------------------------------------------------------------------------
MIXED = "Expected all tensors to be on the same device"
GENERATOR = "Expected a '.*' device type for generator but found '.*'"


def on(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=NAME)


def here(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def number(value: float, device: str = "cpu") -> Tensor:
    return torch.tensor(value, device=device)


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a sum": (lambda: on(1, 2) + here(1, 2), RuntimeError, MIXED),
    "a sum, the CPU first": (lambda: here(1, 2) + on(1, 2), RuntimeError, MIXED),
    "a number of the device and a tensor of the CPU": (lambda: here(1, 2) * number(2, NAME), RuntimeError, MIXED),
    "a product of matrices": (lambda: on(1, 2) @ here(1, 2), RuntimeError, MIXED),
    "in place": (lambda: on(1, 2).add_(here(1, 2)), RuntimeError, MIXED),
    "in place on the CPU": (lambda: here(1, 2).add_(on(1, 2)), RuntimeError, MIXED),
    "in place on a number of the CPU": (lambda: number(1.0).add_(number(1.0, NAME)), RuntimeError, MIXED),
    "a result on the CPU": (lambda: torch.add(on(1, 2), on(1, 2), out=torch.empty(2)), RuntimeError, MIXED),
    "a choice": (lambda: torch.where(on(1, 2) > 1, here(1, 2), on(1, 2)), RuntimeError, MIXED),
    "joined": (lambda: torch.cat([on(1), here(1)]), RuntimeError, MIXED),
    "stacked with a number of the CPU": (lambda: torch.stack([number(1.0), number(1.0, NAME)]), RuntimeError, MIXED),
    "a CPU tensor at places of the device": (lambda: here(1, 2)[on(0, 1).long()], RuntimeError, MIXED),
    "a CPU tensor under a mask of the device": (lambda: here(1, 2)[on(0, 1) > 0], RuntimeError, MIXED),
    "values of the CPU": (lambda: on(1, 2).__setitem__(on(0, 1).long(), here(1, 2)), RuntimeError, MIXED),
    "set on the CPU": (lambda: here(1, 2).__setitem__(on(0, 1).long(), 3.0), RuntimeError, MIXED),
    "weights on the CPU": (lambda: torch.nn.Linear(2, 2)(on(1, 2)), RuntimeError, MIXED),
    "numpy": (lambda: on(1).numpy(), TypeError, "Use Tensor.cpu"),
    "an array": (lambda: np.asarray(on(1)), TypeError, "Use Tensor.cpu"),
    "a function of numpy": (lambda: np.sqrt(on(1)), TypeError, "Use Tensor.cpu"),
    "dice of the CPU": (lambda: torch.rand(2, generator=torch.Generator(), device=NAME), RuntimeError, GENERATOR),
    "dice of the device": (lambda: torch.rand(2, generator=torch.Generator(NAME)), RuntimeError, GENERATOR),
    "the CPU's own dice": (
        lambda: torch.rand(2, generator=torch.default_generator, device=NAME), RuntimeError, GENERATOR,
    ),
    "noise by dice of the CPU": (lambda: on(1).normal_(generator=torch.Generator()), RuntimeError, GENERATOR),
    "counts by dice of the CPU": (lambda: torch.poisson(on(1), generator=torch.Generator()), RuntimeError, GENERATOR),
    "counts by dice of the device": (
        lambda: torch.poisson(here(1), generator=torch.Generator(NAME)), RuntimeError, GENERATOR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@apart
def test_what_cuda_refuses_is_refused(case: str):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def list_of(x: Tensor) -> list:
    assert x.device.type == NAME
    return x.tolist()


def with_data(x: Tensor, data: Tensor) -> list:
    x.data = x.data * 0  # of the same shape
    x.data = data
    return list_of((x + 1).detach())


TAKEN: dict[str, tuple[Callable[[], object], object]] = {
    "a number of the CPU": (lambda: list_of(on(1, 2) + number(1.0)), [2, 3]),
    "a number of the CPU first": (lambda: list_of(number(1.0) - on(1, 2)), [0, -1]),
    "a number of the CPU in place": (lambda: list_of(on(1, 2).mul_(number(3.0))), [3, 6]),
    "places on the CPU": (lambda: list_of(on(1, 2)[here(1, 0).long()]), [2, 1]),
    "transfers": (lambda: (on(1, 2).cpu() + here(1, 2)).tolist(), [2, 4]),
    "a copy to the CPU": (lambda: torch.zeros(2).copy_(on(1, 2)).tolist(), [1, 2]),
    "a copy from the CPU": (lambda: list_of(on(0, 0).copy_(here(1, 2))), [1, 2]),
    "a part in place": (lambda: [x := on(1, 2, 3), x[1:].mul_(2), list_of(x)][-1], [1, 4, 6]),
    "as_tensor": (lambda: list_of(torch.as_tensor(np.ones(2), dtype=torch.float32, device=NAME)), [1, 1]),
    "like one, on the CPU": (lambda: torch.ones_like(on(1, 2), device="cpu").numpy().tolist(), [1, 1]),
    "other numbers for a weight": (lambda: with_data(torch.nn.Parameter(on(1, 2)), on(3, 4, 5)), [4, 5, 6]),
    "a vector and a matrix": (lambda: list_of(on(1, 2) @ on(1, 2)[:, None]), [5]),
    "a number in words": (lambda: f"{on(2).sum():.2f}", "2.00"),
    "a list": (lambda: on(1, 2).tolist(), [1, 2]),
    "numbers": (lambda: (float(on(2)), int(on(2)), bool(on(2)), on(2).item()), (2, 2, True, 2)),
}


@pytest.mark.parametrize("case", TAKEN)
@apart
def test_what_cuda_takes_is_taken(case: str):
    call, wanted = TAKEN[case]
    assert call() == wanted


@apart
def test_dice_of_the_device_draw_what_those_of_the_cpu_draw():
    for draw in (torch.rand, torch.randn):
        own = draw(5, generator=torch.Generator(NAME).manual_seed(3), device=NAME)
        assert own.tolist() == draw(5, generator=torch.Generator().manual_seed(3)).tolist()
    generator = torch.Generator(NAME)
    assert isinstance(generator, torch.Generator) and generator.device == torch.device(NAME, 0) == on(1).device


@apart
def test_a_number_that_is_gone_leaves_no_trace_in_the_list_of_dice():
    """Else a generator of the CPU that gets its place in memory would count as one of the device."""
    for _ in range(100):
        torch.Generator(NAME)
        torch.rand(1, generator=torch.Generator())


@apart
def test_a_network_moves_learns_copies_and_saves():
    network: Any = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    weight, before = network[0].weight, network[0].weight.tolist()
    other = copy.deepcopy(network).to(memory_format=torch.channels_last)
    network.to(NAME, memory_format=torch.channels_last)
    assert network[0].weight is weight and isinstance(weight, torch.nn.Parameter) and weight.device.type == NAME
    for net, device in ((network, NAME), (other, "cpu")):
        optimizer = torch.optim.AdamW(net.parameters(), 0.1)
        net(torch.arange(32.0, device=device).reshape(2, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    assert weight.tolist() == other[0].weight.tolist() != before
    assert copy.deepcopy(network)[0].weight.device.type == NAME
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    assert {x.device.type for x in torch.load(file, map_location="cpu", weights_only=True).values()} == {"cpu"}


@apart
def test_autocast_of_the_cpu_is_not_autocast_of_the_device():
    with torch.autocast("cpu", torch.bfloat16):
        assert (here(1) @ here(1)).dtype == torch.bfloat16 and (on(1) @ on(1)).dtype == torch.float32


@apart
def test_a_change_of_shape_in_place_is_not_computed_wrongly():
    with pytest.raises(NotImplementedError, match="unsqueeze_.* changes the shape"):
        on(1).unsqueeze_(0)


# -- every public function -----------------------------------------------------------------------------------
# Their docstrings say that the result is on the CPU, or it comes from a library of the CPU.
ON_CPU = {
    "kde.render", "spots.find_spots", "one.grid_posterior", "one.Posterior.cdf", "one.Posterior.log_density",
    "one.Posterior.sample", "modes.mode_posterior", "modes.ModeDraws.emitters", "calibration.ranks",
    "calibration.tarp", "calibration.covered", "calibration.coverage",
    "calibration.sparsification", "proper_scores.crps", "proper_scores.energy_score", "proper_scores.crps_normal",
    "proper_scores.crps_point", "against_exact.energy_regret", "against_exact.crps_regret",
    "against_exact.log_error_bar", "against_exact.peak_counts", "against_exact.summary_vector",
    "against_exact.count_log_loss", "against_exact.share_error", "resolution.fourier_ring_correlation",
    "resolution.nena", "localization.match", "localization.inside", "schedule.NoiseSchedule",
    "schedule.NoiseSchedule.from_betas",
}  # fmt: skip


@functools.cache
def computations(device: str) -> list[tuple[str, Callable[[], Any]]]:
    """Names of functions, and calls of them."""
    rows = [(row.name, functools.partial(row.call, **row.arrays)) for row in table(device)]
    return [*rows, *calls(device).items()]


def on_cpu(value: Any, found: set[str]) -> Any:
    """The same with its tensors on the CPU; the devices where they were are added to found."""
    if isinstance(value, Tensor):
        found.add(value.device.type)
        return value.detach().cpu()
    if is_dataclass(value):
        return {field.name: on_cpu(getattr(value, field.name), found) for field in fields(value)}
    if isinstance(value, dict):
        return {key: on_cpu(x, found) for key, x in value.items()}
    return [on_cpu(x, found) for x in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("index", range(len(computations("cpu"))), ids=[name for name, _ in computations("cpu")])
@apart
def test_a_function_computes_on_the_device_what_it_computes_on_the_cpu(index: int):
    """To the last bit, with the same form of attention: the CPU has one of its own, which rounds otherwise."""
    name, call = computations(NAME)[index]
    with sdpa_kernel(SDPBackend.MATH):
        wanted = on_cpu(computations("cpu")[index][1](), set())
    places: set[str] = set()
    assert same(wanted, on_cpu(call(), places)), f"{name} computes something else"
    assert places <= ({"cpu"} if name in ON_CPU else {NAME}), f"the result of {name} is on {places}"


WORDS = (
    "Tensor", "Array", "Value", "Coordinate", "Positions", "Generator", "Noise", "Emitters", "Batch", "FrameLikelihood",
)  # fmt: skip
ROOMS = ("imaging", "estimation", "posterior", "diffusion", "networks", "evaluation")  # localize: see below
NOT_RUN = {
    "psf.AnyPSF.image": "a protocol, as the next one; the table has PSF and MeasuredPSF",
    "psf.AnyPSF.shares": "the same",
    "rendering.gaussians": "kde.render works on the CPU",
    "one.Posterior.sample": "a posterior on a grid is on the CPU, and takes a generator of the CPU",
    "against_exact.bootstrap_error": "draws frames on the CPU, whatever the statistic works on",
    "conformal.Conformal.calibrate": "takes an iterable of batches; the table calls it, see conformal.Conformal",
    "training.train": "takes networks and makes the generators; see the tests of training",
}
# what computes that posterior, and the search for modes, to which `mode_posterior` gives tensors of the CPU
ON_THE_CPU = ("search", "grid", "integral", "mode_search", "normal_modes")


def public() -> dict[str, CodeType]:
    """Functions and methods of the rooms that take tensors or a generator, by name."""
    found = {}

    def look(name: str, thing: Any) -> None:
        function = inspect.unwrap(getattr(thing, "__func__", thing))
        taken = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
        if any(word in annotation for annotation in taken for word in WORDS):
            found[name] = function.__code__

    for room in ROOMS:
        folder = Path(import_module(f"smlmtut.{room}").__path__[0])
        for module in sorted(path.stem for path in folder.glob("[a-z]*.py") if path.stem not in ON_THE_CPU):
            whole = import_module(f"smlmtut.{room}.{module}")
            for name, thing in vars(whole).items():
                if name.startswith("_") or getattr(thing, "__module__", "") != whole.__name__:
                    continue
                if inspect.isclass(thing):
                    for key, method in vars(thing).items():
                        if key[0] != "_" and inspect.isfunction(getattr(method, "__func__", method)):
                            look(f"{module}.{name}.{key}", method)
                elif inspect.isfunction(thing):
                    look(f"{module}.{name}", thing)
    return found


def on_the_device(value: Any, depth: int = 2) -> bool:
    """Whether an argument is a tensor or a generator of the device, or holds one."""
    if isinstance(value, Tensor | torch.Generator):
        return value.device.type == NAME
    parts = value if isinstance(value, tuple) else getattr(value, "__dict__", {}).values()
    return depth > 0 and any(on_the_device(x, depth - 1) for x in parts)


@apart
def test_the_computations_reach_every_public_function():
    names, reached = public(), set()
    wanted = set(names.values())

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in wanted and any(on_the_device(x) for x in frame.f_locals.values()):
            reached.add(frame.f_code)
            wanted.remove(frame.f_code)

    sys.settrace(note)
    for _, call in computations(NAME):
        call()
    sys.settrace(None)
    missing = {name for name, code in names.items() if code not in reached}
    assert missing == NOT_RUN.keys(), sorted(missing ^ NOT_RUN.keys())


# -- training, samplers and movies ---------------------------------------------------------------------------
SCENE = Scene(density=2.0, camera=Camera(2.0, 100.0, 4.0))
SETTINGS = TrainingSettings(steps=4, batch=4, shards=2, warmup=1, checkpoint_every=2, precision="auto", seed=3)


def recipe(name: str) -> recipes.Recipe:
    if name == "deepstorm":
        return recipes.deepstorm_2d(SCENE, SETTINGS, channels=4, dilations=(1, 2), upsampled=(4, 4), predicting=1)
    return recipes.cddpm_2d(SCENE, small_deepstorm(), SETTINGS, channels=(8, 8))


def trained(name: str, device: str, folder: Path | None = None, stop: int = SETTINGS.steps) -> dict[str, Tensor]:
    """The averaged weights after a few steps, on the CPU."""
    chosen = recipe(name)
    states = training.train(chosen.network(0), chosen.draw, chosen.loss, SETTINGS, folder, device)
    average: Any = None
    with contextlib.closing(states):  # type: ignore[type-var]
        for state in itertools.islice(states, stop):
            average = state.average
    assert {x.device.type for x in average.state_dict().values()} == {device if device == "cpu" else NAME}
    return {key: x.cpu() for key, x in average.state_dict().items()}


@pytest.mark.parametrize("name", ["deepstorm", "cddpm"])
@apart
def test_training_takes_the_same_steps(name: str, tmp_path: Path):
    """And a run that was interrupted goes on from the file, whose tensors are on the CPU."""
    with sdpa_kernel(SDPBackend.MATH):
        wanted = trained(name, "cpu")
    assert same(wanted, trained(name, NAME))
    trained(name, "auto", tmp_path, stop=2)
    assert same(wanted, trained(name, "auto", tmp_path))


def localized(device: str, folder: Path, sampled: bool) -> list[bytes]:
    """The files that localize writes for a small movie, with a report of the movie."""
    truth = simulate.uniform_in_frame(3, (18, 22), (800.0, 1500.0), torch.Generator().manual_seed(1), density=0.015)
    camera = Camera(torch.full((18, 22), 2.0), 100.0, 4.0)
    movie = simulate.frames(truth, PSF(1.0), camera, (18, 22), 5.0, torch.Generator().manual_seed(2))
    network, report = pretrained.load("deepstorm-2d", device), []
    more: dict[str, Any] = {}
    if sampled:
        more["sampler"], more["sampler_name"] = localize.shipped_sampler("cddpm-2d", device)
        more["settings"] = localize.SamplingSettings(samples=2)
    path = folder / f"{device}.csv"
    found = localize.localize_to_file(
        path, movie, camera, network, 100.0, progress=False, inspect=report.append, **more
    )
    assert found >= 10
    images = localize.image_paths(path) if sampled else ()
    return [str(report).encode(), *(place.read_bytes() for place in (path, *images))]


@pytest.mark.parametrize("sampled", [False, True], ids=["localizations", "with uncertainty"])
@apart
def test_localize_writes_the_same_files(sampled: bool, tmp_path: Path):
    with sdpa_kernel(SDPBackend.MATH):
        wanted = localized("cpu", tmp_path, sampled)
    assert localized(NAME, tmp_path, sampled) == wanted


@apart
def test_samples_of_frames_come_back_to_the_cpu():
    """A frame larger than the windows of its fit, and a movie that lies on the device."""
    movie = (2 * spot_frames().float() + 100).repeat(2, 1, 2)  # (2, 9, 18)
    camera, settings = Camera(2.0, 100.0, 5.0), localize.SamplingSettings(samples=2)
    images = {}
    for device in ("cpu", NAME):
        sampler = localize.kde_sampler(small_diffusion().to(device))
        phi = small_deepstorm().to(device)
        with sdpa_kernel(SDPBackend.MATH):
            images[device] = list(localize.sample_frames(movie.to(device), camera, phi, sampler, settings))
            tables = list(localize.localize_movie(movie.to(device), camera, phi))
        assert tables[-1][0] == 2 and all(x.device.type == "cpu" for x in images[device])
    assert same(images["cpu"], images[NAME])


@apart
def test_training_takes_the_precision_of_its_device_and_not_that_of_the_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "cpu_has_bf16", lambda: True)
        found = {device: training._accelerator(device, "auto").mixed_precision for device in ("cpu", NAME)}
    training.forget_accelerator()
    assert found == {"cpu": "bf16", NAME: "no"}


def test_the_pinned_torch_has_the_device():
    """Where torch is another one, these tests may be skipped; in CI it is this one."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = next(line.partition("==")[2] for line in lines if line.startswith("torch=="))
    if Version(torch.__version__).public != Version(pinned).public:
        pytest.skip(f"torch is {torch.__version__}, not {pinned}")
    assert not unavailable()
