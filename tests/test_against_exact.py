"""Scores against exact draws: closed forms of Gaussians, brute force, and wrong samplers that each score must fail."""

import itertools
import math

import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from smlmtut.evaluation import against_exact as against
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import Emitters


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def within(value: float, wanted: float, error: float) -> bool:
    """Four standard errors, which a right value exceeds once in 16 000."""
    return abs(value - wanted) < 4 * error


# -- closed forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 16])
@pytest.mark.parametrize("spread", [0.8, 1.0, 1.25])
def test_energy_regret_of_gaussians(dimensions, spread):
    """E‖N(0, s² I)‖ = s √2 Γ((d + 1)/2)/Γ(d/2): a closed form for each of the three means."""
    x, y = spread * normal(2000, 20, dimensions), normal(2000, 30, dimensions, seed=1)
    found = against.energy_regret(x, y)
    norm = math.sqrt(2) * math.exp(math.lgamma((dimensions + 1) / 2) - math.lgamma(dimensions / 2))
    scale = norm * math.sqrt(2) / 2
    wanted = norm * math.sqrt(1 + spread**2) - spread * scale - scale
    assert within(float(found.scale.mean()), scale, float(found.scale.std()) / math.sqrt(2000))
    assert within(float(found.excess.mean()), wanted, float(found.excess.std()) / math.sqrt(2000))
    assert found.relative() == pytest.approx(float(found.excess.sum() / found.scale.sum()))
    if spread != 1:
        assert wanted / scale > 0.003 and found.relative() > 4 * found.error()


def test_both_regrets_are_pairs_counted_one_by_one():
    x, y = normal(3, 5, 2, 3), normal(3, 4, 2, 3, seed=1)
    energy, marginal = against.energy_regret(x, y), against.crps_regret(x, y)
    for i in range(3):

        def mean(pairs, distance):
            return sum(distance(a - b) for a, b in pairs) / len(pairs)

        between = list(itertools.product(x[i], y[i]))
        apart = [list(itertools.combinations(part, 2)) for part in (x[i], y[i])]
        for found, distance in ((energy, Tensor.norm), (marginal, lambda d: d.abs().sum())):
            half = [mean(pairs, distance) / 2 for pairs in apart]
            assert float(found.excess[i]) == pytest.approx(float(mean(between, distance) - sum(half)), abs=1e-12)
            assert float(found.scale[i]) == pytest.approx(float(half[1]), abs=1e-12)


def test_crps_regret_counts_the_chosen_pixels():
    x, y = normal(3, 5, 2, 3), normal(3, 4, 2, 3, seed=1)
    where = normal(3, 2, 3, seed=2) > 0
    whole = [against.crps_regret(x[:, :, r, c], y[:, :, r, c]) for r in range(2) for c in range(3)]
    for name in ("excess", "scale"):
        wanted = sum(getattr(p, name) * where.flatten(1)[:, k] for k, p in enumerate(whole))
        torch.testing.assert_close(getattr(against.crps_regret(x, y, where), name), wanted)


def test_the_error_bar_of_a_frame():
    """ln r has mean ln s and the sd of a sample's sd, about 1/√(2 (S − 1) P), in closed form."""
    many, pixels = 40, 25
    samples = 1.2 * normal(1000, many, 5, pixels // 5)
    found = against.log_error_bar(samples, torch.ones(1000, 5, 5), torch.ones(1000, 5, 5, dtype=torch.bool))
    wanted = 1 / math.sqrt(2 * (many - 1) * pixels)
    assert within(float(found.mean()), math.log(1.2), wanted / math.sqrt(1000))
    assert float(found.std()) == pytest.approx(wanted, rel=0.1)
    where = torch.zeros(1000, 5, 5, dtype=torch.bool)
    where[:, 2] = True
    sd = torch.full((1000, 5, 5), 1e6)
    sd[:, 2] = 2.4
    assert float(against.log_error_bar(samples, sd, where).mean()) == pytest.approx(-math.log(2), abs=0.01)


def test_the_log_loss_of_a_number_is_zero_for_the_exact_one_and_a_divergence_for_another():
    q, p = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.5, 0.4, 0.1])
    generator = torch.Generator().manual_seed(0)
    exact, same, other = (
        torch.multinomial(r, 4000 * 64, True, generator=generator).reshape(4000, 64) for r in (q, q, p)
    )
    right, wrong = (against.count_log_loss(k, exact[:, :64], 2) for k in (same[:, :63], other))
    assert within(float(right.excess.mean()), 0, float(right.excess.std()) / math.sqrt(4000))
    assert float(right.excess.std()) / math.sqrt(4000) < 0.002
    assert float(right.scale.mean()) == pytest.approx(float(-(q * q.log()).sum()), abs=0.02)
    assert float(wrong.excess.mean()) == pytest.approx(float((q * (q / p).log()).sum()), abs=0.02)


