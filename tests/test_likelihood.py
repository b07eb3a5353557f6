"""The mixture against mpmath, its moments, its limits and the tables of errata; the surrogate against scipy."""

import math
import random

import mpmath as mp
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from smlmtut.estimation import mixture
from smlmtut.estimation.likelihood import (
    deviance,
    exact_log_likelihood,
    exact_score,
    surrogate_counts,
    surrogate_log_likelihood,
    surrogate_score,
)
from smlmtut.imaging.camera import Camera

F64 = torch.float64
EPS = torch.finfo(F64).eps


def oracle(x: float, rate: float, gain: float, offset: float, variance: float) -> tuple:
    """log p(x | ω) of Eq. 1 and the score, summed in 50 digits over all terms above 1e-35 of the largest."""
    with mp.workdps(50):
        z = (mp.mpf(x) - mp.mpf(offset)) / mp.mpf(gain)
        v = mp.mpf(variance) / mp.mpf(gain) ** 2
        w = mp.mpf(rate)
        front = -mp.log(2 * mp.pi * v) / 2 - mp.log(mp.mpf(gain))
        if w == 0:
            return -(z**2) / (2 * v) + front, mp.expm1((z - mp.mpf("0.5")) / v)

        def ratio(q: int):
            return w / (q + 1) * mp.exp((z - q - mp.mpf("0.5")) / v)

        low, high = 0, int(max(w, z, 0)) + 2
        while low < high:  # the first q whose successor is smaller
            middle = (low + high) // 2
            low, high = (low, middle) if ratio(middle) <= 1 else (middle + 1, high)
        total, first, tiny = mp.mpf(1), mp.mpf(low), mp.mpf(10) ** -35
        term, q = mp.mpf(1), low
        while term > tiny:
            term, q = term * ratio(q), q + 1
            total, first = total + term, first + q * term
        term, q = mp.mpf(1), low
        while term > tiny and q > 0:
            q -= 1
            term /= ratio(q)
            total, first = total + term, first + q * term
        peak = low * mp.log(w) - w - mp.loggamma(low + 1) - (z - low) ** 2 / (2 * v)
        return peak + mp.log(total) + front, first / total / w - 1


def random_cells(count: int, seed: int) -> list[tuple[float, float, float, float, float]]:
    """x, rate, gain, offset, variance over rates 1e-3 to 1e5 (every 10th 0), read sd 0.05 to 50 e-, tails too."""
    rng = random.Random(seed)
    cells = []
    for i in range(count):
        rate = 0.0 if i % 10 == 0 else 10 ** rng.uniform(-3, 5)
        sd = 10 ** rng.uniform(math.log10(0.05), math.log10(50))
        gain, offset = 10 ** rng.uniform(-1, 1.5), rng.uniform(0, 200)
        electrons = max(rng.gauss(rate, math.sqrt(rate)), 0) + rng.choice([1, 1, 3, 10]) * sd * rng.gauss(0, 1)
        x = offset - gain * rng.uniform(0, 300) if i % 17 == 3 else offset + gain * electrons
        cells.append((x, rate, gain, offset, (sd * gain) ** 2))
    return cells


CORNERS = [
    (100000.5, 1e5, 1.0, 0.0, 0.0025),  # between two whole numbers, read sd 0.05 e-
    (100.0 + 2.17 * 100000.45, 1e5, 2.17, 100.0, (0.05 * 2.17) ** 2),  # z needs more digits than a float has
    (0.1 + 0.3 * 70000.55, 7e4, 0.3, 0.1, (0.05 * 0.3) ** 2),
    (3.5, 1.0, 1.0, 0.0, 0.0025),
    (1e5, 1e5, 1.0, 0.0, 2500.0),
    (-5000.0, 1e5, 2.1, 100.0, 4.0),  # far below the offset
    (1e5, 1e-3, 2.1, 100.0, 4.0),  # far above the rate
    (0.0, 1e-300, 1.0, 0.0, 1.0),
    (40.0, 1e-300, 1.0, 0.0, 1.0),
]


