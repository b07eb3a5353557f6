"""Scores, ranks, intervals and spread against closed forms: Gaussian ensembles of the right width and of wrong ones."""

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from smlmtut.evaluation import calibration, proper_scores
from smlmtut.evaluation.calibration import (
    CLASSES,
    coverage,
    covered,
    crps,
    crps_normal,
    crps_point,
    energy_score,
    spread_skill,
)

MANY = 40_000  # values of an ensemble: a share is known to 0.25 %


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def gaussian_ensemble(many, width=1.0, seed=0, n=MANY):
    """Samples (n, S) of N(m, width²) and truth (n,) of N(m, 1), m anywhere."""
    x = normal(n, many + 2, seed=seed)
    m = 5 * x[:, -1:]
    return m + width * x[:, :many], (m[:, 0] + x[:, many])


def share_error(share, n=MANY):
    """Four standard errors of a share, which a right result exceeds once in 16 000."""
    return 4 * math.sqrt(share * (1 - share) / n)


# -- scores ------------------------------------------------------------------------------------------------


def test_crps_by_hand():
    """Samples 0, 1, 3 and truth 2: ∫ (F − 1)² is (1 + 4 + 1)/9; E|X − y| = 4/3, and 2 between different samples."""
    x, y = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([2.0])
    assert crps(x, y, fair=False).item() == pytest.approx(2 / 3)
    assert crps(x, y).item() == pytest.approx(4 / 3 - 2 / 2)
    assert crps(x[:, :1], y, fair=False).item() == pytest.approx(2)  # one sample is a point


def gaussian_crps(y, sd):
    z = y / sd
    return sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize("y", [0.0, -1.3, 4.0])
def test_crps_of_a_gaussian(y):
    sd = torch.tensor([0.7], dtype=torch.float64)
    got = crps_normal(torch.ones(1), sd, 1 + torch.tensor([y], dtype=torch.float64))
    assert got.item() == pytest.approx(gaussian_crps(y, 0.7), rel=1e-12)
    total, _ = integrate.quad(lambda t: (stats.norm.cdf(t / 0.7) - (t >= y)) ** 2, -8, 12, points=[y], epsabs=1e-10)
    assert got.item() == pytest.approx(total, abs=1e-8)


@pytest.mark.parametrize("many", [2, 4, 64])
def test_fair_crps_is_that_of_the_distribution_at_any_size(many):
    """The plain one is higher by E|X − X′| / 2S = 1 / (S √π) for a Gaussian."""
    y = torch.full((20_000,), 0.8, dtype=torch.float64)
    x = normal(len(y), many, seed=many)
    fair, plain = crps(x, y), crps(x, y, fair=False)
    allowed = 4 * float(fair.std()) / math.sqrt(len(y))
    assert float(fair.mean()) == pytest.approx(gaussian_crps(0.8, 1.0), abs=allowed)
    assert float((plain - fair).mean()) == pytest.approx(1 / (many * math.sqrt(math.pi)), abs=allowed)


def test_a_point_is_the_limit_of_a_gaussian():
    y, m = normal(50), normal(50, seed=1)
    torch.testing.assert_close(crps_point(m, y), (m - y).abs())
    sd = torch.tensor([0.0, 1e-9] * 25, dtype=torch.float64)
    torch.testing.assert_close(crps_normal(m, sd, y), (m - y).abs(), rtol=0, atol=1e-8)  # some sd


def test_the_right_width_has_the_best_score():
    """CRPS of a calibrated Gaussian is 1/√π, and other widths cost: the scores are proper."""
    y = normal(MANY)
    score = {w: float(crps_normal(torch.zeros(()), torch.tensor(w), y).mean()) for w in (0.5, 1.0, 2.0)}
    assert score[1.0] == pytest.approx(1 / math.sqrt(math.pi), abs=4 * 0.4 / math.sqrt(MANY))  # its sd is below 0.4
    assert score[1.0] < score[0.5] and score[1.0] < score[2.0]
    fair = {w: float(crps(*gaussian_ensemble(8, w)).mean()) for w in (0.5, 1.0, 2.0)}
    assert fair[1.0] < fair[0.5] and fair[1.0] < fair[2.0]


