"""The conditional model: its change of variables, what it reads off a blob, samples of a network that knows nothing."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_whitening import blob

from smlmtut.diffusion.process import denoising_loss, q_sample, target
from smlmtut.diffusion.samplers import ancestral, dpm_solver
from smlmtut.diffusion.schedule import NoiseSchedule, log_snr
from smlmtut.networks.cddpm import (
    CALLS,
    MOLECULES,
    ConditionalDiffusion,
    DiffusionBatch,
    frame_input,
    sample_kde,
    sampling_schedule,
)
from smlmtut.networks.whitening import NARROWEST, SCALE_AT_START, lone_sd

SMALL = {"channels": (8, 16), "reading": 8}
BEGUN = math.log1p(math.exp(-2))  # softplus(−2): what a network that has learned nothing finds for τ² and beside it


def start(estimate: torch.Tensor) -> torch.Tensor:
    """Scale of a network that has learned nothing."""
    alone = lone_sd(estimate, torch.tensor(BEGUN + NARROWEST))
    return (0.02**2 + (SCALE_AT_START * BEGUN) ** 2 + alone.square()).sqrt()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def published(**more) -> ConditionalDiffusion:
    return ConditionalDiffusion(form="published", kind="noise", frame=False, **{**SMALL, **more})


# -- the change of variables -------------------------------------------------------------------------------


def test_published_form_is_the_image_between_minus_one_and_one():
    centre, scale = published().standardize(torch.rand(1, 1, 8, 8, generator=generator()))
    assert torch.equal((torch.tensor([0.0, 1.0]) - centre[0, 0, 0, 0]) / scale[0, 0, 0, 0], torch.tensor([-1.0, 1.0]))


def one_batch() -> DiffusionBatch:
    """A lone emitter whose place is known to half a pixel, and a frame that must not be used."""
    noise = torch.randn(1, 1, 32, 32, generator=generator())
    frame, given = torch.full((1, 2, 8, 8), 5.0), torch.tensor([False])
    return DiffusionBatch(blob().float(), blob(0.5).float(), frame, given, torch.tensor([0.3]), noise)


def test_terms_of_the_loss():
    """An output of 0 has the error of the target of z, and nll is −ln N(y; centre, scale²) without ln √(2π)."""
    batch, network = one_batch(), ConditionalDiffusion(**SMALL)
    terms, scale = network.loss_terms(batch), start(batch.estimate)
    z = (batch.kde - batch.estimate) / scale
    torch.testing.assert_close(terms.squared_error, target("v", z, batch.noise, batch.gamma).square())
    normal = torch.distributions.Normal(batch.estimate, scale)
    wanted = -normal.log_prob(batch.kde) - math.log(2 * math.pi) / 2
    torch.testing.assert_close(terms.nll, wanted, rtol=1e-4, atol=1e-5)
    # one emitter in ŷ, of mass 2π
    torch.testing.assert_close(terms.weight, scale / SCALE_AT_START * MOLECULES / (1 + 1), rtol=1e-3, atol=0)
    wanted = (terms.weight * (terms.squared_error + terms.nll)).mean()
    assert torch.equal(network.loss(batch), wanted) and torch.equal(network(batch), wanted)


def test_the_loss_of_the_published_form_is_that_of_chapter_8():
    """On w = 2y − 1 with ŷ as the condition, for a network whose output is not 0."""
    network, batch = published(), one_batch()
    torch.nn.init.normal_(network.unet.head.weight, generator=generator())
    w = 2 * batch.kde - 1
    z_t = q_sample(w, batch.gamma, batch.noise)
    output = network.unet(torch.cat([z_t, batch.estimate], 1), log_snr(batch.gamma))
    wanted = denoising_loss("noise", output, w, batch.noise, batch.gamma)
    torch.testing.assert_close(network.loss(batch), wanted)
    assert float(wanted.detach()) > 0.1


def test_no_gradient_of_the_denoiser_reaches_centre_and_scale():
    network = ConditionalDiffusion(**SMALL)
    network.loss_terms(one_batch()).squared_error.mean().backward()
    assert network.reader is not None and all(p.grad is None for p in network.reader.parameters())


def test_learns_mean_and_sd_of_what_is_not_gaussian():
    """y = ŷ + 0.1 + s(ŷ) e, e = ±1 with probability ½ each: centre ŷ + 0.1 and scale s, by the Gaussian's surprise."""
    network = ConditionalDiffusion(**SMALL, frame=False)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    drawn = generator()

    def frames() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        estimate = F.interpolate(torch.rand(16, 1, 4, 4, generator=drawn), scale_factor=4.0)
        sd = 0.05 + 0.2 * estimate
        return estimate, sd, estimate + 0.1 + sd * (2.0 * (torch.rand(sd.shape, generator=drawn) < 0.5) - 1)

    for _ in range(250):
        estimate, _, y = frames()
        centre, scale = network.standardize(estimate)
        optimizer.zero_grad()
        (scale.log() + ((y - centre) / scale).square() / 2).mean().backward()
        optimizer.step()
    estimate, sd, _ = frames()
    centre, scale = network.standardize(network.condition(estimate))
    # the last of 250 noisy steps: some hundredths; scales that ignored ŷ would be wrong by a factor of 2
    assert float(((centre - estimate - 0.1) / sd).detach().square().mean().sqrt()) < 0.15
    assert float((scale / sd).log().detach().square().mean().sqrt()) < 0.15


