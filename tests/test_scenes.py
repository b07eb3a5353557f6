"""Training scenes: distributions, positions, light and noise against closed forms; random streams; bad input.

Statistical limits follow from the sample size: 5 standard errors, which chance exceeds once in 1.7 million.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

from smlmtut._random import step_generator
from smlmtut.imaging import scenes, structures
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.distributions import LogUniform, Uniform, draw, highest, lowest
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import PSF, expected_photons
from smlmtut.imaging.scenes import Scene, draw_batch
from smlmtut.networks import recipes

RARE = 6e-7  # two-sided probability of 5 standard deviations
N = 20_000
DARK = Scene(density=0.0, background=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_mean(sample, mean, sd):
    """The sample's mean is within 5 standard errors."""
    sample = torch.as_tensor(sample, dtype=torch.float64)
    assert float(sample.mean()) == pytest.approx(mean, abs=5 * sd / math.sqrt(sample.numel()))


def assert_variance(sample, variance, fourth_cumulant):
    """Var[s²] = κ₄ / n + 2 V² / (n − 1)."""
    sample = torch.as_tensor(sample, dtype=torch.float64).flatten()
    error = math.sqrt(fourth_cumulant / len(sample) + 2 * variance**2 / (len(sample) - 1))
    assert float(sample.var()) == pytest.approx(variance, abs=5 * error)


def assert_even(sample, low, high):
    """Kolmogorov–Smirnov against the uniform distribution."""
    assert stats.kstest(np.asarray(sample).ravel(), stats.uniform(low, high - low).cdf).pvalue > RARE


# -- distributions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "reference"),
    [
        (Uniform(-3, 7), stats.uniform(-3, 10)),
        (LogUniform(0.1, 8), stats.loguniform(0.1, 8)),
    ],
    ids=["uniform", "log-uniform"],
)
def test_distributions_are_scipys(distribution, reference):
    sample = draw(distribution, (N,), generator())
    assert sample.dtype == torch.float32
    assert stats.kstest(sample.numpy(), reference.cdf).pvalue > RARE
    mean, variance, excess = (float(x) for x in reference.stats("mvk"))
    assert_mean(sample, mean, math.sqrt(variance))
    assert_variance(sample, variance, excess * variance**2)


def test_a_fixed_number_is_itself():
    assert torch.equal(draw(2.5, (3, 2), generator()), torch.full((3, 2), 2.5))
    assert lowest(3.0) == highest(3.0) == 3.0
    assert (lowest(Uniform(1, 2)), highest(LogUniform(1, 2))) == (1, 2)
    assert float(draw(Uniform(4, 4), (5,), generator()).std()) == 0


# -- how many and where ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "shape", "area"),
    [
        (Scene(layout="frame", margin=3.0), (6, 10), 12 * 16),
        (Scene(layout="frame", margin=0.0), (6, 10), 60),
        *((Scene(layout=name), (6, 10), 60) for name in structures.NAMES),
    ],
    ids=lambda x: x.layout if isinstance(x, Scene) else None,
)
def test_counts_are_poisson_with_the_density_times_the_area(scene, shape, area):
    scene = replace(scene, density=3.0, pixel_size_nm=100.0)
    counts = draw_batch(scene, 3000, shape, generator(1)).emitters.mask.sum(1)
    mean = 3.0 * 0.1**2 * area  # 3 per µm², 100 nm pixels
    assert_mean(counts, mean, math.sqrt(mean))
    assert_variance(counts, mean, mean)  # all cumulants of a Poisson number are its mean


def test_the_density_has_one_value_a_frame():
    counts = draw_batch(Scene(density=LogUniform(0.5, 50)), 4000, (8, 8), generator(2)).emitters.mask.sum(1)
    area = 14 * 14 * 0.108**2
    # cumulants of the mean number m = density · area; a Poisson number of it has κ₄ = k₄ + 6 k₃ + 7 k₂ + k₁
    mean, var, skew, excess = (float(x) for x in stats.loguniform(0.5, 50).stats("mvsk"))
    k1, k2, k3, k4 = mean * area, var * area**2, skew * (var**0.5 * area) ** 3, excess * var**2 * area**4
    assert_mean(counts, k1, math.sqrt(k1 + k2))
    assert_variance(counts, k1 + k2, k4 + 6 * k3 + 7 * k2 + k1)


