"""What the commands share: options with their units, the camera that they describe, and errors in one line."""

import contextlib
import csv
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..imaging.camera import Camera


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(StrEnum):
    auto = "auto"
    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


Gain = Annotated[float | None, typer.Option(help="ADU per photo-electron.", show_default="1")]
Offset = Annotated[float | None, typer.Option(help="ADU.", show_default="0")]
ReadVariance = Annotated[float | None, typer.Option(help="ADU².", show_default="0")]
GainMap = Annotated[Path | None, typer.Option(help="HDF5 file: ADU per photo-electron.")]
OffsetMap = Annotated[Path | None, typer.Option(help="HDF5 file: ADU.")]
ReadVarianceMap = Annotated[Path | None, typer.Option(help="HDF5 file: ADU².")]
Saturation = Annotated[float | None, typer.Option(help="Largest value that the camera reports, ADU.")]
Pixel = Annotated[float, typer.Option(help="Side of a camera pixel, nm.")]
Crop = Annotated[str | None, typer.Option(metavar="ROW,COLUMN", help="Where on the maps the movie's first pixel lies.")]
Weights = Annotated[str, typer.Option(help="DeepSTORM: name of shipped weights, or a .safetensors file.")]
Posterior = Annotated[str, typer.Option(help="The diffusion model: name of shipped weights, or a .safetensors file.")]
On = Annotated[Device, typer.Option(help="auto: the fastest there is.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """What is wrong with the input in one line, and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = f"no such file: {error.filename}" if isinstance(error, FileNotFoundError) else str(error)
        typer.echo(f"error: {' '.join(text.split())}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command goes on from here", err=True)
        raise typer.Exit(130) from None


def camera_from(
    gain: float | None,
    offset: float | None,
    read_variance: float | None,
    gain_map: Path | None,
    offset_map: Path | None,
    read_variance_map: Path | None,
    corner: tuple[int, int] | None,
    shape: tuple[int, int] | None,
    saturation: float | None,
) -> "Camera":
    """A camera of numbers and maps, and of the part of the maps that the movie shows."""
    from .. import io
    from ..imaging.camera import Camera

    values = {}
    for name, number, path, default in (
        ("gain", gain, gain_map, 1.0),
        ("offset", offset, offset_map, 0.0),
        ("read_variance", read_variance, read_variance_map, 0.0),
    ):
        if number is not None and path is not None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} and --{option}-map must not both be given")
        values[name] = io.read_map(path) if path is not None else default if number is None else number
    camera = Camera(**values, saturation=saturation)
    if corner is None or shape is None:
        return camera
    if camera.shape is None:
        raise ValueError("--crop needs a map of the camera")
    return camera.crop(*corner, shape)


def corner_from(crop: str | None) -> tuple[int, int] | None:
    if crop is None:
        return None
    try:
        row, column = next(csv.reader([crop]))
        return int(row), int(column)
    except ValueError as error:
        raise ValueError(f"--crop must be ROW,COLUMN, for instance 128,256, got {crop!r}") from error


def device_from(device: Device) -> str:
    import torch

    if device is not Device.auto:
        return device.value
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
