"""Files: movies and images, tables of localizations (ThunderSTORM, Picasso), calibration maps."""

from .._files import TruncatedFile
from .movies import (
    IMAGE_SUFFIXES,
    TIFF_SUFFIXES,
    Movie,
    read_calibration,
    read_map,
    read_movie,
    write_image,
    write_movie,
    write_stacks,
)
from .tables import read_localizations, write_localizations

__all__ = [
    "IMAGE_SUFFIXES",
    "TIFF_SUFFIXES",
    "Movie",
    "TruncatedFile",
    "read_calibration",
    "read_localizations",
    "read_map",
    "read_movie",
    "write_image",
    "write_localizations",
    "write_movie",
    "write_stacks",
]
