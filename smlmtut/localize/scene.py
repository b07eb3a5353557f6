"""The scene that weights were trained on, and what of a movie lies outside of it."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..imaging.distributions import highest, lowest
from ..imaging.scenes import Scene
from ..io.scene_file import SceneDescription
from ..networks import pretrained
from .isolated import NEAR, TILE, TooFewSpots, look

REFERENCE = SceneDescription.of(Scene())
FEWEST, SURE = 12, 0.02  # isolated spots; largest standard error of σ over σ
# Share of the parts of a frame in which background must be seen: with less, up to half of the spots that look isolated
# are two or more. With as much σ is 5 % too large at most (benchmarks/movie_check.py): 6 % beyond a range are allowed
SEEN, SIGMA_SPARE = 0.4, 1.06
# The median N of isolated spots is up to 1.4 times that of all in the densest frames with SEEN
PIXEL_SPARE, PHOTONS_SPARE, DENSITY_SPARE = 1.25, 1.4, 1.25
# e⁻ and share by which molecules that are missed raise the background; the same where they lie over most of the frame;
# nothing lowers it much
BACKGROUND_SPARE, CROWDED_SPARE, BACKGROUND_LOW = (5.0, 0.25), (20.0, 1.0), 1.5
ADVICE = (
    "check the camera's numbers; if they are right, `smlmtut measure` describes this movie as a scene, and "
    "`smlmtut train … --scene` trains on it"
)


def trained_scene(name_or_path: str | Path) -> SceneDescription:
    """The scene of weights, N and b in photo-electrons: of their metadata; the reference scene where these have none.

    name_or_path, and errors: as in `pretrained.describe`; ValueError for metadata that hold no scene.
    """
    numbers = pretrained.describe(name_or_path).get("scene")
    return REFERENCE if numbers is None else SceneDescription.read(numbers)


def spots_seen(x: np.ndarray, v: np.ndarray, sigma: float, level: np.ndarray) -> tuple[float, float]:
    """σ, px, and the median N, e⁻, of isolated spots; NaN where there are few, dim ones, or frames are too crowded.

    x, v: windows (B, h, w), photo-electrons and read variance. sigma, level: about those of the movie, as in `look`.
    """
    try:
        background, spots = look(x, v, sigma, level, FEWEST)
    except TooFewSpots:
        return math.nan, math.nan
    parts = len(x) * -(-x.shape[1] // TILE) * -(-x.shape[2] // TILE)
    photons = float(np.median(spots.photons))
    if len(background.tiles) < SEEN * parts or photons < NEAR * spots.seen_above:
        return math.nan, math.nan
    # of a median of normal values with these weights, times σ
    error = math.sqrt(math.pi / 2 * (spots.sds**-4).sum()) / (spots.sds**-3).sum()
    return spots.sigma if error < SURE * spots.sigma else math.nan, photons


def outside(scene: SceneDescription, seen: Mapping[str, float], crowded: bool) -> list[str]:
    """The quantities of a movie that lie outside of a scene, each with its value and the scene's range.

    seen: fields of the scene and what the movie shows, N and b in photo-electrons; NaN where that is not known. Fewer
    emitters than in the scene are not outside: there is dark in every frame. crowded: whether they lie nearly
    everywhere.
    """
    found, (more, share) = [], CROWDED_SPARE if crowded else BACKGROUND_SPARE
    for name, told, unit, times in (
        ("pixel_size_nm", "pixel size", " nm", PIXEL_SPARE),
        ("sigma_px", "PSF sd", " px", SIGMA_SPARE),
        ("background", "background", " e⁻ a pixel", BACKGROUND_LOW),
        ("photons", "molecules of", " e⁻", PHOTONS_SPARE),
        ("density_per_um2", "localizations a µm² and frame", "", DENSITY_SPARE),
    ):
        low, high = (end(getattr(scene, name)) for end in (lowest, highest))
        least, most = low / times, high * times
        if name == "background":
            most = high + max(more, share * high)
        if name == "density_per_um2":
            least = 0
        if seen[name] < least or seen[name] > most:
            known = f"{low:.4g} to {high:.4g}" if low < high else f"{low:.4g}"
            found.append(f"{told} {seen[name]:.3g}{unit} (known: {known})")
    return found
