"""What the commands share: groups of options, each written once, and errors in one line."""

import contextlib
import csv
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..io import CameraDescription


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


Pixel = Annotated[float, typer.Option(help="Side of a camera pixel, nm.")]
On = Annotated[Device, typer.Option(help="auto: the fastest that this machine has.")]
CAMERA_HELP = (
    "YAML file with any of the keys gain, offset, read_variance (each a number or the path of an HDF5 map), "
    "saturation, photon_units (true or false), quantum_efficiency, pixel_size_nm, crop ([row, column]). "
    "Options given beside it override its keys."
)


@dataclass(frozen=True)
class SensorOptions:
    """Options that describe the camera; None: not given."""

    camera: Annotated[Path | None, typer.Option(help=CAMERA_HELP)] = None
    gain: Annotated[float | None, typer.Option(help="ADU per photo-electron.")] = None
    offset: Annotated[float | None, typer.Option(help="ADU.")] = None
    read_variance: Annotated[float | None, typer.Option(help="ADU².")] = None
    gain_map: Annotated[Path | None, typer.Option(help="HDF5 file: ADU per photo-electron.")] = None
    offset_map: Annotated[Path | None, typer.Option(help="HDF5 file: ADU.")] = None
    read_variance_map: Annotated[Path | None, typer.Option(help="HDF5 file: ADU².")] = None
    saturation: Annotated[float | None, typer.Option(help="Largest value that the camera reports, ADU.")] = None
    photon_units: Annotated[
        bool | None, typer.Option("--photon-units", help="The movie holds photo-electrons: gain 1, offset 0.")
    ] = None

    def given(self) -> bool:
        """Whether any of these options was given."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    def description(self, **more: Any) -> "CameraDescription":
        """The camera of the file, whose keys the options, and those of `more` that are not None, override."""
        from ..io import CameraDescription, read_camera

        values = {**more, "saturation": self.saturation, "photon_units": self.photon_units}
        for name in ("gain", "offset", "read_variance"):
            number, path = getattr(self, name), getattr(self, f"{name}_map")
            if number is not None and path is not None:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} and --{option}-map must not both be given, got {number:g} and {path}")
            values[name] = path if number is None else number
        described = CameraDescription() if self.camera is None else read_camera(self.camera)
        return replace(described, **{name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True)
class MovieOptions(SensorOptions):
    """Options that describe the camera, and the part of it that a movie shows."""

    crop: Annotated[
        str | None, typer.Option(metavar="ROW,COLUMN", help="Where on the maps the movie's first pixel lies.")
    ] = None

    def description(self, **more: Any) -> "CameraDescription":
        return super().description(crop=_corner(self.crop), **more)


@dataclass(frozen=True)
class NetworkOptions:
    """Options that say which networks look at a movie, and how they are computed."""

    weights: Annotated[str, typer.Option(help="DeepSTORM: the name of shipped weights, or a .safetensors file.")] = (
        "deepstorm-2d"
    )
    posterior: Annotated[
        str, typer.Option(help="The diffusion model: the name of shipped weights, or a .safetensors file.")
    ] = "cddpm-2d"
    device: On = Device.auto
    precision: Annotated[
        Precision,
        typer.Option(help="no: float32; auto: bf16 or fp16 where the hardware has it, up to twice as fast."),
    ] = Precision.auto
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which the fields of each dataclass among its arguments are separate options."""
    arguments = inspect.signature(command).parameters
    groups: dict[str, Any] = {name: p.annotation for name, p in arguments.items() if is_dataclass(p.annotation)}

    @functools.wraps(command)
    def with_groups(**options: Any) -> None:
        made = {
            name: group(**{field.name: options.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**options, **made)

    options = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, p in arguments.items()
        for option in (inspect.signature(groups[name]).parameters.values() if name in groups else [p])
    ]
    with_groups.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # it is what typer reads
    return with_groups


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn an error of the input into one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        missing = isinstance(error, FileNotFoundError) and error.filename
        text = f"no such file: {error.filename}" if missing else str(error)  # type: ignore[attr-defined]
        typer.echo(f"error: {' '.join(text.split())}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("interrupted: give the same command again to continue", err=True)
        raise typer.Exit(130) from None


def device_from(device: Device) -> str:
    """The name of a device; of "auto", the fastest there is."""
    import torch

    if device is not Device.auto:
        return device.value
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _corner(crop: str | None) -> tuple[int, int] | None:
    if crop is None:
        return None
    try:
        row, column = next(csv.reader([crop]))
        return int(row), int(column)
    except ValueError as error:
        raise ValueError(f"--crop must be ROW,COLUMN, for instance 128,256, got {crop!r}") from error
