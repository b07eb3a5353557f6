"""The running example: the real window shows what the movie shows there, and its twin looks like it."""

import math

import torch

from smlmtut import data
from smlmtut.estimation import fit_spots
from smlmtut.example import FRAME, LEFT, TOP, running_example
from smlmtut.imaging import expected_photons


def test_the_window_is_cut_out_of_the_movie():
    shown = running_example()
    movie = torch.from_numpy(data.af647_movie()).double()
    assert torch.equal(shown.real, movie[FRAME, TOP : TOP + 16, LEFT : LEFT + 16])


def test_the_twin_has_the_mean_and_variance_of_its_model():
    shown = running_example()
    frames = torch.stack([running_example(seed).twin for seed in range(200)])
    rate = expected_photons(shown.emitters, shown.psf, (16, 16), shown.background)[0]
    variance = rate + shown.camera.read_variance
    z = (frames - rate) / variance.sqrt()
    assert abs(z.mean()) < 5 / math.sqrt(z.numel())
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / z.numel())


def test_window_and_twin_look_alike():
    """Fits of both molecules agree within four of their claimed errors: a wrong place or brightness would not."""
    shown = running_example()
    variance = float(shown.camera.read_variance)
    for k, (u, v) in enumerate(zip((6, 10), (5, 11), strict=True)):
        windows = torch.stack([x[max(v - 4, 0) : v + 5, u - 4 : u + 5] for x in (shown.real, shown.twin)])
        fit = fit_spots(windows, sigma=float(shown.psf.sigma), read_variance=variance)
        assert bool(fit.converged.all())
        for name in ("u", "v", "photons", "background"):
            value, sd = getattr(fit, name), getattr(fit, f"{name}_sd")
            assert abs(value[0] - value[1]) < 4 * float(sd.square().sum().sqrt()), (k, name)


def test_the_same_seed_gives_the_same_twin():
    assert torch.equal(running_example().twin, running_example().twin)
    assert not torch.equal(running_example().twin, running_example(1).twin)
