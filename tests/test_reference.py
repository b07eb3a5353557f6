"""The frames of the bake-off: their classes, their certificate, and the file that ships them."""

import json
import math
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from benchmarks import reference_file as packed
from benchmarks import reference_posteriors as reference
from smlmtut._random import step_generator
from smlmtut.imaging.kde import kde_image
from smlmtut.imaging.psf import Emitters
from smlmtut.posterior import Draws


@pytest.mark.parametrize("kind", reference.KINDS)
def test_frames_belong_to_their_class(kind):
    found = reference.emitters_of(kind, 60, step_generator(1, 0))
    count = found.mask.sum(1)
    inside = ((found.u > -0.5) & (found.u < 15.5) & (found.v > -0.5) & (found.v < 15.5)) | ~found.mask
    if kind in ("lone", "pair"):
        assert bool(inside.all()) and set(count.tolist()) == {1 if kind == "lone" else 2}
    if kind == "pair":
        apart = (found.u[:, 0] - found.u[:, 1]).hypot(found.v[:, 0] - found.v[:, 1])
        assert 0.6 <= float(apart.min()) < 0.8 and 1.8 < float(apart.max()) <= 2.0
    if kind == "sparse":
        assert set(count.tolist()) == {0, 1, 2, 3, 4} and not bool(inside.all())
    if kind == "crowded":  # 1.75 /µm² on 22 × 22 pixels of .108 µm, Poisson and uniform on 1–2.5
        wanted, variance = 1.75 * reference.AREA, 1.75 * reference.AREA + (1.5 * reference.AREA) ** 2 / 12
        assert abs(float(count.double().mean()) - wanted) < 4 * math.sqrt(variance / 60)


def test_the_same_seed_gives_the_same_frames_and_another_does_not():
    one, same, other = (reference.make_part("pair", 3, step_generator(seed, 0)) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["adu"], other["adu"])
    assert one["adu"].dtype == np.uint16 and one["gain"].shape == (3, 16, 16)


def chains(u: torch.Tensor, photons: torch.Tensor) -> Draws:
    """Draws of one frame, emitters (C, S, E), whose v is 8 and whose b and σ are 5 and 1."""
    frame, ones = torch.zeros(1, 16, 16, dtype=torch.float64), torch.ones(1, *u.shape[:2], dtype=torch.float64)
    there = photons > 0
    return Draws(
        frame, frame, reference.prior(), torch.full((13,), 1 / 13, dtype=torch.float64), (u * there)[None],
        (8.0 * there)[None], photons[None], there.sum(-1)[None], 5 * ones, ones, 0 * ones, {},
    )  # fmt: skip