def test_frame_positions_are_even_to_the_margin():
    emitters = draw_batch(Scene(density=5.0, margin=2.0), 500, (7, 12), generator(3)).emitters
    for position, size in ((emitters.u, 12), (emitters.v, 7)):
        assert_even(position[emitters.mask], -0.5 - 2, size - 0.5 + 2)


def structure(name, batch, per_frame, seed=5, side=6):
    """u, v (batch, n) of frames so small that each has one structure; the first n emitters of each."""
    rate = torch.full((batch,), per_frame / side**2)
    u, v, present = structures.draw(name, rate, (side, side), generator(seed))
    n = int(present.sum(1).min())
    return u[:, :n].double(), v[:, :n].double()


def test_ring_emitters_lie_on_a_circle():
    u, v = structure("rings", 150, 1200)
    # the circle nearest to the points: x² + y² = 2ax + 2by + c is linear in a, b, c
    ones = torch.ones_like(u)
    a, b, c = torch.linalg.lstsq(torch.stack([2 * u, 2 * v, ones], -1), (u**2 + v**2)[..., None]).solution[..., 0].T
    radius = (c + a**2 + b**2).sqrt()
    distance = torch.hypot(u - a[:, None], v - b[:, None])
    # the fitted radius is that of mean r², so E[r − fit] is about −t²/2R (0.0125 at most), with t = 0.1
    rest = (distance - distance.mean(1, keepdim=True)).flatten()
    # three fitted numbers take 3 of 1200 degrees of freedom, 0.25 % of the variance; its 5 se at 180 000 are 1.7 %
    assert_variance(rest, structures.THICKNESS**2, 0.0)
    assert_even(radius, *structures.RING_RADIUS)  # 5 se of the test at 150 frames, ±0.2 in probability, hide the bias
    assert_even(torch.atan2(v - b[:, None], u - a[:, None])[:, :30], -math.pi, math.pi)
    assert_even(a, -0.5, 5.5)
    assert_even(b, -0.5, 5.5)


def test_clusters_are_round_and_normal():
    u, v = structure("clusters", 150, 1200)
    spread_u, spread_v = u.std(1), v.std(1)
    # each has a relative error of 1/√2n = 0.02, their ratio √2 times that
    assert float((spread_u / spread_v - 1).abs().max()) < 5 * math.sqrt(2) * 0.0206
    assert_even(spread_u, *structures.CLUSTER_SD)
    z = ((u - u.mean(1, keepdim=True)) / spread_u[:, None])[:, :30]
    assert stats.kstest(z.flatten().numpy(), stats.norm.cdf).pvalue > RARE
    assert_even(u.mean(1), -0.5, 5.5)
    assert_even(v.mean(1), -0.5, 5.5)


@pytest.mark.parametrize(("name", "extent", "area"), [("rings", "RING_RADIUS", 40), ("clusters", "CLUSTER_SD", 60)])
def test_number_of_structures(monkeypatch, name, extent, area):
    monkeypatch.setattr(structures, extent, (0.0, 0.0))
    monkeypatch.setattr(structures, "THICKNESS", 0.0)
    u, v, present = structures.draw(name, torch.full((1,), 5.0), (20, 30), generator(6))
    centres = torch.stack([u[present], v[present]], -1).unique(dim=0, return_counts=True)[1]
    assert len(centres) == 600 // area
    # each emitter chooses evenly
    assert stats.chisquare(centres.numpy()).pvalue > RARE