@pytest.mark.parametrize("fair", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3, 4), (50,)])
def test_energy_score_is_the_librarys(shape, fair):
    """In few dimensions and, through a rotation into fewer, in many."""
    x, y = normal(5, 6, *shape), normal(5, *shape, seed=1)
    flat = [z.flatten(2 if z is x else 1).numpy() for z in (x, y)]
    expected = scoringrules.es_ensemble(flat[1], flat[0], estimator="fair" if fair else "nrg", backend="numpy")
    np.testing.assert_allclose(energy_score(x, y, fair), np.asarray(expected), rtol=1e-12)
    if shape == (1,):
        torch.testing.assert_close(energy_score(x, y, fair), crps(x, y, fair)[:, 0])


def test_energy_score_in_three_dimensions():
    """Calibrated N(0, I): ½ E‖X − X′‖ = E χ₃ / √2 = 2/√π, by fair samples at S = 4."""
    score = energy_score(normal(3000, 4, 3), normal(3000, 3, seed=1))
    assert float(score.mean()) == pytest.approx(2 / math.sqrt(math.pi), abs=4 * float(score.std()) / math.sqrt(3000))


def test_only_the_energy_score_sees_correlations():
    """Images that go up and down as a whole, and samples whose pixels were shuffled among each other."""
    common = 0.1 * normal(300, 9, 30) + normal(300, 9, 1, seed=1)
    x, y = common[:, 1:], common[:, 0]
    shuffled = torch.stack([x[:, (torch.arange(8) + p) % 8, p] for p in range(30)], -1)
    torch.testing.assert_close(crps(shuffled, y), crps(x, y))
    worse = energy_score(shuffled, y) - energy_score(x, y)
    assert float(worse.mean()) > 4 * float(worse.std()) / math.sqrt(300)


