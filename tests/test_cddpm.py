"""The conditional model: its change of variables, its loss, and samples of networks that know nothing or all."""

from typing import Any

import pytest
import torch

from smlmtut.diffusion.process import denoising_loss, q_sample, target
from smlmtut.diffusion.samplers import ancestral, dpm_solver
from smlmtut.diffusion.schedule import NoiseSchedule, log_snr
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.networks.cddpm import (
    CALLS,
    MOLECULES,
    ConditionalDiffusion,
    DiffusionBatch,
    frame_input,
    sample_kde,
    sampling_schedule,
)
from smlmtut.networks.condition import SCALE_UNIT, condition_on

SMALL: dict[str, Any] = {"channels": (8, 16)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def published(**more) -> ConditionalDiffusion:
    return ConditionalDiffusion(form="published", kind="noise", attention=True, **{**SMALL, **more})


def one_batch() -> DiffusionBatch:
    """A lone emitter on 8 × 8 camera pixels, whose peak in ŷ is somewhat off."""
    truth = Emitters.single(3.4, 3.9, 1000.0, torch.float32)
    estimate = 0.8 * kde_image(Emitters.single(3.5, 3.8, 1.0, torch.float32), (8, 8), sigma=1.1)
    frame = frame_input(expected_photons(truth, PSF(1.0), (8, 8), 5.0)[:, None], 2.0)
    noise = torch.randn(1, 1, 32, 32, generator=generator())
    return DiffusionBatch(kde_image(truth, (8, 8)), estimate, frame, torch.tensor([0.3]), noise)


# -- the change of variables, and the loss -----------------------------------------------------------------


def test_published_form_is_the_image_between_minus_one_and_one():
    estimate = torch.rand(1, 1, 8, 8, generator=generator())
    centre, scale, inputs = published().condition(estimate)
    z = (torch.tensor([0.0, 1.0])[:, None, None, None] - centre) / scale
    assert torch.equal(z, torch.tensor([-1.0, 1.0])[:, None, None, None].expand_as(z)) and torch.equal(inputs, estimate)


def test_our_form_is_about_the_fit_of_the_frame():
    batch = one_batch()
    for a, b in zip(
        ConditionalDiffusion(**SMALL).condition(batch.estimate, batch.frame),
        condition_on(batch.estimate, batch.frame),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_terms_of_the_loss():
    """An output of 0 has the error of the target of z; the loss is the weighted mean."""
    batch, network = one_batch(), ConditionalDiffusion(**SMALL)
    terms, (centre, scale, _) = network.loss_terms(batch), condition_on(batch.estimate, batch.frame)
    z = (batch.kde - centre) / scale
    torch.testing.assert_close(terms.squared_error, target("v", z, batch.noise, batch.gamma).square())
    # one emitter of mass 2π · 0.8 · 1.1² in ŷ
    wanted = scale / SCALE_UNIT * MOLECULES / (1 + 0.8 * 1.1**2)
    torch.testing.assert_close(terms.weight, wanted, rtol=1e-3, atol=0)
    assert torch.equal(network(batch), (terms.weight * terms.squared_error).mean())


def test_the_unet_sees_z_and_the_inputs_of_the_condition():
    network, batch = ConditionalDiffusion(**SMALL), one_batch()
    torch.nn.init.normal_(network.unet.head.weight, generator=generator())
    centre, scale, inputs = condition_on(batch.estimate, batch.frame)
    z_t = q_sample((batch.kde - centre) / scale, batch.gamma, batch.noise)
    output = network.unet(torch.cat([z_t, inputs], 1), log_snr(batch.gamma))
    wanted = target("v", (batch.kde - centre) / scale, batch.noise, batch.gamma)
    torch.testing.assert_close(network.loss_terms(batch).squared_error, (output - wanted).square())
    assert float(output.detach().abs().max()) > 0.1


def test_the_loss_of_the_published_form_is_that_of_chapter_8():
    """On w = 2y − 1 with ŷ as the condition, for a network whose output is not 0."""
    network, batch = published(), one_batch()
    torch.nn.init.normal_(network.unet.head.weight, generator=generator())
    w = 2 * batch.kde - 1
    z_t = q_sample(w, batch.gamma, batch.noise)
    output = network.unet(torch.cat([z_t, batch.estimate], 1), log_snr(batch.gamma))
    wanted = denoising_loss("noise", output, w, batch.noise, batch.gamma)
    torch.testing.assert_close(network(batch), wanted)
    assert float(wanted.detach()) > 0.1


# -- conditions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ConditionalDiffusion(form="other"), "form"),
        (lambda: ConditionalDiffusion(kind="score"), "kind"),
        (lambda: ConditionalDiffusion(channels=(0, 4)), "channels"),
        (lambda: ConditionalDiffusion(blocks=0), "blocks"),
        (
            lambda: published().condition(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 2, 2)),
            "frame must be None.*ŷ alone",
        ),
        (lambda: ConditionalDiffusion(**SMALL).condition(torch.zeros(1, 1, 8, 8)), "frame must be given.*got None"),
        (lambda: ConditionalDiffusion(**SMALL).condition(torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 4, 4)), "quarter"),
        (lambda: published().condition(torch.zeros(8, 8)), "estimate"),
        (lambda: ConditionalDiffusion(**SMALL).condition(torch.zeros(8, 8), torch.zeros(1, 2, 2, 2)), "estimate"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_architecture_builds_it_again():
    for network in (
        ConditionalDiffusion(**SMALL, blocks=2),
        ConditionalDiffusion(**SMALL, attention=True),
        published(),
    ):
        again = ConditionalDiffusion(**network.architecture)
        assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}


# -- samples -----------------------------------------------------------------------------------------------


def gain(schedule: NoiseSchedule) -> float:
    """What DPM-Solver++ makes of a noise of 1 with the exact denoiser of N(0, 1): it is linear, so one number."""
    *_, end = dpm_solver(lambda z, gamma, _: gamma.sqrt() * z, schedule, torch.ones(1, dtype=torch.float64))
    return float(end.y)


@pytest.mark.parametrize("calls", [CALLS, 50])
def test_a_network_that_knows_nothing_draws_the_normal_distribution_of_the_fit(calls):
    """An output of 0 in v is z_0 = √γ z_t, the exact denoiser of N(0, 1): so y ~ N(centre, (scale · gain)²)."""
    network, batch = ConditionalDiffusion(**SMALL), one_batch()
    y = sample_kde(network, batch.estimate, 24, generator(1), batch.frame, sampling_schedule(calls))
    assert y.shape == (1, 24, 32, 32)
    centre, scale, _ = condition_on(batch.estimate, batch.frame)
    z = (y - centre) / scale
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
    network, batch = ConditionalDiffusion(**SMALL), one_batch()
    torch.nn.init.normal_(network.unet.head.weight, std=0.1, generator=generator())
    estimate, frame = (torch.cat([x, x.flip(3)]) for x in (batch.estimate, batch.frame))
    draws = [sample_kde(network, estimate, 5, generator(3), frame, chunk=chunk) for chunk in (1, 4, 32)]
    for other in draws[1:]:
        torch.testing.assert_close(draws[0], other, rtol=1e-4, atol=1e-5)  # sums in another order
    assert not torch.allclose(draws[0], sample_kde(network, estimate, 5, generator(4), frame))