def test_filaments_are_continuous_and_in_the_frame(monkeypatch):
    monkeypatch.setattr(structures, "THICKNESS", 0.0)
    rate = torch.full((6,), 1000 / 144)
    u, v, present = structures.draw("filaments", rate, (12, 12), generator(7))
    for row in range(6):
        points = torch.stack([u[row], v[row]], -1)[present[row]].double().numpy()
        # every step of the walk begins inside and is a pixel long
        assert points.min() >= -0.5 - 1 and points.max() <= 11.5 + 1
        edges = minimum_spanning_tree(squareform(pdist(points))).data
        # at most 1.5 · (12 + 12) points a pixel apart: 35 px. A gap of 20 mean ones has odds of 1000 e⁻²⁰
        assert edges.max() < 20 * 35 / len(points)
        # nearly straight, and through a place inside: it ends where it leaves the frame, so it cannot be longer
        # than the diagonal and a step at each end, but for what its bends add (0.05² · 17²/24: 3 % at one sd)
        assert edges.sum() < 1.1 * (12 * math.sqrt(2) + 2)


def test_filaments_keep_the_density_inside_the_frame():
    rate, batch, side = 0.5, 200, 24
    u, v, present = structures.draw("filaments", torch.full((batch,), rate), (side, side), generator(12))
    inside = present & (u > -0.5) & (u < side - 0.5) & (v > -0.5) & (v < side - 0.5)
    mean = rate * side**2
    assert_mean(present.sum(1), mean, math.sqrt(mean))
    # a walk that leaves keeps half a step of its last one, so a few per cent of them lie outside
    assert 0.9 < float(inside.sum() / present.sum()) < 1


def test_filaments_bend_by_the_number_that_is_named(monkeypatch):
    monkeypatch.setattr(structures, "THICKNESS", 0.0)
    u, v, present = structures.draw("filaments", torch.full((4,), 3000 / 144), (12, 12), generator(8))
    turns = []
    for row in range(4):
        x = torch.complex(u[row], v[row])[present[row]].to(torch.complex128).numpy()
        far = x[np.argmax(abs(x - x.mean()))]
        x = x[np.argsort(abs(x - far))]  # in order along the nearly straight curve
        steps = np.diff(x[:: len(x) // 35])  # about a pixel each
        turns.append(np.diff(np.unwrap(np.angle(steps))))
    # chords of about a pixel straddle the corners of the walk: their turns have 2/3 of its variance, correlated by 1/4
    sd = float(np.concatenate(turns).std())
    error = structures.BENDING * math.sqrt(1 / 2 / 130) * 1.2
    assert sd == pytest.approx(structures.BENDING * math.sqrt(2 / 3), abs=5 * error)


def test_thickness_is_a_normal_shift(monkeypatch):
    args = torch.full((50,), 2.0), (12, 12)
    thick = structures.draw("filaments", *args, generator(9))[:2]
    monkeypatch.setattr(structures, "THICKNESS", 0.0)
    thin = structures.draw("filaments", *args, generator(9))[:2]
    for a, b in zip(thick, thin, strict=True):
        assert stats.kstest(((a - b) / 0.1).flatten().numpy()[:5000], stats.norm.cdf).pvalue > RARE


@pytest.mark.parametrize("layout", scenes.LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 2)])
def test_any_frame_size(layout, shape):
    batch = draw_batch(Scene(layout=layout, density=4.0, gradient=1.0), 3, shape, generator())
    assert batch.electrons.shape == batch.read_variance.shape == (3, 1, *shape)
    assert batch.target().shape == (3, 1, 4 * shape[0], 4 * shape[1])
    assert torch.isfinite(batch.electrons).all()


# -- light -------------------------------------------------------------------------------------------------


def test_photons_are_per_emitter():
    each = draw_batch(Scene(density=8.0, photons=Uniform(100, 2000)), 400, (12, 12), generator(1)).emitters
    assert_even(each.photons[each.mask], 100, 2000)
    assert float(each.photons.std(1).min()) > 0