@given(scale=st.floats(-50, 50).filter(lambda a: abs(a) > 1e-3), shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_units_do_not_matter(scale, shift, seed):
    x, y = normal(4, 5, 3, seed=seed), normal(4, 3, seed=seed + 100)
    for score in (crps, energy_score):
        torch.testing.assert_close(
            score(scale * x + shift, scale * y + shift), abs(scale) * score(x, y), rtol=1e-9, atol=1e-9
        )
    assert spread_skill(scale * x + shift, scale * y + shift) == pytest.approx(spread_skill(x, y))
    order = torch.randperm(5, generator=generator(seed))
    torch.testing.assert_close(crps(x[:, order], y), crps(x, y))
    above = calibration.ranks(torch.exp(x), torch.exp(y), generator())
    assert torch.equal(above, calibration.ranks(x, y, generator()))
    assert torch.equal(calibration.ranks(-x, -y, generator()), 5 - above)


# -- ranks -------------------------------------------------------------------------------------------------


def histogram(samples, truth, seed=0):
    """Counts of the ranks 0 … S."""
    return np.bincount(calibration.ranks(samples, truth, generator(seed)), minlength=samples.shape[1] + 1)


def test_ranks_by_hand():
    x = torch.tensor([[1.0, 2.0, 3.0]]).expand(5, 3)
    y = torch.tensor([0.0, 1.5, 2.5, 9.0, 3.5])
    assert calibration.ranks(x, y, generator()).tolist() == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("rounding", [None, 1.0, 4.0])
@pytest.mark.parametrize("many", [1, 4, 63])
def test_ranks_of_calibrated_ensembles_are_uniform(many, rounding):
    """Also where most values are equal; the seeds were not chosen, and a right test fails once in a thousand."""
    x, y = gaussian_ensemble(many, n=20_000)
    if rounding is not None:
        x, y = (rounding * (z / rounding).round() for z in (x, y))
    counts = histogram(x, y, 1)
    assert int(counts.sum()) == 20_000 and len(counts) == many + 1
    assert stats.chisquare(counts).pvalue > 1e-3
    if rounding == 4.0:  # a truth that always lay below its equals would look wrong
        below = torch.bincount((x < y[:, None]).sum(1), minlength=many + 1)
        assert stats.chisquare(below.numpy()).pvalue < 1e-10


def test_where_all_is_equal_any_rank_is_as_good():
    counts = histogram(torch.zeros(6000, 5), torch.zeros(6000))
    assert stats.chisquare(counts).pvalue > 1e-3
    assert np.array_equal(counts, histogram(torch.zeros(6000, 5), torch.zeros(6000)))


def test_the_histogram_shows_what_is_wrong():
    narrow, wide, low = (
        histogram(x, y) / MANY
        for x, y in (
            gaussian_ensemble(9, 0.5), gaussian_ensemble(9, 2.0), (gaussian_ensemble(9)[0] - 1, gaussian_ensemble(9)[1])
        )
    )  # fmt: skip
    assert narrow[0] > 0.2 and narrow[9] > 0.2 and narrow[4] < 0.1
    assert wide[0] < 0.05 and wide[9] < 0.05 and wide[4] > 0.1
    assert low[9] > 0.2 and low[0] < 0.05


# -- intervals ---------------------------------------------------------------------------------------------


def expected_coverage(many, width, level):
    """Mean of `covered`, samples of N(0, width²) and truth of N(0, 1): ∫ φ(y) Σ_r c_r Binomial(r; S, Φ(y/width)) dy."""
    r = np.arange(many + 1)
    low, high = r / (many + 1), (r + 1) / (many + 1)
    inside = np.clip(np.minimum(high, 0.5 + level / 2) - np.maximum(low, 0.5 - level / 2), 0, None) * (many + 1)
    y = np.linspace(-8, 8, 1601)  # the trapezoidal rule is exact for a Gaussian times what is smooth
    chance = stats.binom.pmf(r, many, stats.norm.cdf(y / width)[:, None])
    return float(np.sum(stats.norm.pdf(y) * (chance @ inside)) * (y[1] - y[0]))


@pytest.mark.parametrize("many", [1, 4, 64])
def test_coverage_of_calibrated_ensembles_is_the_level(many):
    x, y = gaussian_ensemble(many)
    levels = (0.1, 0.5, 0.8, 0.95)
    for level, got in zip(levels, coverage(x, y, levels).tolist(), strict=True):
        assert got == pytest.approx(level, abs=share_error(level))
        assert expected_coverage(many, 1.0, level) == pytest.approx(level, abs=1e-6)  # the integral's own error
    # while the interval from the lowest to the highest sample holds less than all
    between = ((x.min(1).values <= y) & (y <= x.max(1).values)).double().mean()
    assert float(between) == pytest.approx((many - 1) / (many + 1), abs=share_error((many - 1) / (many + 1)) + 1e-12)


@pytest.mark.parametrize("width", [0.5, 2.0])
@pytest.mark.parametrize("many", [4, 64])
def test_coverage_of_a_wrong_width(many, width):
    x, y = gaussian_ensemble(many, width)
    for level, got in zip((0.5, 0.8, 0.95), coverage(x, y).tolist(), strict=True):
        wanted = expected_coverage(many, width, level)
        assert got == pytest.approx(wanted, abs=share_error(wanted))
        assert (wanted < level) == (width < 1)
    # with ever more samples it is the Gaussian's own: |y| < width z
    limit = special.erf(width * stats.norm.ppf(0.9) / math.sqrt(2))
    far, half = (expected_coverage(s, width, 0.8) - limit for s in (200, 400))
    assert abs(half) < 0.01 and far / half == pytest.approx(2, rel=0.05)  # it goes there as 1/S


def test_coverage_of_ties_and_ends():
    x, y = torch.zeros(3, 7), torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(covered(x, y, 0.3), torch.full((3,), 0.3, dtype=torch.float64))
    x, y = gaussian_ensemble(5, n=100)
    assert float(covered(x, y, 0.0).sum()) == 0
    torch.testing.assert_close(covered(x, y, 1.0), torch.ones_like(y))
    assert covered(x.reshape(4, 25, 5).movedim(2, 1), y.reshape(4, 25), 0.5).shape == (4, 25)


@pytest.mark.parametrize("width", [0.7, 1.0, 1.4])
def test_tarp_is_uniform_for_the_right_width_alone(width):
    """Ten pixels with a common shift: with reference points drawn by themselves, 4000 levels tell widths apart."""
    shift, x = normal(4000, 1, seed=1), normal(4000, 33, 10, seed=2)
    samples, truth = shift[:, None] + width * x[:, :32], shift + x[:, 32]
    levels = calibration.tarp(samples, truth, 3 * normal(4000, 10, seed=3), generator())
    assert (stats.kstest(levels, "uniform").pvalue > 1e-3) == (width == 1)


def test_draws_of_the_prior_pass_tarp():
    """What makes it a witness only: samples that ignore the frame are uniform."""
    truth, prior = normal(2000, 10, seed=4), normal(2000, 32, 10, seed=5)
    levels = calibration.tarp(prior, truth, truth.roll(1, 0), generator())
    assert stats.kstest(levels, "uniform").pvalue > 1e-3


def test_tarp_from_far_below_is_the_rank():
    x, y = gaussian_ensemble(7, n=500)
    levels = calibration.tarp(x[..., None], y[:, None], torch.full((500, 1), -1e6, dtype=torch.float64), generator())
    assert torch.equal((8 * levels).floor().long(), calibration.ranks(x, y, generator()))


# -- spread ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("many", [4, 64])
def test_spread_skill(many, width):
    """E sd² = w², E error² = 1 + w²/S, so √((S + 1) w² / (S + w²)): 1 for w = 1 at any S."""
    x, y = gaussian_ensemble(many, width)
    wanted = math.sqrt((many + 1) * width**2 / (many + width**2))
    # a mean of n squares of Gaussians is known to √(2/n), its root to half of that; two of them, four times
    allowed = 4 * 0.5 * math.sqrt(2 / MANY + 2 / (MANY * (many - 1)))
    assert spread_skill(x, y) == pytest.approx(wanted, rel=allowed)
    assert width != 1 or wanted == 1


def test_spread_skill_at_its_ends():
    assert spread_skill(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0])) == math.inf
    assert spread_skill(torch.ones(2, 3), torch.zeros(2)) == 0
    assert math.isnan(spread_skill(torch.ones(2, 3), torch.ones(2)))
    assert math.isnan(spread_skill(torch.ones(0, 3), torch.ones(0)))


