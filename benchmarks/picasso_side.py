"""Picasso in an environment and a process of its own: what the benchmarks against it share.

Run by Picasso's interpreter, this file localizes one movie for each line of stdin.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
Map = float | list[list[float]]
Localize = Callable[[str, int, str], np.ndarray]


def picasso_python(given: str | None) -> str:
    """The interpreter of Picasso's environment, made under _build where none is given."""
    if given:
        return given
    folder = ROOT / "_build" / "picasso"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"making an environment for Picasso in {folder.relative_to(ROOT)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    requirements = Path(__file__).with_name("requirements.txt")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
    return str(python)


def picasso_version(python: str) -> str:
    """The version of picassosr in that environment."""
    command = [python, "-c", "from importlib.metadata import version; print(version('picassosr'))"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def picasso_localize(
    python: str, folder: str, pixel_size_nm: float, gain: Map, offset: Map, read_variance: Map
) -> Iterator[Localize]:
    """Start Picasso; gives localize(movie, box, fit) -> (K, 4) frame, x, y and net gradient of all local maxima.

    movie: an .npy file of (T, H, W) ADU; folder: for the results; gain in ADU/e⁻, offset in ADU, variance in ADU²: each
    a number, or a map (H, W) as nested lists.
    """
    command = [python, str(Path(__file__).resolve())]
    common = {"pixel": pixel_size_nm, "gain": gain, "offset": offset, "variance": read_variance}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        @cache
        def localize(movie: str, box: int, fit: str) -> np.ndarray:
            order = {**common, "movie": movie, "box": box, "fit": fit, "out": f"{folder}/found.npy"}
            print(json.dumps(order), file=stdin, flush=True)
            for line in stdout:
                if line.startswith("{"):  # Picasso itself prints, too
                    table = np.load(order["out"])
                    return table[np.isfinite(table).all(1)]
            raise SystemExit("Picasso's side stopped: see its message above")

        yield localize
        stdin.close()


def worker() -> None:
    """Picasso's side: find and fit in each movie that is asked for, one line of JSON in return."""
    from picasso import localize  # type: ignore[import-not-found]

    for line in sys.stdin:
        order = json.loads(line)
        movie = np.load(order["movie"])
        # maps rather than numbers: only so does its likelihood know the read noise
        maps = {name: np.full(movie.shape[1:], order[name], np.float32) for name in ("gain", "offset", "variance")}
        table = localize.localize_frames(
            movie,
            None,
            {"Min. Net Gradient": 0, "Box Size": order["box"]},
            camera_info={
                "Baseline": float(np.mean(order["offset"])),
                "Sensitivity": 1 / float(np.mean(order["gain"])),
                "Gain": 1,
                "Qe": 1,
                "Pixelsize": order["pixel"],
            },
            fitting_method=order["fit"],
            camera_calibration=maps,
            threaded=False,
        )
        np.save(order["out"], table[["frame", "x", "y", "net_gradient"]].to_numpy(np.float64))
        print(json.dumps({"found": len(table)}), flush=True)


if __name__ == "__main__":
    worker()
