"""Exact draws for the localizations of a movie, held against the bound, against chains that see the whole frame, and
against the sampler that answers where they cannot.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_localize import breaking_off
from test_uncertainty import DOTS, Jitter, content, dots
from torch import Tensor

from smlmtut.estimation import fisher
from smlmtut.estimation.likelihood import surrogate_log_likelihood
from smlmtut.imaging import simulate
from smlmtut.imaging.camera import Camera, to_photoelectrons
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import PSF, Emitters, expected_photons
from smlmtut.imaging.windows import Window
from smlmtut.io import read_localizations
from smlmtut.localize import (
    ProgressMismatch,
    SamplingSettings,
    exact,
    files,
    localize_to_file,
    localize_with_uncertainty,
    uncertainty,
)
from smlmtut.localize.exact import ExactSettings
from smlmtut.localize.progress import COLUMNS
from smlmtut.networks import pretrained
from smlmtut.posterior import chain_posterior, count_prior, grid_posterior

CAMERA = Camera(2.0, 100.0, 12.0)
SHORT = ExactSettings(draws=100, thin=2, burn_in=60)


@pytest.fixture(scope="module")
def network():
    return pretrained.load("deepstorm-2d")


def unused(*_):
    raise AssertionError("the chains must answer")


def answered(frames, net, settings=SHORT, camera=CAMERA, sampler: Any = unused, threshold=0.25, **sampling) -> Any:
    """The table of all frames."""
    given = SamplingSettings(**sampling)
    some = localize_with_uncertainty(frames, camera, net, sampler, given, threshold, exact=settings)
    return pd.concat([table for _, table, _ in some], ignore_index=True)


def frames_of(u, v, photons, shape, background, seed) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return simulate.frames(Emitters(u, v, photons), PSF(1.0), CAMERA, shape, background, generator)


def whole(frames: Tensor, table: Any, net) -> Any:
    """The table with what one run of chains over the whole frames, under the same prior, says of its rows."""
    shape = (frames.shape[1], frames.shape[2])
    electrons, generator = to_photoelectrons(frames.double(), CAMERA), torch.Generator().manual_seed(9)
    counts = count_prior(12, shape, margin=exact.MARGIN)
    draws = chain_posterior(electrons, counts, generator, 3.0, exact.training_prior(shape), 4, 100, 4, 150)
    samples = torch.stack([kde_image(draws.emitters(i), shape).float()[:, 0] for i in range(len(frames))])
    everything = Window((0, shape[0]), (0, shape[1]), (0, shape[0]), (0, shape[1]))
    matches = uncertainty.Matches(table[list(COLUMNS)], net, SamplingSettings())
    matches.samples[:] = samples.shape[1]
    matches.count([(i, everything) for i in range(len(frames))], samples, 0)
    return matches.table()


# -- the numbers -------------------------------------------------------------------------------------------


def test_sds_of_lone_bright_emitters_reach_the_bound(network):
    """Of 24 emitters; a draw in a hundred has two emitters there, and 6 sd leave these out."""
    many, shape, photons, background = 24, (13, 13), 1500.0, 5.0
    u, v = 5.5 + torch.rand(2, many, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    emitters = Emitters(u, v, torch.full_like(u, photons))
    frames = frames_of(u, v, emitters.photons, shape, background, 4)
    table = answered(frames.numpy(), network, radius=0.2)
    bound = fisher.localization_bound(emitters, PSF(1.0), CAMERA, shape, background)[:, :2].numpy()
    assert (table["exact"] == 1).all() and len(table) == many
    ratio = (table[["u_sd", "v_sd"]].to_numpy() / bound).mean()
    assert ratio == pytest.approx(1, abs=0.04)  # 48 sds, each known to 4 %, which differ by 5 % from frame to frame


def test_dim_emitters_have_the_probability_of_the_grid(network):
    """In frames of 12 × 12 pixels, which are their own crops: none, or one on a grid; three or more are neglected, and
    two count as one beside the one there.
    """
    many, shape = 6, (12, 12)
    u, v = 5 + torch.rand(2, many, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    frames = frames_of(u, v, torch.linspace(50, 110, many)[:, None], shape, 15.0, 6)
    table = answered(frames.numpy(), network, ExactSettings(attempts=1), sampler=Jitter(), threshold=0.05)
    table = table[table["exact"] == 1]
    assert len(table) >= 4
    # the grid has σ = 1 for all from 0.92 to 1.08, of which a dim emitter tells nothing
    prior, counts = replace(exact.training_prior(shape), sigma=1.0), count_prior(12, shape, margin=exact.MARGIN)
    electrons, b = to_photoelectrons(frames.double(), CAMERA), torch.linspace(0.05, 19.95, 200).double()
    wanted = []
    for frame, row_u, row_v in table[["frame", "u", "v"]].to_numpy().tolist():
        x = electrons[int(frame)]
        none = surrogate_log_likelihood(x.expand(200, -1, -1), b[:, None, None], Camera(read_variance=3.0))
        log_none = none.sum((1, 2)).logsumexp(0) - math.log(200)
        one = grid_posterior(x, 3.0, prior)
        near = float(one.mass.sum(1)[torch.hypot(one.u - row_u, one.v - row_v) <= 1].sum())
        odds = float((one.log_evidence + counts[1].log() - log_none - counts[0].log()).exp())
        wanted.append(near * odds / (1 + odds))
    off = np.abs(table["probability"] - wanted)
    spread = np.sqrt(np.multiply(wanted, np.subtract(1, wanted)) / table["effective_size"])
    assert (off < 4 * spread + 0.03).all()  # 0.03: for what is neglected
    assert min(wanted) < 0.7  # some are in doubt


def test_neighbours_apart_are_as_in_one_run(network):
    """3 to 5 px apart along u: groups of their own, each of which sees a part of the other's light."""
    many, shape = 8, (16, 20)
    middle = 7 + torch.rand(2, many, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    half = torch.linspace(1.5, 2.5, many).double()[:, None]
    u, v = torch.cat([middle[0] - half, middle[0] + half], 1) + 2, middle[1].expand(-1, 2)
    frames = frames_of(u, v, torch.full_like(u, 600.0), shape, 5.0, 7)
    table = answered(frames.numpy(), network, ExactSettings(attempts=1), sampler=Jitter())
    wanted, kept = whole(frames, table, network), table["exact"] == 1
    assert len(table) == 2 * many and kept.mean() > 0.8
    for name in ("u_sd", "v_sd"):
        ratio = np.log(table[name] / wanted[name])[kept]
        # two effective sizes of about 200 leave 7 % in one ratio, 2 % in the mean; the crop costs up to 3 % along u
        assert ratio.std() < 0.1 and abs(ratio.mean()) < 0.06
    assert (table["probability"] - wanted["probability"])[kept].abs().max() < 0.05


# -- who answers -------------------------------------------------------------------------------------------

LAX = ExactSettings(chains=2, draws=8, thin=1, burn_in=2, attempts=1, r_hat=1e9, size=1e-9)  # trusts any chains
NEVER = ExactSettings(chains=2, draws=8, thin=1, burn_in=2, attempts=2, size=1e9)


def test_a_frame_that_is_too_crowded_is_left_to_the_sampler():
    """Dots in neighbouring pixels are one group beyond the largest crop; two far away are groups of their own."""
    crowd = [(row, column) for row in range(2, 20) for column in range(2, 14)]
    frames = dots(1, (24, 40), [*crowd, (5, 30), (15, 30)])
    table = answered(frames, DOTS, LAX, Camera(), Jitter(0.5, 0.1), samples=20)
    alone = table["u"] > 20
    assert alone.sum() == 2 and len(table) == len(crowd) + 2
    assert (table["exact"] == alone).all()
    assert (table.loc[~alone, ["r_hat", "effective_size"]] == 0).all(axis=None)
    assert (table.loc[alone, "effective_size"] > 0).all()
    share = table.loc[~alone, "probability"]  # of 216 × 20 samples
    assert share.mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(20 * len(share)))


