"""The pixel size that a TIFF file states, as ImageJ and OME write it."""

import math
import re
from typing import Any
from xml.etree import ElementTree

import tifffile

# Units of OME and of ImageJ in nm. Inches and centimetres are left out: they come from a resolution for printing.
UNITS_NM = {
    "pm": 1e-3, "å": 0.1, "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3, "micrometer": 1e3, "micrometre": 1e3,
    "mm": 1e6, "millimeter": 1e6, "m": 1e9,
}  # fmt: skip
SQUARE = 0.01  # largest relative difference between the sides of a square pixel
IMAGEJ_TYPES = ("uint8", "uint16", "float32")


def stated_pixel_size(file: tifffile.TiffFile) -> float | None:
    """Side of a pixel, nm, in the OME or ImageJ metadata of a file; None where they state none, or no square pixel."""
    sides = _ome(file.ome_metadata) if file.is_ome else _imagej(file) if file.is_imagej else None
    if sides is None or not all(math.isfinite(side) and side > 0 for side in sides):
        return None
    width, height = sides
    return width if abs(width - height) <= SQUARE * width else None


def pixel_size_tags(pixel_size_nm: float | None, ome: bool, imagej: bool) -> dict[str, Any]:
    """Arguments of tifffile.imwrite that state the pixel size; its `metadata` is to be merged with others."""
    if pixel_size_nm is None:
        return {"metadata": {}}
    if ome:
        sides = {f"PhysicalSize{axis}": pixel_size_nm / 1e3 for axis in "XY"}
        return {"metadata": sides | {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}}
    if imagej:
        return {"metadata": {"unit": "um"}, "resolution": (1e3 / pixel_size_nm,) * 2}
    return {"metadata": {}, "resolution": (1e7 / pixel_size_nm,) * 2, "resolutionunit": "CENTIMETER"}


def _ome(xml: str | None) -> tuple[float, float] | None:
    try:
        elements = ElementTree.fromstring(xml or "").iter()
        pixels = next(x for x in elements if x.tag.endswith("}Pixels") or x.tag == "Pixels")
        width, height = (
            float(pixels.attrib[f"PhysicalSize{axis}"]) * UNITS_NM[_plain(pixels.get(f"PhysicalSize{axis}Unit", "µm"))]
            for axis in "XY"
        )
    except (ElementTree.ParseError, StopIteration, KeyError, ValueError):
        return None
    return width, height


def _imagej(file: tifffile.TiffFile) -> tuple[float, float] | None:
    page = file.pages.first
    unit = UNITS_NM.get(_plain(str((file.imagej_metadata or {}).get("unit", ""))))
    tags = [page.tags.get(f"{axis}Resolution") for axis in "XY"]  # pixels per unit, numerator and denominator
    try:
        width, height = (unit * tag.value[1] / tag.value[0] for tag in tags)  # type: ignore[operator, union-attr]
    except (TypeError, AttributeError, IndexError, ZeroDivisionError):
        return None
    return width, height


def _plain(unit: str) -> str:
    """A unit in small letters; ImageJ may write µ as an escape, \\u00B5."""
    return re.sub(r"\\u00b5", "µ", unit.strip().lower())
