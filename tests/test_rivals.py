"""The rivals of the bake-off: their losses and samplers against closed forms, scipy, and direct loops."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import bakeoff, out_of_distribution
from benchmarks import rivals as runs
from smlmtut._random import step_generator
from smlmtut.evaluation import energy_score
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.networks import engression, pretrained, recipes
from smlmtut.networks import rivals as rival
from smlmtut.networks.cddpm import DiffusionBatch, frame_input, pixel_weight
from smlmtut.networks.condition import Condition, FrameFit, condition_on
from smlmtut.networks.conformal import Conformal, conformal_factors
from smlmtut.networks.emitter_set import (
    COUNT_VARIANCE,
    OUTSIDE,
    EmitterBatch,
    EmitterSet,
    draw_emitters,
    set_log_density,
)
from smlmtut.networks.engression import WIDTHS, Engression, Mixer, smooth, windowed_energy
from smlmtut.networks.rivals import SNGP, Dropout, Ensemble, Gaussian, Quantiles
from smlmtut.networks.unet import UNet

SMALL: dict[str, Any] = {"channels": (8, 16)}
UNIT = rival.SCALE_UNIT


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=dice(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def phi():
    return pretrained.load()


@pytest.fixture(scope="module")
def batch(phi):
    return draw_emitters(recipes.reference_scene(), recipes.SMALL_FRAME, phi)(3, dice(5))


MAKE = {
    "gaussian": lambda: Gaussian(**SMALL),
    "quantiles": lambda: Quantiles(**SMALL),
    "ensemble": lambda: Ensemble([Gaussian(**SMALL) for _ in range(3)]),
    "dropout": lambda: Dropout(**SMALL),
    "sngp": lambda: SNGP(4, 16, **SMALL),
    "set": lambda: EmitterSet(**SMALL),
    "engression": lambda: Engression(**SMALL),
}


def made(name, seed=0):
    """A small network, its last layer not at the zeros of its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MAKE[name]()
        for part in network.modules():
            if isinstance(part, UNet | Mixer):
                part.head.reset_parameters()
    return network


