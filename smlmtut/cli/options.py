"""What the commands share: groups of options, each written once, and errors in one line."""

import contextlib
import csv
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from distributed import Client

    from ..io import CameraDescription, Movie


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


Number = TypeVar("Number", int, float)
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
        corner = None if self.crop is None else pair("--crop", self.crop, int, "128,256 for ROW,COLUMN")
        return super().description(crop=corner, **more)


@dataclass(frozen=True)
class NetworkOptions:
    """Options that say which networks look at a movie, and how they are computed."""

    weights: Annotated[str, typer.Option(help="DeepSTORM: the name of shipped weights, or a .safetensors file.")] = (
        "deepstorm-2d"
    )
    posterior: Annotated[
        str, typer.Option(help="What draws samples: the name of shipped weights, or a .safetensors file.")
    ] = "engression-2d"
    device: On = Device.auto
    precision: Annotated[
        Precision,
        typer.Option(help="no: float32; auto: bf16 or fp16 where the hardware has it, up to twice as fast."),
    ] = Precision.auto
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False


@dataclass(frozen=True)
class WorkerOptions:
    """Options that say who computes; None: the process of the command."""

    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Compute in N processes of this machine, with one thread each.",
            show_default="in one process",
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Compute on the workers of a dask scheduler that runs, as tcp://10.0.0.1:8786."
        ),
    ] = None

    def client(self) -> contextlib.AbstractContextManager["Client | None"]:
        """Of the cluster, for a `with` statement. ValueError where it is not one of these, or dask is not installed."""
        if self.workers is None and self.scheduler is None:
            return contextlib.nullcontext()
        try:
            from ..localize.cluster import connected
        except ImportError as error:
            raise ValueError(f"--workers and --scheduler: {error}") from error
        return connected(self.workers, self.scheduler)


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
        typer.echo(f"error: {shortened(' '.join(text.split()))}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("interrupted: give the same command again to continue", err=True)
        raise typer.Exit(130) from None


def shortened(text: str, longest: int = 290) -> str:
    """The text, without its middle where it is too long: an error begins with a name and ends with what was found."""
    if len(text) <= longest:
        return text
    kept = longest - len(" […] ")
    return f"{text[: kept * 2 // 3]} […] {text[-(kept - kept * 2 // 3) :]}"


def check_folders(*outputs: Path) -> None:
    """ValueError where the folder of an output is not there: an error before the work, not after it."""
    for output in outputs:
        if not output.parent.is_dir():
            raise ValueError(f"the folder of {output} must exist: create {output.parent} first")


def checked_seed(seed: int | None) -> int | None:
    """ValueError for a seed beyond what random generators take."""
    if seed is not None and not 0 <= seed < 1 << 63:
        raise ValueError(f"--seed must be a whole number from 0 to 2^63 − 1, got {seed}")
    return seed


def pair(option: str, text: str, kind: Callable[[str], Number], example: str) -> tuple[Number, Number]:
    """Two numbers with a comma between them, as in --crop 128,256."""
    try:
        first, second = next(csv.reader([text]))
        return kind(first), kind(second)
    except (ValueError, StopIteration) as error:
        raise ValueError(f"{option} must be two numbers, for instance {example}, got {text!r}") from error


def frame_range(text: str | None, length: int) -> tuple[int, int]:
    """The first frame and the one after the last, of A:B as Python counts: from 0, without B. None: all frames."""
    if text is None:
        return 0, length
    found = re.fullmatch(r"(\d*):(\d*)", text.strip())
    first, last = (int(found[1] or 0), int(found[2] or length)) if found else (0, 0)
    if not first < last <= length:
        raise ValueError(
            f"--frames must be A:B, frames A to B − 1 counted from 0, within the movie's 0:{length}, got {text!r}"
        )
    return first, last


def device_from(device: Device) -> str:
    """The name of a device; of "auto", the fastest there is."""
    import torch

    if device is not Device.auto:
        return device.value
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def movie_pixel_size(given: float | None, movie: "Movie") -> float:
    """Side of a camera pixel, nm: as given, else as the movie's metadata state it; a note where they differ."""
    from .._validate import positive

    stated = movie.pixel_size_nm
    if given is None and stated is None:
        raise ValueError(
            f"--pixel-size-nm must be given, or pixel_size_nm in the file of --camera: {movie.path.name} states none"
        )
    if given is None:
        assert stated is not None
        return stated
    positive("pixel_size_nm", given)
    if stated is not None and abs(given - stated) > 0.01 * stated:
        note(f"the pixel size is taken as {given:g} nm, but {movie.path.name} states {stated:.5g} nm")
    return given


def note_what_picasso_drops(table: Path) -> None:
    """A note where Picasso will not show all rows of an .hdf5 file."""
    from ..io import picasso, tables

    if table.suffix.lower() in tables.HDF5:
        dropped, rows = picasso.rows_without_picasso(table)
        if dropped:
            note(
                f"Picasso's loader drops {dropped} of the {rows} rows of {table.name}, those with x or y "
                "below 0 or with a value that is not finite; the file has them all"
            )


def note(text: str) -> None:
    """Tell the user, on stderr, what is not an error."""
    typer.echo(f"warning: {text}", err=True)