def test_where_no_chain_is_trusted_the_sampler_gives_the_whole_answer():
    frames = dots(2, (20, 24), [(5, 6), (12, 17)])
    (_, plain, sums), *_ = localize_with_uncertainty(frames, Camera(), DOTS, Jitter())
    (_, table, same), *_ = localize_with_uncertainty(frames, Camera(), DOTS, Jitter(), exact=NEVER)
    assert not table[["exact", "r_hat", "effective_size"]].to_numpy().any()
    pd.testing.assert_frame_equal(table.iloc[:, : plain.shape[1]], plain)
    np.testing.assert_allclose(sums, same, atol=1e-15)  # what has its answer is not asked for


def test_the_images_are_of_the_draws_where_chains_answer(network):
    """A bright emitter: the mean's mass in its group is one kernel's, at its place; ŷ, beyond, has no variance."""
    u, v, photons = torch.tensor([8.0, 9.0, 1500.0]).double()[:, None, None]
    frames = frames_of(u, v, photons, (18, 18), 2.0, 1).numpy()
    short = ExactSettings(draws=80, thin=1, burn_in=40)
    (_, table, (mean, variance)), *_ = localize_with_uncertainty(frames, CAMERA, network, unused, exact=short)
    assert table["probability"].tolist() == [1]
    rows, columns = np.nonzero(variance)
    assert rows.min() >= 4 * 7 and rows.max() < 4 * 11 and columns.min() >= 4 * 6 and columns.max() < 4 * 10
    assert mean[variance > 0].sum() == pytest.approx(2 * math.pi, rel=0.03)
    at = np.unravel_index(mean.argmax(), mean.shape)
    assert np.array(at) == pytest.approx([4 * 9.5 - 0.5, 4 * 8.5 - 0.5], abs=1)


