"""Pairs and scores against cases worked out by hand, the definition of greedy pairing, and closed forms."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smlmtut.evaluation.localization import BORDER_NM, TOLERANCE_NM, Points, Positions, efficiency, inside, match, score
from smlmtut.imaging.psf import Emitters

PIXEL = 100.0  # nm, so that the tolerance is 2.5 px
NONE = Points([], [], [])


def points(*rows):
    """Points from rows of (frame, u, v)."""
    frame, u, v = np.array(rows, dtype=float).reshape(-1, 3).T
    return Points(frame.astype(int), u, v)


def scene(seed, found, truth, frames=3, size=8.0):
    """Random places, so dense that most localizations have several emitters within the tolerance."""
    rng = np.random.default_rng(seed)
    return [Points(rng.integers(0, frames, n), *rng.uniform(0, size, (2, n))) for n in (found, truth)]


def candidates(found: Positions, truth: Positions, reach: float):
    """All (distance, found, truth) that could be a pair, by two loops."""
    listed = []
    for i, j in itertools.product(range(len(found.u)), range(len(truth.u))):
        distance = math.hypot(found.u[i] - truth.u[j], found.v[i] - truth.v[j])
        if found.frame[i] == truth.frame[j] and distance <= reach:
            listed.append((distance, i, j))
    return listed


def greedy(found, truth, reach):
    """The definition: take the nearest possible pair, strike out both its ends, start again."""
    left, taken = candidates(found, truth, reach), []
    while left:
        _, i, j = min(left)
        taken.append((i, j))
        left = [c for c in left if c[1] != i and c[2] != j]
    return taken


def listed(pairs):
    return list(zip(pairs.found.tolist(), pairs.truth.tolist(), strict=True))


# --- pairs


def test_the_nearest_pair_goes_first():
    """On a line: found at 1 and 2.4, truth at 2 and 4.8. Greedy takes 2.4–2 and leaves 1 without a partner."""
    found, truth = points((0, 1.0, 0), (0, 2.4, 0)), points((0, 2.0, 0), (0, 4.8, 0))
    near = match(found, truth, PIXEL)
    assert listed(near) == [(1, 0)]
    assert near.du.tolist() == pytest.approx([0.4]) and near.dv.tolist() == [0] and len(near) == 1


def test_a_pair_is_within_one_frame():
    found, truth = points((0, 5, 5), (2, 5, 5), (-3, 1, 1)), points((1, 5, 5), (2, 5.5, 5), (-3, 1, 1), (10**12, 5, 5))
    assert set(listed(match(found, truth, PIXEL))) == {(1, 1), (2, 2)}


def test_the_tolerance_is_included():
    """As in the challenge's program; 2.5 px is exact in binary."""
    truth = points((0, 0, 0))
    assert len(match(points((0, 2.5, 0)), truth, PIXEL)) == 1
    assert len(match(points((0, math.nextafter(2.5, 3), 0)), truth, PIXEL)) == 0
    assert len(match(points((0, 2.5, 0)), truth, PIXEL, tolerance_nm=249)) == 0
    assert len(match(points((0, 2.0, 2.0)), truth, PIXEL)) == 0  # the distance counts, not each axis


