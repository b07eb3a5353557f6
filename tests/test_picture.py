"""The image of a table and its standard deviation, against drawing the molecules anew."""

import numpy as np
import pandas as pd
import pytest
import torch

from smlmtut.imaging.kde import render
from smlmtut.localize.picture import picture


def rows(probability) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    u, v = rng.uniform(0.5, 4.5, (2, 6))
    sd = rng.uniform(0.2, 0.6, 6)
    return pd.DataFrame({"u": u, "v": v, "u_sd": sd, "v_sd": sd, "probability": probability})


def test_mean_and_sd_are_those_of_molecules_drawn_anew():
    """Each is there or not, and somewhere. 4000 draws know a mean to .5/√4000 or better, a sum of variances to 1 %."""
    table = rows([1, 0.9, 0.7, 0.5, 0.3, 0])
    mean, sd = picture(table, (6, 6), 2)
    rng = np.random.default_rng(4)
    drawn = []
    for there in rng.random((4000, 6)) < table["probability"].to_numpy():
        u, v = ((table[x].to_numpy() + table["u_sd"].to_numpy() * rng.standard_normal(6))[there] for x in ("u", "v"))
        drawn.append(render(u, v, (6, 6), 2))
    drawn = torch.stack(drawn)
    assert float((mean - drawn.mean(0)).abs().max()) < 5 * 0.5 / np.sqrt(4000)
    # a Poisson variance, Σ q, would be 8 % larger here
    assert float(drawn.var(0).sum() / sd.square().sum()) == pytest.approx(1, abs=0.05)


def test_certain_molecules_are_rendered_as_ever():
    table = rows(1.0)
    expected = render(table["u"], table["v"], (6, 6), 2, table["u_sd"])
    torch.testing.assert_close(picture(table, (6, 6), 2)[0], expected)


def test_a_molecule_that_is_surely_in_a_pixel_has_no_variance():
    table = pd.DataFrame({"u": [1.0], "v": [1.0], "u_sd": 0.01, "v_sd": 0.01, "probability": 1.0})
    mean, sd = picture(table, (3, 3), 1)
    assert float(mean[1, 1]) == pytest.approx(1) and float(sd.max()) < 1e-6


def test_rows_without_an_sd_are_left_out_and_bad_probabilities_named():
    table = rows(1.0)
    table.loc[0, "v_sd"] = np.nan
    assert float(picture(table, (40, 40))[0].sum()) == pytest.approx(5, abs=0.2)
    with pytest.raises(ValueError, match="probability must be in"):
        picture(rows(1.5), (6, 6))
