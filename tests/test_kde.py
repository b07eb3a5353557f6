"""KDEs against a plain loop, their closed-form mass and peak, the properties of the grid, and peaks back from them."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import norm
from skimage.feature import peak_local_max

from smlmtut.imaging import first_guess
from smlmtut.imaging.kde import kde_image, redrawn, render, to_camera, to_coordinates, to_super_resolved
from smlmtut.imaging.psf import Emitters

factors = st.integers(1, 8)
positions = st.floats(-3, 30)


def scene(batch=3, count=4, seed=0, low=-1.0, high=9.0):
    rng = np.random.default_rng(seed)
    u, v = (torch.from_numpy(rng.uniform(low, high, (batch, count))) for _ in range(2))
    photons = torch.from_numpy(rng.uniform(100, 1000, (batch, count)))
    return Emitters(u, v, photons, torch.from_numpy(rng.random((batch, count)) < 0.7))


@given(positions, factors)
def test_coordinates_there_and_back(u, factor):
    assert to_camera(to_super_resolved(u, factor), factor) == pytest.approx(u, abs=1e-14)  # a few roundings


@given(st.integers(0, 50), factors)
def test_super_resolved_pixels_tile_the_camera_pixel(k, factor):
    inside = to_camera(np.arange(factor * k, factor * (k + 1)), factor)
    assert inside.mean() == pytest.approx(k, abs=1e-13)
    # the outer edges of the first and the last, half a small pixel further out, are the camera pixel's
    edges = (inside[0] - 0.5 / factor, inside[-1] + 0.5 / factor)
    assert edges == pytest.approx((k - 0.5, k + 0.5), abs=1e-13)


@pytest.mark.parametrize("amplitude", ["peak", "mass"])
@pytest.mark.parametrize("weighted", [False, True])
def test_kde_is_the_double_sum_written_out(amplitude, weighted):
    emitters, shape, factor, sigma = scene(), (5, 8), 3, 1.3
    found = kde_image(emitters, shape, factor, sigma, amplitude, emitters.photons if weighted else None)
    wanted = np.zeros((3, 1, 15, 24))
    for b, i, j in np.ndindex(3, 15, 24):
        for n in range(4):
            if not emitters.mask[b, n]:
                continue
            x, y = (float(p[b, n]) * factor + (factor - 1) / 2 for p in (emitters.u, emitters.v))
            kernel = math.exp(-((j - x) ** 2 + (i - y) ** 2) / (2 * sigma**2))
            kernel *= float(emitters.photons[b, n]) if weighted else 1.0
            wanted[b, 0, i, j] += kernel / (2 * math.pi * sigma**2) if amplitude == "mass" else kernel
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)  # float64, a few operations each


@given(st.floats(6, 10), st.floats(6, 10), st.floats(0.6, 3.0), st.integers(1, 4))
def test_mass_is_one_up_to_the_aliasing_of_a_sampled_gaussian(u, v, sigma, factor):
    # Poisson's sum formula: Σ_k g(k − s) = 1 + 2 Σ_m exp(−2π² m² sigma²) cos(2π m s). The border is at least
    # 6.5 px away, which must be 6 sigma or more: 2e-9 lies beyond it on each side.
    assume(6.5 * factor >= 6 * sigma)
    total = float(kde_image(Emitters.single(u, v, 1.0), (17, 17), factor, sigma, "mass").sum())

    def row(position):
        s = to_super_resolved(position, factor)
        waves = (math.exp(-2 * (math.pi * m * sigma) ** 2) * math.cos(2 * math.pi * m * s) for m in (1, 2, 3))
        return 1 + 2 * sum(waves)

    assert total == pytest.approx(row(u) * row(v), abs=1e-8)


def test_a_kernel_at_a_pixel_centre_has_peak_one_there():
    u, v = to_camera(10.0, 4), to_camera(7.0, 4)
    image = kde_image(Emitters.single(u, v, 500.0), (6, 6), 4)[0, 0]
    assert float(image[7, 10]) == 1.0 == float(image.max())


@given(st.floats(2, 5), st.floats(2, 5), st.integers(0, 3), st.integers(0, 3), factors)
def test_moving_an_emitter_by_whole_pixels_moves_the_image(u, v, right, down, factor):
    image = kde_image(Emitters.single(u, v, 1.0), (10, 10), factor)[0, 0]
    moved = kde_image(Emitters.single(u + right, v + down, 1.0), (10, 10), factor)[0, 0]
    r, d = right * factor, down * factor
    size = 10 * factor
    # u + right rounds to 1e-15, times factor ≤ 8 and a slope ≤ 0.61
    torch.testing.assert_close(moved[d:, r:], image[: size - d, : size - r], rtol=0, atol=1e-13)


@given(st.integers(0, 1000))
def test_kernels_add(seed):
    emitters = scene(seed=seed)
    parts = [
        kde_image(
            Emitters(*(x[:, n : n + 1] for x in (emitters.u, emitters.v, emitters.photons, emitters.mask))), (8, 8)
        )
        for n in range(4)
    ]
    torch.testing.assert_close(kde_image(emitters, (8, 8)), sum(parts), rtol=1e-13, atol=1e-15)


def test_an_emitter_that_is_not_present_leaves_no_trace():
    emitters = scene()
    elsewhere = Emitters(torch.where(emitters.mask, emitters.u, 3.0), emitters.v, emitters.photons, emitters.present)
    torch.testing.assert_close(kde_image(elsewhere, (8, 8)), kde_image(emitters, (8, 8)), rtol=0, atol=0)
    nothing = Emitters(emitters.u, emitters.v, emitters.photons, torch.zeros_like(emitters.mask))
    assert float(kde_image(nothing, (8, 8)).abs().max()) == 0


def test_kde_keeps_the_type():
    emitters = scene().to(dtype=torch.float32)
    assert kde_image(emitters, (8, 8)).dtype == torch.float32


def test_histogram_is_numpys():
    rng = np.random.default_rng(1)
    u, v = rng.uniform(-2, 12, (2, 5000))
    found = render(u, v, (9, 7), 3)
    wanted, _, _ = np.histogram2d(v, u, (np.linspace(-0.5, 8.5, 28), np.linspace(-0.5, 6.5, 22)))
    np.testing.assert_array_equal(found, wanted)


def test_gaussian_rendering_is_scipys_normal_integrated_over_pixels():
    rng = np.random.default_rng(2)
    u, v = rng.uniform(-1, 8, (2, 40))
    sd = rng.uniform(0.05, 0.4, 40)
    found = render(u, v, (7, 8), 5, sd)
    rows, columns = np.arange(36) / 5 - 0.5, np.arange(41) / 5 - 0.5
    along_v = np.diff(norm.cdf(rows, v[:, None], sd[:, None]))
    along_u = np.diff(norm.cdf(columns, u[:, None], sd[:, None]))
    np.testing.assert_allclose(found, along_v.T @ along_u, rtol=0, atol=1e-13)


@given(st.lists(st.tuples(st.floats(1, 8), st.floats(1, 8)), max_size=30), st.floats(0.02, 0.2))
def test_rendering_conserves_the_number_of_localizations(points, sd):
    u, v = np.array(points, dtype=float).reshape(-1, 2).T
    assert float(render(u, v, (10, 10), 4).sum()) == len(points)
    # the border is at least 1.5 px = 7.5 sd away: 1e-13 lies outside
    assert float(render(u, v, (10, 10), 4, sd).sum()) == pytest.approx(len(points), abs=1e-11)


def test_rendering_in_blocks_changes_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    u, v = rng.uniform(-2, 10, (2, 100))
    sd = 10 ** rng.uniform(-2, 1.5, 100)  # from far below a pixel to far above the frame
    whole = render(u, v, (8, 7), 2, sd)
    rows, columns = np.arange(17) / 2 - 0.5, np.arange(15) / 2 - 0.5
    along_v, along_u = (np.diff(norm.cdf(e, x[:, None], sd[:, None])) for e, x in ((rows, v), (columns, u)))
    np.testing.assert_allclose(whole, along_v.T @ along_u, rtol=0, atol=1e-12)
    monkeypatch.setattr("smlmtut.imaging.rendering.LOCALIZATIONS_AT_ONCE", 7)
    monkeypatch.setattr("smlmtut.imaging.rendering.PIXELS_AT_ONCE", 100)
    torch.testing.assert_close(render(u, v, (8, 7), 2, sd), whole, rtol=1e-12, atol=1e-14)


def test_rendering_takes_the_columns_of_a_table():
    table = pd.DataFrame({"u": [1, 2], "v": [3, 4], "u_sd": [0.1, 0.2]})
    from_table = render(*(table[name] for name in ("u", "v")), shape=(6, 6), factor=2, sd=table["u_sd"])
    u, v, sd = (torch.tensor(table[name].tolist(), dtype=torch.float64) for name in table)
    assert torch.equal(from_table, render(u, v, (6, 6), 2, sd))


# -- back to coordinates -----------------------------------------------------------------------------------


def blob(s_u, s_v, sigma, height=24, width=20, peak=1.0):
    """One Gaussian on the super-resolved grid, (1, 1, h, w) float64."""
    row, column = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    return peak * torch.exp(-((column - s_u) ** 2 + (row - s_v) ** 2) / (2 * sigma**2))[None, None]


@given(st.floats(1, 18), st.floats(1, 22), st.floats(0.25, 6), st.floats(0.3, 50), st.sampled_from([1, 2, 4]))
def test_a_lone_gaussian_of_any_width_is_found_exactly(s_u, s_v, sigma, peak, factor):
    y = blob(s_u, s_v, sigma, peak=peak)
    assume(float(y.max()) > 1e-3)  # a narrow one between four pixels is low on all of them
    found = to_coordinates(y, factor, threshold=1e-4)
    assert len(found) == 1 and int(found.frame[0]) == 0
    # a logarithm's rounding, 1e-16 of up to 40, over the curvature of the logarithm, 1/sigma² ≥ 1/36
    found_at = to_super_resolved(torch.stack([found.u, found.v]), factor)
    torch.testing.assert_close(found_at[:, 0], torch.tensor([s_u, s_v], dtype=torch.float64), rtol=0, atol=1e-11)
    assert float(found.height[0]) == float(y.max())


@given(st.floats(-0.5, 4.5), st.floats(-0.5, 5.5), st.floats(0.5, 2.0))
def test_the_border_costs_nothing_where_the_width_is_known(u, v, sigma):
    y = kde_image(Emitters.single(u, v, 1.0), (6, 5), 4, sigma)
    found = to_coordinates(y, 4, sigma, threshold=0.0)
    assume(len(found) == 1)  # exactly between two pixels
    assert (float(found.u[0]), float(found.v[0])) == (pytest.approx(u, abs=1e-11), pytest.approx(v, abs=1e-11))


@pytest.mark.parametrize("beyond", [0.1, 0.3, 0.6])
def test_an_emitter_beyond_the_border_is_put_on_it(beyond):
    y = kde_image(Emitters.single(-0.5 - beyond, 2.3, 1.0), (6, 5))
    found = to_coordinates(y, threshold=1e-6)
    assert float(found.u[0]) == -0.5 and float(found.v[0]) == pytest.approx(2.3, abs=1e-11)


@pytest.mark.parametrize("beyond", ["left", "right", "top", "bottom"])
def test_corners_and_sides_are_treated_alike(beyond):
    y = kde_image(Emitters.single(0.37, 0.05, 1.0), (6, 5))[0, 0]
    u, v = 0.37, 0.05
    if beyond in ("right", "bottom"):
        y, u, v = y.flip(0, 1), 4 - u, 5 - v
    if beyond in ("top", "bottom"):
        y, u, v = y.T, v, u
    found = to_coordinates(y[None, None])
    assert (float(found.u[0]), float(found.v[0])) == (pytest.approx(u, abs=1e-11), pytest.approx(v, abs=1e-11))


@pytest.mark.parametrize(("separation", "peaks"), [(1.9, 1), (2.1, 2), (3.0, 2)])
def test_two_equal_gaussians_have_two_peaks_from_two_sd_on(separation, peaks):
    # the second derivative halfway is (d²/4 − sigma²) / sigma⁴ times positive: a dip where d > 2 sigma. With 40 pixels
    # an sd, the grid (half a pixel) moves that limit by less than 2 %: at d = 2.1 sd the peaks are 1.1 sd apart
    sigma = 40.0
    y = blob(100 - separation * sigma / 2, 90, sigma, 180, 200) + blob(
        100 + separation * sigma / 2, 90, sigma, 180, 200
    )
    found = to_coordinates(y, sigma=sigma)
    assert len(found) == peaks
    middle = float(to_super_resolved(found.u, 4).mean())
    assert middle == pytest.approx(100, abs=1e-9)  # symmetry


def test_two_far_apart_are_each_exact():
    pairs = torch.tensor([(0.6, 2.1), (9.3, 2.2), (4.4, 8.7)], dtype=torch.float64)
    emitters = Emitters(pairs[None, :, 0], pairs[None, :, 1], torch.ones(1, 3).double())
    found = to_coordinates(kde_image(emitters, (11, 11)))
    assert len(found) == 3
    # others are 20 sd away and more: e⁻²⁰⁰
    for a, b in pairs:
        assert float(torch.hypot(found.u - a, found.v - b).min()) < 1e-11


def test_a_pair_between_two_pixels_is_one_emitter():
    # equal neighbours along u, along v, along both, along a diagonal only
    for place in ((5.5, 7.0), (5.0, 7.5), (5.5, 7.5)):
        found = to_coordinates(blob(*place, 1.0))
        at = to_super_resolved(torch.stack([found.u, found.v]), 4)[:, 0]
        assert len(found) == 1 and at.tolist() == pytest.approx(place, abs=1e-11)
    for other in (1, -1):
        y = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
        y[0, 0, 4, 4] = y[0, 0, 5, 4 + other] = 1.0
        assert len(to_coordinates(y, 1)) == 1


@pytest.mark.parametrize("size", [(1, 2), (3, 1), (2, 2), (3, 5), (9, 9)])
@pytest.mark.parametrize("corner", [(0, 0), (4, 4), (3, 0)])
def test_a_plateau_is_one_emitter(size, corner):
    y = torch.zeros(1, 1, 13, 13)
    y[0, 0, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = 4.0  # the network's ceiling
    found = to_coordinates(y, 1)
    assert len(found) == 1
    for place, first, n in ((found.v, corner[0], size[0]), (found.u, corner[1], size[1])):
        # its middle; the Gaussian through a lone pixel on the border lies between that and the frame's edge
        lone = n == 1 and first == 0
        middle, error = (first - 0.25, 0.25) if lone else (first + (n - 1) / 2, 1e-5)
        assert float(place[0]) == pytest.approx(middle, abs=error)


@pytest.mark.parametrize("centre", [(8.0, 8.0), (8.5, 8.3), (7.8, 8.5), (9.1, 7.7)])
def test_a_round_plateau_is_one_emitter_in_its_middle(centre):
    found = to_coordinates((20 * blob(centre[0], centre[1], 3.0)).clamp(max=4.0))
    at = to_super_resolved(torch.stack([found.u, found.v]), 4)[:, 0]
    assert len(found) == 1
    assert float((at - torch.tensor(centre)).abs().max()) <= 0.5  # its two ends are rounded to whole pixels


def test_a_plateau_of_any_form_is_one_and_two_that_do_not_touch_are_two():
    y = torch.zeros(2, 1, 7, 12)
    rows = [
        "............",
        ".#.#..#..##.",
        ".#.#.#.#...#",
        "..#...#....#",
        "............",
        "#..........#",
        "............",
    ]
    y[1, 0] = torch.tensor([[float(c == "#") for c in row] for row in rows])
    found = to_coordinates(y, 1)
    # a Y, a ring, a hook, and two single pixels
    assert len(found) == 5 and found.frame.tolist() == [1] * 5
    assert sorted(zip(found.u.tolist()[:3], found.v.tolist()[:3], strict=True)) == [(2, 2), (6, 2), (10, 2)]


def test_an_even_image_has_one_maximum_at_most():
    assert len(to_coordinates(torch.zeros(2, 1, 8, 8))) == 0
    assert to_coordinates(torch.ones(2, 1, 8, 8)).frame.tolist() == [0, 1]


@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.3])
def test_mass_of_a_lone_kernel_is_what_lies_within_four_pixels(sigma):
    g = np.random.default_rng(4)
    for u, v in g.uniform(2, 7, (40, 2)):
        found = to_coordinates(kde_image(Emitters.single(u, v, 1.0), (10, 10), 4, sigma), 4, sigma)
        # pixels with centres within 4 of the peak's cover the disc of 4 − √½ about the pixel, whose centre is √½
        # away at most: e^(−r²/2 sigma²) lies beyond r; 4 exp(−2π² sigma²) is aliasing
        r = 4 - math.sqrt(2)
        aliasing = 4 * math.exp(-2 * (math.pi * sigma) ** 2)
        assert 1 - math.exp(-(r**2) / (2 * sigma**2)) - aliasing < float(found.mass[0]) < 1 + aliasing


def test_masses_count_the_emitters():
    g = torch.Generator().manual_seed(5)
    u, v = 1 + 14 * torch.rand(2, 200, 12, generator=g, dtype=torch.float64)
    emitters = Emitters(u, v, torch.ones_like(u))
    found = to_coordinates(kde_image(emitters, (16, 16)), threshold=0.0)
    total = torch.zeros(200, dtype=torch.float64).index_add_(0, found.frame, found.mass)
    assert float(total.max()) <= 12 + 1e-6  # a pixel counts once
    # an emitter without a maximum of its own lies within 2 sd of one that has: most of its mass is inside 4 px
    assert float(total.min()) > 11
    twice = Emitters(torch.tensor([[5.2, 5.2]]), torch.tensor([[6.1, 6.1]]), torch.ones(1, 2))
    assert float(to_coordinates(kde_image(twice, (12, 12))).mass[0]) == pytest.approx(2, abs=0.01)


def test_a_pixel_between_two_peaks_belongs_to_one():
    y = torch.zeros(1, 1, 5, 9)
    y[0, 0, 2] = torch.tensor([0.0, 0.0, 3.0, 1.0, 1.0, 1.0, 3.0, 0.0, 0.0])
    mass = to_coordinates(y, 1, sigma=1.0).mass * 2 * math.pi
    assert sorted(mass.tolist()) == pytest.approx([4.0, 5.0])  # the middle pixel is as near to both


def test_a_terrace_is_no_maximum():
    y = torch.zeros(1, 1, 6, 9)
    y[0, 0, 1:4, 1:8] = 1.0
    y[0, 0, 2, 7] = 3.0
    found = to_coordinates(y, 1)
    assert found.height.tolist() == [3.0]


def random_image(seed, batch=4, size=(32, 28)):
    """Smooth, between 0 and 1, with a maximum in every 20 pixels or so."""
    noise = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.conv2d(noise, torch.ones(1, 1, 3, 3, dtype=torch.float64) / 9, padding=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.6])  # all, most, some of them
def test_maxima_are_those_of_skimage(seed, threshold):
    y = random_image(seed)
    found = to_coordinates(y, factor=1, threshold=threshold)
    assert (found.frame.diff() >= 0).all()
    for b in range(len(y)):
        wanted = peak_local_max(y[b, 0].numpy(), min_distance=1, threshold_abs=threshold, exclude_border=False)
        mine = found.frame == b
        # no two pixels are equal, and a position is refined by half a pixel at most
        heights, mine_heights = y[b, 0].numpy()[tuple(wanted.T)], found.height[mine].numpy()
        np.testing.assert_array_equal(np.sort(mine_heights), np.sort(heights))
        at = torch.stack([found.v[mine], found.u[mine]], 1).numpy()[mine_heights.argsort()]
        assert (abs(at - wanted[heights.argsort()]) <= 0.5).all()


def test_frames_do_not_disturb_each_other():
    y = random_image(7, batch=5)
    together = to_coordinates(y)
    parts = [to_coordinates(y[b : b + 1]) for b in range(5)]
    assert together.frame.tolist() == [b for b, part in enumerate(parts) for _ in range(len(part))]
    for name in ("u", "v", "height", "mass"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(part, name) for part in parts]))


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (0, 1, 8, 8), (1, 1, 4, 4), (1, 1, 4, 8)])
def test_nothing_to_find(shape):
    found = to_coordinates(torch.zeros(shape))
    assert len(found) == 0 and found.frame.dtype == torch.int64
    assert all(getattr(found, name).shape == (0,) for name in ("u", "v", "height", "mass"))


def test_limits_on_height_and_mass():
    y = blob(5, 7, 1.0) + blob(14, 17, 1.0, peak=0.4)
    assert len(to_coordinates(y)) == 2
    assert len(to_coordinates(y, threshold=0.5)) == 1
    light = to_coordinates(y, min_mass=0.5)
    assert len(light) == 1 and float(light.mass[0]) == pytest.approx(1, abs=1e-3)
    # a negative surrounding, as a network may leave it, does not move the peak's pixel
    assert len(to_coordinates(y - 0.05)) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_peaks_keep_the_type_and_need_no_gradient(dtype):
    y = blob(5.2, 7.1, 1.0).to(dtype).requires_grad_()
    found = to_coordinates(y)
    assert found.u.dtype == found.mass.dtype == dtype and not found.u.requires_grad


@given(st.integers(0, 200))
def test_there_and_back_in_single_precision(seed):
    u, v = 1 + 6 * torch.rand(2, generator=torch.Generator().manual_seed(seed))
    found = to_coordinates(kde_image(Emitters(u[None, None], v[None, None], torch.ones(1, 1)), (8, 8)))
    # float32: sums of three round to 1e-7, a logarithm of that over a curvature of 1, a quarter of it in camera pixels;
    # besides, the kernels' own positions round to 2e-6 super-resolved pixels
    assert (float(found.u[0]), float(found.v[0])) == (
        pytest.approx(float(u), abs=2e-6),
        pytest.approx(float(v), abs=2e-6),
    )


@pytest.mark.parametrize(
    ("y", "options", "says"),
    [
        (torch.full((1, 1, 4, 4), math.nan), {}, ("y", "nan")),
        (torch.full((1, 1, 4, 4), math.inf), {}, ("y", "inf")),
        (torch.zeros(1, 4, 4), {}, ("y", "4 dimensions")),
        (torch.zeros(1, 2, 4, 4), {}, ("y", "(1, 2, 4, 4)")),
        (torch.zeros(1, 1, 4, 4), {"sigma": 0.0}, ("sigma", "got 0")),
        (torch.zeros(1, 1, 4, 4), {"threshold": -0.1}, ("threshold", "got -0.1")),
        (torch.zeros(1, 1, 4, 4), {"min_mass": math.nan}, ("min_mass", "nan")),
        (torch.zeros(1, 1, 4, 4), {"factor": 0}, ("factor", "got 0")),
        (torch.zeros(1, 1, 4, 6), {"factor": 4}, ("y", "(1, 1, 4, 6)")),
    ],
)
def test_bad_input_of_to_coordinates(y, options, says):
    with pytest.raises(ValueError) as error:
        to_coordinates(y, **options)
    assert str(error.value).startswith(says[0]) and says[1] in str(error.value)


def test_peaks_come_back_as_emitters_frame_by_frame():
    """Well apart, every emitter is a peak at its own place; a frame without any has none."""
    u, v = torch.tensor([[2.0, 9.3, 5.1], [0.0, 0.0, 12.2]]), torch.tensor([[3.0, 4.4, 11.0], [0.0, 0.0, 6.6]])
    present = torch.tensor([[True, True, True], [False, False, True]])
    y = torch.cat([kde_image(Emitters(u, v, torch.ones(2, 3), present), (16, 16)), torch.zeros(1, 1, 64, 64)])
    found = first_guess.peak_emitters(y, photons=700.0)
    assert found.mask.sum(1).tolist() == [3, 1, 0] and found.u.shape == (3, 3)
    assert found.photons[found.mask].unique().tolist() == [700.0] and not found.photons[~found.mask].any()
    order = found.v[0].argsort()
    assert torch.allclose(found.u[0][order], u[0], atol=0.02) and torch.allclose(found.v[0][order], v[0], atol=0.02)
    assert abs(float(found.u[1, 0]) - 12.2) < 0.02
    few = first_guess.peak_emitters(y, most=2)
    assert few.u.shape == (3, 2) and few.mask.sum(1).tolist() == [2, 1, 0]
    assert first_guess.peak_emitters(torch.zeros(2, 1, 8, 8)).mask.tolist() == [[False], [False]]
    with pytest.raises(ValueError, match="photons must be finite and positive, got -1"):
        first_guess.peak_emitters(y, photons=-1.0)


# -- drawn again -------------------------------------------------------------------------------------------


def test_a_kde_drawn_again_is_itself():
    """Emitters anywhere, also at the border, and two in one place: their peak has the mass of two."""
    u, v = (
        torch.tensor([[3.2, 8.06, 8.06, 0.1], [10.7, 15.3, 2.2, 7.0]]),
        torch.tensor([[4.4, 12.3, 12.3, 1.0], [2.2, 8.8, 9.1, 0.0]]),
    )
    y = kde_image(Emitters(u, v, torch.ones_like(u)), (16, 20))
    torch.testing.assert_close(redrawn(y), y, rtol=0, atol=0.01)


def test_drawn_again_only_what_is_a_molecule_remains():
    """A kernel of height 0.8 becomes one of height 1, one of height 0.4 goes, and so does noise in the dark."""
    u, v = torch.tensor([[3.0, 12.0]]), torch.tensor([[4.0, 9.0]])
    emitters = Emitters(u, v, torch.ones_like(u))
    y = kde_image(emitters, (16, 16), weights=torch.tensor([[0.8, 0.4]]))
    noisy = y + 0.03 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    wanted = kde_image(Emitters.single(3.0, 4.0, 1.0, torch.float32), (16, 16))
    torch.testing.assert_close(redrawn(y), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(redrawn(noisy), wanted, rtol=0, atol=0.06)  # a place read to 0.1 px moves it by 0.06
    assert not redrawn(torch.zeros(2, 1, 8, 8)).any()
    torch.testing.assert_close(redrawn(y, threshold=0.2), kde_image(emitters, (16, 16)), rtol=0, atol=1e-5)
    assert redrawn(y.double()).dtype == torch.float64
    with pytest.raises(ValueError, match="sides that the factor 4 divides"):
        redrawn(torch.zeros(1, 1, 8, 6))
