"""Are the localizations right? Localizations paired with the truth, and scored as in the EPFL challenge of 2016.

The definitions are those of Sage et al. (2019, Nature Methods 16:387) and of the program that ranked the entries,
CompareLocalization3D: a localization and an emitter of one frame can be a pair where they are at most 250 nm
apart; the nearest of all such pairs is taken first, and each localization and emitter belongs to one pair at most.
Jaccard index, precision and recall count the pairs; the RMSE and the bias are over the pairs alone. No emitter is left
out because it is dim. Frames in which nothing is found count here as any other; that program stops at the last frame
of the shorter table.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._validate import between, finite, image_shape, instance, non_negative, number, positive, rank, shown, tensor
from ..imaging.psf import Emitters

TOLERANCE_NM = 250.0  # of the challenge, laterally
BORDER_NM = 450.0  # of the challenge, for its frames of 6400 nm


class Positions(Protocol):
    """Anything with frame, u and v, each (K,): a table of localizations, kde.Peaks, Points."""

    @property
    def frame(self) -> Any: ...
    @property
    def u(self) -> Any: ...
    @property
    def v(self) -> Any: ...


@dataclass(frozen=True)
class Points:
    """Positions u, v (K,) in camera pixels in frames (K,), whole numbers; arrays or tensors."""

    frame: Any
    u: Any
    v: Any

    @classmethod
    def of(cls, emitters: Emitters) -> "Points":
        """The emitters that are present, frame by frame; the frame is their row in the batch."""
        instance("emitters", emitters, Emitters)
        return cls(emitters.mask.nonzero()[:, 0], emitters.u[emitters.mask], emitters.v[emitters.mask])


@dataclass(frozen=True)
class Pairs:
    """One-to-one pairs, the nearest first.

    found, truth: (P,) int64, rows of the two arguments of `match`.
    du, dv: (P,) float64, found − truth in camera pixels; distance: their length.
    """

    found: Tensor
    truth: Tensor
    du: Tensor
    dv: Tensor
    distance: Tensor

    def __len__(self) -> int:
        return len(self.found)


@dataclass(frozen=True)
class Scores:
    """Counts and errors of the localizations of a movie.

    found, truth, pairs: how many there are, outside the border.
    precision: pairs / found, NaN where nothing is found. recall: pairs / truth, NaN where there is no truth.
    jaccard: pairs / (found + truth − pairs), NaN where there is neither.
    rmse_u_nm, rmse_v_nm, rmse_nm: root mean square error of the pairs by axis, and of their distance.
    bias_u_nm, bias_v_nm: mean of found − truth over the pairs.
    efficiency: of jaccard and rmse_nm, in per cent. Errors and efficiency are NaN where there is no pair.
    """

    found: int
    truth: int
    pairs: int
    precision: float
    recall: float
    jaccard: float
    rmse_u_nm: float
    rmse_v_nm: float
    rmse_nm: float
    bias_u_nm: float
    bias_v_nm: float
    efficiency: float


def match(
    found: Positions,
    truth: Positions,
    pixel_size_nm: float,
    tolerance_nm: float = TOLERANCE_NM,
) -> Pairs:
    """Pair localizations with emitters of the same frame that are at most tolerance_nm away.

    The nearest of all possible pairs is taken first, as in the challenge; equal distances are ordered by the row in
    found, then in truth. Returns Pairs on the CPU.
    Raises ValueError for positions that are not finite or differ in length, a frame that is not a whole number, or
    a pixel size or tolerance that is not positive.
    """
    reach = float(number("tolerance_nm", tolerance_nm, positive)) / float(
        number("pixel_size_nm", pixel_size_nm, positive)
    )
    frame, u, v = (
        np.concatenate(x) for x in zip(checked_arrays("found", found), checked_arrays("truth", truth), strict=True)
    )
    count = len(found.u)
    # all frames in one tree: they lie along a third axis, too far apart for a pair between two of them
    layer = 2 * reach * np.unique(frame, return_inverse=True)[1]
    places = np.column_stack([u, v, layer])
    i, j = _neighbours(places[:count], places[count:], reach)
    du, dv = u[i] - u[count + j], v[i] - v[count + j]
    distance = np.hypot(du, dv)
    order = np.lexsort((j, i, distance))
    order = order[distance[order] <= reach]
    chosen = order[_nearest_first(i[order], j[order])]
    return Pairs(*(torch.from_numpy(x[chosen]) for x in (i, j, du, dv, distance)))


def score(
    found: Positions,
    truth: Positions,
    pixel_size_nm: float,
    shape: tuple[int, int] | None = None,
    border_nm: float = 0.0,
    tolerance_nm: float = TOLERANCE_NM,
    alpha: float = 1.0,
) -> Scores:
    """Score the localizations of a movie against its emitters.

    shape: (H, W) of the frames. Localizations and emitters within border_nm of a frame's edge, or beyond it, are
        taken out *before* the pairing, as in the challenge (which has border_nm = 450): an emitter just
        inside whose localization falls just outside is missed. None: all count, and border_nm must be 0.
    alpha: nm⁻¹, of the efficiency. Other arguments and errors as in `match`.
    Raises ValueError for a negative border, or one without shape or that leaves nothing of the frame.
    """
    if shape is not None:
        found, truth = (inside(x, shape, pixel_size_nm, border_nm) for x in (found, truth))
    elif number("border_nm", border_nm, non_negative) != 0:
        raise ValueError(f"border_nm must be 0 where shape is None, got {border_nm:g}")
    pairs = match(found, truth, pixel_size_nm, tolerance_nm)
    there, seen = len(truth.u), len(found.u)
    jaccard = _ratio(len(pairs), there + seen - len(pairs))
    du, dv = pixel_size_nm * pairs.du, pixel_size_nm * pairs.dv
    # the mean of none is NaN in torch, without a warning
    rmse_u, rmse_v, rmse = (x.mean().sqrt().item() for x in (du**2, dv**2, du**2 + dv**2))
    return Scores(
        found=seen,
        truth=there,
        pairs=len(pairs),
        precision=_ratio(len(pairs), seen),
        recall=_ratio(len(pairs), there),
        jaccard=jaccard,
        rmse_u_nm=rmse_u,
        rmse_v_nm=rmse_v,
        rmse_nm=rmse,
        bias_u_nm=du.mean().item(),
        bias_v_nm=dv.mean().item(),
        efficiency=efficiency(jaccard, rmse, alpha),
    )


def inside(positions: Positions, shape: tuple[int, int], pixel_size_nm: float, border_nm: float = BORDER_NM) -> Points:
    """The positions at least border_nm from the edges of a frame of shape (H, W); its edges are at −1/2 and W − 1/2.

    Raises ValueError for a negative border or one that leaves nothing of the frame, and for bad positions.
    """
    height, width = image_shape("shape", shape)
    pixel_size_nm = float(number("pixel_size_nm", pixel_size_nm, positive))
    border = float(number("border_nm", border_nm, non_negative)) / pixel_size_nm
    if 2 * border >= min(height, width):
        raise ValueError(
            f"border_nm must be below half of the frame, {0.5 * min(height, width) * pixel_size_nm:g} nm, "
            f"got {border_nm:g}"
        )
    frame, u, v = checked_arrays("positions", positions)
    least = border - 0.5
    keep = (u >= least) & (u <= width - 1 - least) & (v >= least) & (v <= height - 1 - least)
    return Points(frame[keep], u[keep], v[keep])


def efficiency(jaccard: float, rmse_nm: float, alpha: float = 1.0) -> float:
    """E = 100 − √((100 − 100 JI)² + (α RMSE)²) per cent: 100 is perfect, and it can be negative.

    jaccard: in [0, 1]; rmse_nm: of the distances; alpha: nm⁻¹, 1 laterally in the challenge. NaN where either is.
    Raises ValueError for a number out of range.
    """
    number("alpha", alpha, non_negative)
    scores = {"jaccard": jaccard, "rmse_nm": rmse_nm}
    if any(bool(tensor(name, x, 0).isnan()) for name, x in scores.items()):
        return math.nan
    between("jaccard", jaccard, 0, 1)
    non_negative("rmse_nm", rmse_nm)
    return 100 - math.hypot(100 - 100 * jaccard, alpha * rmse_nm)


def _neighbours(found: NDArray, truth: NDArray, reach: float) -> tuple[NDArray, NDArray]:
    """Rows (i, j) of all pairs at most reach apart, and of a few beyond it: a margin for the tree's rounding."""
    from scipy.spatial import KDTree  # here, since it takes a third of a second to load

    if not len(found) or not len(truth):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    near = KDTree(found).sparse_distance_matrix(KDTree(truth), 1.001 * reach, output_type="ndarray")
    return near["i"].astype(np.int64), near["j"].astype(np.int64)