def test_what_an_estimate_forgets_comes_back_as_spread():
    """y ~ N(0, 1), x = y + noise, and ŷ sees only x + more noise: Var(y|ŷ) = 1 − 1/(1 + s² + t²)."""
    s, t, n = 0.6, 0.8, MANY
    y, a, b = normal(3, n)
    x = y + s * a
    exact, sd = x / (1 + s**2), math.sqrt(s**2 / (1 + s**2))
    estimate = (x + t * b) / (1 + s**2 + t**2)
    wanted = math.sqrt(1 - 1 / (1 + s**2 + t**2))
    got = calibration.predicted_sd(torch.full((n,), sd), estimate - exact)
    assert got == pytest.approx(wanted, rel=2 * math.sqrt(2 / n))  # only a part of it is random
    assert float((y - estimate).std()) == pytest.approx(wanted, rel=2 * math.sqrt(2 / n))
    where = torch.arange(4) > 1
    assert calibration.predicted_sd(torch.tensor([9.0, 9, 3, 0]), torch.tensor([9.0, 9, 4, 0]), where) == math.sqrt(
        12.5
    )


def test_sparsification_of_an_sd_that_knows_all_or_nothing():
    """|error| uniform on (0, 1): without the largest share f, rms is (1 − f)/√3, so the oracle's area is 1/2."""
    error = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    error[::2] *= -1
    error = error[torch.randperm(5000, generator=generator())]
    perfect = calibration.sparsification(error.abs(), error)
    assert perfect.area == pytest.approx(0, abs=1e-12) and perfect.area_random == pytest.approx(0.5, abs=1e-3)  # 1/n
    torch.testing.assert_close(perfect.oracle, 1 - perfect.removed, rtol=0, atol=1e-3)
    torch.testing.assert_close(perfect.curve, perfect.oracle)
    assert perfect.removed[0] == 0 and perfect.curve[0] == 1 and len(perfect.curve) == 100
    blind = calibration.sparsification(torch.ones(5000), error)
    torch.testing.assert_close(blind.curve, torch.ones_like(blind.curve))
    assert blind.area == pytest.approx(blind.area_random)
    wrong = calibration.sparsification(1 - error.abs(), error)
    assert wrong.area > wrong.area_random and bool((wrong.curve.diff() > 0).all())