def evaluate(function, cells):
    return [float(function(x, rate, Camera(g, o, var))) for x, rate, g, o, var in cells]


def test_log_likelihood_agrees_with_mpmath_to_1e10():
    cells = random_cells(50, seed=1) + CORNERS
    ordinary = 0
    for cell, value in zip(cells, evaluate(exact_log_likelihood, cells), strict=True):
        true = oracle(*cell)[0]
        error = abs(float(true - mp.mpf(value)))
        if abs(true) < 1e5:
            ordinary += 1
            assert error < 1e-10, (cell, float(true), error)
        else:  # one unit in the last place of the result is already 1.5e-11 or more: relative precision instead
            assert error < 4 * EPS * abs(true), (cell, float(true), error)
    assert ordinary >= 50


def test_score_agrees_with_mpmath():
    cells = random_cells(50, seed=2) + CORNERS
    for cell, value in zip(cells, evaluate(exact_score, cells), strict=True):
        true = oracle(*cell)[1]
        # E[q | x] comes out to about 1e-12 of its size, and the 1 that is subtracted costs an eps
        assert abs(float(true - mp.mpf(value))) < 1e-11 * max(1, abs(float(true))), (cell, float(true), value)


@given(
    rate=st.floats(1e-6, 1e5),
    sd=st.floats(0.05, 50),
    mismatch=st.floats(-10, 10),
    tolerance=st.floats(1e-12, 0.1),
)
def test_truncation_never_exceeds_its_tolerance(rate, sd, mismatch, tolerance):
    z = torch.tensor([rate + mismatch * math.sqrt(rate + sd**2)], dtype=F64)
    rest, rate, v = torch.zeros(1, dtype=F64), torch.tensor([rate], dtype=F64), torch.tensor([sd**2], dtype=F64)
    short = mixture.mixture(z, rest, rate, v, tolerance)[0]
    whole = mixture.mixture(z, rest, rate, v, 1e-40)[0]
    lost = -torch.expm1(short - whole).item()
    assert -1e-12 < lost < tolerance


def test_a_loose_tolerance_leaves_something_out():
    z, rest, rate, v = (torch.tensor([t], dtype=F64) for t in (100.0, 0.0, 100.0, 400.0))
    lost = mixture.mixture(z, rest, rate, v, 1e-40)[0] - mixture.mixture(z, rest, rate, v, 0.1)[0]
    assert 1e-8 < lost.item() < 0.1


@pytest.mark.parametrize(
    ("rate", "gain", "offset", "variance"),
    [
        (0.0, 2.17, 100.0, 5.0),
        (0.5, 1.0, 0.0, 1.0),
        (3.0, 2.17, 100.0, 5.0),
        (40.0, 0.5, 90.0, 0.02),
        (900.0, 2.0, 1.0, 9.0),
    ],
)
def test_mass_mean_and_variance(rate, gain, offset, variance):
    mean, spread = gain * rate + offset, math.sqrt(gain**2 * rate + variance)
    step = min(0.25 * math.sqrt(variance), 0.05 * spread)  # the trapezoid rule errs by exp(−2π² · 16) for a bump
    x = torch.arange(mean - 14 * spread - 12 * gain, mean + 14 * spread + 30 * gain, step, dtype=F64)
    p = exact_log_likelihood(x, rate, Camera(gain, offset, variance)).exp() * step
    assert p.sum().item() == pytest.approx(1, abs=1e-10)
    assert (p * x).sum().item() == pytest.approx(mean, rel=1e-10)
    assert (p * (x - mean) ** 2).sum().item() == pytest.approx(spread**2, rel=1e-9)