def test_sigma_and_background_are_per_frame():
    batch = draw_batch(Scene(density=0.0, sigma=Uniform(0.9, 1.3)), 2000, (2, 3), generator(2))
    assert_even(batch.sigma, 0.9, 1.3)
    assert_even(batch.background, 0, 20)
    assert torch.equal(batch.expected, batch.background[:, None, None].expand(2000, 2, 3))


def test_expected_photons_are_the_psfs():
    batch = draw_batch(Scene(density=4.0, gradient=0.0), 20, (9, 11), generator(3))
    wanted = expected_photons(batch.emitters, PSF(batch.sigma[:, None]), (9, 11), batch.background[:, None, None])
    torch.testing.assert_close(batch.expected, wanted, rtol=1e-6, atol=1e-5)  # float32
    assert torch.equal(batch.target(3, 1.2), kde_image(batch.emitters, (9, 11), 3, 1.2))


@pytest.mark.parametrize("shape", [(16, 16), (7, 12), (1, 5), (1, 1)])
def test_gradient_keeps_the_mean_and_reaches_its_ends(shape):
    level = draw_batch(Scene(density=0.0, background=10.0, gradient=0.6), 300, shape, generator(4)).expected / 10
    rounding = 1e-6  # float32: a few roundings of numbers near 1
    assert float((level.mean((1, 2)) - 1).abs().max()) < rounding
    along_v, along_u = level.diff(dim=1), level.diff(dim=2)
    assert not along_u.diff(dim=2).abs().gt(rounding).any() and not along_v.diff(dim=1).abs().gt(rounding).any()
    if min(shape) > 1:  # a plane's extremes are at opposite corners
        assert float((level.amax((1, 2)) - 1.3).abs().max()) < rounding
        assert float((level.amin((1, 2)) - 0.7).abs().max()) < rounding
        angle = torch.atan2(along_v.mean((1, 2)) * (shape[0] - 1), along_u.mean((1, 2)) * (shape[1] - 1))
        assert_even(angle, -math.pi, math.pi)


def test_the_steepest_gradient_ends_in_the_dark_and_not_below():
    batch = draw_batch(Scene(density=0.0, background=20.0, gradient=2.0), 500, (8, 8), generator(5))
    assert 0 <= float(batch.expected.amin()) and float(batch.expected.amin((1, 2)).max()) < 1e-5


# -- noise -------------------------------------------------------------------------------------------------


def sensor(height=40, width=60):
    """Maps whose pixels all differ; the read variance tells the pixel."""
    number = torch.arange(height * width, dtype=torch.float32).reshape(height, width)
    gain, offset = torch.rand(2, height, width, generator=generator(9))
    return Camera(1.5 + gain, 90 + 20 * offset, (1.5 + gain) ** 2 * (2 + number / 1000), quantum_efficiency=0.8)


@pytest.mark.parametrize("camera", [Camera(2.0, 100.0, 12.0, quantum_efficiency=0.7), sensor()], ids=["number", "maps"])
def test_electrons_have_the_expected_mean_and_variance(camera):
    batch = draw_batch(Scene(density=3.0, camera=camera), 400, (12, 12), generator(6))
    omega, variance = batch.expected[:, None].double(), batch.read_variance.double()
    z = (batch.electrons.double() - omega) / (omega + variance).sqrt()
    assert_mean(z, 0, 1)
    # the Poisson part has the fourth cumulant ω; each pixel's z has variance 1 but a kurtosis of its own
    assert_variance(z, 1, float((omega / (omega + variance) ** 2).mean()))
    # the same per level of light: a wrong variance cannot hide in the average
    for low, high in itertools.pairwise([0, 4, 10, 30, 1e9]):
        part = (omega >= low) & (omega < high)
        assert int(part.sum()) > 1000
        assert_mean(z[part], 0, 1)
        assert_variance(z[part], 1, float((omega / (omega + variance) ** 2)[part].mean()))


def test_expected_counts_electrons_not_photons():
    scene = replace(DARK, background=10.0, camera=Camera(quantum_efficiency=0.5))
    assert torch.equal(draw_batch(scene, 2, (3, 3), generator()).expected, torch.full((2, 3, 3), 5.0))