# -- conditions --------------------------------------------------------------------------------------------


def test_a_frame_that_is_not_given_is_no_frame():
    network, estimate = ConditionalDiffusion(**SMALL), blob(0.5).float()
    frame = frame_input(torch.full((1, 1, 8, 8), 7.0), 2.0)
    without = network.condition(estimate)
    assert without.shape == (1, 4, 32, 32)
    assert torch.equal(network.condition(estimate, frame, torch.tensor([False])), without)
    given = network.condition(estimate, frame)
    assert torch.equal(given[:, 3], torch.ones(1, 32, 32)) and not torch.equal(given[:, 1:3], without[:, 1:3])
    torch.testing.assert_close(given[:, 1, 8:24, 8:24], frame[:, :1].mean().expand(1, 16, 16))  # a constant stays one


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ConditionalDiffusion(form="other"), "form"),
        (lambda: ConditionalDiffusion(kind="score"), "kind"),
        (lambda: ConditionalDiffusion(floor=0.0), "floor"),
        (lambda: ConditionalDiffusion(form="published"), "frame must be False"),
        (lambda: published().condition(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 2, 2)), "ŷ alone"),
        (lambda: ConditionalDiffusion(**SMALL).condition(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 4, 4)), "quarter"),
        (lambda: ConditionalDiffusion(**SMALL).condition(torch.zeros(8, 8)), "estimate"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_architecture_builds_it_again():
    for network in (ConditionalDiffusion(**SMALL, blocks=2), published()):
        again = ConditionalDiffusion(**network.architecture)
        assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}


# -- samples -----------------------------------------------------------------------------------------------


def gain(schedule: NoiseSchedule) -> float:
    """What DPM-Solver++ makes of a noise of 1 with the exact denoiser of N(0, 1): it is linear, so one number."""
    *_, end = dpm_solver(lambda z, gamma, _: gamma.sqrt() * z, schedule, torch.ones(1, dtype=torch.float64))
    return float(end.y)


@pytest.mark.parametrize("calls", [CALLS, 50])
def test_a_network_that_knows_nothing_draws_from_the_normal_distribution_it_starts_with(calls):
    """An output of 0 in v is z_0 = √γ z_t, the exact denoiser of N(0, 1): so y ~ N(ŷ, (scale · gain)²)."""
    network, estimate = ConditionalDiffusion(**SMALL), blob(0.5).float()
    y = sample_kde(network, estimate, 24, generator(1), schedule=sampling_schedule(calls))
    assert y.shape == (1, 24, 32, 32)
    z = (y - estimate) / start(estimate)
    # 24 576 values: ± .0064 for the mean, ± .0045 for the sd
    assert float(z.mean().abs()) < 4 * 0.0064
    assert float(z.std()) == pytest.approx(gain(sampling_schedule(calls)), abs=4 * 0.0045)


def test_few_calls_widen_a_normal_distribution_by_under_two_per_cent():
    """A solver of second order: the error of 1 falls as the square of the step, to what the last step leaves out."""
    coarse, fine = (abs(gain(sampling_schedule(calls)) - 1) for calls in (CALLS, 2 * CALLS))
    assert coarse < 0.02
    assert fine < coarse / 3


def test_published_sampler_draws_the_constant_image_that_a_network_knows():
    """Noise ε = (w_t − √γ w)/√(1 − γ) is the exact denoiser of one image w: every sample is that image, w = 2y − 1."""
    network, image = published(), torch.rand(1, 1, 8, 8, generator=generator())

    class Known(torch.nn.Module):
        def forward(self, images: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
            gamma = torch.sigmoid(log_snr)[:, None, None, None]
            return (images[:, :1] - gamma.sqrt() * (2 * images[:, 1:2] - 1)) / (1 - gamma).sqrt()

    network.unet = Known()  # type: ignore[assignment]
    y = sample_kde(network, image, 2, generator(), schedule=NoiseSchedule.cosine(20), sampler=ancestral)
    torch.testing.assert_close(y, image.expand(1, 2, 8, 8), atol=1e-3, rtol=0)  # float32; √(1/γ_T) = 2000 amplifies it


def test_same_seed_same_samples_in_any_chunks():
    network, estimate = ConditionalDiffusion(**SMALL), torch.rand(2, 1, 8, 8, generator=generator())
    draws = [sample_kde(network, estimate, 5, generator(3), chunk=chunk) for chunk in (1, 4, 32)]
    for other in draws[1:]:
        torch.testing.assert_close(draws[0], other, rtol=1e-4, atol=1e-5)  # sums in another order
    assert not torch.allclose(draws[0], sample_kde(network, estimate, 5, generator(4)))