def test_sparsification_shares_ties_and_sees_no_scale():
    sd, error = torch.tensor([1.0, 2, 1, 2]), torch.tensor([0.0, -4, 2, 2])
    found = calibration.sparsification(sd, error)
    # squared: all (0 + 4 + 16 + 4)/4 = 6; of the uncertain pair (16 + 4)/2 = 10 each; of the other 2 each
    torch.testing.assert_close(found.curve**2 * 6, torch.tensor([6, 14 / 3, 2, 2], dtype=torch.float64))
    torch.testing.assert_close(found.oracle**2 * 6, torch.tensor([6, 8 / 3, 2, 0], dtype=torch.float64))
    assert found.removed.tolist() == [0, 0.25, 0.5, 0.75]
    order = torch.tensor([3, 0, 2, 1])
    again = calibration.sparsification(7 * sd[order], 3 * error[order])
    torch.testing.assert_close(again.curve, found.curve)
    assert again.area == pytest.approx(found.area) and 0 < found.area < found.area_random


# -- classes -----------------------------------------------------------------------------------------------


def test_classes_of_pixels():
    mean = torch.tensor([-0.1, 0.0, 0.0009, 0.001, 0.02, 0.05, 0.051, 2.0], dtype=torch.float64)
    assert [CLASSES[i] for i in calibration.pixel_class(mean)] == [
        "background", "background", "background", "halo", "halo", "halo", "core", "core",
    ]  # fmt: skip


def test_every_class_is_judged_for_itself():
    """Background exact, halo calibrated, core half as wide as it should be; and all together, which hides it."""
    mean = torch.tensor([0.0] * 30 + [0.02] * 6 + [0.5] * 4, dtype=torch.float64).expand(4000, 40).reshape(4000, 8, 5)
    sd = mean / 10
    x, y = normal(4000, 9, 8, 5), normal(4000, 8, 5, seed=1)
    claimed = torch.where(mean > 0.1, 0.5, 1.0)[:, None] * sd[:, None]
    table = calibration.summary(mean[:, None] + claimed * x, mean + sd * y, mean)
    assert list(table.index) == [*CLASSES, "all"]
    assert table["pixels"].tolist() == [120_000, 24_000, 16_000, 160_000]
    background, halo, core, everything = (table.loc[name] for name in table.index)
    assert background["crps"] == 0 and background["rms_sd"] == 0 and background["coverage_80"] == pytest.approx(0.8)
    assert halo["coverage_80"] == pytest.approx(0.8, abs=share_error(0.8, 24_000))
    assert core["coverage_80"] == pytest.approx(expected_coverage(9, 0.5, 0.8), abs=share_error(0.5, 16_000))
    assert halo["spread_skill"] == pytest.approx(1, rel=2 * math.sqrt(2 / 24_000) * 1.1)  # 1.1: for S = 9
    assert core["rms_sd"] == pytest.approx(0.025, rel=2 * math.sqrt(2 / 16_000))
    assert abs(everything["coverage_80"] - 0.8) < abs(core["coverage_80"] - 0.8) / 5
    x, y = calibration.strata(mean[:, None] + claimed * x, mean + sd * y, mean)["core"]
    assert x.shape == (16_000, 9) and core["crps"] == pytest.approx(float(crps(x, y).mean()))
    assert core["rms_error"] == pytest.approx(float((x.mean(1) - y).square().mean().sqrt()))


