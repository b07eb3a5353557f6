"""The simulated experiment of chapter 12: its truth, and the file in which it is kept."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import experiment
from smlmtut import data


@pytest.fixture(scope="module")
def made() -> experiment.Simulated:
    return experiment.simulate(40, 1.2, 4.0)


def test_molecules_stand_still_but_for_the_drift(made):
    frame, molecule = made.flashes.frame.numpy(), made.flashes.molecule.numpy()
    still = made.flashes.u.numpy() - made.drift[frame, 0]
    np.testing.assert_allclose(still, made.u[molecule], atol=1e-6)
    # the even part is 150 nm along u from end to end, the walk adds 3 nm or so
    assert 108 * np.ptp(made.drift[:, 0]) == pytest.approx(150, abs=15)
    np.testing.assert_allclose(made.drift.mean(0), 0, atol=1e-9)


def test_the_movie_starts_with_the_density_that_was_asked_for(made):
    """On average over frames, a partial one by its part: 57 molecules, Poisson; the first frames are still filling."""
    share = made.flashes.photons.numpy()[made.flashes.frame.numpy() >= 10].sum() / 1000 / 30  # 1000 photons on average
    assert share / (64 * 0.108) ** 2 == pytest.approx(1.2, rel=0.12)


def test_the_frames_show_the_molecules(made):
    brightest = int(made.flashes.photons.argmax())
    frame, u, v = (int(x[brightest].round()) for x in (made.flashes.frame, made.flashes.u, made.flashes.v))
    window = made.adu[frame, max(0, v - 2) : v + 3, max(0, u - 2) : u + 3]
    assert window.max() > np.quantile(made.adu[frame], 0.9)


def test_errors_are_distances_to_the_truth(made):
    f = made.flashes
    some = (f.photons >= 100) & (f.u > 0) & (f.u < 63) & (f.v > 0) & (f.v < 63)
    frame, u, v = (x[some].numpy() for x in (f.frame, f.u, f.v))
    table, emitters = experiment.with_errors(pd.DataFrame({"frame": frame, "u": u + 0.1, "v": v}), made, len(made.adu))
    assert emitters >= len(table)
    # a few lie nearer to another molecule of the filament, and swap
    assert (np.abs(table["error"].to_numpy() - 10.8) < 1e-3).mean() > 0.95


def test_what_is_packed_is_read_again(made, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    u, v = 63 * rng.random((2, 5))
    table = pd.DataFrame({
        "frame": np.arange(5) * 1000, "u": u, "v": v, "u_sd": [0.1, 0.0005, np.nan, 0.9, 2], "v_sd": 0.2,
        "probability": [0, 0.125, 0.5, 0.875, 1], "height": rng.random(5), "error": [0, 20, np.nan, 99.6, 3],
    })  # fmt: skip
    arrays = {f"dense {name}": x for name, x in experiment.packed(table, 8).items()}
    np.savez(tmp_path / "experiment.npz", **arrays)  # type: ignore[arg-type]
    (tmp_path / "experiment.json").write_text(json.dumps({"dense": {"samples": 8}}))
    monkeypatch.setattr(data, "RESULTS", tmp_path)
    found = data.experiment("dense")
    steps = {"u": 0.0011, "v": 0.0011, "u_sd": 0.004, "v_sd": 0.002, "probability": 0, "height": 0.0051, "error": 0.5}
    table.loc[4, "u_sd"] = 255 / 250  # the largest; no sample is farther away than 1 px
    for name, step in steps.items():
        np.testing.assert_allclose(found[name], table[name], atol=step + 1e-9, rtol=0)
    assert found["frame"].tolist() == table["frame"].tolist()
    with pytest.raises(ValueError, match="name must be one of"):
        data.experiment("other")
