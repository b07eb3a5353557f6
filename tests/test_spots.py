"""Finding spots in simulated frames, where the truth is known, and cutting them out."""

import math

import numpy as np
import pytest
import torch

from smlmtut.estimation.spots import cut_spots, find_spots
from smlmtut.imaging import camera, simulate
from smlmtut.imaging.psf import PSF, Emitters, expected_photons

SIZE = 64
SENSOR = camera.Camera(read_variance=2.3)


def lattice(frames, photons, seed):
    """Frames with nine emitters each, 20 px apart, at random places within their own pixel."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(*[torch.tensor([12.0, 32.0, 52.0])] * 2, indexing="ij")
    jitter = torch.rand(2, frames, 9, generator=generator, dtype=torch.float64) - 0.5
    u, v = columns.flatten() + jitter[0], rows.flatten() + jitter[1]
    emitters = Emitters(u, v, torch.full_like(u, photons))
    return simulate.frames(emitters, PSF(1.0), SENSOR, (SIZE, SIZE), 5.0, generator), emitters


def matched(found, emitters, reach=1.5):
    """(emitters found, candidates that are an emitter) within reach px in the same frame."""
    frame, row, column = found.T
    du = column[:, None] - emitters.u[frame]  # (K, E)
    dv = row[:, None] - emitters.v[frame]
    near = du.square() + dv.square() <= reach**2
    hit = torch.zeros_like(emitters.u, dtype=torch.bool)
    hit[frame[:, None].expand_as(near)[near], near.nonzero()[:, 1]] = True
    return int(hit.sum()), int(near.any(1).sum())


def test_isolated_emitters_are_found_and_little_else():
    """300 photons on 5 a pixel are some 13 times the filter's noise: none is missed, and few maxima are noise."""
    frames, emitters = lattice(20, 300.0, seed=1)
    found = find_spots(frames, 1.0, threshold=6.0)
    hits, good = matched(found, emitters)
    assert hits == 20 * 9
    assert good >= 0.98 * len(found)


def test_pure_noise_gives_no_more_than_expected():
    """Every candidate is a pixel above t sd, so the normal tail times the number of pixels bounds their number."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(20, SIZE, SIZE, generator=generator, dtype=torch.float64)
    for threshold in (4.0, 5.0, 6.0):
        expected = noise.numel() * 0.5 * math.erfc(threshold / math.sqrt(2))  # pixels above it
        assert len(find_spots(noise, 1.0, threshold)) <= expected + 5 * math.sqrt(expected) + 1


def test_no_noise_no_maximum_no_spot():
    flat = torch.full((2, 32, 32), 7.0)
    assert find_spots(flat, 1.0).shape == (0, 3)
    lonely = expected_photons(Emitters.single(20.0, 9.0, 100.0), PSF(1.0), (32, 32))
    assert find_spots(lonely, 1.0)[:1].tolist() == [[0, 9, 20]]  # (frame, row, column): v is the row


def test_order_frames_and_border():
    one = expected_photons(Emitters.single(8.0, 20.0, 900.0), PSF(1.0), (40, 40), 5.0)
    two = expected_photons(
        Emitters(
            *(
                torch.tensor([x], dtype=torch.float64)
                for x in ([10.0, 30.0, 1.0], [10.0, 30.0, 1.0], [300.0, 900.0, 900.0])
            )
        ),
        PSF(1.0),
        (40, 40),
        5.0,
    )
    noise = torch.poisson(torch.cat([one, two]), generator=torch.Generator().manual_seed(3))
    inner = find_spots(noise, 1.0, threshold=8.0, border=4)
    assert inner.tolist() == [[0, 20, 8], [1, 30, 30], [1, 10, 10]]  # brightest first, the one at (1, 1) left out
    assert [1, 1, 1] in find_spots(noise, 1.0, threshold=8.0).tolist()


def test_the_threshold_is_relative():
    frames, _ = lattice(3, 300.0, seed=4)
    assert torch.equal(find_spots(frames, 1.0), find_spots(0.01 * frames - 3.0, 1.0))


def test_cut_spots_against_slices():
    frames = torch.arange(2 * 20 * 30.0).reshape(2, 20, 30)
    found = torch.tensor([[0, 10, 15], [1, 0, 0], [1, 19, 29], [0, 3, 28], [0, 4, 4]])
    spots, corners = cut_spots(frames, found, 9)
    assert corners.tolist() == [[6, 11], [0, 0], [11, 21], [0, 21], [0, 0]]
    for spot, (frame, _, _), (row, column) in zip(spots, found.tolist(), corners.tolist(), strict=True):
        assert torch.equal(spot, frames[frame, row : row + 9, column : column + 9])


def test_cut_spots_of_maps_and_of_nothing():
    read_variance = torch.rand(1, 20, 20)
    found = torch.tensor([[0, 5, 5], [0, 6, 6]])
    assert cut_spots(read_variance, found, 7)[0].shape == (2, 7, 7)
    spots, corners = cut_spots(read_variance, torch.zeros(0, 3, dtype=torch.int64), 7)
    assert spots.shape == (0, 7, 7) and corners.shape == (0, 2)


FRAMES = torch.ones(2, 16, 16)
AT = torch.tensor([[0, 5, 5]])
BAD = {
    "rank": (lambda: find_spots(FRAMES[0]), "frames must have 3 dimensions"),
    "nan": (lambda: find_spots(FRAMES * np.nan), "frames must be finite"),
    "sigma": (lambda: find_spots(FRAMES, 0.0), "sigma must be finite and positive"),
    "threshold": (lambda: find_spots(FRAMES, threshold=0.0), "threshold must be finite and positive"),
    "border": (lambda: find_spots(FRAMES, border=-1), "border must be a whole number of at least 0, got -1"),
    "wide border": (lambda: find_spots(FRAMES, border=8), "frames must hold frames larger than twice the border 8"),
    "no frames": (lambda: find_spots(FRAMES[:0]), "frames must hold frames"),
    "even": (lambda: cut_spots(FRAMES, AT, 8), "size must be odd and at most the frame's 16 × 16 pixels, got 8"),
    "large": (lambda: cut_spots(FRAMES, AT, 17), "size must be odd and at most"),
    "table": (lambda: cut_spots(FRAMES, AT[0], 7), r"found must have shape \(K, 3\)"),
    "row": (
        lambda: cut_spots(FRAMES, torch.tensor([[0, 16, 5]]), 7),
        r"found must have row in \[0, 15\], got 16 to 16",
    ),
    "column": (lambda: cut_spots(FRAMES, torch.tensor([[0, 5, -1]]), 7), r"found must have column in \[0, 15\]"),
    "frame": (lambda: cut_spots(FRAMES, torch.tensor([[2, 5, 5]]), 7), r"found must have frame in \[0, 1\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
