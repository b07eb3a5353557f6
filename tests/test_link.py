"""Linking: how many true neighbours are linked, and how good the combined positions are."""

import numpy as np
import pandas as pd
import pytest
import torch

from smlmtut.imaging.blinking import Kinetics, blink
from smlmtut.localize.link import link, linked_rows


def localized(frame, u, v, seed: int = 0) -> pd.DataFrame:
    """Localizations of these positions, each with an error of an sd of its own, .05 to .3 px, that the table states."""
    rng = np.random.default_rng(seed)
    sd = 0.05 + 0.25 * rng.random((2, len(u)))
    error = sd * rng.standard_normal(sd.shape)
    return pd.DataFrame({"frame": frame, "u": u + error[0], "v": v + error[1], "u_sd": sd[0], "v_sd": sd[1]})


def pairs(many: int) -> pd.DataFrame:
    """Molecules 10 px apart, each in two frames."""
    site = 10.0 * np.arange(many)
    return localized(np.repeat([0, 1], many), np.tile(site, 2), np.zeros(2 * many))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_radius_links_the_share_that_it_claims(level: float) -> None:
    """The squared length of two unit normals exceeds −2 ln(1 − p) with probability 1 − p; five standard errors."""
    rows = linked_rows(pairs(4000), level, most=9.0)
    share = 2 - len(np.unique(rows)) / 4000
    assert share == pytest.approx(level, abs=5 * np.sqrt(level * (1 - level) / 4000))


def test_combined_positions_have_the_error_that_they_state() -> None:
    """Mean squared error over its stated variance is 1 ± √(2/4000); a plain mean of both would have 1.3."""
    table = pairs(4000)
    both = link(table, level=1.0, most=9.0)
    z = both["v"].to_numpy() / both["v_sd"].to_numpy()
    assert set(both["frames"]) == {2} and float((z**2).mean()) == pytest.approx(1, abs=5 * np.sqrt(2 / 4000))
    plain = table["v"].to_numpy().reshape(2, -1).mean(0)
    assert (plain**2).mean() > 1.2 * (both["v"] ** 2).mean()


def test_every_flash_becomes_one_row() -> None:
    """Molecules 4 px apart, so that no other is near: as many rows as there are runs of consecutive frames."""
    place = 4.0 * torch.arange(30, dtype=torch.float64)
    kinetics = Kinetics(on_time=3.0, off_time=40.0, flashes=5.0)
    truth = blink(place, torch.zeros_like(place), kinetics, 400, torch.Generator().manual_seed(0))
    frame, molecule = truth.frame.numpy(), truth.molecule.numpy()
    key = np.sort(molecule * 1000 + frame)
    runs = 1 + int((np.diff(key) != 1).sum())
    table = localized(frame, truth.u.numpy(), truth.v.numpy())
    found = link(table, level=1 - 1e-6, most=1.9)
    assert len(found) == runs and int(found["frames"].to_numpy().sum()) == len(table)
    assert found["frames"].to_numpy().max() > 3  # there is something to link


def test_a_frame_without_it_ends_a_molecule_and_distant_ones_stay_apart() -> None:
    table = pd.DataFrame({"frame": [0, 2, 3, 3], "u": [0.0, 0.0, 0.1, 3.0], "v": 0.0, "u_sd": 0.1, "v_sd": 0.1})
    assert linked_rows(table).tolist() == [0, 1, 1, 2]


def test_a_row_without_a_standard_deviation_stays_alone() -> None:
    table = pd.DataFrame(
        {"frame": [0, 1], "u": [1.0, 1.0], "v": 0.0, "u_sd": [np.nan, 0.1], "v_sd": [np.nan, 0.1], "height": [0.3, 1.0]}
    )
    found = link(table)
    assert found["u"].tolist() == [1.0, 1.0] and found["height"].tolist() == [0.3, 1.0]
    assert found["u_sd"].isna().tolist() == [True, False]


def test_linked_rows_keep_the_larger_probability() -> None:
    table = pd.DataFrame(
        {"frame": [5, 6], "u": 0.0, "v": 0.0, "u_sd": 0.1, "v_sd": 0.1, "probability": [0.4, 0.9], "mass": [1.0, 2.0]}
    )
    row = link(table).iloc[0]
    assert (row["frame"], row["frames"], row["probability"], row["mass"]) == (5, 2, 0.9, 1.5)
    assert row["u_sd"] == pytest.approx(0.1 / np.sqrt(2))


def test_no_rows_give_none_and_bad_arguments_are_named() -> None:
    assert len(link(pairs(1).iloc[:0])) == 0
    with pytest.raises(ValueError, match="level must be"):
        link(pairs(1), level=1.5)
    with pytest.raises(ValueError, match="most must be"):
        link(pairs(1), most=0.0)