@pytest.mark.parametrize("off", [0.0, 0.06])
def test_the_error_of_a_share_is_free_of_the_noise_of_few_draws(off):
    """20,000 frames of 64 draws against 64: the plain rms is .09 where nothing is wrong."""
    generator = torch.Generator().manual_seed(2)
    p = 0.1 + 0.8 * torch.rand(20_000, generator=generator, dtype=torch.float64)
    said, exact = (torch.binomial(torch.full_like(p, 64), q, generator=generator) / 64 for q in (p + off, p))
    assert float((said - exact).square().mean().sqrt()) > 0.07
    assert against.share_error(said, 64, exact, 64) == pytest.approx(off, abs=0.012 if off == 0 else 0.002)


def test_bootstrap_is_the_standard_error_of_a_mean():
    x = normal(400)
    assert against.bootstrap_error(lambda i: float(x[i].mean()), 400) == pytest.approx(float(x.std()) / 20, rel=0.1)


# -- wrong samplers ----------------------------------------------------------------------------------------

FRAMES, MANY, SIDE, SPREAD = 40, 48, 8, 0.3


def images(u: Tensor, v: Tensor, there: Tensor) -> Tensor:
    """KDEs (B, S, 32, 32) of emitters (B, S, E)."""
    flat = Emitters(u.flatten(0, 1), v.flatten(0, 1), torch.ones_like(u).flatten(0, 1), there.flatten(0, 1))
    return kde_image(flat, (SIDE, SIDE)).reshape(*u.shape[:2], 4 * SIDE, 4 * SIDE)


def posterior(seed: int, places: Tensor | None = None) -> Tensor:
    """Draws for each frame of a posterior in closed form: one emitter for certain, and with p = 1/2 another one."""
    middle = torch.tensor([2.0, 5.0], dtype=torch.float64)[None, None] + normal(FRAMES, 1, 2, seed=99) * 0.5
    middle = middle if places is None else places
    u, v = (middle + SPREAD * normal(FRAMES, MANY, 2, seed=seed + k) for k in (0, 1000))
    there = torch.ones(FRAMES, MANY, 2, dtype=torch.bool)
    there[..., 1] = normal(FRAMES, MANY, seed=seed + 2000) > 0
    return images(u, v, there)


def spread_by(factor: float, y: Tensor) -> Tensor:
    """The same draws, nearer to their mean or farther from it."""
    return y.mean(1, keepdim=True) + factor * (y - y.mean(1, keepdim=True))


def shuffled(y: Tensor) -> Tensor:
    """Each pixel by itself: the marginals of y, and nothing in common."""
    order = torch.rand(y.shape, generator=torch.Generator().manual_seed(5)).argsort(1)
    return y.gather(1, order)


@pytest.fixture(scope="module")
def samplers() -> dict[str, Tensor]:
    anywhere = 3.5 + 2.0 * normal(FRAMES, MANY, 2, seed=7).clamp(-1.7, 1.7)
    right = posterior(10)
    return {
        "exact": right,
        "prior": posterior(20, places=anywhere),
        "narrow": spread_by(0.8, posterior(30)),
        "wide": spread_by(1.25, posterior(40)),
        "independent pixels": shuffled(right),
        "another frame": posterior(50).roll(1, 0),
    }


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return posterior(0)


WRONG = ["prior", "narrow", "wide", "independent pixels", "another frame"]


def test_the_energy_score_fails_every_wrong_sampler(samplers, exact):
    right = against.energy_regret(samplers["exact"], exact)
    assert within(right.relative(), 0, right.error()) and right.error() < 0.01
    for name in WRONG:
        found = against.energy_regret(samplers[name], exact)
        assert found.relative() > 4 * found.error() and found.relative() > 0.01, name


def test_the_crps_fails_all_but_what_has_the_right_marginals(samplers, exact):
    right = against.crps_regret(samplers["exact"], exact)
    assert within(right.relative(), 0, right.error()) and right.error() < 0.01
    shuffled_once = against.crps_regret(samplers["independent pixels"], exact)
    torch.testing.assert_close(shuffled_once.excess, right.excess)
    for name in WRONG:
        found = against.crps_regret(samplers[name], exact)
        assert name == "independent pixels" or found.relative() > 4 * found.error(), name


def test_the_error_bar_fails_a_wrong_spread(samplers, exact):
    sd, where = exact.std(1), posterior(60).mean(1) > 0.05  # pixels chosen by `exact` itself have an sd that is larger
    bars = {name: against.log_error_bar(x, sd, where) for name, x in samplers.items()}
    error = {name: float(x.std()) / math.sqrt(FRAMES) for name, x in bars.items()}
    assert within(float(bars["exact"].mean()), 0, error["exact"])
    assert float(bars["narrow"].mean()) < -4 * error["narrow"] and float(bars["wide"].mean()) > 4 * error["wide"]
    assert float(bars["another frame"].std()) > 2 * float(bars["exact"].std())