def test_every_frame_is_a_part_of_the_sensor():
    camera = sensor()
    batch = draw_batch(replace(DARK, camera=camera), 2000, (30, 52), generator(7))
    maps = camera.read_variance_electrons
    assert isinstance(maps, torch.Tensor)
    first = ((batch.read_variance[:, 0, 0, 0] - 2) * 1000).round().long()
    rows, columns = first // 60, first % 60
    for b in range(0, 2000, 37):
        part = maps[rows[b] : rows[b] + 30, columns[b] : columns[b] + 52]
        assert torch.equal(batch.read_variance[b, 0], part)
    # 11 × 9 places, each as likely: 20 frames a place
    counts = torch.bincount(rows * 9 + columns, minlength=99).numpy()
    assert len(counts) == 99 and stats.chisquare(counts).pvalue > RARE


def test_a_frame_as_large_as_the_sensor():
    camera = sensor(6, 7)
    batch = draw_batch(replace(DARK, camera=camera), 2, (6, 7), generator())
    assert torch.equal(batch.read_variance[1, 0], torch.as_tensor(camera.read_variance_electrons))


# -- random streams ----------------------------------------------------------------------------------------


def equal(a, b):
    return torch.equal(a.electrons, b.electrons) and torch.equal(a.emitters.u, b.emitters.u)


@pytest.mark.parametrize("layout", scenes.LAYOUTS)
def test_the_three_numbers_decide(layout):
    scene = Scene(layout=layout, gradient=Uniform(0, 1), camera=sensor())
    torch.manual_seed(3)
    before = torch.get_rng_state()

    def batch(*place):
        return draw_batch(scene, 4, (10, 10), step_generator(*place))

    first = batch(5, 17, 2)
    assert equal(first, batch(5, 17, 2))
    for other in ((6, 17, 2), (5, 18, 2), (5, 17, 3), (17, 5, 2), (2, 17, 5)):
        assert not equal(first, batch(*other))
    assert torch.equal(before, torch.get_rng_state())  # the global state is left alone


def test_streams_are_not_correlated():
    places = [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 0, 1), (0, 0, 2), (1, 0, 0)]
    draws = torch.stack([torch.randn(N, generator=step_generator(*place), dtype=torch.float64) for place in places])
    for shift in range(3):
        together = draws[:, shift:] @ draws[:, : N - shift].T / (N - shift)
        if shift == 0:
            together -= torch.diag(torch.diag(together))
        assert float(together.abs().max()) < 5 / math.sqrt(N - shift)


def test_no_step_of_a_run_repeats_another():
    # torch's CPU generator reads only the lowest 32 bits of its seed: that is where streams must not meet.
    # A step adds 1, so runs of n steps are apart if their starts are, around the circle of 2³².
    assert step_generator(3, 8, 1).initial_seed() - step_generator(3, 0, 1).initial_seed() == 8
    same, wrapped = (torch.rand(3, generator=generator(s)) for s in (5, 5 + (1 << 32)))
    assert torch.equal(same, wrapped)
    ranks = range(16)
    for seed in (0, recipes.SHIPPED.seed):
        starts = np.sort([step_generator(seed, 0, rank).initial_seed() % (1 << 32) for rank in ranks])
        gaps = np.diff([*starts, starts[0] + (1 << 32)])
        assert gaps.min() > 1_000_000
    # the first process of many seeds: what tests of a network draw is not what it was trained on
    starts = np.sort(
        [step_generator(seed, 0).initial_seed() % (1 << 32) for seed in [*range(100), recipes.SHIPPED.seed]]
    )
    assert np.diff([*starts, starts[0] + (1 << 32)]).min() > recipes.SHIPPED.steps


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_device_of_the_generator():
    camera = sensor().to("cuda")
    for layout in scenes.LAYOUTS:
        scene = Scene(layout=layout, gradient=0.5, camera=camera)
        first, again = (draw_batch(scene, 4, (10, 10), step_generator(1, 2, 3, "cuda")) for _ in range(2))
        assert first.electrons.is_cuda and first.target().is_cuda and equal(first, again)