def test_a_class_may_be_empty():
    table = calibration.summary(torch.ones(2, 3, 4), torch.ones(2, 4), torch.ones(2, 4))
    assert table.loc["halo", "pixels"] == 0 and table.loc["halo"].isna().sum() == 7
    assert table.loc["core", "crps"] == 0


def test_samples_are_seen_in_parts(monkeypatch):
    x, y = normal(7, 5, 3, 2), normal(7, 3, 2, seed=1)
    functions = (crps, energy_score, spread_skill, coverage, lambda a, b: calibration.ranks(a, b, generator()))
    whole = [f(x, y) for f in functions]
    monkeypatch.setattr(proper_scores, "VALUES_AT_ONCE", 61)
    for f, wanted in zip(functions, whole, strict=True):
        torch.testing.assert_close(torch.as_tensor(f(x, y)), torch.as_tensor(wanted))
    assert crps(x.float(), y.float()).dtype == torch.float64


# -- bad input ---------------------------------------------------------------------------------------------

NAN = torch.tensor([math.nan, 1.0])
FOUR = torch.ones(2, 4), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crps(torch.ones(2, 3, 4), torch.ones(2, 3)), r"samples and truth must have shapes .* got \(2, 3, 4\)"),
        (lambda: crps(torch.ones(2), torch.ones(2)), "samples and truth must have shapes"),
        (lambda: crps(torch.ones(2, 1), torch.ones(2)), "samples must hold at least 2 for each truth, got 1"),
        (lambda: crps(torch.ones(2, 0), torch.ones(2), fair=False), "at least 1 for each truth, got 0"),
        (lambda: energy_score(torch.ones(2, 1), torch.ones(2)), "samples must hold at least 2"),
        (lambda: crps(NAN[None], torch.ones(1)), "samples must be finite, got nan"),
        (lambda: coverage(torch.ones(2, 2), NAN), "truth must be finite, got nan"),
        (lambda: spread_skill(torch.ones(2, 1), torch.ones(2)), "samples must hold at least 2"),
        (lambda: crps_normal(torch.ones(3), torch.ones(1), torch.ones(2)), r"must fit the truth's shape \(2,\)"),
        (lambda: crps_normal(NAN, torch.ones(2), torch.ones(2)), "mean must be finite, got nan"),
        (lambda: crps_normal(torch.ones(2), -torch.ones(2), torch.ones(2)), "sd must be finite and not negative"),
        (lambda: crps_point(torch.ones(2), NAN), "truth must be finite, got nan"),
        (lambda: coverage(torch.ones(2, 2), torch.ones(2), (0.5, 1.5)), r"level must be in \[0, 1\], got 1.5"),
        (lambda: covered(torch.ones(2, 2), torch.ones(2), math.nan), "level must be in"),
        (lambda: calibration.pixel_class(NAN), "mean must be finite, got nan"),
        (lambda: calibration.strata(*FOUR, torch.ones(3)), r"mean must have the truth's shape \(2,\), got \(3,\)"),
        (lambda: calibration.predicted_sd(torch.ones(2), torch.ones(3)), "must have one shape"),
        (lambda: calibration.predicted_sd(-torch.ones(2), torch.ones(2)), "exact_sd must be finite and not negative"),
        (lambda: calibration.predicted_sd(torch.ones(2), NAN), "estimate_error must be finite"),
        (lambda: calibration.predicted_sd(torch.ones(2), torch.ones(2), torch.zeros(2) > 1), "where must choose"),
        (lambda: calibration.sparsification(torch.ones(2), torch.ones(3)), "sd and error must have one shape"),
        (lambda: calibration.sparsification(torch.ones(2), torch.zeros(2)), "error must not be 0 everywhere"),
        (lambda: calibration.sparsification(-torch.ones(2), torch.ones(2)), "sd must be finite and not negative"),
        (lambda: calibration.sparsification(torch.ones(2), torch.ones(2), 0), "points must be a whole number"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
