"""What a camera is made of, from files: calibration maps (HDF5), and a description in YAML."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from .._files import hdf5
from .._validate import finite, non_negative, positive, whole
from ..imaging.camera import Camera

MAPPED = ("gain", "offset", "read_variance")  # each is one number, or a map with a value for every pixel
CHECKS = {"offset": finite, "read_variance": non_negative, "saturation": finite}  # all other numbers are positive


@dataclass(frozen=True)
class CameraDescription:
    """A camera as a user describes it, and how a movie was taken with it.

    gain (ADU per photo-electron), offset (ADU), read_variance (ADU²): a number, or the path of an HDF5 map; None where
        it was not said. A wrong camera makes a network find molecules in noise, so `camera` refuses to guess.
    photon_units: whether the movie holds photo-electrons; then gain is 1, offset 0 and read_variance 0 unless given.
    saturation: the largest value that the camera reports, ADU.
    quantum_efficiency: photo-electrons per photon; only simulated frames depend on it.
    pixel_size_nm: side of a camera pixel. crop: row and column on the maps of the movie's first pixel.
    """

    gain: float | Path | None = None
    offset: float | Path | None = None
    read_variance: float | Path | None = None
    saturation: float | None = None
    quantum_efficiency: float = 1.0
    pixel_size_nm: float | None = None
    crop: tuple[int, int] | None = None
    photon_units: bool = False

    def camera(self, shape: tuple[int, int] | None = None) -> Camera:
        """The camera, with its maps read.

        shape: (H, W) of the movie, to which the maps are cropped; None: the whole sensor.
        Raises ValueError where gain, offset or read variance is not known, where a map cannot be read, holds values
        that a camera cannot have, or does not have the movie's size and `crop` does not say which part it shows.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in MAPPED}
        missing = [name for name, x in values.items() if x is None]
        if missing and not self.photon_units:
            raise ValueError(
                f"the camera must be known, got no {', '.join(missing)}: give --gain (ADU per photo-electron), "
                "--offset (ADU) and --read-variance (ADU²), or a file with --camera; --photon-units says that the "
                "movie holds photo-electrons already"
            )
        values |= {name: float(name == "gain") for name in missing}
        values = {name: read_map(x) if isinstance(x, Path) else x for name, x in values.items()}
        camera = Camera(**values, quantum_efficiency=self.quantum_efficiency, saturation=self.saturation)
        if shape is None or (self.crop is None and camera.shape in (None, tuple(shape))):
            return camera
        if camera.shape is None:
            raise ValueError("crop needs a map: gain, offset and read_variance are numbers, which hold for every pixel")
        if self.crop is None:
            raise ValueError(
                f"the maps of the camera must have the movie's size {tuple(shape)}, got {camera.shape}: give crop, "
                "the row and column on the maps of the movie's first pixel"
            )
        return camera.crop(*self.crop, shape)


def read_camera(path: str | Path) -> CameraDescription:
    """Read a camera's description from a YAML file whose keys are the fields of CameraDescription.

    gain, offset and read_variance may be paths of HDF5 maps, relative to the folder of the YAML file; crop is
    [row, column]. A key that is left out has its default.
    Raises ValueError, naming file, key and value, for a file that is not a YAML mapping, an unknown key, a value of
    another type or out of its range, or a map that is not there; FileNotFoundError where there is no YAML file.
    """
    path = Path(path)
    found = read_mapping(path, [field.name for field in fields(CameraDescription)], "gain: 2.0")
    try:
        return CameraDescription(**{key: _described(key, value, path.parent) for key, value in found.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_mapping(path: Path, keys: list[str], example: str) -> dict[str, Any]:
    """The keys and values of a YAML file; ValueError where it holds none, or a key that is not one of `keys`."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a YAML file: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} must hold keys and values, for instance {example!r}, got {found!r}")
    for key in found:
        if key not in keys:
            raise ValueError(f"{path} must have the keys {', '.join(keys)} only, got {key!r}")
    return found


def read_map(path: str | Path, dataset: str | None = None) -> np.ndarray:
    """Read one calibration map, (H, W) float64, from an HDF5 file.

    dataset: its name; None: the only 2-D dataset of numbers in the file, whatever its name.
    Raises ValueError where the file is not HDF5 or is truncated, or where there is no such dataset or more than one.
    """
    path = Path(path)
    path.stat()  # raises FileNotFoundError with the name of the file, which h5py leaves out
    with hdf5(path) as file:
        found: dict[str, h5py.Dataset] = {}

        def collect(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and item.ndim == 2 and item.dtype.kind in "uif":
                found[name] = item

        file.visititems(collect)
        names = [dataset] if dataset is not None else list(found)
        if len(names) != 1 or names[0] not in found:
            wanted = f"a 2-D dataset {dataset!r}" if dataset is not None else "one 2-D dataset of numbers"
            raise ValueError(f"{path} must hold {wanted}, got {sorted(found) or 'none'}")
        return found[names[0]][...].astype(np.float64)


def read_calibration(gain: str | Path, offset: str | Path, variance: str | Path) -> dict[str, np.ndarray]:
    """Read the three maps of an sCMOS camera from HDF5 files, for Camera(**read_calibration(...)).

    Returns gain (ADU/e-, positive), offset (ADU) and read_variance (ADU², not negative), each (H, W) float64.
    Raises ValueError where a value is out of its range or not finite, or the three shapes differ.
    """
    maps = {"gain": read_map(gain), "offset": read_map(offset), "read_variance": read_map(variance)}
    shapes = {name: m.shape for name, m in maps.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"gain, offset and variance must have one shape, got {shapes}")
    positive("gain", maps["gain"])
    finite("offset", maps["offset"])
    non_negative("variance", maps["read_variance"])
    return maps


def _described(key: str, value: Any, folder: Path) -> Any:
    """The value of one key of a description; ValueError where it is not allowed."""
    if key == "crop":
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"crop must be [row, column], for instance [128, 256], got {value!r}")
        return whole("crop's row", value[0], 0), whole("crop's column", value[1], 0)
    if key == "photon_units":
        if not isinstance(value, bool):
            raise ValueError(f"photon_units must be true or false, got {value!r}")
        return value
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, str) and key in MAPPED:
        if not (folder / value).is_file():
            raise ValueError(f"{key} must be a number or the path of an HDF5 map, got {value!r}: there is no such file")
        return folder / value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number{' or the path of an HDF5 map' * (key in MAPPED)}, got {value!r}")
    return CHECKS.get(key, positive)(key, value)


def _number(text: str) -> float | str:
    """The number that a text stands for: YAML 1.1 takes 2e3 for a text."""
    try:
        return float(text)
    except ValueError:
        return text