def test_small_read_noise_gives_the_poisson_lattice():
    q = torch.arange(60, dtype=F64)
    sd = 0.05
    value = exact_log_likelihood(2.0 * q + 10, 12.3, Camera(2.0, 10.0, (2 * sd) ** 2))
    bump = math.log(2 * sd * math.sqrt(2 * math.pi))
    expected = scipy.stats.poisson.logpmf(q.numpy(), 12.3) - bump
    assert value.tolist() == pytest.approx(expected.tolist(), abs=1e-12)  # neighbours add exp(−200)


def test_no_light_gives_a_normal_density():
    x = torch.linspace(-50, 400, 91, dtype=F64)
    value = exact_log_likelihood(x, 0.0, Camera(2.17, 100.0, 5.0))
    assert value.tolist() == pytest.approx(scipy.stats.norm.logpdf(x.numpy(), 100, math.sqrt(5)).tolist(), rel=1e-13)
    tiny = exact_log_likelihood(x[:15], 1e-30, Camera(2.17, 100.0, 5.0))
    assert tiny.tolist() == pytest.approx(value[:15].tolist(), rel=1e-13)


def test_much_light_tends_to_a_normal_density():
    rate, v = 1e5, 25.0
    z = rate + math.sqrt(rate + v) * torch.linspace(-2, 2, 9, dtype=F64)
    value = exact_log_likelihood(z, rate, Camera(read_variance=v))
    normal = scipy.stats.norm.logpdf(z.numpy(), rate, math.sqrt(rate + v))
    t = torch.linspace(-2, 2, 9, dtype=F64)
    skew = rate / (rate + v) ** 1.5 * (t**3 - 3 * t) / 6  # first Edgeworth term
    assert value.tolist() == pytest.approx((torch.from_numpy(normal) + skew).tolist(), abs=3e-5)  # next order 1/ω
    assert value.tolist() != pytest.approx(normal.tolist(), abs=3e-4)


def test_gradients_by_autograd():
    x = torch.tensor([101.3, 108.0, 99.0, 260.0], dtype=F64, requires_grad=True)
    rate = torch.tensor([0.4, 3.0, 7.5, 60.0], dtype=F64, requires_grad=True)
    camera = Camera(2.17, 100.0, 5.0)
    assert torch.autograd.gradcheck(lambda x, rate: exact_log_likelihood(x, rate, camera), (x, rate))
    assert torch.autograd.gradcheck(lambda rate: surrogate_log_likelihood(x.detach(), rate, camera), (rate,))
    (by_rate,) = torch.autograd.grad(exact_log_likelihood(x, rate, camera).sum(), rate)
    torch.testing.assert_close(by_rate, exact_score(x.detach(), rate.detach(), camera), rtol=1e-14, atol=0)
    (by_rate,) = torch.autograd.grad(surrogate_log_likelihood(x, rate, camera).sum(), rate)
    torch.testing.assert_close(by_rate, surrogate_score(x.detach(), rate.detach(), camera), rtol=1e-13, atol=1e-15)


def test_scores_have_mean_zero():
    camera, rate, step = Camera(2.17, 100.0, 5.0), 3.0, 0.2
    x = torch.arange(50, 300, step, dtype=F64)
    p = exact_log_likelihood(x, rate, camera).exp() * step
    assert abs((p * exact_score(x, rate, camera)).sum().item()) < 1e-11
    assert abs((p * surrogate_score(x, rate, camera)).sum().item()) < 1e-11


def test_score_at_zero_rate_is_the_limit():
    x = torch.tensor([-2.0, 0.0, 0.5, 1.0, 6.0], dtype=F64)
    camera = Camera(read_variance=0.8)
    torch.testing.assert_close(exact_score(x, 0.0, camera), exact_score(x, 1e-14, camera), rtol=1e-7, atol=1e-12)
    assert exact_score(500.0, 0.0, Camera(read_variance=0.01)).item() == math.inf


