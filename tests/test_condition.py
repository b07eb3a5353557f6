"""What is known of y before it is drawn: the fit's KDE, its sd by the chain rule and by draws, and what ŷ adds."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smlmtut.estimation import localization_bound
from smlmtut.estimation.joint import JointFit, fit_emitters
from smlmtut.imaging.camera import Camera
from smlmtut.imaging.distributions import LogUniform
from smlmtut.imaging.first_guess import peak_emitters
from smlmtut.imaging.kde import kde_image, to_super_resolved
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.imaging.scenes import Scene
from smlmtut.networks import condition
from smlmtut.networks.cddpm import frame_input
from smlmtut.networks.condition import (
    CHANNELS,
    FARTHEST,
    FLOOR,
    SCALE_UNIT,
    STEPS,
    SURE,
    FitRange,
    FrameFit,
    condition_on,
    fitted_kde,
)
from smlmtut.networks.inputs import input_electrons

SHAPE, BACKGROUND = (16, 16), 8.0
PLACES = [[(7.3, 8.1)], [(3.2, 4.0), (5.0, 4.4), (12.1, 10.6)], []]  # camera px of three frames


def emitters(places: list[list[tuple[float, float]]], photons: float = 1000.0) -> Emitters:
    """One row for each list of (u, v)."""
    most = max(1, *map(len, places))
    present = torch.tensor([[k < len(row) for k in range(most)] for row in places])
    u, v = torch.tensor([[*row, *[(0.0, 0.0)] * (most - len(row))] for row in places]).unbind(-1)
    return Emitters(u, v, photons * present.float(), present)


def exposed(truth: Emitters, read_variance: Tensor | float = 2.0, seed: int | None = None) -> Tensor:
    """The input of a network for a frame of σ = 1 px; without noise where there is no seed."""
    rate = expected_photons(truth, PSF(1.0), SHAPE, BACKGROUND)
    if seed is not None:
        dice = torch.Generator().manual_seed(seed)
        rate = torch.poisson(rate, generator=dice)
        rate = rate + torch.as_tensor(read_variance).sqrt() * torch.randn(rate.shape, generator=dice)
    return frame_input(rate[:, None], read_variance)


def blurred(truth: Emitters, tau: float = 0.5) -> Tensor:
    """E[y] of emitters whose places are known to tau super-resolved px."""
    return kde_image(truth, SHAPE, sigma=math.sqrt(1 + tau**2)) / (1 + tau**2)


def fit_of(estimate: Tensor, frame: Tensor) -> JointFit:
    electrons, variance = input_electrons(frame)
    start = peak_emitters(estimate, photons=1050.0)
    return fit_emitters(electrons, start, variance, max_iterations=STEPS)


def noisy() -> tuple[Tensor, Tensor]:
    """ŷ and frame of a lone emitter, of PLACES together, and of no emitter at all."""
    truth = emitters(PLACES)
    return blurred(truth), exposed(truth, seed=1)


# -- the fit's KDE and its sd ------------------------------------------------------------------------------


def test_the_sd_is_that_of_the_chain_rule():
    """sd² = gᵀ C g with the gradient of kde_image by automatic differentiation, and the covariance of the fit.

    Read noise on one side of a diagonal makes the errors of u and v correlated; the frame is bright all the same.
    """
    truth = emitters([[(7.3, 8.1)]], 1900.0)
    row, column = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    variance = torch.where((row - 8.1) * (column - 7.3) > 0, 2000.0, 1.0)
    estimate, frame = blurred(truth), exposed(truth, variance, seed=2)
    fit = fit_of(estimate, frame)
    covariance = fit.covariance()[0, :2, :2]

    def image(place: Tensor) -> Tensor:
        return kde_image(Emitters(*(x.reshape(1, 1) for x in (*place, place[0] * 0 + 1))), SHAPE)[0, 0]

    place = torch.stack([fit.emitters.u[0, 0], fit.emitters.v[0, 0]]).double()
    gradient = torch.autograd.functional.jacobian(image, place)
    assert isinstance(gradient, Tensor)
    wanted = torch.einsum("hwi,ij,hwj->hw", gradient, covariance, gradient).sqrt()
    centre, sd = fitted_kde(estimate, frame)
    torch.testing.assert_close(sd[0, 0].double(), wanted, rtol=1e-3, atol=1e-6)  # of a fit in float32
    torch.testing.assert_close(centre[0, 0].double(), image(place), rtol=1e-3, atol=1e-6)
    correlation = covariance[0, 1] / covariance.diagonal().prod().sqrt()
    without = torch.einsum("hwi,i,hwi->hw", gradient, covariance.diagonal(), gradient).sqrt()
    assert float(correlation) > 0.2 and float((without - wanted).abs().max()) > 0.1 * float(wanted.max())


def test_the_sd_is_that_of_drawn_positions():
    """First order in an error of τ ≈ 0.12 super-resolved px: the next order is a share of about τ² = 1.5 % of sd.

    Seen where the slope matters: at the very peak y changes in second order only, and the sd of first order is 0.
    """
    truth = emitters([[(7.3, 8.1)]], 2000.0)
    estimate, frame = blurred(truth), exposed(truth, seed=3)
    fit, many = fit_of(estimate, frame), 20_000
    u, v = (x[0, :, :1] for x in fit.draw(many, torch.Generator().manual_seed(4)))
    drawn = kde_image(Emitters(u, v, torch.ones_like(u)), SHAPE).std(0)[0]
    tau = 4 * float(fit.covariance()[0, 0, 0].sqrt())
    assert 0.08 < tau < 0.16
    _, sd = fitted_kde(estimate, frame)
    steep = sd[0, 0] > sd.max() / 2
    assert int(steep.sum()) >= 8
    # 20 000 draws: ± 0.5 %; factors of a few before τ²
    torch.testing.assert_close(drawn[steep], sd[0, 0][steep], rtol=4 * 0.005 + 3 * tau**2, atol=0)


def test_without_noise_the_centre_is_the_truth_wherever_the_peaks_of_the_estimate_lie():
    """The fit moves from peaks half a super-resolved pixel away to the emitters that made the frame."""
    truth, moved = emitters(PLACES), emitters([[(u + 0.12, v - 0.1) for u, v in row] for row in PLACES])
    centre, sd = fitted_kde(blurred(moved), exposed(truth))
    y = kde_image(truth, SHAPE)
    assert float((blurred(moved) - y).abs().max()) > 0.2
    # it ends where a step is below a hundredth of an error bar, and sd is an error bar of y
    assert bool(((centre - y).abs() <= 0.05 * sd.amax((1, 2, 3), keepdim=True)).all())
    shown = (sd > 0.01).flatten(1).any(1)
    assert shown.tolist() == [True, True, False]


def test_windows_of_a_large_frame_count_each_emitter_once(monkeypatch):
    """Emitters everywhere, also where windows' own parts meet: the centre of one fit to the whole frame, and its sd.

    The background of a window is known from 256 pixels and not from 1924, which adds little to the sd of positions.
    """
    shape = (37, 52)
    v, u = torch.meshgrid(torch.arange(1.0, 37, 5), torch.arange(1.0, 52, 5), indexing="ij")
    for shift in (0.0, 0.3, 1.1, 2.5, 3.0):
        along, down = (u + shift).reshape(1, -1), (v + shift * 0.8).reshape(1, -1)
        truth = Emitters(along, down, torch.full_like(along, 1000.0), (along < 51) & (down < 36))
        rate = expected_photons(truth, PSF(1.0), shape, BACKGROUND)
        y, x = kde_image(truth, shape).repeat(2, 1, 1, 1), frame_input(rate[None].repeat(2, 1, 1, 1), 2.0)
        centre, sd = fitted_kde(y, x)
        assert float((centre - y).abs().max()) < 0.03
        monkeypatch.setattr(condition, "SIDE", 64)
        centre_of_one, sd_of_one = fitted_kde(y, x)
        monkeypatch.undo()
        torch.testing.assert_close(centre, centre_of_one, rtol=0, atol=0.03)
        torch.testing.assert_close(sd, sd_of_one, rtol=0.1, atol=3e-3)


def test_of_emitters_apart_the_variances_add_up():
    """The fit of one is hardly changed by the other, 9 px away: its light there is exp(−40) of its peak."""
    alone = [emitters([[place]]) for place in ((3.2, 4.0), (12.1, 10.6))]
    both = emitters([[(3.2, 4.0), (12.1, 10.6)]])
    _, together = fitted_kde(blurred(both), exposed(both))
    variances = [fitted_kde(blurred(one), exposed(one))[1].square() for one in alone]
    # background and width, which both share, are better known with two: a per cent
    torch.testing.assert_close(together, sum(variances).sqrt(), rtol=0.02, atol=1e-4)  # type: ignore[union-attr]


def test_moved_fits_have_the_sd_of_the_fit_and_pixels_that_agree():
    """The sd of first order where the slope matters, as above. Every draw is one kernel: its mass does not vary."""
    truth = emitters([[(7.3, 8.1)]], 2000.0)
    fit = FrameFit(blurred(truth), exposed(truth, seed=3))
    drawn = fit.moved(4000, torch.Generator().manual_seed(4))[0]
    sd = fit.sd()[0, 0]
    steep = sd > sd.max() / 2
    torch.testing.assert_close(drawn.std(0)[steep], sd[steep], rtol=4 * 0.011 + 3 * 0.16**2, atol=0)
    torch.testing.assert_close(drawn.sum((1, 2)), torch.full((4000,), 2 * math.pi), rtol=1e-3, atol=0)
    assert float(drawn.flatten(1).argmax(1).unique().numel()) > 1


def test_no_emitter_is_moved_farther_than_is_said():
    """Two at nearly one place know their middle, not their distance: the sd of a position would be far above FARTHEST.

    A prior of sd FARTHEST on each position makes it FARTHEST at most, whatever the frame says.
    """
    truth = emitters([[(7.4, 8.0), (7.6, 8.0)]], 150.0)
    start = Emitters(truth.u, truth.v, truth.photons, truth.mask)
    electrons, variance = input_electrons(exposed(truth))
    joint = fit_emitters(electrons, start, variance, max_iterations=STEPS)
    free, held = (
        joint.draw(20_000, torch.Generator().manual_seed(1), limit)[0][0].std(0) for limit in (None, FARTHEST)
    )
    assert float(free.max()) > 1.5 * FARTHEST
    assert float(held.max()) < FARTHEST * (1 + 4 * 0.005)


def test_moved_fits_of_windows_are_those_of_the_whole_frame(monkeypatch):
    """Mean and sd over draws, and the evidence, of a frame in windows against one fit; emitters also at the seams."""
    shape = (20, 37)
    u, v = (torch.tensor([x]) for x in ([3.0, 12.6, 18.1, 24.0, 33.3], [4.2, 9.9, 15.0, 10.1, 6.0]))
    truth = Emitters(u, v, torch.full((1, 5), 1500.0))
    dice = torch.Generator().manual_seed(1)
    rate = torch.poisson(expected_photons(truth, PSF(1.0), shape, BACKGROUND), generator=dice)
    y, x = kde_image(truth, shape), frame_input(rate[:, None], 2.0)
    found = []
    for side in (16, 64):
        monkeypatch.setattr(condition, "SIDE", side)
        fit = FrameFit(y, x)
        drawn = fit.moved(4000, torch.Generator().manual_seed(2))[0]
        found.append((drawn.mean(0), drawn.std(0), fit.evidence()[0]))
    monkeypatch.undo()
    (mean, sd, evidence), (mean_of_one, sd_of_one, evidence_of_one) = found
    torch.testing.assert_close(mean, mean_of_one, rtol=0, atol=0.03)
    torch.testing.assert_close(sd, sd_of_one, rtol=0.1, atol=0.01)
    # a background of its own for each window moves N and what is left by a share of their errors
    torch.testing.assert_close(evidence[0], evidence_of_one[0], rtol=0.05, atol=0.05)
    assert float((evidence[1] - evidence_of_one[1]).square().mean()) < 0.1 * float(evidence_of_one[1].var())


def test_the_evidence_is_how_sure_n_is_and_what_the_fit_leaves():
    """A molecule that is there has N/sd(N) of Fisher's information; one that is not has the least N of the prior."""
    truth = emitters([[(7.3, 8.1)]], 1500.0)
    estimate, frame = kde_image(emitters([[(7.3, 8.1), (2.2, 12.4)]]), SHAPE), exposed(truth, seed=5)
    evidence = FrameFit(estimate, frame).evidence()[0, 0]
    joint = fit_of(estimate, frame)
    wanted = joint.emitters.photons[0] / joint.covariance()[0].diagonal()[2:-2:3].sqrt() / SURE
    nearest = [(round(4 * (v + 0.5) - 0.5), round(4 * (u + 0.5) - 0.5)) for u, v in ((7.3, 8.1), (2.2, 12.4))]
    heights = torch.stack([evidence[r - 2 : r + 3, c - 2 : c + 3].max() for r, c in nearest])
    order = joint.emitters.photons[0].argsort(descending=True)
    torch.testing.assert_close(
        heights.double(), wanted[order][:2].double(), rtol=0.12, atol=0
    )  # off the pixel's centre
    assert float(joint.emitters.photons.min()) == 100 and float(heights[0]) > 4 * float(heights[1])


