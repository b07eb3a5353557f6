"""KDEs against a plain loop, their closed-form mass and peak, and the properties of the grid."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import norm

from smlmtut.kde import kde, render, to_camera, to_super_resolved
from smlmtut.psf import Emitters

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
    found = kde(emitters, shape, factor, sigma, amplitude, emitters.photons if weighted else None)
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
    total = float(kde(Emitters.single(u, v, 1.0), (17, 17), factor, sigma, "mass").sum())

    def row(position):
        s = to_super_resolved(position, factor)
        waves = (math.exp(-2 * (math.pi * m * sigma) ** 2) * math.cos(2 * math.pi * m * s) for m in (1, 2, 3))
        return 1 + 2 * sum(waves)

    assert total == pytest.approx(row(u) * row(v), abs=1e-8)


def test_a_kernel_at_a_pixel_centre_has_peak_one_there():
    u, v = to_camera(10.0, 4), to_camera(7.0, 4)
    image = kde(Emitters.single(u, v, 500.0), (6, 6), 4)[0, 0]
    assert float(image[7, 10]) == 1.0 == float(image.max())


@given(st.floats(2, 5), st.floats(2, 5), st.integers(0, 3), st.integers(0, 3), factors)
def test_moving_an_emitter_by_whole_pixels_moves_the_image(u, v, right, down, factor):
    image = kde(Emitters.single(u, v, 1.0), (10, 10), factor)[0, 0]
    moved = kde(Emitters.single(u + right, v + down, 1.0), (10, 10), factor)[0, 0]
    r, d = right * factor, down * factor
    size = 10 * factor
    # u + right rounds to 1e-15, times factor ≤ 8 and a slope ≤ 0.61
    torch.testing.assert_close(moved[d:, r:], image[: size - d, : size - r], rtol=0, atol=1e-13)


@given(st.integers(0, 1000))
def test_kernels_add(seed):
    emitters = scene(seed=seed)
    parts = [
        kde(Emitters(*(x[:, n : n + 1] for x in (emitters.u, emitters.v, emitters.photons, emitters.mask))), (8, 8))
        for n in range(4)
    ]
    torch.testing.assert_close(kde(emitters, (8, 8)), sum(parts), rtol=1e-13, atol=1e-15)


def test_an_emitter_that_is_not_present_leaves_no_trace():
    emitters = scene()
    elsewhere = Emitters(torch.where(emitters.mask, emitters.u, 3.0), emitters.v, emitters.photons, emitters.present)
    torch.testing.assert_close(kde(elsewhere, (8, 8)), kde(emitters, (8, 8)), rtol=0, atol=0)
    nothing = Emitters(emitters.u, emitters.v, emitters.photons, torch.zeros_like(emitters.mask))
    assert float(kde(nothing, (8, 8)).abs().max()) == 0


def test_kde_keeps_the_type():
    emitters = scene().to(dtype=torch.float32)
    assert kde(emitters, (8, 8)).dtype == torch.float32


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
    monkeypatch.setattr("smlmtut.kde.LOCALIZATIONS_AT_ONCE", 7)
    monkeypatch.setattr("smlmtut.kde.PIXELS_AT_ONCE", 100)
    torch.testing.assert_close(render(u, v, (8, 7), 2, sd), whole, rtol=1e-12, atol=1e-14)


def test_rendering_takes_the_columns_of_a_table():
    table = pd.DataFrame({"u": [1, 2], "v": [3, 4], "u_sd": [0.1, 0.2]})
    from_table = render(*(table[name] for name in ("u", "v")), shape=(6, 6), factor=2, sd=table["u_sd"])
    u, v, sd = (torch.tensor(table[name].tolist(), dtype=torch.float64) for name in table)
    assert torch.equal(from_table, render(u, v, (6, 6), 2, sd))