def test_blocks_do_not_change_the_result(monkeypatch):
    cells = torch.tensor(random_cells(40, seed=5), dtype=F64)
    z, rate, v = cells[:, 0], cells[:, 1], cells[:, 4]
    whole = mixture.mixture(z, torch.zeros_like(z), rate, v)
    monkeypatch.setattr(mixture, "TERMS", 64)
    monkeypatch.setattr(mixture, "CELLS", 7)
    pieces = mixture.mixture(z, torch.zeros_like(z), rate, v)
    for a, b in zip(whole, pieces, strict=True):  # blocks share the widest window: more terms, same sum
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_broadcasts_maps_and_types():
    maps = [torch.rand(4, 5, dtype=F64, generator=torch.Generator().manual_seed(i)) + 1 for i in range(3)]
    camera = Camera(maps[0], maps[1], maps[2])
    x, rate = torch.full((3, 4, 5), 7, dtype=torch.float32), torch.rand(1, 4, 5)
    for function in (exact_log_likelihood, exact_score, surrogate_log_likelihood, surrogate_score, deviance):
        value = function(x, rate, camera)
        assert value.shape == (3, 4, 5) and value.dtype == F64
        single = Camera(maps[0][2, 3].item(), maps[1][2, 3].item(), maps[2][2, 3].item())
        assert value[1, 2, 3].item() == pytest.approx(function(7.0, rate[0, 2, 3].item(), single).item(), rel=1e-13)
    assert exact_log_likelihood(torch.zeros(0), 1.0, Camera(read_variance=1.0)).shape == (0,)


# Erratum table A: KL in nats at rates 0.5, 2, 10. The surrogate spreads a pmf over the real line, so the figure
# depends on where its density starts: here at x' = −1/2, half-way to the count below 0, normalised; and it is the
# divergence of the surrogate *from* the exact density, KL(surrogate || exact). The values are scipy.integrate.quad's
# with scipy.stats' densities; the table's own three digits are all within 0.001 of them.
KL = {1.0: (0.05759, 0.01260, 0.00011), 5.0: (0.01484, 0.00734, 0.00077), 10.0: (0.00763, 0.00516, 0.00116)}
TABLE_A = {1.0: (0.057, 0.012, 0.000), 5.0: (0.015, 0.008, 0.001), 10.0: (0.008, 0.005, 0.001)}


@pytest.mark.parametrize("variance", [1.0, 5.0, 10.0])
def test_divergence_of_the_surrogate(variance):
    camera, step = Camera(read_variance=variance), 0.005
    x = torch.arange(-0.5 - variance + step / 2, 60, step, dtype=F64)  # midpoints: error step²/24, 1e-6
    for rate, expected, table in zip((0.5, 2.0, 10.0), KL[variance], TABLE_A[variance], strict=True):
        log_s = surrogate_log_likelihood(x, rate, camera)
        log_s = log_s - torch.logsumexp(log_s, 0) - math.log(step)
        kl = (log_s.exp() * (log_s - exact_log_likelihood(x, rate, camera))).sum().item() * step
        assert kl == pytest.approx(expected, abs=1e-5)
        assert kl == pytest.approx(table, abs=1e-3)


def test_clipping_the_shifted_counts_biases_them():
    camera, rate, step = Camera(read_variance=1.0), 0.5, 0.002
    x = torch.arange(-12, 30, step, dtype=F64)
    p = exact_log_likelihood(x, rate, camera).exp() * step
    counts = surrogate_counts(x, camera)
    assert (p * counts).sum().item() == pytest.approx(rate + 1, abs=1e-10)
    assert (p * counts.clamp(min=0)).sum().item() - (rate + 1) == pytest.approx(0.053, abs=5e-4)


def test_surrogate_counts_have_equal_mean_and_variance():
    camera, rate, step = Camera(2.17, 100.0, 5.0), 4.0, 0.1
    x = torch.arange(50, 250, step, dtype=F64)
    p = exact_log_likelihood(x, rate, camera).exp() * step
    counts, expected = surrogate_counts(x, camera), rate + 5 / 2.17**2
    assert (p * counts).sum().item() == pytest.approx(expected, rel=1e-10)
    assert (p * (counts - expected) ** 2).sum().item() == pytest.approx(expected, rel=1e-9)