# -- what all have in common ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_a_rival_learns_and_samples(name, batch):
    network = made(name).train()
    loss = network(batch)
    loss.backward()
    assert loss.shape == () and math.isfinite(loss.item())
    still = [key for key, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    # beta is 0 at the start of SNGP, so nothing before it learns from the mean in the first step
    assert not still, still
    network.eval()
    first, again, other = (network.sample(batch.estimate, batch.frame, 5, dice(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 5, 64, 64) and first.dtype == torch.float32 and bool(first.isfinite().all())
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[:, 0], first[:, 1])
    copied = copy.deepcopy(network)
    assert torch.equal(copied.sample(batch.estimate, batch.frame, 5, dice(1)), first)


@pytest.mark.parametrize("name", MAKE)
def test_a_rival_uses_both_the_estimate_and_the_frame(name, batch):
    network = made(name).eval()
    first = network.sample(batch.estimate, batch.frame, 2, dice())
    assert not torch.equal(network.sample(batch.estimate, batch.frame.roll(1, 0), 2, dice()), first)
    assert not torch.equal(network.sample(batch.estimate.roll(1, 0), batch.frame, 2, dice()), first)


@pytest.mark.parametrize("name", MAKE)
def test_bad_arguments_are_named(name, batch):
    network = made(name).eval()
    with pytest.raises(ValueError, match=r"samples must be a whole number of at least 1, got 0"):
        network.sample(batch.estimate, batch.frame, 0, dice())
    with pytest.raises(ValueError, match=r"frame must have 2 channels and a quarter"):
        network.sample(batch.estimate, batch.frame[..., 1:], 1, dice())


@pytest.mark.parametrize("name", MAKE)
def test_in_low_precision_the_results_stay_in_float32(name, batch):
    """Under autocast the trunk rounds to 8 bits; what is computed of its images does not."""
    network = made(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(batch)
        drawn = network.eval().sample(batch.estimate, batch.frame, 2, dice())
    loss.backward()
    exact = made(name).train()(batch) if name not in ("dropout", "engression") else loss  # which draw
    assert loss.dtype == drawn.dtype == torch.float32 and bool(drawn.isfinite().all())
    assert loss.item() == pytest.approx(exact.item(), rel=0.03, abs=0.01)


@pytest.mark.parametrize("name", ["gaussian", "sngp", "quantiles", "set"])
def test_a_few_steps_fit_a_batch(name, batch):
    """By the score without its weight: the weight of a Gaussian head falls with its sd, so its loss may rise."""
    network = made(name).train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)

    @torch.no_grad()
    def score():
        if name not in ("gaussian", "sngp"):
            return network(batch).item()
        mean, sd = network.moments(batch.estimate, batch.frame)
        return rival.gaussian_loss(batch.kde, mean, sd, torch.ones_like(sd)).item()

    before = score()
    for _ in range(25):
        optimizer.zero_grad()
        network(batch).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
    assert score() < before - 0.2 * abs(before)


# -- Gaussian ------------------------------------------------------------------------------------------------------


def test_gaussian_loss_has_its_minimum_at_the_weighted_moments():
    y, weight = normal(200), normal(200, seed=1).abs() + 0.1
    mean, sd = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    theirs = -(weight.numpy() * (stats.norm.logpdf(y) + math.log(2 * math.pi) / 2)).mean()
    assert rival.gaussian_loss(y, mean, sd, weight).item() == pytest.approx(theirs)
    mean = (weight * y).sum() / weight.sum()
    sd = ((weight * (y - mean).square()).sum() / weight.sum()).sqrt()
    mean, sd = mean.requires_grad_(), sd.requires_grad_()
    slopes = torch.autograd.grad(rival.gaussian_loss(y, mean, sd, weight), (mean, sd))
    assert all(abs(float(x)) < 1e-12 for x in slopes)


def test_the_weight_does_not_move_the_minimum(batch, monkeypatch):
    """At sd = |error| the likelihood has no slope in sd, which it had if the weight were differentiated too."""
    network = made("gaussian")
    mean = batch.estimate.clone().requires_grad_()
    sd = (batch.kde - mean).abs().detach().clamp(min=1e-3) * torch.ones_like(mean)
    y, sd = mean.detach() + sd, sd.requires_grad_()
    monkeypatch.setattr(network, "moments", lambda *_: (mean, sd))
    network(batch._replace(kde=y)).backward()
    assert float(sd.grad.abs().max()) < 1e-6
    # d/dm = −weight / sd for an error of one sd: the same for every sd
    expected = -pixel_weight(batch.estimate, torch.full_like(y, 1.0)).expand_as(y) / y.numel()
    torch.testing.assert_close(mean.grad, expected, rtol=1e-3, atol=0)


def test_a_gaussian_head_starts_at_the_fit_and_draws_independent_pixels(batch):
    mean, sd = Gaussian(**SMALL).moments(batch.estimate, batch.frame)
    centre, scale, _ = condition_on(batch.estimate, batch.frame)
    assert torch.equal(mean, centre)
    torch.testing.assert_close(sd, scale * (0.1 + math.log(2)))  # softplus(0)
    network = made("gaussian").eval()
    mean, sd = network.moments(batch.estimate, batch.frame)
    z = (network.sample(batch.estimate, batch.frame, 40, dice()) - mean) / sd
    assert stats.kstest(z.detach().flatten()[:20_000], "norm").pvalue > 1e-4
    beside = (z[..., 1:] * z[..., :-1]).detach().mean()
    assert abs(float(beside)) < 5 / z.numel() ** 0.5


# -- quantiles -----------------------------------------------------------------------------------------------------


def test_the_minimum_of_the_pinball_loss_is_the_quantile():
    y = normal(101).sort().values
    levels = torch.tensor([0.05, 0.3, 0.5, 0.9], dtype=torch.float64)
    tried = y[:, None, None, None].expand(-1, 4, 1, 1)
    loss = torch.stack([rival.pinball(y[:, None, None, None], q[None], levels).mean(0)[:, 0, 0] for q in tried])
    found = y[loss.argmin(0)]
    np.testing.assert_allclose(found, np.quantile(y, levels, method="inverted_cdf"))


def test_quantiles_do_not_cross_and_their_middle_starts_at_the_fit(batch):
    network = made("quantiles").eval()
    q = network.quantiles(batch.estimate, batch.frame)
    assert q.shape == (3, 15, 64, 64) and bool((q.diff(dim=1) > 0).all())
    start = Quantiles(**SMALL).quantiles(batch.estimate, batch.frame)
    centre, scale, _ = condition_on(batch.estimate, batch.frame)
    assert rival.LEVELS[7] == 0.5
    gap = math.log1p(math.exp(-2))  # at the start: of one level to the next, in scales
    for k in range(15):
        torch.testing.assert_close(start[:, k], (centre + (k - 7) * gap * scale)[:, 0])
    error = batch.kde - q
    level = torch.tensor(rival.LEVELS)[:, None, None]
    theirs = torch.where(error > 0, level * error, (level - 1) * error)
    weight = pixel_weight(batch.estimate, torch.full_like(batch.kde, 1.0))
    torch.testing.assert_close(network(batch), (weight * theirs).mean())


def test_samples_from_quantiles_have_these_quantiles():
    levels = torch.tensor([0.1, 0.4, 0.5, 0.95])
    q = normal(2, 4, 1, 3).sort(1).values.float()
    at = torch.rand(2, 20_000, 1, 3, generator=dice())
    drawn = rival.inverse_cdf(q, levels, at)
    share = (drawn[:, :, None] <= q[:, None]).double().mean(1)  # (2, 4, 1, 3)
    error = (levels * (1 - levels) / 20_000).sqrt()[:, None, None]
    assert bool(((share[:, :3] - levels[:3, None, None]).abs() < 4.5 * error[:3]).all())
    assert bool((share[:, 3] == 1).all())  # above the last level nothing is known
    theirs = np.interp(at[1, :, 0, 2], levels, q[1, :, 0, 2])
    np.testing.assert_allclose(drawn[1, :, 0, 2], theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("levels", [(0.5, 0.2), (0.0, 0.5), (0.2, 1.0), (0.3, 0.3)])
def test_levels_that_do_not_rise_are_refused(levels):
    with pytest.raises(ValueError, match="levels must rise between 0 and 1"):
        Quantiles(levels, **SMALL)
    with pytest.raises(ValueError, match="number of levels"):
        Quantiles((0.5,), **SMALL)


# -- ensemble and dropout ------------------------------------------------------------------------------------------


class Fixed(Gaussian):
    """A head that says the same everywhere."""

    def __init__(self, mean, sd):
        super().__init__(**SMALL)
        self.said = mean, sd

    def moments(self, estimate, frame):
        return torch.full_like(estimate, self.said[0]), torch.full_like(estimate, self.said[1])


def test_an_ensemble_is_a_mixture_and_an_image_has_one_member(batch):
    said = [(-1.0, 0.1), (0.0, 0.2), (4.0, 0.3)]
    ensemble = Ensemble([Fixed(*x) for x in said])
    mean, sd = ensemble.moments(batch.estimate, batch.frame)
    assert mean.unique().item() == pytest.approx(1.0)
    variance = (0.01 + 0.04 + 0.09) / 3 + (4 + 1 + 9) / 3
    assert sd.unique().item() == pytest.approx(math.sqrt(variance), rel=1e-6)
    drawn = ensemble.sample(batch.estimate, batch.frame, 300, dice())
    centre, spread = drawn.mean((2, 3)), drawn.std((2, 3))
    member = (centre[..., None] - torch.tensor([-1.0, 0.0, 4.0])).abs().argmin(-1)
    for k, (m, s) in enumerate(said):
        assert (
            float((centre[member == k] - m).abs().max()) < 6 * s / 64
            and float((spread[member == k] / s - 1).abs().max()) < 0.06
        )
        assert float((member == k).double().mean()) == pytest.approx(1 / 3, abs=4.5 * (2 / 9 / 900) ** 0.5)
    assert ensemble.train()(batch).item() == pytest.approx(
        sum(float(member(batch)) for member in ensemble.members) / 3, rel=1e-5
    )
    with pytest.raises(ValueError, match="number of members"):
        Ensemble([])


def test_dropout_loses_whole_channels_and_keeps_the_mean():
    network = Dropout(0.25, **SMALL)
    h = normal(500, 40, 2, 2).float()
    network.dice = dice(3)
    out = network.drop(network, (h,))
    assert out is not None
    ratio = out[0] / h
    lost = ratio[:, :, 0, 0] == 0
    torch.testing.assert_close(ratio, torch.where(lost, 0.0, 4 / 3)[:, :, None, None].expand_as(h))
    assert float(lost.double().mean()) == pytest.approx(0.25, abs=4.5 * (0.25 * 0.75 / 20_000) ** 0.5)


def test_dropout_is_off_in_the_mean_and_on_in_training_and_samples(batch):
    network, plain = made("dropout").eval(), made("gaussian").eval()
    plain.load_state_dict(network.state_dict())
    where = batch.estimate, batch.frame
    assert torch.equal(network.moments(*where)[0], plain.moments(*where)[0])
    assert not torch.equal(network.train().moments(*where)[0], network.moments(*where)[0])
    network.eval()
    seen = []
    moments = network.moments
    network.moments = lambda *given: seen.append(moments(*given)) or seen[-1]
    network.sample(*where, 3, dice())
    assert len(seen) == 3 and not torch.equal(seen[0][0], seen[1][0])
    assert network.dice is None and torch.equal(moments(*where)[0], plain.moments(*where)[0])
    copied = copy.deepcopy(made("dropout").eval())
    copied.dice = dice()  # the hooks of a copy are its own
    assert not torch.equal(copied.moments(*where)[0], plain.moments(*where)[0])
    with pytest.raises(ValueError, match="rate must be in"):
        Dropout(1.0)


# -- SNGP ----------------------------------------------------------------------------------------------------------


def test_the_waves_have_the_kernel_of_a_gaussian_process(monkeypatch):
    """φ(h)·φ(h') → exp(−‖h − h'‖² / (2 · hidden)), Rahimi & Recht 2007; error 1/√D."""
    torch.manual_seed(0)
    network = SNGP(4, 8192, **SMALL)
    h = 2 * normal(1, 5, 1, 6).float()
    monkeypatch.setattr(network, "read", lambda *_: (None, h))
    phi = network.features(h, h)[1][0, :, 0].double()  # (D, 6)
    near = h[0, :4, 0].double()
    theirs = (-(near[:, :, None] - near[:, None]).square().sum(0) / 8).exp()
    torch.testing.assert_close(phi.T @ phi, theirs, rtol=0, atol=5 / 8192**0.5)


def test_the_covariance_is_that_of_bayesian_linear_regression(batch):
    network = made("sngp").eval()
    phi, sd = (x.detach().double().numpy() for x in network.features(batch.estimate, batch.frame)[1:])
    rows, noise = np.moveaxis(phi, 1, -1).reshape(-1, 16), sd.reshape(-1)
    network.accumulate(batch._replace(estimate=batch.estimate[:1], frame=batch.frame[:1]))
    network.accumulate(batch._replace(estimate=batch.estimate[1:], frame=batch.frame[1:]))
    theirs = np.linalg.inv(np.eye(16) + (rows / noise[:, None] ** 2).T @ rows)
    # features of two rows at once and one by one, in float32, on entries of up to 0.7
    np.testing.assert_allclose(torch.linalg.inv(network.precision), theirs, rtol=1e-4, atol=1e-7)
    before = network.precision.clone()
    network.accumulate(batch, times=2.0)
    expected = 3 * before - 2 * torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(network.precision, expected, rtol=1e-5, atol=1e-3)
    with pytest.raises(ValueError, match="times must be"):
        network.accumulate(batch, times=0.0)


def test_samples_are_coherent_draws_of_the_weights(monkeypatch):
    """Cov[y(r), y(r')] = s(r) s(r') (φ(r)ᵀ Σ φ(r') + sd² δ(r, r')) with scales s, and the precision given."""
    network = made("sngp").eval()
    root = normal(16, 16)
    network.precision[:] = root @ root.T + 0.5 * torch.eye(16, dtype=torch.float64)
    network.beta.data = normal(16, seed=2).float()
    phi, sd = normal(1, 16, 1, 4, seed=3).float(), torch.tensor([0.05, 0.1, 0.2, 0.02]).reshape(1, 1, 1, 4)
    scale = torch.tensor([0.02, 0.1, 0.3, 0.05]).reshape(1, 1, 1, 4)
    known = Condition(torch.full((1, 1, 1, 4), 3.0), scale, phi)
    monkeypatch.setattr(network, "features", lambda *_: (known, phi, sd))
    drawn = network.sample(phi, phi, 40_000, dice())[0, :, 0].double()
    flat = (scale * phi)[0, :, 0].double()
    mean = 3 + flat.T @ network.beta.detach().double()
    covariance = flat.T @ torch.linalg.inv(network.precision) @ flat
    distance = out_of_distribution.unsure(network, phi, phi)[0, 0]  # what is not the noise of the pixels
    torch.testing.assert_close(distance, covariance.diag(), rtol=1e-5, atol=0)
    covariance = covariance + (scale * sd).double().square().flatten().diag()
    error = ((covariance.square() + covariance.diag()[:, None] * covariance.diag()) / 40_000).sqrt()
    assert bool(((torch.cov(drawn.T) - covariance).abs() < 5 * error).all())
    assert bool(((drawn.mean(0) - mean).abs() < 5 * (covariance.diag() / 40_000).sqrt()).all())


def test_the_convolutions_have_spectral_norm_one(batch):
    network = made("sngp").train()
    for _ in range(20):  # a step of the power iteration each
        network.moments(batch.estimate, batch.frame)
    blocks = rival.residual_blocks(network.unet)
    assert len(blocks) == 5
    for block in blocks:
        for layer in (block.conv1[2], block.conv2):
            assert isinstance(layer, torch.nn.Conv2d)
            norm = torch.linalg.matrix_norm(torch.flatten(layer.weight.detach(), 1), 2)
            assert float(norm) == pytest.approx(1, abs=0.03)


# -- a set of emitters ---------------------------------------------------------------------------------------------


def emitters(pixels=6, count=4, frames=3):
    logit, mean = normal(frames, pixels, seed=1), 3 * normal(frames, pixels, 3, seed=2)
    sd, places = normal(frames, pixels, 3, seed=3).abs() + 0.3, 3 * normal(frames, count, 3, seed=4)
    present = torch.arange(count) < torch.tensor([count, 1, 0])[:, None]
    return logit, mean, sd, places, present


def test_the_density_of_a_set_is_that_of_a_direct_loop():
    logit, mean, sd, places, present = emitters()
    found = set_log_density(logit, mean, sd, places, present)
    for b in range(3):
        p = stats.logistic.cdf(logit[b].numpy())
        count = int(present[b].sum())
        expected = stats.norm.logpdf(count, p.sum(), math.sqrt((p * (1 - p)).sum() + COUNT_VARIANCE))
        for e in range(count):
            each = [
                w * stats.norm.pdf(places[b, e].numpy(), mean[b, k].numpy(), sd[b, k].numpy()).prod()
                for k, w in enumerate(p / p.sum())
            ]
            expected += math.log(sum(each))
        assert float(found[b]) == pytest.approx(expected, rel=1e-9)


def test_the_count_has_the_moments_of_a_poisson_binomial_and_nearly_its_distribution():
    logit = 2 * normal(1, 60)
    p = logit.sigmoid()[0].numpy()
    exact = np.ones(1)
    for q in p:
        exact = np.convolve(exact, [1 - q, q])
    numbers = np.arange(61)
    mean, sd = torch.zeros(1, 60, 3, dtype=torch.float64), torch.ones(1, 60, 3, dtype=torch.float64)
    one = stats.norm.logpdf(0) * 3  # ln density of a place at the mean of all
    ours = []
    for count in numbers:
        places, present = torch.zeros(1, 60, 3, dtype=torch.float64), torch.arange(60)[None] < int(count)
        ours.append(math.exp(float(set_log_density(logit, mean, sd, places, present)) - count * one))
    ours = np.array(ours)
    for power in (0, 1, 2):  # a Gaussian summed over whole numbers has its moments, to 1e-10 at this variance
        assert (ours * numbers**power).sum() == pytest.approx((exact * numbers**power).sum(), rel=1e-4)
    assert np.abs(ours - exact).sum() < 0.02


def test_places_far_away_and_empty_frames_have_finite_gradients():
    logit, mean, sd, places, present = emitters()
    logit = (logit - 40).requires_grad_()
    (-set_log_density(logit, mean, sd, places + 100, present)).sum().backward()
    assert logit.grad is not None and bool(logit.grad.isfinite().all())


def test_the_draw_has_the_frames_of_the_diffusion_model_and_their_emitters(phi):
    scene = recipes.reference_scene()
    dice_base, dice_ours = dice(8), dice(8)
    base = recipes.draw_estimates(scene, recipes.SMALL_FRAME, phi)(6, dice_base)
    ours = draw_emitters(scene, recipes.SMALL_FRAME, phi)(6, dice_ours)
    assert isinstance(base, DiffusionBatch) and isinstance(ours, EmitterBatch)
    for name in ("kde", "estimate", "frame"):
        assert torch.equal(getattr(base, name), getattr(ours, name)), name
    assert torch.equal(dice_base.get_state(), dice_ours.get_state())
    u, v, photons = ours.places.unbind(-1)
    again = kde_image(Emitters(u, v, photons, ours.present), recipes.SMALL_FRAME)
    assert float((again - base.kde).abs().max()) < 1e-4
    kept = ours.places[ours.present]
    assert bool(((kept[:, :2] > -0.5 - OUTSIDE) & (kept[:, :2] < 15.5 + OUTSIDE)).all())
    assert float(kept[:, 2].min()) > 0.05 and float(kept[:, 2].max()) <= 2 and bool((kept[:, :2] < -0.5).any())


def test_a_set_starts_in_the_middle_of_each_pixel(batch):
    network = EmitterSet(**SMALL)
    logit, mean, sd = network.read_emitters(batch.estimate, batch.frame)
    assert logit.shape == (3, 256) and mean.shape == sd.shape == (3, 256, 3)
    network.head.weight.data.zero_()
    _, mean, _ = network.read_emitters(batch.estimate, batch.frame)
    k = torch.arange(256)
    assert torch.equal(mean[0, :, 0], (k % 16).float()) and torch.equal(mean[0, :, 1], (k // 16).float())
    assert logit.sigmoid().sum(1).detach().numpy() == pytest.approx([256 / (1 + math.exp(3.5))] * 3, rel=1e-4)
    network = made("set")
    logit, mean, sd = network.read_emitters(batch.estimate, batch.frame)
    density = set_log_density(logit, mean, sd, batch.places, batch.present)
    weight = pixel_weight(batch.estimate, torch.full((), UNIT))[:, 0, 0, 0]
    assert network(batch).item() == pytest.approx(-0.1 * (weight * density).mean().item(), rel=1e-5)


def test_a_set_draws_bernoulli_emitters_at_gaussian_places(batch, monkeypatch):
    network = made("set")
    logit = torch.full((1, 256), -80.0)
    mean, sd = torch.full((1, 256, 3), 8.0), torch.full((1, 256, 3), 1e-4)
    logit[0, :2], mean[0, 0, :2], mean[0, 1, :2] = torch.tensor([80.0, 0.0]), torch.tensor([4.0, 9.0]), 11.0
    sd[0, 0] = 0.3  # camera px: τ = 1.2 super-resolved px
    monkeypatch.setattr(network, "read_emitters", lambda *_: (logit, mean, sd))
    drawn = network.sample(batch.estimate[:1], batch.frame[:1], 1500, dice())[0].double()
    lone = kde_image(Emitters(*(torch.tensor([[x]]) for x in (11.0, 11.0, 1.0))), (16, 16))[0, 0].double()
    second = drawn[:, 45, 45] / lone[45, 45]
    assert bool(((second < 1e-3) | ((second - 1).abs() < 0.01)).all())
    assert float((second > 0.5).double().mean()) == pytest.approx(0.5, abs=4.5 * 0.5 / 1500**0.5)
    # E[y] = exp(−ρ²/(2 (1 + τ²))) / (1 + τ²) about the first one, whose column is 4 · (4 + ½) − ½ = 17.5, row 37.5
    column, row = torch.arange(64.0) - 17.5, torch.arange(64.0) - 37.5
    wide = 1 + 1.2**2
    expected = torch.exp(-(row[:, None] ** 2 + column**2) / (2 * wide)) / wide
    near = (slice(35, 41), slice(15, 21))
    error = drawn[:, *near].std(0) / 1500**0.5
    assert bool(((drawn[:, *near].mean(0) - expected[near]).abs() < 5 * error + 1e-6).all())


# -- engression ----------------------------------------------------------------------------------------------------


def test_the_windowed_energy_is_that_of_its_largest_window(monkeypatch):
    """With one window as large as the image it is the energy score over the root of the number of pixels."""
    monkeypatch.setattr(engression, "WINDOWS", (64,))
    monkeypatch.setattr(engression, "SOFT", 0.0)
    x, y, truth = normal(3, 1, 16, 16), normal(3, 1, 16, 16, seed=2), normal(3, 1, 16, 16, seed=3)
    theirs = energy_score(torch.cat([x, y], 1), truth[:, 0])  # fair, of two draws
    torch.testing.assert_close(windowed_energy(x, y, truth), theirs / 16)


def test_the_windowed_energy_prefers_what_pixels_have_in_common():
    """Truth: one sign for the whole image. Draws with one sign score better than those with a sign for each pixel."""
    many = 20_000
    sign = lambda *shape, seed: normal(*shape, seed=seed).sign()  # noqa: E731
    truth = sign(many, 1, 1, 1, seed=1).expand(-1, 1, 4, 4)
    joint = [sign(many, 1, 1, 1, seed=s).expand(-1, 1, 4, 4) for s in (2, 3)]
    apart = [sign(many, 1, 4, 4, seed=s) for s in (4, 5)]
    small = [0.8 * x for x in joint]
    best, *others = (windowed_energy(x[0], x[1], truth) for x in (joint, apart, small))
    for other in others:
        gap = other - best
        assert gap.mean() > 5 * gap.std() / many**0.5


def test_blurred_noise_is_standard_normal_and_looks_alike_everywhere():
    """Its covariance is exp(−d²/(4 w²)), at any place of any frame, away from the border by a few widths w."""
    noise = torch.eye(64 * 48).reshape(-1, 1, 64, 48)  # one pixel at a time: the images are the weights
    weights = smooth(noise)[:, :, [0, 31, 34, 32, 32], [0, 20, 20, 24, 27]].double()  # (noise, widths, pixels)
    covariance = torch.einsum("nwp,nwq->wpq", weights, weights)
    torch.testing.assert_close(covariance.diagonal(dim1=1, dim2=2), torch.ones(3, 5).double())
    for k, width in enumerate(WIDTHS[:2]):
        expected = math.exp(-(9 / (4 * width**2)))  # three pixels apart, along either axis
        assert float(covariance[k, 1, 2]) == pytest.approx(expected, abs=1e-3)
        assert float(covariance[k, 3, 4]) == pytest.approx(expected, abs=1e-3)


def test_engression_finds_a_posterior_of_two_places():
    """y is 1 in the left or the right half, whatever is seen. The mean is ½ everywhere; no draw may look like it."""
    torch.manual_seed(0)
    network = Engression((8, 16))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    dim, frame = torch.full((16, 1, 8, 8), 0.2), torch.zeros(16, 2, 2, 2)  # of which nothing is fitted
    left = (torch.arange(8) < 4).float()
    for step in range(400):
        which = (torch.rand(16, 1, 1, 1, generator=dice(step)) < 0.5).float()
        y = (which * left + (1 - which) * (1 - left)).expand(-1, 1, 8, 8)
        optimizer.zero_grad()
        network(DiffusionBatch(y, dim, frame, torch.ones(16), y)).backward()
        optimizer.step()
    drawn = network.eval().sample(dim[:1], frame[:1], 200, dice(7))[0]
    halves = torch.stack([drawn[..., :4].mean((1, 2)), drawn[..., 4:].mean((1, 2))], 1)
    assert (halves.sum(1) - 1).abs().mean() < 0.15  # one of the two, not both and not none
    assert 0.3 < (halves[:, 0] > 0.5).float().mean() < 0.7
    assert (halves - 0.5).abs().mean() > 0.35


def test_a_frame_is_read_once_for_all_its_draws(batch, monkeypatch):
    """The large network sees each frame once, the small one each draw; what they make is that of one call for each."""
    network, calls = made("engression").eval(), []
    trunk, mixer = network.unet.forward, network.mixer.forward
    monkeypatch.setattr(network.unet, "forward", lambda *a: calls.append(("trunk", len(a[0]))) or trunk(*a))
    monkeypatch.setattr(network.mixer, "forward", lambda *a: calls.append(("mixer", len(a[0]))) or mixer(*a))
    rows = len(batch.kde)
    drawn = network.sample(batch.estimate, batch.frame, 3, dice(), chunk=rows)
    assert calls == [("trunk", rows), *3 * [("mixer", rows)]]
    torch.testing.assert_close(
        network.sample(batch.estimate, batch.frame, 3, dice(), chunk=1), drawn, rtol=0, atol=1e-5
    )


def test_the_mixer_uses_all_that_it_gets_and_starts_at_zero():
    torch.manual_seed(0)
    mixer, given = Mixer(3, 2, (8, 16)), [torch.randn(2, n, 16, 24, requires_grad=True) for n in (3, 2)]
    assert not mixer(*given).any()
    mixer.head.reset_parameters()
    out = mixer(*given)
    assert out.shape == (2, 1, 16, 24)
    slopes = torch.autograd.grad(out.square().sum(), [*given, *mixer.parameters()])
    assert all(bool((x.abs().sum((0, 2, 3)) > 0).all()) for x in slopes[:2]) and all(bool(x.any()) for x in slopes)


def test_an_untrained_engression_draws_moved_fits():
    """With a trunk that answers 0, its draws are those of the fit's errors and no noise shows."""
    network = Engression((8, 16))
    for weight in network.unet.parameters():
        torch.nn.init.zeros_(weight)
    truth = Emitters(*(torch.tensor([[x]]) for x in (7.3, 8.1, 1500.0)))
    frame = frame_input(expected_photons(truth, PSF(1.0), (16, 16), 8.0)[:, None], 2.0)
    estimate = kde_image(truth, (16, 16))
    moved = FrameFit(estimate, frame).moved(5, dice(3))
    torch.testing.assert_close(network.eval().sample(estimate, frame, 5, dice(3)), moved)


# -- conformal -----------------------------------------------------------------------------------------------------


def test_conformal_intervals_cover_what_they_promise():
    """Of n + 1 exchangeable scores the last is at most the k-th of the others with probability k/(n + 1), exactly."""
    trials, n = 3000, 9
    score = normal(trials, n + 1).abs() * (1 + torch.arange(trials)[:, None] % 7)
    classes = torch.arange(trials)[:, None].expand(-1, n)
    levels = (0.3, 0.5, 0.85, 0.95)
    factors = conformal_factors(score[:, :n].flatten(), classes.flatten(), levels)
    covered = (score[:, n:] <= factors).double().mean(0)
    for found, exact in zip(covered.tolist(), (0.3, 0.5, 0.9, 1.0), strict=True):
        assert found == pytest.approx(exact, abs=4.5 * (exact * (1 - exact) / trials) ** 0.5)
    assert bool(factors[:, 3].isinf().all())
    one = conformal_factors(torch.arange(1.0, 10), torch.zeros(9), (0.0, 0.1, 0.3, 0.31, 0.9, 1.0))
    assert one.tolist() == [[0, 1, 3, 4, 9, math.inf]]


def test_conformal_intervals_mend_the_error_bars_of_each_class():
    torch.manual_seed(0)
    network = Conformal(Fixed(1.0, 0.5), edges=(0.1,))
    estimate = torch.cat([torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)], -1)
    given = (estimate, torch.zeros(1, 2, 16, 32))
    with pytest.raises(ValueError, match="factors must be finite: call calibrate"):
        network.sample(*given, 2, dice())
    unused, zero = torch.zeros(1), torch.zeros_like(estimate)
    dark = DiffusionBatch(zero, zero, given[1], unused, unused)
    network.calibrate([dark])  # the bright class did not occur
    with pytest.raises(ValueError, match="factors must be finite: call calibrate"):
        network.sample(*given, 2, dice())
    sd = torch.where(estimate > 0.1, 2.0, 0.1)
    batches = [DiffusionBatch(1 + sd * normal(*sd.shape, seed=k).float(), *given, unused, unused) for k in range(9)]
    network.calibrate(batches)
    drawn = network.sample(*given, 60, dice())
    z = (drawn - 1) / sd
    for half in (z[..., :64], z[..., 64:]):
        shares = [float((half.abs() < float(stats.norm.ppf(0.5 + q / 2))).double().mean()) for q in (0.5, 0.8, 0.95)]
        assert shares == pytest.approx([0.5, 0.8, 0.95], abs=0.01)
        assert float((half > 0).double().mean()) == pytest.approx(0.5, abs=0.005)
    assert network(batches[0]).item() == network.head(batches[0]).item()


@pytest.mark.parametrize(
    ("score", "classes", "levels", "message"),
    [
        ([-1.0], [0], [0.5], "score must be finite and not negative, got -1"),
        ([1.0], [-1], [0.5], "classes must be finite and not negative, got -1"),
        ([1.0], [0.5], [0.5], "classes must be whole numbers, got 0.5"),
        ([1.0], [0, 1], [0.5], "classes must have the length of score, 1, got 2"),
        ([1.0], [0], [1.5], "levels must be in"),
        ([], [], [0.5], "the number of scores must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_scores_are_named(score, classes, levels, message):
    with pytest.raises(ValueError, match=message):
        conformal_factors(torch.tensor(score), torch.tensor(classes), levels)


# -- training and scores -------------------------------------------------------------------------------------------


@pytest.fixture
def small_runs(tmp_path, monkeypatch):
    """Two steps of two frames for every rival, in a folder; five Gaussian ones."""
    settings = recipes.TrainingSettings(steps=1, batch=2, warmup=0, learning_rate=1e-3)
    monkeypatch.setattr(runs.recipes, "SHIPPED_DIFFUSION", settings)
    monkeypatch.setattr(runs, "CALIBRATION", 1)
    for name, kind in zip(runs.RIVALS, (Gaussian, Quantiles, Dropout, SNGP, EmitterSet, Engression), strict=True):
        monkeypatch.setitem(runs.RIVALS, name, lambda kind=kind: kind(**SMALL))
    threads = torch.get_num_threads()
    runs.train(tmp_path, list(runs.RIVALS), [1], 64, threads)
    runs.train(tmp_path, ["gaussian"], [2, 3, 4, 5], 64, threads)
    return tmp_path


def test_runs_go_on_and_are_scored(small_runs, monkeypatch, batch):
    kept = {path: path.read_bytes() for path in small_runs.glob("*/*.pt")}
    assert len(kept) == 11  # ten checkpoints and the covariance of SNGP
    runs.train(small_runs, list(runs.RIVALS), [1], 64, torch.get_num_threads())
    assert all(path.read_bytes() == before for path, before in kept.items())
    found = runs.networks(small_runs)
    assert {"ensemble-seed1-0k", "conformal-seed3-0k", "sngp-seed1-0k", "set-seed1-0k"} < set(found)
    assert len(found) == 10 + 5 + 1
    some = bakeoff.Frames(batch.frame, batch.estimate, *(batch.kde for _ in range(4)))
    for name, network in found.items():
        drawn = bakeoff.rival(network)(some, 3, dice())
        assert drawn.shape == (3, 3, 64, 64) and bool(drawn.isfinite().all()), name
    # of a run that is not at its end there is nothing to score
    (small_runs / "sngp-seed1-0k" / runs.PRECISION).unlink()
    assert "sngp-seed1-0k" not in runs.networks(small_runs)


def test_the_covariance_of_a_run_is_from_its_own_batches(small_runs, phi):
    folder = small_runs / "sngp-seed1-0k"
    draw = runs.draw_of("sngp", recipes.reference_scene(), phi)
    network, run = runs.averaged(folder)
    assert isinstance(network, SNGP) and (run["steps"], run["batch"], run["seed"]) == (2, 2, 2101)
    network.accumulate(draw(2, step_generator(2101, 0)), 2.0)  # type: ignore[arg-type]
    kept = runs.trained(folder)
    assert isinstance(kept, SNGP) and torch.equal(kept.precision, network.precision)


def test_all_rivals_see_the_same_frames(phi):
    drawn = [runs.draw_of(name, recipes.reference_scene(), phi)(2, dice(4)) for name in runs.RIVALS]
    assert len(drawn) == 6 and isinstance(drawn[4], EmitterBatch)
    assert all(torch.equal(x.estimate, drawn[4].estimate) for x in drawn)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Gaussian, EmitterSet, Engression])
def test_weights_come_back_as_the_same_network(kind, batch, tmp_path):
    network = kind(**SMALL).eval()
    with torch.no_grad():
        for values in network.parameters():
            values += 0.05 * torch.randn(values.shape, generator=step_generator(1, 0))
    pretrained.save(network, tmp_path / "rival.safetensors")
    again = pretrained.load(tmp_path / "rival.safetensors", kind=kind)
    drawn = [x.sample(batch.estimate, batch.frame, 3, step_generator(2, 0)) for x in (network, again)]
    torch.testing.assert_close(*drawn, rtol=1e-5, atol=1e-6)  # channels_last rounds in another order


# -- against libraries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [21, 40, 199])  # at 199 every rank is a whole number
def test_conformal_factors_are_those_of_mapie(count):
    from mapie.regression import SplitConformalRegressor
    from sklearn.dummy import DummyRegressor

    levels, rows = [0.5, 0.8, 0.95], np.zeros((count, 1))
    residual = torch.randn(count, generator=step_generator(3, count), dtype=torch.float64)  # (y − mean) / sd
    zero = DummyRegressor(strategy="constant", constant=0.0).fit(rows, residual.numpy())
    peer = SplitConformalRegressor(zero, levels, prefit=True)
    _, intervals = peer.conformalize(rows, residual.numpy()).predict_interval(rows[:1])  # (1, 2, L)
    found = conformal_factors(residual.abs(), torch.zeros(count, dtype=torch.int64), levels)
    np.testing.assert_allclose(intervals[0, 1], found[0], rtol=1e-12)
    np.testing.assert_allclose(intervals[0, 0], -found[0], rtol=1e-12)


def test_the_weights_of_sngp_are_a_gaussian_process_of_scikit_learn(batch):
    """Bayesian linear regression on φ is a Gaussian process with the kernel φ·φ′ and the noise of each pixel."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import DotProduct

    network = SNGP(4, 16, **SMALL).eval()
    network.accumulate(batch)
    _, phi, sd = network.features(batch.estimate, batch.frame)
    chosen = torch.randperm(phi[0, 0].numel() * len(phi), generator=step_generator(4, 0))
    rows = phi.detach().double().movedim(1, -1).flatten(0, -2).numpy()
    noise = sd.detach().double().flatten().square().numpy()
    some, other = chosen[:300].numpy(), chosen[300:340].numpy()
    precision = np.eye(16) + (rows[some] / noise[some, None]).T @ rows[some]
    targets = rows[some] @ np.linspace(-1, 1, 16)
    options: dict[str, Any] = {"alpha": noise[some], "optimizer": None}
    peer = GaussianProcessRegressor(DotProduct(0, "fixed"), **options).fit(rows[some], targets)
    covariance = peer.predict(rows[other], return_cov=True)[1]
    ours = rows[other] @ np.linalg.inv(precision) @ rows[other].T
    np.testing.assert_allclose(ours, covariance, rtol=1e-4, atol=1e-9)
    # and `accumulate` makes this precision of all its pixels
    all_pixels = np.eye(16) + (rows / noise[:, None]).T @ rows
    np.testing.assert_allclose(network.precision.numpy(), all_pixels, rtol=1e-4)
