"""The parts that reference_posteriors.py drew, as the one file that ships.

    python benchmarks/reference_file.py --folder runs/reference --output smlmtut/reference/posteriors.h5
    python benchmarks/reference_file.py --folder runs/reference --onto smlmtut/reference/posteriors.h5   # adds to it

Only frames whose certificate holds are kept; how many were left out, and why, stays in the file. `protocol.md` says
what the parts and classes are, `smlmtut/reference/posteriors.md` what is in the file. Prints its size and its SHA-256.
"""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from benchmarks.reference_posteriors import KEPT, KINDS, files_of
from smlmtut._files import replacing

COPIED = ("adu", "gain", "offset", "read_variance", "background", "sigma", "truth_u", "truth_v", "truth_photons")
CERTIFICATE = ("r_hat", "size", "disagreement", "at_cap", "attempt")
SMALL = 1e-4  # of mean and sd: below it they are stored as 0, which is most of the pixels
TYPES = {"mean": np.float16, "sd": np.float16}  # whose step is 5e-4 of a value, far below the error of the draws' own


def gathered(paths: list[Path]) -> tuple[dict[str, np.ndarray], Counter]:
    """The frames that are kept of some parts, and why the others are not."""
    rows: dict[str, list[np.ndarray]] = {}
    left_out: Counter = Counter()
    for path in paths:
        with np.load(path) as part:
            notes = json.loads(str(part["notes"]))
            left_out.update(note["why_not"].split()[0] for note in notes if note["why_not"])
            kept = [i for i, note in enumerate(notes) if not note["why_not"]]
            if not kept:
                continue
            some = {name: part[name][kept] for name in COPIED} | unpacked(part["draws"][kept])
            some |= {name: np.where(part[name][kept] < SMALL, 0, part[name][kept]) for name in ("mean", "sd")}
            some["p_inside"] = part["p"][kept]
            some |= {name: np.array([notes[i][name] for i in kept]) for name in CERTIFICATE}
        for name, values in some.items():
            rows.setdefault(name, []).append(values)
    return {name: stacked(parts).astype(TYPES.get(name, parts[0].dtype)) for name, parts in rows.items()}, left_out


def unpacked(draws: np.ndarray) -> dict[str, np.ndarray]:
    """Draws (n, KEPT, 3 E + 2) by their names, without the places that no draw uses: the emitters come first."""
    most = (draws.shape[2] - 2) // 3
    found = {name: draws[:, :, i * most : (i + 1) * most] for i, name in enumerate(("u", "v", "photons"))}
    used = max(1, int((found["photons"] > 0).any((0, 1)).sum()))
    named = {f"draw_{name}": x[:, :, :used] for name, x in found.items()}
    return named | {"draw_background": draws[:, :, -2], "draw_sigma": draws[:, :, -1]}


def stacked(parts: list[np.ndarray]) -> np.ndarray:
    """One array, the last axis padded with zeros where the numbers of emitters differ."""
    longest = max(x.shape[-1] for x in parts) if parts[0].ndim > 1 else 0
    return np.concatenate(
        [np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, longest - x.shape[-1])]) if x.ndim > 1 else x for x in parts]
    )


def collect(folder: Path, output: Path, parts: tuple[str, ...] = ("dev", "test"), onto: Path | None = None) -> None:
    """Write the file; onto: None, or an earlier one, whose frames come first, and whose parts are not added again.

    Raises ValueError where the folder has nothing.
    """
    groups = {f"{p}/{kind}": sorted(folder.glob(f"{p}-{kind}-*.npz")) for p in parts for kind in KINDS}
    if not any(groups.values()):
        raise ValueError(f"--folder must hold files that reference_posteriors.py made, got {folder}")
    earlier = {group: held(onto, group) for group in groups}
    with replacing(output) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["draws_per_frame"] = KEPT
        for group, paths in groups.items():
            first, left_out, files = earlier[group]
            new = [path for path in paths if number_of(path) not in files]
            arrays, more = gathered(new)
            left_out.update(more)
            files += [number_of(path) for path in new]
            if first and arrays:
                arrays = {name: stacked([first[name], arrays[name]]) for name in first}
            arrays = arrays or first
            if not arrays:
                continue
            for name, values in sorted(arrays.items()):
                # filters that every HDF5 library has; no time stamps, so that the same parts give the same bytes
                file.create_dataset(f"{group}/{name}", data=values, compression="gzip", compression_opts=9,
                                    shuffle=True, track_times=False)  # fmt: skip
            file.require_group(group).attrs["left_out"] = json.dumps(left_out)
            file.require_group(group).attrs["files"] = files


def number_of(path: Path) -> int:
    """The number of a file PART-CLASS-NUMBER.npz."""
    return int(path.stem.rpartition("-")[2])


def held(path: Path | None, group: str) -> tuple[dict[str, np.ndarray], Counter, list[int]]:
    """Arrays, what was left out, and the numbers of the files that a group of an earlier file was made of."""
    if path is None:
        return {}, Counter(), []
    with h5py.File(path) as file:
        found = file.get(group)
        if not isinstance(found, h5py.Group):
            return {}, Counter(), []
        left_out = Counter(json.loads(str(found.attrs["left_out"])))
        return {name: np.asarray(values) for name, values in found.items()}, left_out, files_of(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/reference"))
    parser.add_argument("--output", type=Path, default=Path("smlmtut/reference/posteriors.h5"))
    parser.add_argument("--onto", type=Path, help="an earlier file, which keeps its frames; none: a new file")
    parser.add_argument("--parts", nargs="*", choices=["dev", "test"], default=["dev", "test"])
    given = parser.parse_args()
    collect(given.folder, given.output, tuple(given.parts), given.onto)
    content = given.output.read_bytes()
    print(f"{given.output}: {len(content) / 1e6:.2f} MB, SHA-256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