def test_what_the_fit_leaves_shows_the_molecule_that_it_lacks():
    both, one = emitters([[(4.0, 4.0), (11.0, 10.0)]]), emitters([[(4.0, 4.0)]])
    missing, whole = (FrameFit(kde_image(x, SHAPE), exposed(both, seed=6)).evidence()[0, 1] for x in (one, both))
    place = int(missing.argmax())
    assert math.hypot(place // 64 - 41.5, place % 64 - 45.5) < 3  # super-resolved pixels
    assert float(missing.max()) > 1.5 * float(whole.abs().max())
    quiet = whole[::4, ::4]
    assert 0.5 < float(quiet.std()) < 1.0  # asinh of a standard normal number has an sd of .76


# -- centre, scale and inputs ------------------------------------------------------------------------------


def test_where_nothing_is_fitted_the_centre_is_dark_and_the_scale_is_what_the_estimate_shows():
    dim = 0.2 * blurred(emitters([[(7.3, 8.1)]]))  # below the lowest peak that is fitted
    centre, scale, _ = condition_on(dim, exposed(emitters([[]])))
    assert torch.equal(centre, torch.zeros_like(dim))
    torch.testing.assert_close(scale, (FLOOR**2 + dim.square()).sqrt())


def test_where_the_estimate_is_the_fit_the_scale_is_its_sd():
    truth = emitters(PLACES)
    estimate, frame = kde_image(truth, SHAPE), exposed(truth)
    _, scale, _ = condition_on(estimate, frame)
    _, sd = fitted_kde(estimate, frame)
    # the fit ends within some hundredths of an error bar of the truth: a thousandth of scale²
    torch.testing.assert_close(scale, (FLOOR**2 + sd.square()).sqrt(), rtol=2e-3, atol=1e-5)


def test_centre_scale_and_inputs_are_what_the_docstring_says():
    estimate, frame = noisy()
    centre, scale, images = condition_on(estimate, frame)
    kde, sd = fitted_kde(estimate, frame)
    assert torch.equal(centre, kde)
    torch.testing.assert_close(kde, kde_image(fit_of(estimate, frame).emitters, SHAPE))
    torch.testing.assert_close(scale.square(), FLOOR**2 + sd.square() + (kde - estimate).square())
    assert images.shape == (3, CHANNELS, 64, 64)
    shown, root, signal, noise, ones, seen_centre, seen_scale = images[:, :-2].split(1, 1)
    assert torch.equal(images[:, -2:], FrameFit(estimate, frame).evidence())
    assert torch.equal(shown, estimate) and torch.equal(ones, torch.ones_like(estimate))
    torch.testing.assert_close(root.square(), estimate)
    assert torch.equal(seen_centre, centre) and torch.equal(seen_scale, scale / SCALE_UNIT)
    torch.testing.assert_close(noise, frame[:, 1:, :1, :1].expand_as(noise))  # a constant stays one
    # upsampled in place: the mean over the pixels that tile a camera pixel is about that pixel
    torch.testing.assert_close(F.avg_pool2d(signal, 4), frame[:, :1], rtol=0, atol=0.1 * float(frame[:, 0].max()))
    assert not torch.allclose(signal, F.interpolate(frame[:, :1], scale_factor=4.0))


def test_an_estimate_below_zero_has_no_root():
    estimate = torch.full((1, 1, 64, 64), -0.05)
    _, scale, images = condition_on(estimate, exposed(emitters([[]])))
    assert torch.equal(images[:, 1], torch.zeros(1, 64, 64)) and bool(images.isfinite().all())
    torch.testing.assert_close(scale, torch.full_like(scale, math.sqrt(FLOOR**2 + 0.05**2)))


def test_a_row_does_not_depend_on_the_others():
    """A row without emitters beside some with three, and one whose fit ends before the others'."""
    estimate, frame = noisy()
    together = condition_on(estimate, frame)
    for k in range(3):
        alone = condition_on(estimate[k : k + 1], frame[k : k + 1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[k : k + 1], b, rtol=1e-4, atol=1e-5)  # sums in another order
    assert torch.equal(together.centre[2], torch.zeros(1, 64, 64)) and float(together.centre[:2].max()) > 0.9


def test_in_low_precision_the_condition_stays_in_float32():
    estimate, frame = noisy()
    with torch.autocast("cpu", torch.bfloat16):
        low = condition_on(estimate, frame)
    for a, b in zip(low, condition_on(estimate, frame), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b)


def test_it_has_no_gradient():
    estimate, frame = (x.requires_grad_() for x in noisy())
    assert not any(x.requires_grad for x in condition_on(estimate, frame))


def test_a_fit_off_the_border_keeps_its_tail_in_the_image():
    """An emitter beyond the border is fitted where it is: its KDE on the image is the tail."""
    truth = emitters([[(-0.7, 8.1)]])
    centre, sd = fitted_kde(kde_image(truth, SHAPE), exposed(truth))
    column = to_super_resolved(torch.tensor(-0.7))
    assert float(column) < 0 < float(centre.max()) < 1
    torch.testing.assert_close(centre, kde_image(truth, SHAPE), rtol=0, atol=0.05 * float(sd.max()))


# -- the range of the fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit", "start", "limits"),
    [
        (None, 1050.0, {"photons": (100.0, 2000.0), "background": (0.0, 20.0), "sigma": (0.92, 1.08)}),
        (
            FitRange((3000, 9000), (60, 90), (1.2, 1.4)), 6000.0,
            {"photons": (3000.0, 9000.0), "background": (60.0, 90.0), "sigma": (1.2, 1.4)},
        ),
    ],
    ids=["the shipped weights'", "another"],
)  # fmt: skip
def test_the_fit_gets_its_range(fit, start, limits, monkeypatch):
    """The first numbers are those with which the shipped weights were trained: others would change what they draw."""
    given = []

    def spy(frames: Tensor, first: Emitters, read_variance: Tensor, **options: Any) -> JointFit:
        given.append((first.photons[first.mask].unique().tolist(), options))
        return fit_emitters(frames, first, read_variance, **options)

    monkeypatch.setattr(condition, "fit_emitters", spy)
    fitted_kde(*noisy(), *(() if fit is None else (fit,)))
    assert given == [([start], limits | {"max_iterations": 12})]


def test_bright_wide_spots_have_their_error_bars_with_their_range_alone():
    """N = 6000, b = 75, σ = 1.3: the sd of the position by the Cramér–Rao bound, times the slope of the kernel.

    The range of the reference scene stops N and b at a third of theirs.
    """
    truth, range_ = emitters([[(7.3, 8.1)]], 6000.0), FitRange((3000, 9000), (60, 90), (1.2, 1.4))
    frame = frame_input(expected_photons(truth, PSF(1.3), SHAPE, 75.0)[:, None], 2.0)
    bound = localization_bound(
        Emitters.single(7.3, 8.1, 6000.0), PSF(1.3), Camera(read_variance=2.0), SHAPE, background=75.0
    )
    at = torch.arange(64)
    off = [at - float(to_super_resolved(x, 4)) for x in (torch.tensor(8.1), torch.tensor(7.3))]
    squared = off[0][:, None] ** 2 + off[1] ** 2
    wanted = 4 * float(bound[0, 0]) * squared.sqrt() * (-squared / 2).exp()
    centre, sd = fitted_kde(blurred(truth), frame, range_)
    torch.testing.assert_close(sd[0, 0], wanted, rtol=0.03, atol=1e-4)
    torch.testing.assert_close(centre, kde_image(truth, SHAPE), rtol=0, atol=0.05 * float(sd.max()))
    _, other = fitted_kde(blurred(truth), frame)
    assert float(other.max() / sd.max()) > 1.2


def test_a_scene_gives_the_range_that_its_camera_sees():
    assert FitRange.of(Scene()) == FitRange()
    scene = Scene(photons=1000.0, background=0.0, sigma=LogUniform(1.2, 1.4), camera=Camera(quantum_efficiency=0.5))
    found = FitRange.of(scene)
    assert found.photons == pytest.approx((495, 505)) and found.sigma == (1.2, 1.4)
    assert found.background[0] == 0 < found.background[1] < 0.01
    fitted_kde(*noisy(), found)  # the fit takes it


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"photons": (2000, 100)}, r"photons must be two increasing limits of at least 0, got \(2000.0, 100.0\)"),
        ({"background": (-1, 20)}, "background must be two increasing limits of at least 0"),
        ({"sigma": (0, 1)}, "sigma must be two increasing limits above 0"),
        ({"sigma": (1.0, math.nan)}, "sigma must be two increasing limits above 0"),
    ],
)
def test_a_range_that_is_none_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        FitRange(**change)


@pytest.mark.parametrize(
    "shape",
    [(1, 2, 16, 15), (1, 2, 64, 64), (1, 1, 16, 16), (2, 2, 16, 16)],
    ids=["side", "factor", "channels", "rows"],
)
def test_a_frame_of_another_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"frame must have 2 channels and a quarter of .* \(1, 1, 64, 64\), got \("):
        condition_on(torch.zeros(1, 1, 64, 64), torch.zeros(shape))


@pytest.mark.parametrize(
    ("estimate", "frame", "words"),
    [
        (torch.zeros(64, 64), torch.zeros(1, 2, 16, 16), "estimate"),
        (torch.zeros(1, 1, 64, 64), torch.zeros(2, 16, 16), "frame"),
        (torch.zeros(1, 1, 64, 64), torch.full((1, 2, 16, 16), torch.nan), "must be finite"),
    ],
)
def test_bad_input_is_named(estimate, frame, words):
    with pytest.raises(ValueError, match=words):
        condition_on(estimate, frame)
