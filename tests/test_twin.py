"""The repair of error bars by a simulated twin, against errors whose size is known."""

import numpy as np
import pandas as pd
import pytest
from test_cli import run

from smlmtut.imaging.distributions import LogUniform, Uniform
from smlmtut.io import read_localizations, read_movie, write_localizations
from smlmtut.io.scene_file import SceneDescription, write_scene
from smlmtut.localize.mend import Repair, fit_repair, pairs_of, rms_z

SCENE = SceneDescription(108.0, 1.0, Uniform(500, 1500), 5.0, LogUniform(0.2, 0.6))


def drawn(a: float, b: float, n: int = 20_000, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Claims along two axes, and normal errors of s² = a² + b²σ²."""
    g = np.random.default_rng(seed)
    claimed = np.exp(g.normal(-2.5, 0.6, (n, 2)))
    return claimed, np.sqrt(a**2 + b**2 * claimed**2) * g.standard_normal((n, 2))


@pytest.mark.parametrize(("a", "b"), [(0.06, 1.2), (0.15, 0.7), (0.02, 1.0)])
def test_the_repair_is_found(a, b):
    """40,000 normal errors tell a and b to about 1 %; s²= a² + bσ² or errors along one axis alone would be far off."""
    claimed, error = drawn(a, b)
    found = fit_repair(claimed, error)
    assert found.a == pytest.approx(a, rel=0.06) and found.b == pytest.approx(b, rel=0.03)
    # exactly 1 where the likelihood is largest, since both numbers together may be scaled
    assert rms_z(found.sd(claimed), error) == pytest.approx(1, abs=1e-3)


def test_claims_that_are_right_stay_as_they_are():
    claimed, error = drawn(0.0, 1.0)
    found = fit_repair(claimed, error)
    np.testing.assert_allclose(found.sd(claimed), claimed, rtol=0.03)


def test_claims_that_say_nothing_become_the_rms_error():
    """In closed form: of equal claims the likelihood is largest where s is the root mean square of the errors."""
    error = 0.3 * np.random.default_rng(1).standard_normal((500, 2))
    found = fit_repair(np.full((500, 2), 0.01), error)
    assert found.sd(np.array(0.01)) == pytest.approx(np.sqrt((error**2).mean()), rel=1e-3)


def test_a_mended_table_keeps_all_else():
    table = pd.DataFrame({"u": [1.0, 2.0], "u_sd": [0.1, np.nan], "v_sd": [0.2, np.nan], "probability": [0.9, 0.1]})
    mended = Repair(0.3, 2.0).mended(table)
    np.testing.assert_allclose(mended.u_sd, [np.sqrt(0.09 + 0.04), np.nan])
    np.testing.assert_allclose(mended.v_sd, [np.sqrt(0.09 + 0.16), np.nan])
    for name in ("u", "probability"):
        assert mended[name].tolist() == table[name].tolist()


def test_pairs_lie_within_the_tolerance_and_have_an_error_bar():
    truth = pd.DataFrame({"frame": [0, 0, 1], "u": [5.0, 20.0, 5.0], "v": [5.0, 20.0, 5.0]})
    found = pd.DataFrame({
        "frame": [0, 0, 1, 1], "u": [5.1, 21.5, 5.0, 9.0], "v": [4.8, 20.0, 5.2, 9.0],
        "u_sd": [0.1, 0.1, np.nan, 0.1], "v_sd": [0.2, 0.1, np.nan, 0.1],
    })  # fmt: skip
    claimed, error, frame = pairs_of(found, truth, 100.0, 100.0)
    np.testing.assert_allclose(claimed, [[0.1, 0.2]])
    np.testing.assert_allclose(error, [[0.1, -0.2]])
    assert frame.tolist() == [0]


@pytest.mark.parametrize(
    ("claimed", "error", "words"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), "claimed and error must have the same shape"),
        (np.zeros((50, 2)), np.ones((50, 2)), "claimed must be finite and positive"),
        (np.ones((50, 2)), np.full((50, 2), np.nan), "error must be finite"),
        (np.ones((5, 2)), np.ones((5, 2)), "at least 30 errors that are not all 0, got 10"),
        (np.ones((50, 2)), np.zeros((50, 2)), "at least 30 errors that are not all 0, got 0"),
    ],
)
def test_bad_input_is_named(claimed, error, words):
    with pytest.raises(ValueError, match=words):
        fit_repair(claimed, error)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin")
    (folder / "camera.yaml").write_text("gain: 2\noffset: 100\nread_variance: 20\nquantum_efficiency: 0.5")
    write_scene(folder / "scene.yaml", SCENE)
    run("twin", folder / "scene.yaml", folder / "twin.tif", folder / "truth.csv", "--camera", folder / "camera.yaml",
        "--frames", 30, "--size", "32,48")  # fmt: skip
    return folder


def test_a_twin_has_the_light_of_its_scene(twin):
    """N and b in photons, half of which become photo-electrons; the truth tells photo-electrons."""
    truth = read_localizations(twin / "truth.csv", 108.0)
    with read_movie(twin / "twin.tif") as movie:
        electrons = (movie[0:30].astype(float) - 100) / 2
        assert movie.shape == (30, 32, 48) and movie.pixel_size_nm == pytest.approx(108, rel=1e-3)
    assert 250 <= truth.photons.min() < 300 and 700 < truth.photons.max() <= 750
    inside = truth[truth.u.between(2, 45) & truth.v.between(2, 29)]
    u, v, frame = (inside[x].round().astype(int) for x in ("u", "v", "frame"))
    lit = np.array([electrons[f, y - 2 : y + 3, x - 2 : x + 3].sum() for f, y, x in zip(frame, v, u, strict=True)])
    # 5 × 5 pixels hold .97 of it; b = 2.5 in each of 25; neighbours add some light
    assert np.median((lit - 62.5) / inside.photons) == pytest.approx(0.99, abs=0.08)
    # molecules up to 3 px beyond the border are in the truth: 38 × 54 pixels
    expected = 30 * 38 * 54 * 0.108**2 * (0.6 - 0.2) / np.log(3)
    assert len(truth) == pytest.approx(expected, rel=0.3)


def test_a_twin_is_the_same_for_the_same_seed_alone(twin, tmp_path):
    command = ["twin", twin / "scene.yaml", tmp_path / "twin.tif", tmp_path / "truth.csv", "--camera",
               twin / "camera.yaml", "--frames", 30, "--size", "32,48"]  # fmt: skip
    run(*command)
    assert (tmp_path / "truth.csv").read_bytes() == (twin / "truth.csv").read_bytes()
    run(*command, "--seed", 1)
    assert (tmp_path / "truth.csv").read_bytes() != (twin / "truth.csv").read_bytes()


def test_error_bars_are_mended_by_commands(twin, tmp_path):
    """From a scene to mended error bars: those of the shipped networks are too small, mended ones are not."""
    localize = ["--camera", twin / "camera.yaml", "--pixel-size-nm", 108, "--uncertainty", "--samples", 8, "--quiet"]
    run("localize", twin / "twin.tif", "-o", tmp_path / "twin.csv", *localize)
    text = run("mend", tmp_path / "twin.csv", "-o", tmp_path / "mended.csv", "--twin", tmp_path / "twin.csv",
               "--truth", twin / "truth.csv", "--pixel-size-nm", 108)  # fmt: skip
    before, after = (read_localizations(tmp_path / name, 108.0) for name in ("twin.csv", "mended.csv"))
    truth = read_localizations(twin / "truth.csv", 108.0)
    z = [rms_z(claimed, error) for claimed, error, _ in (pairs_of(x, truth, 108.0, 100.0) for x in (before, after))]
    assert z[0] > 1.3 and z[1] == pytest.approx(1, abs=0.15)
    assert f"rms of error / sd {z[0]:.2f} as claimed" in text and "frames that it was not fitted to" in text
    assert list(after.columns) == list(before.columns) and len(after) == len(before)


def test_what_cannot_be_mended_is_said(twin, tmp_path):
    bare = tmp_path / "bare.csv"
    run("localize", twin / "twin.tif", "-o", bare, "--camera", twin / "camera.yaml", "--pixel-size-nm", 108, "--quiet")
    text = run("mend", bare, "-o", tmp_path / "x.csv", "--twin", bare, "--truth", twin / "truth.csv", code=2)
    assert "must have the columns of `localize --uncertainty`" in text and not (tmp_path / "x.csv").exists()


def test_bad_input_of_mend_is_said(twin, tmp_path):
    """Nothing is overwritten, and a twin that is too short, or of another movie, mends nothing."""
    truth = read_localizations(twin / "truth.csv", 108.0)
    few = truth[["frame", "u", "v"]].head(60).assign(u_sd=0.1, v_sd=0.1)
    write_localizations(tmp_path / "few.csv", few, 108.0)
    rest = ["--twin", tmp_path / "few.csv", "--truth", twin / "truth.csv"]
    text = run("mend", tmp_path / "few.csv", "-o", tmp_path / "x.csv", *rest, code=2)
    assert "at least 100 localizations" in text and "got 60" in text and not (tmp_path / "x.csv").exists()
    before = (tmp_path / "few.csv").read_bytes()
    text = run("mend", tmp_path / "few.csv", "-o", tmp_path / "few.csv", *rest, code=2)
    assert "--output must not be one of the tables" in text and (tmp_path / "few.csv").read_bytes() == before


def test_a_twin_is_seen_by_the_camera_that_is_given(twin, tmp_path):
    """It saturates where the camera does, and its pixels are those of the scene, which a note says."""
    command = [
        "twin",
        twin / "scene.yaml",
        tmp_path / "twin.tif",
        tmp_path / "truth.csv",
        "--frames",
        3,
        "--size",
        "24,24",
    ]
    (tmp_path / "camera.yaml").write_text("gain: 2\noffset: 100\nread_variance: 20\nsaturation: 300\npixel_size_nm: 65")
    text = run(*command, "--camera", tmp_path / "camera.yaml")
    assert "the scene's pixels, 108 nm, but the camera's are 65 nm" in text
    with read_movie(tmp_path / "twin.tif") as movie:
        assert movie[0:3].max() == 300