@pytest.mark.parametrize("shape", [(40, 37), (11, 30), (7, 7)])
def test_groups_and_their_crops(shape):
    """Whatever is lit lies in one group only; a crop is within the frame, as large as it may be, and has its halo."""
    generator = np.random.default_rng(2)
    y = torch.from_numpy((generator.random((4 * shape[0], 4 * shape[1])) < 0.004).astype(np.float32))
    found, count = exact.boxes(y, 4, 0.5), np.zeros(shape, int)
    for box in found:
        count[box] += 1
        needed = max(s.stop - s.start for s in box) + 2 * exact.HALO
        side = next((side for side in exact.SIDES if side >= needed), None)
        if side is None:
            continue
        place = exact.crop(box, side, shape)
        for span, own, n in zip((place.rows, place.columns), (place.own_rows, place.own_columns), shape, strict=True):
            assert span[1] - span[0] == min(side, n) and 0 <= span[0] and span[1] <= n
            assert span[0] <= max(0, own[0] - exact.HALO) and span[1] >= min(n, own[1] + exact.HALO)
    lit = y.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).amax((1, 3)).numpy() > 0.5
    assert count.max() == 1 and (count[lit] == 1).all() and len(found) > 1 - (shape == (7, 7))


# -- files -------------------------------------------------------------------------------------------------


def to_file(path, frames, **more):
    good = {"sampler": Jitter(0.8, 0.1), "settings": SamplingSettings(6), "exact": LAX, "progress": False}
    return localize_to_file(path, frames, Camera(), DOTS, 100.0, **{**good, **more})  # type: ignore[arg-type]


def test_a_broken_off_run_goes_on_with_the_same_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(uncertainty, "EXACT_AT_ONCE", 2)
    monkeypatch.setattr(files, "FRAMES_HASHED", 2)
    frames, path = dots(5, (20, 24), [(5, 6), (12, 17)]), tmp_path / "locs.csv"
    to_file(tmp_path / "whole.csv", frames)
    with breaking_off(monkeypatch, 3):
        to_file(path, frames)
    other = ExactSettings(chains=2, draws=8, thin=2, burn_in=2, attempts=1, r_hat=1e9, size=1e-9)
    for change, name in (({"exact": other}, "exact thin"), ({"exact": None}, "columns")):
        with pytest.raises(ProgressMismatch, match=f"is of another run.*{name} was"):
            to_file(path, frames, **change)
    to_file(path, frames)
    assert content(path) == content(tmp_path / "whole.csv")
    table: Any = read_localizations(path, 100.0)
    assert list(table)[-4:] == ["probability", "exact", "r_hat", "effective_size"] and (table["exact"] == 1).all()


def test_rounding_below_the_offset_without_read_noise_counts_as_no_light():
    frames = dots(1, (12, 12), [(6, 6)]) - 1e-3
    frames[0, 6, 6] = 6
    assert len(answered(frames, DOTS, LAX, Camera())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chains": 3}, "chains must be even and at most 1024, got 3"),
        ({"chains": 2048}, "chains must be even and at most 1024, got 2048"),
        ({"draws": 3}, "draws must be a whole number of at least 4"),
        ({"attempts": 0}, "attempts must be a whole number of at least 1"),
        ({"r_hat": math.nan}, "r_hat must be finite and positive"),
        ({"pixel_size_nm": 0.0}, "pixel_size_nm must be finite and positive"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        ExactSettings(**change)


# -- where chains start ------------------------------------------------------------------------------------


def test_chains_start_where_they_are_told():
    """After one sweep: chains that started empty have had one birth, the others have both of two emitters far apart."""
    shape, there = (9, 12), torch.tensor([[False, True, True, False]] * 2)
    u, v = torch.tensor([[0.0, 3.0, 9.0, 0.0]] * 2).double(), torch.tensor([[0.0, 4.0, 5.0, 0.0]] * 2).double()
    given = Emitters(u, v, torch.full_like(u, 1500.0), there)
    frames = torch.poisson(expected_photons(given, PSF(1.0), shape, 3.0), generator=torch.Generator().manual_seed(1))
    draws = chain_posterior(
        frames,
        count_prior(8, shape),
        torch.Generator().manual_seed(0),
        chains=8,
        draws=4,
        thin=1,
        burn_in=0,
        start=given,
    )
    near = [
        ((torch.hypot(draws.u - x, draws.v - y) < 1) & (draws.photons > 0)).any(-1)[:, :, 0]
        for x, y in ((3, 4), (9, 5))
    ]
    both = near[0] & near[1]  # (2, 8) at the first draw
    assert both[:, 4:].all() and not both[:, :4].any()


@pytest.mark.parametrize(
    ("start", "counts", "message"),
    [
        (Emitters.single(30.0, 4.0, 300.0), [0.5, 0.5], "start must be within the prior and have at most 1 emitters"),
        (Emitters.single(4.0, 4.0, 3.0), [0.5, 0.5], "start must be within the prior"),
        (Emitters(*torch.full((3, 1, 2), 200.0) / 50), [0.5, 0.5], "start must be within the prior"),
        (Emitters.single(4.0, 4.0, 300.0), [0, 0, 1.0], "start must have as many emitters as counts allows, got 1"),
        (Emitters(*torch.full((3, 2, 1), 4.0)), [0.5, 0.5], "start must have the batch of frames, 1, got 2"),
    ],
)
def test_bad_starts(start, counts, message):
    with pytest.raises(ValueError, match=message):
        chain_posterior(torch.ones(1, 9, 9), counts, torch.Generator(), 1.0, start=start)
