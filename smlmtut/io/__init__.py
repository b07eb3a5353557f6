"""Files: movies and images, tables of localizations (ThunderSTORM, Picasso), descriptions of a camera."""

from .._files import TruncatedFile
from .calibration import CameraDescription, read_calibration, read_camera, read_map
from .movies import Movie, read_movie, write_image, write_movie, write_stacks
from .tables import read_localizations, write_localizations

__all__ = [
    "CameraDescription",
    "Movie",
    "TruncatedFile",
    "read_calibration",
    "read_camera",
    "read_localizations",
    "read_map",
    "read_movie",
    "write_image",
    "write_localizations",
    "write_movie",
    "write_stacks",
]