# -- the shipped scene -------------------------------------------------------------------------------------


def test_the_reference_scene_is_the_default_one():
    scene = recipes.reference_scene(Camera(2.0, 100.0, 5.0))
    assert scene == Scene(camera=Camera(2.0, 100.0, 5.0))
    assert (scene.density, scene.photons) == (LogUniform(0.1, 8.0), Uniform(100, 2000))
    assert (scene.background, scene.sigma, scene.pixel_size_nm) == (Uniform(0, 20), Uniform(0.92, 1.08), 108.0)


def test_the_recipe_draws_the_scene():
    scene = recipes.reference_scene(sensor())
    electrons, variance, target = recipes.draw_frames(scene, (16, 16), 4, 1.0)(3, step_generator(1, 2))
    batch = draw_batch(scene, 3, (16, 16), step_generator(1, 2))
    assert torch.equal(electrons, batch.electrons) and torch.equal(variance, batch.read_variance)
    assert torch.equal(target, batch.target())


# -- bad input ---------------------------------------------------------------------------------------------

BAD = [
    (lambda: Uniform(2, 1), "low", "low=2"),
    (lambda: Uniform(math.nan, 1), "low", "nan"),
    (lambda: Uniform(0, math.inf), "high", "inf"),
    (lambda: LogUniform(0, 1), "low", "got 0"),
    (lambda: LogUniform(3, 1), "low", "low=3"),
    (lambda: Scene(density=-1.0), "density", "got -1"),
    (lambda: Scene(density=Uniform(-1, 1)), "density", "got -1"),
    (lambda: Scene(density="many"), "density", "many"),  # type: ignore[arg-type]
    (lambda: Scene(density=None), "density", "None"),  # type: ignore[arg-type]
    (lambda: Scene(photons=math.nan), "photons", "nan"),
    (lambda: Scene(photons=(100, 200)), "photons", "dimensions"),  # type: ignore[arg-type]
    (lambda: Scene(background=-0.5), "background", "got -0.5"),
    (lambda: Scene(gradient=-0.1), "gradient", "got -0.1"),
    (lambda: Scene(gradient=2.1), "gradient", "2.1"),
    (lambda: Scene(sigma=0.0), "sigma", "got 0"),
    (lambda: Scene(sigma=Uniform(0, 1)), "sigma", "got 0"),
    (lambda: Scene(layout="circle"), "layout", "circle"),
    (lambda: Scene(margin=-1), "margin", "got -1"),
    (lambda: Scene(pixel_size_nm=0), "pixel_size_nm", "got 0"),
    (lambda: draw_batch(Scene(), 0, (8, 8), generator()), "batch", "got 0"),
    (lambda: draw_batch(Scene(), 2, (8, 0), generator()), "shape[1]", "got 0"),
    (lambda: draw_batch(Scene(), 2, (8, 8, 8), generator()), "shape", "(8, 8, 8)"),  # type: ignore[arg-type]
    (lambda: draw_batch(Scene(camera=sensor(8, 9)), 2, (8, 10), generator()), "shape", "(8, 10)"),
    (lambda: step_generator(-1, 0), "seed", "-1"),
    (lambda: step_generator(0, 1.5), "step", "1.5"),  # type: ignore[arg-type]
    (lambda: step_generator(0, 0, -2), "rank", "-2"),
    (lambda: structures.draw("stars", torch.ones(1), (8, 8), generator()), "name", "stars"),
    (lambda: structures.draw("rings", -torch.ones(1), (8, 8), generator()), "per_pixel", "-1"),
    (lambda: structures.draw("rings", torch.ones(1), (0, 8), generator()), "shape[0]", "0"),
]


@pytest.mark.parametrize(("call", "argument", "says"), BAD)
def test_bad_input(call, argument, says):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(argument) and says in str(error.value)