def made(move: float = 0.0, second: float = 0.0) -> Draws:
    """Independent draws; half of the chains moved by so much, or with a second emitter this often."""
    dice = torch.Generator().manual_seed(0)
    u = 6 + torch.randn(reference.CHAINS, 400, 3, generator=dice, dtype=torch.float64) * 0.1
    u[: reference.CHAINS // 2, :, 0] += move
    photons = torch.zeros_like(u)
    photons[..., 0] = 500
    few = torch.arange(reference.CHAINS) < reference.CHAINS // 2
    photons[..., 1] = 500 * (torch.rand(u.shape[:2], generator=dice) < torch.where(few, second, 0.0)[:, None])
    u[..., 1] = 12
    return chains(u, photons)


def noted(draws: Draws) -> str:
    return reference.why_not(reference.certificate(draws, 0, *reference.moments(draws, 0)))


def test_independent_draws_are_kept_and_chains_that_disagree_are_not():
    assert noted(made()) == ""
    assert "r_hat" in noted(made(move=0.1))
    assert "disagreement 0.2" in noted(made(second=0.2)) or "disagreement 0.1" in noted(made(second=0.2))
    stuck = made()
    stuck.u[0, :, :, 0] = 6 + 0.1 * torch.randn(reference.CHAINS, 8, dtype=torch.float64).repeat_interleave(50, 1)
    assert "size" in noted(stuck)


def test_moments_are_those_of_the_images():
    draws = made(second=0.5)
    mean, sd = reference.moments(draws, 0)
    y = kde_image(draws.emitters(0), reference.SHAPE)[:, 0]
    torch.testing.assert_close(mean, y.mean(0))
    torch.testing.assert_close(sd, y.std(0, correction=0), atol=1e-7, rtol=1e-5)


@pytest.fixture
def folder(tmp_path):
    """Two parts of two frames; the second frame of the first part has no certificate."""
    for k, why in enumerate(("r_hat 1.2 > 1.01", "")):
        frames = reference.make_part("pair", 2, step_generator(5, k))
        draws = np.stack([reference.thinned(made(second=0.5 * k), 0)] * 2)
        notes = [
            {"r_hat": 1.0, "size": 900.0 + k, "disagreement": 0.0, "at_cap": 0.0, "attempt": 1, "why_not": w}
            for w in ("", why)
        ]
        moments: dict[str, Any] = {name: np.full((2, 64, 64), x) for name, x in (("mean", 0.25), ("sd", 3e-5))}
        moments |= frames | {"notes": json.dumps(notes), "draws": draws, "p": np.ones((2, 13)) / 13}
        np.savez(tmp_path / f"dev-pair-{k:02d}.npz", **moments)
    return tmp_path


def test_the_file_has_the_frames_that_were_kept(folder, tmp_path):
    packed.collect(folder, tmp_path / "a.h5")
    packed.collect(folder, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    parts = [np.load(folder / f"dev-pair-{k:02d}.npz") for k in (0, 1)]
    with h5py.File(tmp_path / "a.h5") as file:
        stored = file["dev/pair"]
        assert list(file) == ["dev"] and isinstance(stored, h5py.Group)
        group: dict[str, Any] = {name: values[()] for name, values in stored.items()}
        assert json.loads(str(stored.attrs["left_out"])) == {"r_hat": 1}
    np.testing.assert_array_equal(group["adu"], np.concatenate([parts[0]["adu"][:1], parts[1]["adu"]]))
    np.testing.assert_array_equal(group["size"], [900, 901, 901])
    assert group["draw_u"].shape == (3, 64, 2) and not group["sd"].any() and (group["mean"] == 0.25).all()
    # the images of the packed draws are those of the draws
    for row, draws in ((0, parts[0]["draws"][0]), (2, parts[1]["draws"][1])):
        u, v, photons = (torch.from_numpy(group[f"draw_{name}"][row]).double() for name in ("u", "v", "photons"))
        full = [torch.from_numpy(draws[:, 3 * i : 3 * i + 3]).double() for i in range(3)]
        ours, wanted = (kde_image(Emitters(a, b, n, n > 0), (16, 16)) for a, b, n in ((u, v, photons), tuple(full)))
        torch.testing.assert_close(ours, wanted)
    with pytest.raises(ValueError, match="--folder must hold files"):
        packed.collect(tmp_path / "none", tmp_path / "c.h5")


def test_a_file_grows_by_the_parts_that_it_lacks(folder, tmp_path):
    """As on a machine that has the earlier file alone: the same frames as from all parts, and none is made twice."""
    packed.collect(folder, tmp_path / "all.h5")
    other = tmp_path / "later"
    other.mkdir()
    (folder / "dev-pair-01.npz").rename(other / "dev-pair-01.npz")
    packed.collect(folder, tmp_path / "first.h5")
    assert reference.files_in(tmp_path / "first.h5") == ["dev-pair-00"]
    (other / "dev-pair-00.npz").write_bytes((folder / "dev-pair-00.npz").read_bytes())  # is not added again
    packed.collect(other, tmp_path / "both.h5", onto=tmp_path / "first.h5")
    assert reference.files_in(tmp_path / "both.h5") == ["dev-pair-00", "dev-pair-01"]
    assert (tmp_path / "both.h5").read_bytes() == (tmp_path / "all.h5").read_bytes()