def test_the_number_of_peaks_fails_what_shows_another_number(samplers, exact):
    counts = {name: against.peak_counts(x, 4, 1.0) for name, x in {**samplers, "reference": exact}.items()}
    assert set(counts["reference"].unique().tolist()) <= {1, 2}
    assert float((counts["reference"] == 2).double().mean()) == pytest.approx(0.5, abs=0.06)
    found = {name: against.count_log_loss(x, counts["reference"], 6) for name, x in counts.items()}
    assert abs(found["exact"].relative()) < 4 * found["exact"].error()
    assert found["independent pixels"].relative() > 4 * found["independent pixels"].error()


@pytest.mark.parametrize("classifier", [LogisticRegression(max_iter=1000), HistGradientBoostingClassifier(max_iter=60)])
def test_a_classifier_tells_wrong_samplers_from_the_exact_one(samplers, exact, classifier):
    seen = {name: against.summary_vector(x, 4, 1.0) for name, x in samplers.items()}
    reference = against.summary_vector(exact, 4, 1.0)
    right, error = against.two_sample_accuracy(seen["exact"], reference, classifier)
    assert within(right, 0.5, error) and error < 0.02
    trees = isinstance(classifier, HistGradientBoostingClassifier)
    for name in WRONG if trees else ["independent pixels"]:
        found, error = against.two_sample_accuracy(seen[name], reference, classifier)
        assert found - 0.5 > 4 * error, (name, found, error)


# -- bad input ---------------------------------------------------------------------------------------------


def test_bad_input():
    x = normal(3, 5, 2, 3)
    for call in (against.energy_regret, against.crps_regret):
        for bad in (x[:2], x[:, :1], x[:, :, :1], x[:, 0, 0, 0]):
            with pytest.raises(ValueError, match=r"samples and exact must have shapes"):
                call(bad, x)
        with pytest.raises(ValueError, match="exact must be finite"):
            call(x, x / 0)
    with pytest.raises(ValueError, match=r"where must have shape \(3, 2, 3\), got \(3, 2\)"):
        against.crps_regret(x, x, torch.ones(3, 2, dtype=torch.bool))
    sd, all_of_it = torch.ones(3, 2, 3), torch.ones(3, 2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="samples, exact_sd and where must be"):
        against.log_error_bar(x, sd[:, :1], all_of_it)
    with pytest.raises(ValueError, match="where must choose at least one pixel of each frame"):
        against.log_error_bar(x, sd, all_of_it & (torch.arange(3) > 0)[:, None, None])
    with pytest.raises(ValueError, match="the number of samples must be .*2.*, got 1"):
        against.log_error_bar(x[:, :1], sd, all_of_it)
    with pytest.raises(ValueError, match=r"samples must be \(B, S, f·H, f·W\), got \(3, 5\)"):
        against.peak_counts(x[:, :, 0, 0], 4, 1.0)
    with pytest.raises(ValueError, match=r"counts and exact must be \(B, S\) and \(B, R\)"):
        against.count_log_loss(torch.ones(2, 3), torch.ones(3, 3), 2)
    share = torch.tensor([0.2, 0.5])
    with pytest.raises(ValueError, match=r"shares and exact must be \(B,\), got \(1,\) and \(2,\)"):
        against.share_error(share[:1], 64, share, 64)
    with pytest.raises(ValueError, match="exact must lie between 0 and 1, got values from 0.6.* to 1.5"):
        against.share_error(share, 64, 3 * share, 64)
    with pytest.raises(ValueError, match="exact_draws must be .*2.*, got 1"):
        against.share_error(share, 64, share, 1)
    with pytest.raises(ValueError, match="B and R of at least 4"):
        against.two_sample_accuracy(x[:, :, 0], x[:, :4, 0], LogisticRegression())
    with pytest.raises(ValueError, match="frames must be .*2"):
        against.bootstrap_error(float, 1)


def test_a_difference_of_regrets_has_the_error_of_the_frames_differences():
    """What two models share drops out: the error is that of the difference alone, not the root of both in squares."""
    shared, own = normal(400, seed=1), normal(400, seed=2)
    scale = torch.full((400,), 2.0).double()
    one = against.Regret(10 * shared + 1, scale)
    two = against.Regret(10 * shared + own, scale)
    value, error = one.minus(two)
    assert value == pytest.approx(float((1 - own).mean()) / 2)
    assert error == pytest.approx(float(own.std()) / 2 / 20, rel=0.1) and one.error() > 8 * error
    assert one.minus(one) == (0, 0)
    with pytest.raises(ValueError, match="other must have the same 400 frames, got 399"):
        one.minus(against.Regret(own[1:], scale[1:]))
