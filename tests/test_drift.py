"""Drift by cross-correlation, against drift that is known."""

import numpy as np
import pandas as pd
import pytest

from smlmtut.localize.drift import estimate_drift, without_drift

PIXEL_NM, SHAPE, FRAMES = 108.0, (32, 32), 1000


def sites(many: int, rng: np.random.Generator) -> np.ndarray:
    """Places away from the border, (many, 2) px."""
    return 3 + 25 * rng.random((many, 2))


def drifting(drift: np.ndarray, each: int = 30, sd: float = 0.15) -> pd.DataFrame:
    """A movie of 400 sites: `each` of them in a frame, with an error of sd px, on a sample that moves."""
    rng = np.random.default_rng(0)
    place = sites(400, rng)
    frame = np.repeat(np.arange(len(drift)), each)
    u, v = (
        place[rng.integers(len(place), size=len(frame))] + drift[frame] + sd * rng.standard_normal((len(frame), 2))
    ).T
    return pd.DataFrame({"frame": frame, "u": u, "v": v})


def test_a_bent_path_is_found_to_a_fraction_of_the_localization_error() -> None:
    """The aim is 10 nm rms. Segments of 3000 localizations know their place to 16/√3000 = .3 nm at best."""
    t = np.linspace(0, 1, FRAMES)
    drift = np.column_stack([1.5 * t, 0.6 * np.sin(4 * t)])
    drift -= drift.mean(0)
    found = estimate_drift(drifting(drift), SHAPE, FRAMES)
    rms = PIXEL_NM * np.sqrt(((found - drift) ** 2).sum(1).mean())
    assert rms < 3 and np.abs(found.mean(0)).max() < 1e-12
    assert PIXEL_NM * np.sqrt((drift**2).sum(1).mean()) > 40  # what an answer of no drift would get


def test_two_segments_of_the_same_points_are_shifted_by_what_they_are() -> None:
    """Without noise the shift is right to half a step of the search, 1/20 of an eighth of a pixel."""
    place = sites(100, np.random.default_rng(1))
    u, v = np.concatenate([place, place + np.array([0.31, -0.17])]).T
    table = pd.DataFrame({"frame": np.repeat([0, 10], 100), "u": u, "v": v})
    found = estimate_drift(table, SHAPE, 11, segments=2)
    np.testing.assert_allclose(found[10] - found[0], [0.31, -0.17], atol=1 / 160)


def test_without_drift_molecules_stand_still() -> None:
    drift = np.column_stack([np.linspace(-1, 1, FRAMES), np.zeros(FRAMES)])
    still, never = without_drift(drifting(drift), drift), drifting(np.zeros_like(drift))
    pd.testing.assert_frame_equal(still, never, rtol=0, atol=1e-12)


def test_bleaching_does_not_spoil_the_end() -> None:
    """One in e³ is left at the end. Segments hold equally many, so the last is long and the spline bridges it."""
    drift = np.column_stack([np.linspace(-0.5, 0.5, FRAMES), np.zeros(FRAMES)])
    table = drifting(drift)
    left = np.random.default_rng(1).random(len(table)) < np.exp(-3 * table["frame"] / FRAMES)
    found = estimate_drift(table.loc[left], SHAPE, FRAMES)
    assert PIXEL_NM * np.sqrt(((found - drift) ** 2).sum(1).mean()) < 10
    assert PIXEL_NM * np.abs(found - drift).max() < 25


def test_what_cannot_be_compared_is_refused() -> None:
    table = pd.DataFrame({"frame": [0, 1, 2], "u": 1.0, "v": 1.0})
    with pytest.raises(ValueError, match="segments must be a whole number of at least 2, got 1"):
        estimate_drift(table, SHAPE, 3, segments=1)
    with pytest.raises(ValueError, match="table must have a localization for each of 4 segments, got 3"):
        estimate_drift(table, SHAPE, 3, segments=4)
    with pytest.raises(ValueError, match="table must spread over the frames"):
        estimate_drift(table.assign(frame=0), SHAPE, 3, segments=2)