def test_equal_distances_go_by_row():
    """Four localizations at distance 1 from one emitter and from each other's: exact in binary, so a true tie."""
    found = points((0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
    assert listed(match(found, points((0, 0, 0)), PIXEL)) == [(0, 0)]
    assert listed(match(points((0, 0, 0)), found, PIXEL)) == [(0, 0)]
    assert listed(match(points((0, 0, 0), (0, 0, 0)), points((0, 0, 0), (0, 0, 0)), PIXEL)) == [(0, 0), (1, 1)]


@pytest.mark.parametrize("seed", range(20))
def test_greedy_against_its_definition(seed):
    found, truth = scene(seed, 60, 70)
    assert listed(match(found, truth, PIXEL)) == greedy(found, truth, 2.5)


@pytest.mark.parametrize("size", [6.0, 12.0, 40.0])
def test_pairs_are_one_to_one_and_their_errors_are_as_claimed(size):
    """From one crowded cluster a frame to nearly isolated pairs."""
    for seed in range(10):
        found, truth = scene(seed, 150, 120, size=size)
        pairs = match(found, truth, PIXEL)
        assert len(set(pairs.found.tolist())) == len(set(pairs.truth.tolist())) == len(pairs)
        i, j = pairs.found.numpy(), pairs.truth.numpy()
        assert (found.frame[i] == truth.frame[j]).all() and float(pairs.distance.max()) <= 2.5
        assert np.array_equal(pairs.du, found.u[i] - truth.u[j])
        assert np.array_equal(pairs.dv, found.v[i] - truth.v[j])
        assert bool((pairs.distance.diff() >= 0).all())


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_order_and_origin_do_not_matter(seed):
    """Rows permuted, frames renumbered, all moved by a whole number of 1/1024 px (exact), axes and roles swapped."""
    rng = np.random.default_rng(seed)
    found, truth = (Points(p.frame, *(np.round(x * 1024) / 1024 for x in (p.u, p.v))) for p in scene(seed, 50, 40))
    before = match(found, truth, PIXEL)
    if len(set(before.distance.tolist())) < len(before):
        return  # a tie, which goes by row
    p, q = rng.permutation(50), rng.permutation(40)
    shift = rng.integers(-(2**20), 2**20, 2) / 1024
    moved = [Points(7 * x.frame[r] - 3, x.v[r] + shift[0], x.u[r] + shift[1]) for x, r in ((found, p), (truth, q))]
    after = match(moved[0], moved[1], PIXEL)
    assert {(p[i], q[j]) for i, j in listed(after)} == set(listed(before))
    roles = match(truth, found, PIXEL)
    assert {(i, j) for j, i in listed(roles)} == set(listed(before))


def test_arrays_tensors_and_tables_agree():
    found, truth = scene(1, 40, 40)
    expected = listed(match(found, truth, PIXEL))
    tensors = [Points(*(torch.from_numpy(x) for x in (p.frame, p.u, p.v))) for p in (found, truth)]
    tables = [pd.DataFrame({"u": p.u, "v": p.v, "frame": p.frame}, index=np.arange(40) + 9) for p in (found, truth)]
    assert listed(match(tensors[0], tensors[1], PIXEL)) == expected
    assert listed(match(tables[0], tables[1], PIXEL)) == expected  # type: ignore[arg-type]
    assert score(tables[0], tables[1], PIXEL) == score(found, truth, PIXEL)  # type: ignore[arg-type]
    assert score(tables[0], tables[1], PIXEL, (8, 8)) == score(found, truth, PIXEL, (8, 8))  # type: ignore[arg-type]


def test_points_of_emitters():
    u = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    present = torch.tensor([[True, False], [True, True], [False, False]])
    truth = Points.of(Emitters(u, u + 10, torch.full_like(u, 500), present))
    assert truth.frame.tolist() == [0, 1, 1] and truth.u.tolist() == [1, 3, 4] and truth.v.tolist() == [11, 13, 14]


def test_all_frames_at_once_or_one_by_one():
    """Frames far apart in number lie side by side in the tree; none may see another."""
    found, truth = scene(5, 5000, 6000, frames=50, size=20.0)
    once = match(found, truth, PIXEL)
    single = set()
    for frame in range(50):
        i, j = (np.flatnonzero(p.frame == frame) for p in (found, truth))
        few = [Points(p.frame[k], p.u[k], p.v[k]) for p, k in ((found, i), (truth, j))]
        single |= {(i[a], j[b]) for a, b in listed(match(few[0], few[1], PIXEL))}
    assert set(listed(once)) == single


# --- scores


def test_scores_by_hand():
    """Three emitters, three localizations, two pairs with errors (+30, −40) and (+10, 0) nm."""
    truth = points((0, 10, 10), (0, 20, 20), (1, 10, 10))
    found = points((0, 10.3, 9.6), (0, 30, 30), (1, 10.1, 10))
    scores = score(found, truth, PIXEL)
    assert (scores.found, scores.truth, scores.pairs) == (3, 3, 2)
    assert scores.precision == scores.recall == 2 / 3 and scores.jaccard == 2 / 4
    assert scores.rmse_u_nm == pytest.approx(math.sqrt((30**2 + 10**2) / 2))
    assert scores.rmse_v_nm == pytest.approx(math.sqrt(40**2 / 2))
    assert scores.rmse_nm == pytest.approx(math.sqrt((50**2 + 10**2) / 2))
    assert scores.bias_u_nm == pytest.approx(20) and scores.bias_v_nm == pytest.approx(-20)
    assert scores.efficiency == pytest.approx(100 - math.sqrt(50**2 + (50**2 + 10**2) / 2))


def test_identities_of_the_counts():
    """1/JI = 1/precision + 1/recall − 1, and the axes' squares add up."""
    found, truth = scene(3, 80, 100)
    scores = score(found, truth, PIXEL)
    assert scores.precision == scores.pairs / 80 and scores.recall == scores.pairs / 100
    assert 1 / scores.jaccard == pytest.approx(1 / scores.precision + 1 / scores.recall - 1)
    assert scores.rmse_nm**2 == pytest.approx(scores.rmse_u_nm**2 + scores.rmse_v_nm**2)


def test_gaussian_errors():
    """Isolated emitters, errors normal with sd s: distances are Rayleigh's, RMSE √2 s, each axis s.

    At 20 nm the tolerance is 12.5 sd. RMSE² of n pairs has the relative sd 1/√n radially, √(2/n) by axis; five of
    them are allowed, n = 40 000.
    """
    n, sd = 40_000, 20.0
    rng = np.random.default_rng(8)
    index = np.arange(n)
    truth = Points(index // 100, 10.0 * (index % 10), 10.0 * (index // 10 % 10))
    found = Points(truth.frame, *(x + rng.normal(0, sd / PIXEL, n) for x in (truth.u, truth.v)))
    scores = score(found, truth, PIXEL)
    assert scores.jaccard == scores.precision == scores.recall == 1
    assert scores.rmse_nm**2 / (2 * sd**2) == pytest.approx(1, abs=5 / math.sqrt(n))
    for value in (scores.rmse_u_nm, scores.rmse_v_nm):
        assert value**2 / sd**2 == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    for bias in (scores.bias_u_nm, scores.bias_v_nm):
        assert abs(bias) < 5 * sd / math.sqrt(n)


def test_errors_cut_off_by_the_tolerance():
    """With s = 125 nm the tolerance T is 2 s: a Rayleigh distance is below it with 1 − exp(−2), its mean square then
    2 s² (1 − 3 exp(−2)) / (1 − exp(−2)). n = 40 000; five sd of a share, and of a mean of squares below T²."""
    n, sd = 40_000, 125.0
    rng = np.random.default_rng(9)
    truth = Points(np.arange(n), np.zeros(n), np.zeros(n))
    found = Points(np.arange(n), *rng.normal(0, sd / PIXEL, (2, n)))
    scores = score(found, truth, PIXEL)
    share = 1 - math.exp(-2)
    assert scores.recall == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / n))
    square = 2 * sd**2 * (1 - 3 * math.exp(-2)) / share
    assert scores.rmse_nm**2 == pytest.approx(square, abs=5 * TOLERANCE_NM**2 / 2 / math.sqrt(share * n))


def test_perfect_is_100():
    truth = scene(2, 1, 90)[1]
    scores = score(truth, truth, PIXEL)
    assert scores.jaccard == 1 and scores.rmse_nm == 0 and scores.efficiency == 100


def test_the_efficiency():
    assert efficiency(1, 0) == 100 and efficiency(0, 0) == 0
    assert efficiency(1, 30) == 70 and efficiency(1, 30, alpha=0.5) == 85
    assert efficiency(0.7, 40) == pytest.approx(50)  # 3, 4, 5
    assert efficiency(0, 75) == pytest.approx(-25)  # below 0
    assert math.isnan(efficiency(math.nan, 3)) and math.isnan(efficiency(0.5, math.nan))


def test_nothing_found_and_nothing_there():
    """NaN where a share of nothing is asked for. A warning would be an error here."""
    truth = points((0, 1, 1), (0, 5, 5))
    nan = pytest.approx(math.nan, nan_ok=True)
    missed, false, empty = (score(*x, PIXEL) for x in ((NONE, truth), (truth, NONE), (NONE, NONE)))
    assert (missed.precision, missed.recall, missed.jaccard) == (nan, 0, 0)
    assert (false.precision, false.recall, false.jaccard) == (0, nan, 0)
    assert (empty.precision, empty.recall, empty.jaccard) == (nan, nan, nan)
    for scores in (missed, false, empty, score(points((0, 9, 9)), truth, PIXEL)):
        assert scores.pairs == 0
        for name in ("rmse_u_nm", "rmse_v_nm", "rmse_nm", "bias_u_nm", "bias_v_nm", "efficiency"):
            assert math.isnan(getattr(scores, name))


# --- border


def test_the_border_of_the_challenge():
    """450 nm are 4.5 px: of 64 pixels of 100 nm, centres from 4 to 59, both included."""
    kept = inside(points(*((0, u, 30) for u in (3.99, 4, 30, 59, 59.01))), (64, 64), PIXEL, BORDER_NM)
    assert kept.u.tolist() == [4, 30, 59]
    kept = inside(points(*((0, 30, v) for v in (3.99, 4, 20, 39, 39.01))), (44, 64), PIXEL, BORDER_NM)
    assert kept.v.tolist() == [4, 20, 39]
    assert inside(points((0, -0.51, 0), (0, -0.5, 0), (0, 7.5, 0)), (8, 8), PIXEL, 0).u.tolist() == [-0.5, 7.5]


def test_the_border_is_cut_before_pairing():
    """The emitter at 4.1 is inside, its localization at 3.9 is not: a miss, and no false localization."""
    truth, found = points((0, 4.1, 30), (0, 2.0, 30)), points((0, 3.9, 30), (0, 2.0, 30))
    assert score(found, truth, PIXEL).pairs == 2
    scores = score(found, truth, PIXEL, (64, 64), BORDER_NM)
    assert (scores.found, scores.truth, scores.pairs) == (0, 1, 0)
    # and a localization inside may not take a nearer emitter in the border
    truth, found = points((0, 3.9, 30), (0, 5.0, 30)), points((0, 4.1, 30))
    assert score(found, truth, PIXEL, (64, 64), BORDER_NM).rmse_nm == pytest.approx(90)


def test_the_border_against_the_same_cut_by_hand():
    found, truth = scene(4, 300, 300, size=20.0)
    cut = [
        Points(*(x[m] for x in (p.frame, p.u, p.v)))
        for p in (found, truth)
        for m in [(p.u >= 2) & (p.u <= 17) & (p.v >= 2) & (p.v <= 17)]
    ]
    assert score(found, truth, PIXEL, (20, 20), 250) == score(cut[0], cut[1], PIXEL)


# --- bad input

ONE = points((0, 1, 1))
BAD = {
    "pixel": (lambda: match(ONE, ONE, 0), "pixel_size_nm must be finite and positive, got 0"),
    "tolerance": (lambda: match(ONE, ONE, PIXEL, -1), "tolerance_nm must be finite and positive, got -1"),
    "u": (lambda: match(points((0, math.nan, 1)), ONE, PIXEL), "found.u must be finite, got nan"),
    "v": (lambda: score(ONE, points((0, 1, math.inf)), PIXEL), "truth.v must be finite, got inf"),
    "length": (lambda: match(ONE, Points([0], [1.0], [1.0, 2.0]), PIXEL), "truth.v must have the length of truth.u, 1"),
    "frame": (lambda: match(Points([0.5], [1.0], [1.0]), ONE, PIXEL), "found.frame must be whole numbers, got 0.5"),
    "rank": (lambda: match(Points(0, 1.0, 1.0), ONE, PIXEL), "found.frame must have 1 dimensions, got 0"),
    "border": (lambda: score(ONE, ONE, PIXEL, (64, 64), -1), "border_nm must be finite and not negative, got -1"),
    "no shape": (lambda: score(ONE, ONE, PIXEL, border_nm=450), "border_nm must be 0 where shape is None, got 450"),
    "no shape, nan": (lambda: score(ONE, ONE, PIXEL, border_nm=math.nan), "border_nm must be finite and not negative"),
    "wide border": (lambda: score(ONE, ONE, PIXEL, (9, 64), 450), "border_nm must be below half of the frame, 450 nm"),
    "shape": (lambda: inside(ONE, (0, 64), PIXEL), r"shape\[0\] must be a whole number of at least 1"),
    "jaccard": (lambda: efficiency(1.1, 3), r"jaccard must be in \[0, 1\], got 1.1"),
    "rmse": (lambda: efficiency(1, -3), "rmse_nm must be finite and not negative, got -3"),
    "alpha": (lambda: score(ONE, ONE, PIXEL, alpha=-1), "alpha must be finite and not negative, got -1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