def test_surrogate_is_poisson_without_read_noise():
    q = torch.arange(40, dtype=F64)
    value = surrogate_log_likelihood(2 * q + 100, 7.3, Camera(2.0, 100.0))
    assert value.tolist() == pytest.approx(scipy.stats.poisson.logpmf(q.numpy(), 7.3).tolist(), rel=1e-12)


def test_surrogate_continues_below_minus_one_half():
    camera, rate = Camera(read_variance=1.0), 2.0
    x = torch.tensor([-1.5 + 1e-6, -1.5, -1.5 - 1e-6, -9.0, -10.0], dtype=F64)
    near, at, below, far, farther = surrogate_log_likelihood(x, rate, camera).tolist()
    slope = math.log(3.0) - scipy.special.digamma(0.5)
    assert (near - at) / 1e-6 == pytest.approx(slope, rel=1e-4)
    assert (at - below) / 1e-6 == pytest.approx(slope, rel=1e-4)
    assert far - farther == pytest.approx(slope, rel=1e-12)
    far = surrogate_log_likelihood(torch.linspace(-40, -2, 39, dtype=F64), rate, camera)
    assert bool(far.isfinite().all()) and bool((far.diff() > 0).all())


def test_nothing_is_possible_but_zero_at_zero_rate():
    camera = Camera.ideal()
    x = torch.tensor([0.0, 1.0, -1.0], dtype=F64)
    assert surrogate_log_likelihood(x, 0.0, camera).tolist() == [0.0, -math.inf, -math.inf]
    assert surrogate_score(x, 0.0, camera).tolist() == [-1.0, math.inf, -math.inf]
    assert deviance(x, 0.0, camera).tolist() == [0.0, math.inf, 2.0]


@given(counts=st.floats(1e-3, 1e5), rate=st.floats(0, 1e5), v=st.floats(1e-3, 100))
def test_deviance_is_twice_the_distance_to_the_best_rate(counts, rate, v):
    camera = Camera(read_variance=v)
    x = counts - v  # so that x' = counts
    value = deviance(x, rate, camera).item()
    w = rate + v
    expected = 2 * (scipy.special.xlogy(counts, counts / w) - (counts - w))
    assert value >= 0
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-9 * max(counts, w))
    if counts >= v:  # the saturated rate is possible
        best = surrogate_log_likelihood(x, counts - v, camera) - surrogate_log_likelihood(x, rate, camera)
        assert value == pytest.approx(2 * best.item(), abs=1e-9 * max(1, counts * 12, w * 12))


def test_deviance_is_continuous_at_zero():
    values = deviance(torch.tensor([-1.0 - 1e-9, -1.0, -1.0 + 1e-9], dtype=F64), 2.0, Camera(read_variance=1.0))
    assert values.tolist() == pytest.approx([6.0] * 3, abs=1e-6)


def test_bad_arguments():
    camera = Camera(read_variance=1.0)
    with pytest.raises(ValueError, match="x must be finite, got nan"):
        exact_log_likelihood(math.nan, 1.0, camera)
    with pytest.raises(ValueError, match="rate must be finite and not negative, got -1"):
        exact_score(1.0, -1.0, camera)
    with pytest.raises(ValueError, match=r"camera.read_variance must be positive .* got 0 in 1 pixels"):
        exact_log_likelihood(1.0, 1.0, Camera.ideal())
    with pytest.raises(ValueError, match=r"shapes that broadcast, got x \(2,\), rate \(3,\)"):
        surrogate_log_likelihood(torch.zeros(2), torch.ones(3), camera)
    with pytest.raises(ValueError, match="tolerance must be in"):
        exact_log_likelihood(1.0, 1.0, camera, tolerance=0.0)