def _nearest_first(i: NDArray, j: NDArray) -> NDArray:
    """Which of the possible pairs (i, j), sorted by distance, are taken: the nearest first.

    A pair that is the nearest one left for both its members is taken, whatever happens elsewhere. So all such pairs
    are taken at once, every other pair that shares a member with them is removed, and so on until none is left.
    """
    nearest_i, nearest_j = (np.zeros(x.max(initial=0) + 1, np.int64) for x in (i, j))
    free_i, free_j = (np.ones(len(x), bool) for x in (nearest_i, nearest_j))
    left, taken = np.arange(len(i)), [np.zeros(0, np.int64)]
    while len(left):
        nearest_i[i[left[::-1]]] = left[::-1]  # of several values for one place the last stays: the nearest
        nearest_j[j[left[::-1]]] = left[::-1]
        pairs = left[(nearest_i[i[left]] == left) & (nearest_j[j[left]] == left)]
        free_i[i[pairs]] = free_j[j[pairs]] = False
        left = left[free_i[i[left]] & free_j[j[left]]]
        taken.append(pairs)
    return np.sort(np.concatenate(taken))


def checked_arrays(name: str, positions: Positions) -> tuple[NDArray, NDArray, NDArray]:
    """frame int64, u and v float64, each (K,), checked."""
    if not all(hasattr(positions, key) for key in ("frame", "u", "v")):
        raise ValueError(f"{name} must have frame, u and v, got {shown(positions)}")
    frame, u, v = (_array(f"{name}.{key}", getattr(positions, key)) for key in ("frame", "u", "v"))
    for key, value in (("frame", frame), ("u", u), ("v", v)):
        rank(f"{name}.{key}", finite(f"{name}.{key}", value), 1)
        if len(value) != len(u):
            raise ValueError(f"{name}.{key} must have the length of {name}.u, {len(u)}, got {len(value)}")
    if not (frame == np.floor(frame)).all():
        raise ValueError(f"{name}.frame must be whole numbers, got {frame[frame != np.floor(frame)][0]:g}")
    return frame.astype(np.int64), u.astype(np.float64), v.astype(np.float64)


def _array(name: str, values: Any) -> NDArray:
    return tensor(name, values).detach().cpu().numpy()


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
